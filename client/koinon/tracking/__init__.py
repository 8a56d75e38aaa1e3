"""Tracking of runs: what happens in a run, told to JSONL, TensorBoard, MLflow, or a tracker of one's own.

    follow(handle, [JsonLines(Path("digits.jsonl"))])                # a run at a coordinator, until it is over
    replay_into(koinon.simulate(run, client), run, [TensorBoard(Path("runs"))])

A tracker hears of every round once, in order, when everything that belongs to it is in: metrics of the model that a
round made (`eval.`) come with the next round, so a round is told when the next one has closed, or the run is over.
Who starts late is told the rounds that are over first. Nothing individual of a device is told: how many took part, not
who; the names of devices in reasons are replaced.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from koinon_core.canonical import digest_of
from koinon_core.errors import KoinonError, UsageError

if TYPE_CHECKING:
    from koinon.run import Run, RunHandle
    from koinon.simulation import Simulated

__all__ = ["RoundEnd", "RunStart", "Source", "Tracker", "Trackers", "follow", "replay_into"]

_OVER = ("finished", "failed", "cancelled")
_ENDED = ("closed", "abandoned")
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

    def on_end(self, status: str, reason: str) -> None:
        """Once, last: the run is finished, failed or cancelled."""
        ...


class Source(Protocol):
    """Where a run can be looked at: koinon.operator.Operator, or what a test puts in its place."""

    def get(self, run: str) -> Any:
        """koinon.v1.GetResponse."""
        ...

    def watch(self, run: str) -> Iterator[Any]:
        """koinon.v1.WatchResponse, whenever something has changed."""
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


# -- a run at a coordinator -----------------------------------------------------------------------------------


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
    """Rounds that were not told yet, and names that must not be."""

    told: int = 0
    rounds: dict[int, Any] = field(default_factory=dict)
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
        return [self._end_of(self.rounds.pop(number)) for number in ready]

    def _end_of(self, r: Any) -> RoundEnd:
        timed = r.opened_at and r.closed_at
        return RoundEnd(
            number=r.number, kind=r.kind, status=r.status, reason=self.unnamed(r.reason),
            participants=len(r.participants), counted=sum(p.status == "counted" for p in r.participants),
            metrics=dict(r.metrics), bytes_up=r.bytes_up, bytes_down=r.bytes_down,
            seconds=max(0.0, r.closed_at - r.opened_at) if timed else None, closed_at=r.closed_at or None,
        )  # fmt: skip

    def unnamed(self, text: str) -> str:
        """`text` without the names of devices."""
        return _unnamed(text, self.names)


def _unnamed(text: str, names: Iterable[str]) -> str:
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    if not text or not longest_first:
        return text
    some = "|".join(map(re.escape, longest_first))
    return re.sub(rf"(?<![\w-])(?:{some})(?![\w-])", "a device", text)


# -- a simulated run ------------------------------------------------------------------------------------------


def replay_into(simulated: "Simulated", run: "Run", trackers: Iterable[Tracker]) -> None:
    """Tell trackers a run that `koinon.simulate(run, ...)` simulated. The same result has the same id each time."""
    from koinon_core.strategy import recipe

    spec, every = run.spec, Trackers(trackers)
    digest = digest_of([
        spec.encoded.decode(), simulated.models,
        [[r.number, r.status, list(r.clients), {k: repr(v) for k, v in r.metrics.items()}] for r in simulated.rounds],
    ])  # fmt: skip
    settings = json.loads(spec.encoded)
    settings.pop("schema", None)
    every.on_run_start(RunStart(
        id=f"simulated-{digest[:16]}", name=spec.name, strategy=recipe.show(spec.strategy), rounds=spec.rounds,
        aggregation=spec.aggregation, created_at=None, settings=settings,
    ))  # fmt: skip
    names = {client for r in simulated.rounds for client in r.clients}
    # Digests of models are the first one's and one for each round that made one; whatever closes later evaluates.
    training = len(simulated.models) - 1 if simulated.models else spec.rounds
    for r in simulated.rounds:
        kind, closed = "train" if training > 0 else "evaluate", r.status == "closed"
        training -= closed
        every.on_round(RoundEnd(
            number=r.number, kind=kind, status=r.status, reason=_unnamed(r.reason, names), participants=None,
            counted=len(r.clients) if closed else 0,
            metrics={**r.metrics, **simulated.metrics.get(r.number, {})},
        ))  # fmt: skip
    every.on_end(simulated.status, _unnamed(simulated.reason, names))
