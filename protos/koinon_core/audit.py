"""The audit log: what was decided about a run and when, as a hash chain of its own.

    hash of entry n = SHA-256(hash of entry n-1 || canonical JSON of entry n)

It holds times, sizes and reasons beside the facts, so it differs from one execution to the next, and is verified,
never compared. The facts of each round that is over are in it, and with them the run's history
(koinon_core.history), which must come out as the entries say.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from koinon_core.canonical import canonical, digest_of, sha256
from koinon_core.history import extend

__all__ = ["Entry", "Report", "append", "verify"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: its number (from 1), its canonical JSON, and its hash."""

    number: int
    text: bytes
    hash: str

    @property
    def value(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.text)
        return value


def append(number: int, before: str, at: float, kind: str, data: Mapping[str, Any]) -> Entry:
    """The entry after number `number` with hash `before` ("" for the first)."""
    text = canonical({**data, "at": at, "kind": kind, "number": number + 1})
    return Entry(number + 1, text, _hash(before, text))


def _hash(before: str, text: bytes) -> str:
    return sha256(before.encode() + text)


@dataclass(slots=True)
class Report:
    """What a log says of itself: its hash and the run's head at its end, every head that the run ever had, how many
    entries and rounds there are, and what is wrong, a sentence each."""

    hash: str = ""
    head: str = ""
    heads: set[str] = field(default_factory=set)
    entries: int = 0
    rounds: int = 0
    problems: list[str] = field(default_factory=list)


def verify(entries: Iterable[Entry], ends: tuple[int, str] = (0, "")) -> Report:
    """Follow the chain from its first entry. Stops at the first entry that does not belong where it is. `ends` is the
    number and hash of an entry that must be in it: the last, as the run's own row says it."""
    report = Report()
    for entry in entries:
        problem = _follow(report, entry)
        if entry.number == ends[0] and entry.hash != ends[1]:
            problem = problem or "the run's own row knows another entry by this number"
        if problem:
            report.problems.append(f"entry {report.entries + 1}: {problem}")
            break
        report.entries, report.hash = entry.number, entry.hash
        report.heads.add(report.head)
    if not report.problems and report.entries < ends[0]:
        report.problems.append(
            f"it ends after entry {report.entries}, and {ends[0]} were written; its end was cut off"
        )
    return report


def _follow(report: Report, entry: Entry) -> str:
    """Why this entry cannot follow; empty if it does."""
    if entry.number != report.entries + 1:
        return f"number {entry.number} stands here; entries are missing or doubled"
    if _hash(report.hash, entry.text) != entry.hash:
        return "its hash is not that of its text and the entry before it; one of them was changed"
    try:
        value = entry.value
        if value["number"] != entry.number:
            return f"its text says that it is number {value['number']}"
        match value["kind"]:
            case "created" | "anchored":
                report.head = value["head"]
            case "ended":
                report.head = extend(report.head, digest_of(value["facts"]))
                report.rounds += 1
                if value["head"] != report.head:
                    return f"the head after round {value['facts']['round']} does not follow from its facts"
    except (ValueError, KeyError, TypeError) as error:
        return f"its text cannot be read ({error})"
    return ""
