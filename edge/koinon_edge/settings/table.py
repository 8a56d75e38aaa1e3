"""One table of edge.toml, key by key: what each must be, and a sentence with its line where it is not."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from koinon_core.errors import UsageError
from koinon_edge.settings import lines

__all__ = ["Table"]

_SIZE = re.compile(r"(\d{1,15}(?:\.\d+)?) ?([kKMGT]?)(i?)B")
_THOUSANDS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_DURATION = re.compile(r"(\d{1,15}(?:\.\d+)?) ?(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(slots=True)
class Table:
    """The values at `path` in `file`. Each key is asked for by what it must be; `done` refuses those that nobody asked
    for. A default of None makes None what is not there."""

    file: Path
    path: lines.Path
    values: Mapping[str, Any]
    where: Mapping[lines.Path, int]
    _asked: list[str] = field(default_factory=list)

    # -- what is wrong ------------------------------------------------------------------------------------------

    def wrong(self, key: str, what: str) -> NoReturn:
        """UsageError: `what` is wrong with `key`."""
        line = lines.line_of((*self.path, key), self.where)
        raise UsageError(f"{self.file} line {line}: {what}")

    def must(self, key: str, what: str) -> NoReturn:
        """UsageError: the key must be `what`."""
        self.wrong(key, f"{self.name_of(key)} = {_short(self.values[key])} must be {what}")

    def name_of(self, key: str) -> str:
        """The key, as it is called in sentences."""
        return f"{key} in [{'.'.join(self.path)}]" if self.path else key

    def done(self) -> None:
        """UsageError for a key that there is not."""
        for key in self.values:
            if key not in self._asked:
                near = difflib.get_close_matches(key, self._asked, n=1)
                there = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(self._asked))}"
                of = f"[{'.'.join(self.path)}]" if self.path else "the file"
                self.wrong(key, f"{of} has no key {key!r}; {there}")

    # -- what is there ------------------------------------------------------------------------------------------

    def has(self, key: str) -> bool:
        """Whether it is there; it is a key that may be."""
        if key not in self._asked:
            self._asked.append(key)
        return key in self.values

    def flag(self, key: str, usual: bool) -> bool:
        if not self.has(key):
            return usual
        if not isinstance(value := self.values[key], bool):
            self.must(key, "true or false")
        return value

    def text(self, key: str, *, empty: bool = False) -> str | None:
        if not self.has(key):
            return None
        value = self.values[key]
        if not isinstance(value, str) or not value.isprintable() or not (empty or value.strip()):
            self.must(key, "a text" if empty else "a text that is not empty")
        return value

    def texts(self, key: str, usual: tuple[str, ...] = ()) -> tuple[str, ...]:
        if not self.has(key):
            return usual
        value = self.values[key]
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            self.must(key, "a list of texts that are not empty")
        return tuple(value)

    def choice(self, key: str, among: Sequence[str], usual: str) -> str:
        if not self.has(key):
            return usual
        if (value := self.values[key]) not in among:
            near = difflib.get_close_matches(str(value), among, n=1)
            self.must(key, " or ".join(map(repr, among)) + (f"; did you mean {near[0]!r}?" if near else ""))
        return str(value)

    def number(self, key: str, usual: float, low: float, high: float) -> float:
        """From `low` to `high`, both included."""
        if not self.has(key):
            return usual
        value = self.values[key]
        if not _is_number(value) or not low <= value <= high:
            self.must(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, key: str, usual: int, low: int, high: int) -> int:
        if not self.has(key):
            return usual
        value = self.values[key]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.must(key, f"a whole number from {low} to {high}")
        return value

    def size(self, key: str, *, least: int = 0) -> int | None:
        """In bytes."""
        if not self.has(key):
            return None
        size = _size(self.values[key])
        if size is None:
            self.must(key, "a size, as '500MB' or '2GiB', or a whole number of bytes")
        if size < least:
            self.must(key, f"at least {least} B")
        return size

    def duration(self, key: str, usual: float, *, least: float = 0.0) -> float:
        """In seconds."""
        if not self.has(key):
            return usual
        seconds = _duration(self.values[key])
        if seconds is None:
            self.must(key, "a duration, as '90s', '10m', '6h' or '2d', or a number of seconds")
        if seconds < least:
            self.must(key, f"at least {least:g} seconds")
        return seconds

    def place(self, key: str) -> Path | None:
        """A path, from the folder of the file."""
        text = self.text(key)
        if text is None:
            return None
        try:
            return self.file.absolute().parent / Path(text).expanduser()
        except RuntimeError:
            self.must(key, "a path in the home of a user that this machine knows")

    def table(self, key: str) -> "Table":
        """The table below this one; an empty one where it is not there."""
        value = self.values[key] if self.has(key) else {}
        if not isinstance(value, dict):
            self.must(key, f"a table: write [{'.'.join((*self.path, key))}] and its keys below")
        return Table(self.file, (*self.path, key), value, self.where)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _size(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value >= 0 else None
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    number, thousands, binary = found.groups()
    unit: int = (1024 if binary else 1000) ** _THOUSANDS[thousands]
    return round(float(number) * unit)


def _duration(value: object) -> float | None:
    if isinstance(value, int | float) and _is_number(value):
        return float(value) if value >= 0 else None
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    return float(found[1]) * _SECONDS[found[2]] if found else None


def _short(value: object) -> str:
    """The value as a sentence can bear it."""
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else f"{text[:57]}..."
