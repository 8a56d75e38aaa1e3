"""How the commands print: sizes, times, tables, JSON."""

import datetime
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

__all__ = [
    "Address", "AsJson", "Credentials", "Insecure", "as_dict", "console", "elapsed", "figure", "moment", "print_json",
    "size", "table_of",
]  # fmt: skip

Address = Annotated[
    str | None,
    typer.Option(
        envvar="KOINON_ADDRESS",
        help="The coordinator, HOST:PORT; default: what the credentials say, or 127.0.0.1:8440.",
    ),
]
Credentials = Annotated[
    Path | None,
    typer.Option(
        help="Your credentials, a folder; default: KOINON_OPERATOR, koinon-federation/admin, or "
        "~/.config/koinon/operator."
    ),
]
Insecure = Annotated[
    bool | None,
    typer.Option(
        "--insecure",
        help="Plain text (or KOINON_INSECURE=1), to a coordinator on this machine that has it too.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def console(markup: bool = False) -> Console:
    """Standard output; plain where it is no terminal, and where NO_COLOR is set. Without `markup`, text is printed
    as it is: what a device said must not be read as rich's tags."""
    return Console(highlight=False, soft_wrap=False, markup=markup, emoji=False)


def size(nbytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    raise AssertionError("unreachable")


def moment(seconds: float) -> str:
    """A point in time, in this machine's zone; empty for 0."""
    if not seconds:
        return ""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%m-%d %H:%M:%S")


def elapsed(start: float, end: float) -> str:
    """Seconds between two points in time; empty where one is missing."""
    return f"{max(0.0, end - start):.2f}" if start and end else ""


def figure(value: float, known: bool = True) -> str:
    """A measured number in three digits; empty where nobody measured it."""
    return f"{value:.3g}" if known else ""


_LAST = 30  # characters of a table's last column that are worth another column


def table_of(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, measured: Collection[str] = (),
    spare: Sequence[str] = (), width: int | None = None,
) -> Table:  # fmt: skip
    """A table whose last column may wrap. A column of `measured` in which nothing stands takes no place. On a terminal
    too narrow (`width`, default: as it is) for the rest and some of the last column, those of `spare` go, the first of
    them first."""
    shown = [i for i, name in enumerate(columns) if name not in measured or any(row[i] for row in rows)]
    wide = {i: max(len(text) for text in (columns[i], *(row[i] for row in rows))) for i in shown}
    wide[shown[-1]] = min(wide[shown[-1]], _LAST)
    room = width or console().width
    for name in spare:
        i = columns.index(name)
        if i in shown and sum(wide[one] + 2 for one in shown) > room:
            shown.remove(i)
    table = Table(box=None)
    for i in shown:
        table.add_column(columns[i], no_wrap=i < len(columns) - 1)
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    return table


def as_dict(message: Message) -> dict[str, Any]:
    """A message as plain values, under its own field names, defaults included. 64-bit numbers are numbers."""
    value: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _numbers(message, value)


def _numbers(message: Message, value: dict[str, Any]) -> dict[str, Any]:
    # protobuf's JSON writes 64-bit integers as text, which no program expects.
    for f in message.DESCRIPTOR.fields:
        held = getattr(message, f.name)
        if f.cpp_type in (f.CPPTYPE_INT64, f.CPPTYPE_UINT64) and not f.is_repeated:
            if f.name in value:  # what is optional and was not said is not 0
                value[f.name] = held
        elif f.message_type and f.name in value and not f.message_type.GetOptions().map_entry:
            if f.is_repeated:
                value[f.name] = [_numbers(m, v) for m, v in zip(held, value[f.name], strict=True)]
            else:
                value[f.name] = _numbers(held, value[f.name])
    return value


def print_json(value: Any) -> None:
    """`value` on standard output."""
    print(json.dumps(value, indent=2))
