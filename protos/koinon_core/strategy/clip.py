"""`Clip`: no update weighs more than its norm allows."""

import math
from dataclasses import dataclass
from typing import ClassVar

from koinon_core.errors import UsageError
from koinon_core.strategy.protocol import Base, State, Trait, Up, Work
from koinon_core.strategy.registry import register

__all__ = ["Clip"]


@register
@dataclass(frozen=True)
class Clip(Base):
    """Scale the update by min(1, norm / |update|), with the Euclidean norm over the delta and everything that
    is averaged with it: one factor for all, so that their proportions stay."""

    elementwise: ClassVar[bool] = True
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.SHORTENS})
    norm: float = 1.0

    def __post_init__(self) -> None:
        if not (self.norm > 0 and math.isfinite(self.norm)):
            raise UsageError(f"Clip's norm must be a number above 0, not {self.norm}")

    def finish(self, d: State, down: State, work: Work, up: Up) -> Up:
        length = math.hypot(up.delta.norm(), *(t.norm() for t in up.extra.values()))
        if length <= self.norm:
            return up
        factor = self.norm / length
        return Up(up.delta * factor, {n: t * factor for n, t in up.extra.items()}, up.totals)
