"""What a round costs this device in joules, by what was being done: download, train, encode, upload.

A thread asks one source of power five times a second, and only while something is measured: a daemon that waits costs
nothing by asking. Which source it is and what it covers (a module, some rails, a graphics processor, a processor
package) is part of every result, for figures of different scopes must never be compared. Where a source counts joules
itself, its differences are taken; where it says watts, the area below them. What nobody measured is None, never 0.

    choose    the best source that this machine has
    Sampler   one piece of work after the other, measured
    Costs     what came of it (costs.py)
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from koinon_edge.costs import LONGEST, PHASES, Cost, Costs
from koinon_edge.probe.energy import Meter
from koinon_edge.probe.files import Files
from koinon_edge.probe.nvml import Gpus, gpus_of
from koinon_edge.probe.power import Draw, Rapl, draw, rails
from koinon_edge.probe.reading import Reading

__all__ = ["PHASES", "Cost", "Costs", "PowerSource", "Sampler", "choose"]

EVERY = 0.2  # seconds
_LONGEST = {
    "W": 2.0,
    "J": 60.0,
}  # seconds between two readings that still make a figure: counters lose nothing
_ENOUGH = 0.5  # of a rest must have been measured for it to say what idling draws


@dataclass(frozen=True, slots=True)
class PowerSource:
    """`read` says how many watts are drawn now (unit "W"), or how many joules were since some moment ("J")."""

    name: str
    scope: str
    unit: str
    read: Callable[[], Reading]


def choose(files: Files, gpus: Gpus | None = None) -> PowerSource:
    """The source that covers most of this machine and answers now: the rails of the board, which measure a Jetson as a
    whole; else its NVIDIA graphics processors (`gpus`, or those of this machine), by their counters or by their watts;
    else its processors. What it reads it reads on its own: `files` stay free for whoever else asks."""
    files = Files(files.root)
    drawn = draw(rails(files))
    if drawn.watts.value is not None:
        chip = "INA238" if drawn.rails == ("VIN",) else "INA3221"
        return PowerSource(chip, _scope(drawn), "W", lambda: draw(rails(files)).watts)
    found = _graphics(gpus or gpus_of(files))
    if found is not None:
        return found
    counter = Rapl(files)
    if counter.joules().value is not None:
        return PowerSource("RAPL", "cpu package", "J", counter.joules)
    none = Reading.unknown("W", "this machine", "nothing here measures power")
    return PowerSource("none", "nothing", "W", lambda: none)


def _graphics(gpus: Gpus | None) -> PowerSource | None:
    if gpus is None:
        return None
    scope = "gpu" if len(gpus.names) == 1 else f"{len(gpus.names)} gpus"
    if gpus.energy().value is not None:
        return PowerSource("NVML energy counter", scope, "J", gpus.energy)
    if gpus.power().value is not None:
        return PowerSource("NVML power", scope, "W", gpus.power)
    gpus.close()
    return None


def _scope(drawn: Draw) -> str:
    if drawn.scope == "module":
        return "module"
    scope = f"rails {'+'.join(drawn.rails)}"
    return scope if len(scope) <= LONGEST else f"{scope[: LONGEST - 3]}..."


@dataclass(slots=True)
class _Taken:
    """What was measured of the work at hand."""

    meter: Meter
    phase: str = ""
    known: Counter[str] = field(default_factory=Counter)
    counted: tuple[float, float] | None = None  # when a counter was read last, and what it said


class Sampler:
    """Measures one piece of work at a time: `begin` each of its phases, then `end`. `idle` is how many watts the
    machine draws while nothing is done, if that is known; `rest` finds out. For any thread."""

    def __init__(
        self,
        source: PowerSource,
        clock: Callable[[], float] = time.monotonic,
        *,
        idle: float | None = None,
        every: float = EVERY,
    ) -> None:
        self.source, self.idle = source, idle
        self._clock, self._every = clock, every
        self._lock = threading.Lock()
        self._taken: _Taken | None = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    @property
    def measuring(self) -> bool:
        return self._taken is not None

    def begin(self, phase: str) -> None:
        """From now on it is this that is being done."""
        with self._lock:
            if self._taken is None:
                self._taken = self._anew()
                self._over = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._over,), name="koinon-power", daemon=True
                )
                self._thread.start()
            at, watts = self._look(self._taken, boundary=True)
            self._taken.meter.begin(phase, at, watts)
            self._taken.phase = phase

    def end(self) -> Costs:
        """It is done: what each phase has cost. Nothing is asked any more."""
        with self._lock:
            taken, self._taken = self._taken, None
            thread, self._thread = self._thread, None
            self._over.set()
            if taken is None:
                return Costs(scope=self.source.scope, source=self.source.name, idle=self.idle)
            at, watts = self._look(taken, boundary=True)
            measured = taken.meter.end(at, watts)
        if thread is not None:
            thread.join()
        phases = {
            name: Cost(
                energy.joules, energy.above(self.idle), energy.seconds, energy.missing, taken.known[name]
            )
            for name, energy in measured.items()
        }
        return Costs(phases, self.source.scope, self.source.name, self.idle)

    def rest(self, seconds: float, wait: Callable[[float], object] = time.sleep) -> float | None:
        """How many watts are drawn while nothing is done, over so many seconds from now; kept as `idle`. None, and
        nothing kept, where too little of it could be measured or where something was done meanwhile."""
        taken = self._anew()
        with self._lock:
            if self._taken is not None:
                return None
            at, watts = self._look(taken, boundary=True)
            taken.meter.begin("rest", at, watts)
        for _ in range(max(1, round(seconds / self._every))):
            wait(self._every)
            with self._lock:
                if self.measuring:
                    return None
                at, watts = self._look(taken, boundary=False)
        found = taken.meter.end(at, watts).get("rest")
        if found is None or found.joules is None or found.missing > _ENOUGH:
            return None
        self.idle = found.joules / (found.seconds * (1 - found.missing))
        return self.idle

    # -- asking -------------------------------------------------------------------------------------------------

    def _anew(self) -> _Taken:
        return _Taken(Meter(_LONGEST[self.source.unit]))

    def _run(self, over: threading.Event) -> None:
        while not over.wait(self._every):
            with self._lock:
                if over.is_set() or self._taken is None:
                    return
                self._look(self._taken, boundary=False)

    def _look(self, taken: _Taken, *, boundary: bool) -> tuple[float, float | None]:
        """Asks the source once and tells the meter: when that was, and the watts as far as they are known."""
        reading = self.source.read()
        at = self._clock()
        if reading.value is not None and taken.phase:
            taken.known[taken.phase] += 1
        if self.source.unit == "W":
            taken.meter.sample(at, reading.value)
            return at, reading.value
        return at, _counted(taken, at, reading.value, boundary)


def _counted(taken: _Taken, at: float, joules: float | None, boundary: bool) -> float | None:
    """The mean watts since a counter was read last. The meter hears of them at both ends of that time, so that what it
    adds up is what the counter says. What was missed between two readings is in the second; but not over the boundary
    of a phase, where nobody could say whose it is."""
    if joules is None:
        if boundary:
            taken.counted = None
        return None
    last, taken.counted = taken.counted, (at, joules)
    if (
        last is None or joules < last[1] or at <= last[0]
    ):  # a counter that begins anew says nothing of that time
        taken.meter.sample(at, None)
        return None
    watts = (joules - last[1]) / (at - last[0])
    taken.meter.sample(last[0], watts)
    taken.meter.sample(at, watts)
    return watts
