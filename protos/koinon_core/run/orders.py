"""What a run wants done beyond what its round wants (koinon_core.round.effects): orders, in the imperative."""

from dataclasses import dataclass
from typing import Literal

from koinon_core.round import effects

__all__ = ["Finish", "Open", "Order", "Status"]

Status = Literal["running", "paused", "finished", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Open:
    """Open round `round`: answer with Opening."""

    round: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over."""

    status: Status
    reason: str


Order = Open | Finish | effects.Effect
