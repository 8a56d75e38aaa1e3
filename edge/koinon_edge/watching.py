"""What a round costs its device, while a shift does it: joules by phase, and bytes against the owner's budget."""

import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from koinon_core.errors import StoreError
from koinon_edge.gate import Budget
from koinon_edge.metering import Costs, Sampler
from koinon_edge.shift import Watcher

__all__ = ["Watching"]

_PHASES = {"DOWNLOADING": "download", "TRAINING": "train", "PACKING": "encode", "UPLOADING": "upload"}
_REST, _REST_EVERY = 3.0, 3600.0  # seconds: how long idling is measured, and how often
_log = logging.getLogger("koinon.edge")


class Watching(Watcher):
    """`clock` is in seconds since 1970."""

    def __init__(self, sampler: Sampler, budget: Budget, clock: Callable[[], float]):
        self._sampler, self._budget, self._clock = sampler, budget, clock
        self._up = self._down = 0
        self._rested = -math.inf

    def phase(self, state: str, round_: int) -> None:
        if state in _PHASES:
            self._sampler.begin(_PHASES[state])

    def moved(self, up: int, down: int) -> None:
        self._up, self._down = self._up + up, self._down + down
        try:
            self._budget.spent(datetime.fromtimestamp(self._clock(), UTC), up + down)
        except StoreError as error:  # it counts all the same, and the disk is said elsewhere
            _log.warning(str(error))

    def costs(self, round_: int) -> Mapping[str, Any] | None:
        if not self._sampler.measuring:
            return None
        costs, up, down = self._sampler.end(), self._up, self._down
        self._up = self._down = 0
        return told(costs, up, down)

    def rest(self) -> None:
        now = self._clock()
        if self._sampler.source.name != "none" and not 0 <= now - self._rested < _REST_EVERY:
            self._rested = now
            self._sampler.rest(_REST)

    def close(self) -> None:
        """What was spent is written exactly."""
        self._budget.close()


def told(costs: Costs, up: int, down: int) -> dict[str, Any]:
    """As koinon.costs sends it."""
    phases = {
        name: {"joules": c.joules, "above_idle": c.above, "seconds": c.seconds, "missing": c.missing}
        for name, c in costs.phases.items()
    }
    return {
        "phases": phases,
        "scope": costs.scope,
        "source": costs.source,
        "bytes_up": up,
        "bytes_down": down,
    }
