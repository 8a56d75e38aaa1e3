"""What a piece of work has cost in joules: watts over time, by what was being done.

Between two samples the line through them counts (the trapezoid rule). Where a sample is missing for longer than a few
times the usual distance, that time has no figure, and its share is said beside what is known: half a round that nobody
measured must not look like a cheap one.
"""

from dataclasses import dataclass, field

__all__ = ["Energy", "Meter"]


@dataclass(frozen=True, slots=True)
class Energy:
    """Of one phase: `joules` above nothing, or None where nothing was measured; `seconds` in all, and the share of them
    that is `missing` from the figure."""

    joules: float | None
    seconds: float
    missing: float

    def above(self, idle: float | None) -> float | None:
        """Joules more than the device would have drawn idling at so many watts."""
        if self.joules is None or idle is None:
            return None
        return self.joules - idle * self.seconds * (1 - self.missing)


@dataclass(slots=True)
class _Phase:
    joules: float = 0.0
    measured: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Meter:
    """Takes samples of watts (None: unknown) at times in seconds, which only grow. `gap` is the longest time between
    two that counts as measured."""

    gap: float = 2.0
    _phases: dict[str, _Phase] = field(default_factory=dict)
    _phase: str = ""
    _last: tuple[float, float | None] | None = None

    def begin(self, phase: str, at: float, watts: float | None) -> None:
        """From now on it is this that is being done."""
        self.sample(at, watts)
        self._phase = phase

    def sample(self, at: float, watts: float | None) -> None:
        """The device draws so much now."""
        if self._last is not None and self._phase:
            since, before = self._last
            if at < since:
                raise ValueError(f"a sample at {at} comes after one at {since}")
            phase = self._phases.setdefault(self._phase, _Phase())
            phase.seconds += at - since
            if watts is not None and before is not None and at - since <= self.gap:
                phase.joules += (watts + before) / 2 * (at - since)
                phase.measured += at - since
        self._last = (at, watts)

    def end(self, at: float, watts: float | None) -> dict[str, Energy]:
        """What every phase has cost."""
        self.sample(at, watts)
        self._phase, self._last = "", None
        done, self._phases = self._phases, {}
        return {name: _energy(phase) for name, phase in done.items()}


def _energy(phase: _Phase) -> Energy:
    if not phase.measured:
        return Energy(None, phase.seconds, 1.0)
    return Energy(phase.joules, phase.seconds, 1 - phase.measured / phase.seconds)
