"""What the gate says, and the table of it for `koinon-edge status --explain`."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Answer", "Predicate", "Verdict", "explain"]

Answer = Literal["yes", "no", "unknown"]


@dataclass(frozen=True, slots=True)
class Predicate:
    """One question: what was found (`value`), what is asked for (`threshold`), and `why` where the answer is no, or
    unknown, or needs a word."""

    name: str
    value: str
    threshold: str
    verdict: Answer
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the device may work. `reason` is that of the first question that closes the gate; empty where it is open.
    `note` is what should be said even then."""

    open: bool
    predicates: tuple[Predicate, ...]
    reason: str = ""
    note: str = ""

    @property
    def sends(self) -> bool:
        """Whether bytes may be moved, whatever else the device may not do now."""
        return not any(p.name in ("network", "budget") and p.verdict == "no" for p in self.predicates)


def explain(verdict: Verdict) -> list[str]:
    """Lines: each question with what was found, what is asked for, the answer and why, in columns."""
    rows = [("PREDICATE", "VALUE", "THRESHOLD", "VERDICT", "WHY")]
    rows += [(p.name, p.value, p.threshold, p.verdict, p.why) for p in verdict.predicates]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in rows
    ]
