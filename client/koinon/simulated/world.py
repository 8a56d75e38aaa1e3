"""Virtual time, and what may go wrong in it."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Faults", "World"]

_START = 1_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What may go wrong between a device and the coordinator, by a seed: `delay` is the largest, in virtual
    seconds; `drop` the share of updates that never arrive. In a secure round that is the share of devices that fall
    silent with one of the five words that they have to say for a sum."""

    delay: float = 0.0
    drop: float = 0.0


class World:
    """Events in virtual time, in one order: by time, then as they were planned."""

    def __init__(self, seed: int = 0):
        self.now = _START
        self.random = random.Random(seed)  # noqa: S311 - a simulation's dice, not a secret
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Plan `action` in `delay` virtual seconds."""
        self.at(self.now + delay, action)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Plan `action` for a virtual time; what is planned for the same time happens in the order of planning."""
        heapq.heappush(self._heap, (when, next(self._count), action))

    def step(self) -> bool:
        """Let the next thing happen; False if nothing is planned."""
        if not self._heap:
            return False
        self.now, _, action = heapq.heappop(self._heap)
        action()
        return True
