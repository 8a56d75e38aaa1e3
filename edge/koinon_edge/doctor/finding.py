"""A finding, and how findings are shown to a person."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Verdict", "lines", "worst"]

Verdict = Literal["ok", "warn", "bad", "unknown"]
_MARKS: dict[Verdict, str] = {"ok": "ok", "warn": "!", "bad": "X", "unknown": "?"}
_ORDER: tuple[Verdict, ...] = ("ok", "unknown", "warn", "bad")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was `found` about a `topic`. "bad": the device cannot take part like this; "warn": it can, with harm or
    danger; "unknown": it could not be found out. `advice` says what to do, where something is to be done."""

    topic: str
    verdict: Verdict
    found: str
    advice: str = ""


def lines(findings: Iterable[Finding]) -> list[str]:
    """One line a finding, with a mark (ok, ! for a warning, X for what is bad, ? for what is unknown), and its advice
    below it."""
    listed = list(findings)
    width = max((len(f.topic) for f in listed), default=0)
    shown = []
    for finding in listed:
        shown.append(f"{_MARKS[finding.verdict]:>2}  {finding.topic:<{width}}  {finding.found}")
        if finding.advice:
            shown.append(f"    {'':<{width}}  -> {finding.advice}")
    return shown


def worst(findings: Iterable[Finding]) -> Verdict:
    """The worst verdict of all; what is unknown is worse than what is well."""
    return max((f.verdict for f in findings), key=_ORDER.index, default="ok")
