"""What a device's part in a round has cost: seconds and joules by phase, and bytes.

It is for the operator: nothing is decided by it, and it is in no hash chain. Every figure may be absent, which says
that nobody measured it or that the device's owner keeps it back; it is never taken for 0.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import fsum, isfinite
from typing import Any, Self

from koinon_core.errors import BadBlob

__all__ = ["LONGEST_TEXT", "Phase", "Spent"]

_MOST_PHASES = 16
_LONGEST_NAME = 16
LONGEST_TEXT = 64
"""Characters of what is said of a figure's scope and source."""
_MOST_JOULES = 1e12
_YEAR = 366 * 86400.0
_MOST_BYTES = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase of the work. `above_idle` are the joules beyond what the device would have drawn idling, and `missing`
    is the share of the seconds that the joules do not cover."""

    joules: float | None = None
    above_idle: float | None = None
    seconds: float | None = None
    missing: float | None = None

    def check(self, name: str) -> None:
        """Raise BadBlob, with the reason, for what no device can have measured."""
        figures = (
            ("joules", self.joules, 0.0, _MOST_JOULES),
            ("joules above idle", self.above_idle, -_MOST_JOULES, _MOST_JOULES),
            ("seconds", self.seconds, 0.0, _YEAR),
            ("share of missing seconds", self.missing, 0.0, 1.0),
        )
        for what, value, least, most in figures:
            if value is not None and not least <= value <= most:  # nor is NaN
                raise BadBlob(
                    f"the {what} of phase {name!r} are said to be {value}: they are from {least:g} to {most:g}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The cost of one device's part in one round, by phases (download, train, encode, upload). `scope` says what the
    joules are of (the whole module, say: those of different scopes do not compare), and `source` what measured them."""

    phases: Mapping[str, Phase] = field(default_factory=dict)
    scope: str = ""
    source: str = ""
    bytes_up: int | None = None
    bytes_down: int | None = None

    @property
    def joules(self) -> float | None:
        """Of all phases together; None where none was measured."""
        return _sum(phase.joules for phase in self.phases.values())

    @property
    def seconds(self) -> float | None:
        return _sum(phase.seconds for phase in self.phases.values())

    @property
    def missing(self) -> float | None:
        """The share of all seconds that the joules do not cover; None where nobody says."""
        told = [
            (p.missing, p.seconds) for p in self.phases.values()
            if p.missing is not None and p.seconds is not None
        ]  # fmt: skip
        whole = fsum(seconds for _, seconds in told)
        return fsum(share * seconds for share, seconds in told) / whole if whole else None

    def check(self) -> None:
        """Raise BadBlob, with the reason, for what no honest device says."""
        if len(self.phases) > _MOST_PHASES:
            raise BadBlob(f"{len(self.phases)} phases are more than the {_MOST_PHASES} that are kept")
        for name, phase in self.phases.items():
            if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
                raise BadBlob(
                    f"a phase has a name of 1 to {_LONGEST_NAME} printable characters, not {name[:20]!r}"
                )
            phase.check(name)
        for what, text in (("scope", self.scope), ("source", self.source)):
            if len(text) > LONGEST_TEXT or not text.isprintable():
                raise BadBlob(
                    f"the {what} of an energy figure is said in at most {LONGEST_TEXT} printable characters"
                )
        for what, number in (("up", self.bytes_up), ("down", self.bytes_down)):
            if number is not None and not 0 <= number <= _MOST_BYTES:
                raise BadBlob(f"{number} bytes {what} are no number of bytes")

    def to_json(self) -> dict[str, Any]:
        """What is known, by name."""
        found = {**asdict(self), "phases": {n: _known(asdict(p)) for n, p in self.phases.items()}}
        return {name: value for name, value in _known(found).items() if value != ""}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Of what `to_json` gave, or of figures as a meter gives them: what is no finite number is not known."""
        phases = {
            str(name): Phase(**{f: _figure(phase.get(f)) for f in Phase.__dataclass_fields__})
            for name, phase in value.get("phases", {}).items()
        }
        up, down = (_count(value.get(name)) for name in ("bytes_up", "bytes_down"))
        return cls(
            phases=phases, scope=str(value.get("scope") or ""), source=str(value.get("source") or ""),
            bytes_up=up, bytes_down=down,
        )  # fmt: skip


def _figure(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and isfinite(value) else None


def _count(value: Any) -> int | None:
    return int(value) if _figure(value) is not None else None


def _sum(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return fsum(known) if known else None


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
