"""In which line of a TOML text a key is: tomllib tells what a file says, and not where.

The text is known to be TOML. It is cut into strings, comments, brackets and words, which is enough to tell a table's
head and a key from a value that looks like one.
"""

import json
import re
from collections.abc import Mapping

__all__ = ["Path", "line_of", "lines"]

Path = tuple[str, ...]
_PIECE = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'"
    r"|\#[^\n]*" r"|[A-Za-z0-9_-]+" r"|\n|\S",
    re.DOTALL,
)  # fmt: skip


def lines(text: str) -> dict[Path, int]:
    """Lines, from 1, of all tables and keys by their path; keys within a value are not among them."""
    found: dict[Path, int] = {}
    table: Path = ()
    statement: list[str] = []
    depth, line, began = 0, 1, 1
    for piece in [*_PIECE.findall(text), "\n"]:
        if piece == "\n" and depth == 0:
            table = _note(statement, table, began, found)
            statement = []
        elif not piece.isspace() and not piece.startswith("#"):
            began = began if statement else line
            depth += (piece in "[{") - (piece in "]}")
            statement.append(piece)
        line += piece.count("\n")
    return found


def line_of(path: Path, found: Mapping[Path, int]) -> int:
    """The line of a key, or of the nearest thing that it is in."""
    for length in range(len(path), 0, -1):
        if path[:length] in found:
            return found[path[:length]]
    return 1


def _note(statement: list[str], table: Path, line: int, found: dict[Path, int]) -> Path:
    """Remember where the statement's key is; the table that is open after it."""
    if not statement:
        return table
    head = statement[0] == "["
    names = [
        p for p in (statement if head else statement[: statement.index("=")]) if p not in ("[", "]", ".")
    ]
    path = (*(() if head else table), *map(_plain, names))
    for length in range(1, len(path) + 1):
        found.setdefault(path[:length], line)
    return path if head else table


def _plain(name: str) -> str:
    """A key without its quotes."""
    if name.startswith("'"):
        return name[1:-1]
    if not name.startswith('"'):
        return name
    try:
        return str(json.loads(name))
    except ValueError:  # TOML has an escape (\U) that JSON has not
        return name[1:-1]
