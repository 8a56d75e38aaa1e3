"""Devices that do not stay attached: how many there are, and what each is told (koinon_core.run.pace).

Who visits is known only from its visits. Names are kept for two stretches of time, each as long as the longest that
anybody is sent away for: whoever still comes is in the last whole one. A coordinator that has just begun takes a large
fleet for a small one, and knows better within a stretch.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from koinon_core.run import Run
from koinon_core.run.pace import MOST_PERIODS, Pace, State, pace

__all__ = ["PERIOD", "Visits"]

PERIOD = 300.0
"""Seconds from one visit to the next, where nobody says otherwise."""
_STRETCH = 2 * (MOST_PERIODS + 1)  # periods


@dataclass(slots=True)
class _Seen:
    """The names of one run's visitors, in this stretch and in the one before."""

    since: float
    now: set[str] = field(default_factory=set)
    before: set[str] = field(default_factory=set)


class Visits:
    """The visitors of all runs; `period` is in seconds."""

    def __init__(self, period: float = PERIOD):
        self.period = period
        self._seen: defaultdict[str, _Seen] = defaultdict(lambda: _Seen(0.0))

    def told(self, run: Run, client: str, now: float) -> Pace:
        """What a device that visits a run is told."""
        known = max(self._known(run.id, client, now), len(run.devices))
        needed = max(run.spec.quorum, run.spec.clients or 0)
        state, until = _state(run, client)
        return pace(
            now, state, period=self.period, known=known, needed=needed, wait=run.spec.join_wait, until=until
        )

    def forget(self, run: str) -> None:
        """The run is over."""
        self._seen.pop(run, None)

    def _known(self, run: str, client: str, now: float) -> int:
        """How many devices visit the run, of which this is one."""
        seen, stretch = self._seen[run], _STRETCH * self.period
        if now - seen.since > stretch:
            last = seen.now if now - seen.since <= 2 * stretch else set()
            self._seen[run] = seen = _Seen(now, before=last)
        seen.now.add(client)
        return max(len(seen.now), len(seen.before))


def _state(run: Run, client: str) -> tuple[State, float | None]:
    """Whether the run can use this device now; and until when at most it cannot, where that is known."""
    r = run.round
    if run.status == "paused":
        return "paused", None
    if run.gather is not None or r is None or r.over or r.stage == "joined" or r.buffered or r.awaits(client):
        return "gathers", None
    return "under way", r.update.deadline if r.stage == "update" else None
