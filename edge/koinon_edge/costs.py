"""What a piece of work has cost, as a value that can be written to disk and sent.

A figure stands with what it is of (`scope`), who said it (`source`), and how much of the time it leaves out
(`missing`): a round that was measured half must not look like a cheap one.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["LONGEST", "PHASES", "Cost", "Costs"]

PHASES = ("download", "train", "encode", "upload")
"""What a device does in a round, as it is measured."""

LONGEST = 64
"""Characters of a name, a scope or a source."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one phase: `joules` above nothing and `above` what idling would have cost, None where they are not known; its
    `seconds`, the share of them that is `missing` from the joules, and how many readings the figure stands on."""

    joules: float | None
    above: float | None
    seconds: float
    missing: float
    samples: int


@dataclass(frozen=True, slots=True)
class Costs:
    """By phase; `scope` and `source` say what was measured and by what, `idle` the watts of a machine at rest."""

    phases: Mapping[str, Cost] = field(default_factory=dict)
    scope: str = "nothing"
    source: str = "none"
    idle: float | None = None

    @property
    def joules(self) -> float | None:
        """Of all phases together; None where one of them has no figure, for the sum would be another."""
        return _sum([cost.joules for cost in self.phases.values()])

    @property
    def above(self) -> float | None:
        """The same, above idling."""
        return _sum([cost.above for cost in self.phases.values()])

    @property
    def seconds(self) -> float:
        return sum(cost.seconds for cost in self.phases.values())

    def to_json(self) -> dict[str, Any]:
        """As values of JSON."""
        return {
            "scope": self.scope, "source": self.source, "idle": self.idle,
            "phases": {name: asdict(cost) for name, cost in self.phases.items()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, said: Any) -> "Costs":
        """What `to_json` said. ValueError for anything else."""
        try:
            phases = {_name(name): _cost(cost) for name, cost in said["phases"].items()}
            return cls(phases, _name(said["scope"]), _name(said["source"]), _maybe(said["idle"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no account of what a round has cost: {error!r}") from None


def _sum(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def _cost(said: Any) -> Cost:
    missing, samples = _number(said["missing"]), said["samples"]
    if not 0 <= missing <= 1 or isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
        raise ValueError("this is no account of what a round has cost: a share or a count is none")
    seconds, joules = _number(said["seconds"]), _maybe(said["joules"])
    if seconds < 0 or (joules is not None and joules < 0):
        raise ValueError("this is no account of what a round has cost: less than nothing")
    return Cost(joules, _maybe(said["above"]), seconds, missing, samples)


def _maybe(said: Any) -> float | None:
    return None if said is None else _number(said)


def _number(said: Any) -> float:
    if isinstance(said, bool) or not isinstance(said, int | float) or not math.isfinite(said):
        raise ValueError(f"this is no account of what a round has cost: {said!r:.40} is no figure")
    return float(said)


def _name(said: Any) -> str:
    if not isinstance(said, str) or not 0 < len(said) <= LONGEST:
        raise ValueError(f"this is no account of what a round has cost: {said!r:.40} is no name")
    return said
