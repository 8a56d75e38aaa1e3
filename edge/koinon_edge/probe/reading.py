"""A reading: a value with its unit and where it came from, or why there is none. What is not known is never 0."""

from dataclasses import dataclass
from pathlib import Path

from koinon_edge.probe.files import Unreadable

__all__ = ["Reading"]


@dataclass(frozen=True, slots=True)
class Reading:
    """`value` in `unit`, or None: then `why` says why it is unknown. `source` names what was read."""

    value: float | None
    unit: str
    source: str
    why: str = ""

    @classmethod
    def unknown(cls, unit: str, source: str | Path, why: str) -> "Reading":
        return cls(None, unit, str(source), why)

    @classmethod
    def failed(cls, unit: str, error: Unreadable) -> "Reading":
        return cls(None, unit, str(error.path), error.why)

    def __str__(self) -> str:
        return f"unknown ({self.why})" if self.value is None else f"{self.value:g} {self.unit}".strip()
