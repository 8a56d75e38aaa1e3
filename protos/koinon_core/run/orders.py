"""What a run wants done beyond what its round wants (koinon_core.round.effects): orders, in the imperative."""

from dataclasses import dataclass
from typing import Literal

from koinon_core.round import effects

__all__ = ["Finish", "Open", "Order", "Recall", "Status"]

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


@dataclass(frozen=True, slots=True)
class Recall:
    """A device asks what became of its update of a round that is over: tell it what was stored."""

    client: str
    round: int


Order = Open | Recall | Finish | effects.Effect
