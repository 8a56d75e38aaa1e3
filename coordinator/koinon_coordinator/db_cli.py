"""`koinon-coordinator db`: the run database's upkeep from the shell."""

import json as json_
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")

Db = Annotated[str, typer.Option(help="The run database.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder for large contents; default: beside the SQLite file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
_DB = "sqlite:///koinon.db"


@app.command(epilog="Example: koinon-coordinator db check --db sqlite:///koinon.db")
def check(db: Db = _DB, data: Data = None, json: AsJson = False) -> None:
    """Read all that is stored, and say what is damaged; exit 1 if anything is. Works while a coordinator runs."""
    from koinon_coordinator.store import upkeep

    with upkeep.opened(db, data) as place:
        checked = upkeep.check(place)
    counts = {"runs": checked.runs, "contents": checked.contents, "files": checked.files}
    if json:
        print(json_.dumps({**counts, "findings": [f.to_json() for f in checked.findings]}, indent=1))
    else:
        for finding in checked.findings:
            print(finding.text)
        read = ", ".join(f"{count} {what}" for what, count in counts.items())
        print(f"{read}: {len(checked.findings) or 'nothing'} wrong")
    if checked.findings:
        raise typer.Exit(1)


@app.command(epilog="Example: koinon-coordinator db backup --db sqlite:///koinon.db --to /backup/monday")
def backup(
    to: Annotated[Path, typer.Option(help="An empty folder, or one that is not there yet.")],
    db: Db = _DB,
    data: Data = None,
    json: AsJson = False,
) -> None:
    """Copy the database and all that it names, as of one moment. Works while a coordinator runs."""
    from koinon_coordinator.store import upkeep
    from koinon_coordinator.store.backup import backup as copy

    with upkeep.opened(db, data) as place:
        made = copy(place, to)
    if json:
        print(json_.dumps({"database": str(made.database), "files": made.files, "bytes": made.nbytes}))
        return
    print(f"{made.database} and {made.files} files beside it, {made.nbytes} bytes")
    print(f"koinon-coordinator serve --db sqlite:///{made.database} goes on from it")


@app.command(epilog="Example: koinon-coordinator db upgrade --db sqlite:///koinon.db")
def upgrade(db: Db = _DB, data: Data = None, json: AsJson = False) -> None:
    """Bring the tables to this version, before a coordinator does it when it starts."""
    from koinon_coordinator.store import upkeep

    before, now = upkeep.upgrade(db, data)
    if json:
        print(json_.dumps({"before": before, "now": now}))
    elif before == now:
        print(f"nothing to do: the database is at revision {now}")
    else:
        print(f"from {f'revision {before}' if before else 'no tables'} to revision {now}")
