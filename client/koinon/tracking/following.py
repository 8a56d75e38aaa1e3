"""Following a run at its coordinator: every round once, in order, whatever becomes of the connection."""

import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from koinon.tracking.told import RoundEnd, RunStart, Tracker, Trackers, counted_in, unnamed
from koinon_core.errors import KoinonError, UsageError
from koinon_core.flow.central import is_central

if TYPE_CHECKING:
    from koinon.run import RunHandle

__all__ = ["Source", "follow"]

_OVER = ("finished", "failed", "cancelled")
_ENDED = ("closed", "abandoned")
_log = logging.getLogger("koinon")


class Source(Protocol):
    """Where a run can be looked at: koinon.operator.Operator, or what a test puts in its place."""

    def get(self, run: str) -> Any:
        """koinon.v1.GetResponse."""
        ...

    def watch(self, run: str) -> Iterator[Any]:
        """koinon.v1.WatchResponse, whenever something has changed."""
        ...


def follow(source: "RunHandle | Source", trackers: Iterable[Tracker], *, run: str = "") -> str:
    """Tell trackers what happens in a run, until it is over; returns its status. `source` is a handle, or an operator
    with the name or id of the `run`.

    A connection that is lost is made again for as long as it takes, and nothing is told twice or left out. Raises what
    the first connection raises (NotFound, Denied, Unavailable), UsageError for a run that is not said or said twice,
    and, once the others were told everything, what a tracker raised.
    """
    opened, name = _opening(source, run)
    every, known, started = Trackers(trackers), _Known(), False
    status = reason = ""
    with closing(_looks(opened, name, known)) as looks:
        for info, spec in looks:
            if not started:
                every.on_run_start(_start_of(info, spec))
                started = True
            for ended in known.take_ready(over=info.status in _OVER):
                every.on_round(ended)
            for number, metrics in known.take_late():
                every.on_measured(number, metrics)
            status, reason = info.status, known.unnamed(info.reason)
    every.on_end(status, reason)
    return status


def _opening(
    source: "RunHandle | Source", run: str
) -> tuple[Callable[[], AbstractContextManager[Source]], str]:
    from koinon.run import RunHandle

    if not isinstance(source, RunHandle):
        if not run:
            raise UsageError("an operator has many runs; say which one to follow with run=NAME")
        return lambda: nullcontext(source), run
    if run and run not in (source.id, source.name):
        raise UsageError(f"the handle is of run {source.name!r}, not {run!r}; leave run= out")

    def opened() -> AbstractContextManager[Source]:
        from koinon.operator import Operator

        # A new one for each connection: credentials may be renewed in an outage.
        return Operator(source.address, source.credentials, insecure=source.insecure)

    return opened, source.id


def _looks(
    opened: Callable[[], AbstractContextManager[Source]], run: str, known: "_Known"
) -> Generator[tuple[Any, bytes], None, None]:
    """(RunInfo, spec) whenever `known` was brought up to date; the last says that the run is over."""
    from koinon.calls import Pauses, passing

    began, connected = time.monotonic(), False
    pauses = Pauses(began)
    while True:
        since, worked, lost = time.monotonic(), False, "the coordinator does not drive the run just now"
        try:
            with opened() as operator:
                info, spec = known.look(operator, run)
                connected = worked = True
                yield info, spec
                watched = operator.watch(run) if info.status not in _OVER else ()
                for seen in watched:
                    info = seen.run
                    if known.learn(seen.rounds) or info.status in _OVER:
                        info, _ = known.look(operator, run)
                    yield info, spec
                    if info.status in _OVER:
                        break
                if info.status in _OVER:
                    return
        except KoinonError as error:
            # A call that was cut short in the middle is a plain KoinonError.
            if not connected or not (passing(error) or (worked and type(error) is KoinonError)):
                raise
            lost = str(error)
        now = time.monotonic()
        pause = pauses.next(now, now - since if worked else 0.0)
        _log.warning("the run %s is out of sight, looking again in %.1f s: %s", run, pause, lost)
        time.sleep(pause)


def _start_of(info: Any, spec: bytes) -> RunStart:
    settings = json.loads(spec)
    settings.pop("schema", None)  # as long as the model has tensors, and of no interest in a table of runs
    return RunStart(
        id=info.id, name=info.name, strategy=info.strategy, rounds=info.rounds, aggregation=info.aggregation,
        created_at=info.created_at, settings=settings,
    )  # fmt: skip


@dataclass(slots=True)
class _Known:
    """Rounds that were not told yet, what the run's owner measured of those that were, and names that must not be."""

    told: int = 0
    rounds: dict[int, Any] = field(default_factory=dict)
    central: dict[int, dict[str, float]] = field(default_factory=dict)
    late: dict[int, dict[str, float]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def look(self, operator: Source, run: str) -> tuple[Any, bytes]:
        """Take in all of the run; returns (RunInfo, spec)."""
        got = operator.get(run)
        if got.run.status in _OVER:
            # What it says of the rounds was read before its status: only now is it sure that no round ends any more.
            got = operator.get(run)
        self.names.update(got.attached, (i.client for i in got.incidents if i.client))
        self.learn(got.rounds)
        return got.run, bytes(got.spec)

    def learn(self, rounds: Iterable[Any]) -> bool:
        """Take in rounds; True if another one is complete by that, so that it must be looked at again: a watch does
        not repeat rounds that lie further back, and metrics may have come in late."""
        fresh = {r.number: r for r in rounds}
        for number, r in fresh.items():
            self.names.update(p.client for p in r.participants)
            if number > self.told:
                self.rounds[number] = r
            elif (measured := _central(r)) != self.central.get(number, {}):
                self.central[number] = self.late[number] = measured
        return any(number not in fresh for number in self._ready(over=False))

    def _ready(self, *, over: bool) -> list[int]:
        ready: list[int] = []
        last = max((n for n, r in self.rounds.items() if r.status == "closed"), default=0)
        for number in sorted(self.rounds):
            r = self.rounds[number]
            if r.status not in _ENDED:
                if over:  # it will never end
                    continue
                break
            if r.status == "closed" and r.kind == "train" and number >= last and not over:
                break
            ready.append(number)
        return ready

    def take_ready(self, *, over: bool) -> list[RoundEnd]:
        """The rounds that can be told now, in order; they are told by that."""
        ready = self._ready(over=over)
        self.told = max([self.told, *ready])
        self.central.update({number: _central(self.rounds[number]) for number in ready})
        return [self._end_of(self.rounds.pop(number)) for number in ready]

    def take_late(self) -> list[tuple[int, dict[str, float]]]:
        """What was measured of rounds after they were told."""
        late, self.late = self.late, {}
        return sorted(late.items())

    def _end_of(self, r: Any) -> RoundEnd:
        timed = r.opened_at and r.closed_at
        return RoundEnd(
            number=r.number, kind=r.kind, status=r.status, reason=self.unnamed(r.reason),
            participants=len(r.participants), counted=counted_in(r),
            metrics=dict(r.metrics), bytes_up=r.bytes_up, bytes_down=r.bytes_down,
            seconds=max(0.0, r.closed_at - r.opened_at) if timed else None, closed_at=r.closed_at or None,
        )  # fmt: skip

    def unnamed(self, text: str) -> str:
        """`text` without the names of devices."""
        return unnamed(text, self.names)


def _central(r: Any) -> dict[str, float]:
    """What the run's owner measured of a round's model."""
    return {name: value for name, value in r.metrics.items() if is_central(name)}
