"""What a round wants done: orders, in the imperative. Whoever drives the machine carries them out, after the
events that caused them are durable."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Ask", "Cancel", "Close", "Effect", "Fold", "Receipt", "Verdict"]

Verdict = Literal["STAGED", "COUNTED", "NOT_COUNTED"]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the device for its answer in this collection."""

    client: str
    collection: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """Tell the device what became of its update. STAGED: it is durable, stop sending. COUNTED or NOT_COUNTED:
    commit or drop what depends on it."""

    client: str
    round: int
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Tell the device that nobody waits for its answer any more."""

    client: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fold:
    """Take the sum over exactly these devices' updates."""

    accepted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """The round is over; `counted` says whether it made a model."""

    round: int
    counted: bool
    reason: str = ""


Effect = Ask | Receipt | Cancel | Fold | Close
