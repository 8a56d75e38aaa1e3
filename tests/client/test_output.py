"""How tables are printed: what is measured goes before what is said, where there is no room for both."""

from rich.console import Console

from koinon.cli.output import table_of

COLUMNS = ("round", "status", "up", "NMSE", "metrics")
ROWS = [("1", "closed", "4.0 MB", "0.0052", "eval.accuracy 0.91  eval.loss 0.4  train.loss 0.3")]


def headings(width: int, **settings) -> list[str]:
    table = table_of(COLUMNS, ROWS, width=width, **settings)
    return [str(column.header) for column in table.columns]


def test_a_narrow_terminal_shows_less_and_its_last_column_whole():
    spare = ("NMSE", "up")
    assert headings(80, spare=spare) == list(COLUMNS)
    assert headings(60, spare=spare) == ["round", "status", "up", "metrics"]
    assert headings(50, spare=spare) == ["round", "status", "metrics"]
    assert headings(10, spare=spare) == ["round", "status", "metrics"], "the rest is squeezed"
    assert headings(10) == list(COLUMNS)
    console = Console(width=50, force_terminal=False)
    with console.capture() as shown:
        console.print(table_of(COLUMNS, ROWS, width=50, spare=spare))
    assert "accuracy 0.91" in shown.get()


def test_a_column_of_which_nothing_was_measured_takes_no_place():
    rows = [("1", "closed", "4.0 MB", "", "")]
    table = table_of(COLUMNS, rows, measured=("NMSE",), width=200)
    assert [column.header for column in table.columns] == ["round", "status", "up", "metrics"]
