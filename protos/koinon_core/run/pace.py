"""When a device that does not stay attached shall come back (pace steering: Bonawitz et al. 2019, arXiv 1902.01046,
section 2.3).

A device on a battery, or whose bytes cost money, visits: it is told how long to stay, and when to come back if nothing
was asked of it until then. A small fleet must be there together, or no round ever finds its quorum: its devices are all
told the same moment, the next multiple of a period on the coordinator's clock, and each stays until the last of them
can be there. Of a large fleet enough are there at any time, and the same moment for all would be a rush: its visits are
spread over the whole period.

Nothing here draws a random number: the device does, a share of the jitter.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["MOST_PERIODS", "Pace", "State", "pace"]

State = Literal["gathers", "under way", "paused"]
MOST_PERIODS = 4
"""Nobody is sent away for longer than so many periods, and the jitter."""
_STAY, _SHARE = 30.0, 4  # seconds that a visit takes; or, where a period is short, this part of it
_JITTER = 3  # a small fleet comes within this part of a stay, and is together for the rest of it
_WORD = 4.0  # seconds, for whoever is not needed now: long enough to be told that this has changed
_LARGE = 10  # a fleet of so many times the devices that a round needs


@dataclass(frozen=True, slots=True)
class Pace:
    """In seconds: stay for `stay`; if nothing was asked until then, hang up, and come back `after` and a random share
    of `jitter` later."""

    after: float
    jitter: float
    stay: float


def pace(
    now: float, state: State, *, period: float, known: int, needed: int, wait: float = 0.0,
    until: float | None = None,
) -> Pace:  # fmt: skip
    """What a visitor is told at `now`, on the coordinator's clock. The run "gathers" devices for a round that this one
    can be in, or a round without it is "under way" that is over at `until` at the latest (None: nobody knows), or it is
    "paused". Some `known` devices visit it or are attached, and a round needs `needed` of them, for which it waits
    `wait` seconds once there are enough."""
    if state == "paused":
        return Pace(MOST_PERIODS * period, period, min(_WORD, period / _SHARE))
    if known > _LARGE * needed:
        # A visit begins once in a period and a stay: so long a stay has twice as many there as a round needs.
        stay = max(_stay(period, wait), 2 * period * needed / known)
        if state == "under way":
            return Pace(min(period / 2, _left(now, until, period)), period, min(_WORD, stay))
        return Pace(period / 2, period, stay)
    stay = _stay(period, wait)
    jitter = _stay(period, 0.0) / _JITTER
    if state == "under way":
        word = min(_WORD, stay)
        leaves = now + word
        back = min(_next(leaves, period) - leaves, _left(leaves, until, period))
        return Pace(max(0.0, back), jitter, word)
    # Whoever comes shortly before a meeting stays for it, rather than hang up while the others arrive.
    meets = _next(now, period)
    leaves = max(now, meets if meets - now <= stay else now) + stay
    return Pace(max(0.0, _next(leaves, period) - leaves), jitter, leaves - now)


def _stay(period: float, wait: float) -> float:
    return min(_STAY, period / _SHARE) + wait


def _left(now: float, until: float | None, period: float) -> float:
    """Seconds until a round is over at the latest, as long as anybody is sent away."""
    return min(MOST_PERIODS * period, max(0.0, until - now)) if until is not None else period


def _next(now: float, period: float) -> float:
    """The next moment at which a small fleet meets."""
    return (now // period + 1) * period
