"""What trackers are told, and several of them as one."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from koinon_core.errors import KoinonError, UsageError

__all__ = ["RoundEnd", "RunStart", "Tracker", "Trackers", "counted_in", "unnamed"]

_log = logging.getLogger("koinon")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """A run, as its trackers first hear of it. `created_at` is in seconds since 1970 (None: simulated); `settings` are
    the run's, without its model's schema."""

    id: str
    name: str
    strategy: str
    rounds: int
    aggregation: str
    created_at: float | None
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEnd:
    """A round that is over. None is what nobody knows: a simulation moves no bytes and takes no time.

    kind          "train" or "evaluate"
    status        "closed" or "abandoned", then with a reason
    participants  how many devices were in the round
    counted       how many of them are in its sum
    metrics       means over the devices: `train.` in the round, `eval.` of the model that it made
    bytes_up      of all updates together; bytes_down likewise
    seconds       from the round's opening to its end, which was at `closed_at` (seconds since 1970)
    """

    number: int
    kind: str
    status: str
    reason: str
    participants: int | None
    counted: int
    metrics: Mapping[str, float]
    bytes_up: int | None = None
    bytes_down: int | None = None
    seconds: float | None = None
    closed_at: float | None = None


class Tracker(Protocol):
    """What is told of a run. After an interruption everything is told again from the start: a tracker that keeps
    something must know what it has. One that raises is told nothing more; the others go on."""

    def on_run_start(self, start: RunStart) -> None:
        """Once, before anything else."""
        ...

    def on_round(self, round_: RoundEnd) -> None:
        """Once for every round that is over, in the order of their numbers."""
        ...

    # A tracker may have one method more: on_measured(number, metrics), for when the run's owner measured the model of
    # a round that was told already.

    def on_end(self, status: str, reason: str) -> None:
        """Once, last: the run is finished, failed or cancelled."""
        ...


class Trackers:
    """Several trackers as one. What one raises is logged, and the others go on; with none left it is raised."""

    def __init__(self, trackers: Iterable[Tracker]):
        self._trackers = list(trackers)
        if not self._trackers:
            raise UsageError("there is no tracker to tell the run to; give at least one")
        self._failed: list[KoinonError] = []

    def on_run_start(self, start: RunStart) -> None:
        self._tell("the run's start", lambda t: t.on_run_start(start))

    def on_round(self, round_: RoundEnd) -> None:
        self._tell(f"round {round_.number}", lambda t: t.on_round(round_))

    def on_measured(self, number: int, metrics: Mapping[str, float]) -> None:
        """Tell metrics of a round that came after it was told, to trackers that want to know."""

        def tell(tracker: Any) -> None:
            if hasattr(tracker, "on_measured"):
                tracker.on_measured(number, metrics)

        self._tell(f"what was measured of round {number}", tell)

    def on_end(self, status: str, reason: str) -> None:
        """Tell the end; then the first error that a tracker raised, if one did."""
        self._tell("the run's end", lambda t: t.on_end(status, reason))
        if self._failed:
            raise self._failed[0]

    def _tell(self, what: str, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            except (
                Exception
            ) as error:  # an owner's tracker may raise anything, and it is not the others' fault
                self._trackers.remove(tracker)
                self._failed.append(_blame(tracker, what, error))
                _log.warning("%s", self._failed[-1])
        if not self._trackers:
            raise self._failed[0]


def _blame(tracker: Tracker, what: str, error: Exception) -> KoinonError:
    if isinstance(error, KoinonError):
        return error
    made = KoinonError(
        f"the tracker {type(tracker).__name__} failed at {what} and is told nothing more: {type(error).__name__}: "
        f"{error}; mend it and track the run again"
    )
    made.__cause__ = error
    return made


def counted_in(r: Any) -> int:
    """How many updates are in a round's sum. Those of an asynchronous round are among the participants of the rounds
    that gave them their work, so it says how many they are."""
    if "updates" in r.metrics:
        return int(r.metrics["updates"])
    return sum(p.status == "counted" for p in r.participants)


def unnamed(text: str, names: Iterable[str]) -> str:
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    if not text or not longest_first:
        return text
    some = "|".join(map(re.escape, longest_first))
    return re.sub(rf"(?<![\w-])(?:{some})(?![\w-])", "a device", text)
