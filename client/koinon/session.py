"""A session: this device in one run, between the owner's loop and the link.

    with koinon.join("127.0.0.1:8440", run="digits") as session:
        for task in session.tasks(model):
            train(model, loader, epochs=task.epochs)
            task.submit(examples=len(loader.dataset))

The loop runs on the owner's thread; receipts and cancellations come in on the link's. Both go through the pure
`member` machine under one lock, so that the device's state is committed on COUNTED and on nothing else.
"""

import logging
import os
import queue
import socket
import threading
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from koinon.adapt import adapt
from koinon.models import Evaluate, Model
from koinon.task import Task
from koinon.work import Workbench
from koinon_core.errors import (
    BadBlob,
    KoinonError,
    NotFound,
    Unavailable,
    UsageError,
)  # fmt: skip
from koinon_core.round import member
from koinon_core.round.member import Member
from koinon_core.round.terms import Terms
from koinon_core.spec import RunSpec
from koinon_core.strategy.protocol import State
from koinon_core.strategy.registry import load_plugins
from koinon_core.strategy.runner import LocalHalf, Prepared
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Session", "join"]

_CONNECT_TIMEOUT = 10.0
_log = logging.getLogger("koinon")


@dataclass(frozen=True, slots=True)
class _Ended:
    status: str
    reason: str


_News = pb.Ask | _Ended | KoinonError


def join(
    address: str | None = None, *, run: str | None = None, name: str | None = None,
    plugins: tuple[str, ...] | list[str] = (), timeout: float = _CONNECT_TIMEOUT, wait: float = 0.0,
) -> "Session":  # fmt: skip
    """Take part in `run` at the coordinator `address` (HOST:PORT), as the device `name`.

    What is not given is taken from KOINON_ADDRESS, KOINON_RUN, KOINON_NAME (default: this host's name and the
    process) and KOINON_PLUGINS (comma-separated). `wait` is how many seconds to wait for a run that does not exist
    yet (default: KOINON_WAIT, or 0: not at all). Raises Unavailable if nobody answers within `timeout` seconds,
    NotFound for an unknown run, and NotFound naming the strategy if this device does not have the run's.
    """
    from koinon.link import GrpcLink

    address = address or os.environ.get("KOINON_ADDRESS") or "127.0.0.1:8440"
    run = run or os.environ.get("KOINON_RUN")
    if not run:
        raise UsageError("say which run to join: koinon.join(address, run=NAME), or set KOINON_RUN")
    client = name or os.environ.get("KOINON_NAME") or f"{socket.gethostname()}-{os.getpid()}"
    load_plugins([*plugins, *filter(None, os.environ.get("KOINON_PLUGINS", "").split(","))])
    wait = wait or float(os.environ.get("KOINON_WAIT") or 0.0)
    session = Session(GrpcLink(address, client), run, client, wait=wait > 0)
    try:
        session.open(timeout, wait, address)
    except BaseException:
        session.close()
        raise
    return session


class Session:
    """This device in one run. Made by `join`; a context manager, so that what goes wrong is reported."""

    def __init__(self, link: Any, run: str, client: str, *, wait: bool = False):
        self.client = client
        """This device's name."""
        self.status, self.reason = "", ""
        """How the run ended, once it has: "finished", "failed" or "cancelled", and why."""
        self._link, self._run_name, self._run, self._wait = link, run, "", wait
        self._spec: RunSpec | None = None
        self._half: LocalHalf | None = None
        self._lock = threading.RLock()
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._joined = threading.Event()
        self._attended = False
        self._refused: KoinonError | None = None
        self._member = Member()
        self._asks: dict[int, pb.Ask] = {}
        self._state: State = {}
        self._pending: Prepared | None = None
        self._task: Task | None = None
        self._evaluates = False
        self._tasks: Generator[Task, None, None] | None = None
        self._closed = False

    # -- opening and closing ----------------------------------------------------------------------------------

    def open(self, timeout: float, wait: float, address: str) -> None:
        """Connect and join; called by `join`."""
        self._link.start(self)
        if not self._joined.wait(timeout):
            if not self._attended:
                raise Unavailable(
                    f"no coordinator answers at {address} within {timeout:g} s; check the address and that "
                    "`koinon-coordinator serve` is running there"
                )
            if not self._joined.wait(max(0.0, wait - timeout)):
                raise NotFound(
                    f"there was no run {self._run_name!r} at {address} within {max(timeout, wait):g} s"
                )
        self.joined_or_raise()

    def joined_or_raise(self) -> bool:
        """Whether the run let this device in; raises the error with which it did not."""
        if self._refused is not None:
            raise self._refused
        return self._joined.is_set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._report(error)
        self.close()

    def close(self) -> None:
        """Leave the run. What was submitted is still sent; open work is declined."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._give_up("DECLINED", "the session was closed")
        self._link.drain(lambda: self._member.stage != "sent")
        self._link.close()

    @property
    def spec(self) -> RunSpec:
        """The run's spec."""
        assert self._spec is not None
        return self._spec

    # -- the owner's thread -----------------------------------------------------------------------------------

    def tasks(self, model: Any, *, evaluate: Evaluate | None = None) -> Iterator[Task]:
        """Work, round by round, until the run is over. Each time the round's weights are in `model`.

        `model` is a torch module or a dict of numpy arrays; it must have the run's schema. With `evaluate`, the
        session evaluates every round's weights on this device before it trains them.
        """
        if self._tasks is not None:  # in a notebook, a cell that was interrupted and is run again
            self._tasks.close()
        self._tasks = self._loop(model, evaluate)
        return self._tasks

    def _loop(self, owned: Any, evaluate: Evaluate | None) -> Generator[Task, None, None]:
        model = self._accept(owned)
        self._evaluates = evaluate is not None
        assert self._half is not None
        bench = Workbench(
            client=self.client, spec=self.spec, half=self._half, model=model, owned=owned, evaluate=evaluate,
            fetch=self._link.fetch, show=self._show, hand_over=self._hand_over, give_up=self._give_up,
        )  # fmt: skip
        while True:
            with self._lock:
                # Working already: the loop was interrupted while it waited, and its work is in the news.
                if self._member.stage != "working":
                    self._step(member.Offered())
            news = self._link.wait(self._take)
            if isinstance(news, _Ended):
                self.status, self.reason = news.status, news.reason
                return
            if isinstance(news, KoinonError):
                raise news
            with self._lock:
                terms = self._member.terms
                stale = self._member.stage != "working" or terms is None or terms.round != news.round
            if stale or terms is None:
                continue
            try:
                yield from bench.work(news, terms, self._state)
            except BaseException as error:
                self._report(error)
                raise

    def _report(self, error: BaseException) -> None:
        """The work under way ends without an update, because of `error`."""
        match error:
            case GeneratorExit():
                self._give_up("DECLINED", "the loop was left")
            case KeyboardInterrupt():
                self._give_up("INTERRUPTED", "stopped by its user")
            case _:
                detail = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
                self._give_up("FAILED", detail[:500])

    def _take(self, timeout: float) -> _News:
        try:
            return self._news.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None

    def _accept(self, owned: Any) -> Model:
        """The model, if it is the run's; the operator sees it if it is not."""
        try:
            model = adapt(owned)
            model.schema.must_equal(self.spec.model, "your model")
        except UsageError as error:
            self._say_leave(0, "REFUSED", str(error))
            raise
        return model

    def _show(self, task: Task) -> None:
        """The task that the owner's loop is about to get; the round may be over already."""
        with self._lock:
            self._task = task
            if self._member.late:
                task.cancel(self._member.late)

    def _hand_over(self, prepared: Prepared) -> None:
        with self._lock:
            self._pending = prepared
            self._step(member.Submitted(prepared.digest))

    def _give_up(self, code: str, detail: str) -> None:
        with self._lock:
            self._step(member.GaveUp(code, detail))

    # -- the link's thread ------------------------------------------------------------------------------------

    def connected(self) -> None:
        """The link has a stream (again): join, and say again what may be lost."""
        self._attended = True
        _log.info("%s attends; it joins run %s", self.client, self._run_name)
        self._link.send(pb.DeviceMessage(join=pb.Join(run=self._run or self._run_name, wait=self._wait)))
        if self._run:
            with self._lock:
                self._step(member.Reconnected())

    def failed(self, error: KoinonError) -> None:
        """The link gave up."""
        self._refuse(error)

    def _refuse(self, error: KoinonError) -> None:
        if self._joined.is_set():
            self._news.put(error)
        else:
            self._refused = error
            self._joined.set()

    def pulse(self) -> tuple[float, pb.DeviceMessage | None]:
        """A sign of life while work is under way: the optimizer's step counter, every third of the lease."""
        lease = self._spec.lease if self._spec else 1.0  # not known yet: ask again soon
        with self._lock:
            busy = self._member.stage in ("working", "sent", "staged")
            steps = self._task.steps if self._task is not None else 0
            progress = pb.Progress(run=self._run, round=self._member.round, steps=steps)
        return lease / 3, pb.DeviceMessage(progress=progress) if busy else None

    def heard(self, message: pb.CoordinatorMessage) -> None:
        """The coordinator said something."""
        kind = message.WhichOneof("says")
        if kind == "joined":
            self._enter(message.joined)
        elif kind == "trouble":
            self._refuse(convert.trouble_from(message.trouble))
        elif kind == "ended":
            self._news.put(_Ended(message.ended.status, message.ended.reason))
        elif kind in ("ask", "receipt", "cancel"):
            with self._lock:
                self._hear_round(kind, message)

    def _hear_round(self, kind: str, message: pb.CoordinatorMessage) -> None:
        if kind == "ask":
            try:
                terms = Terms.decode(message.ask.terms)
            except BadBlob as error:
                self._say_leave(message.ask.round, "REFUSED", str(error))
                return
            self._asks = {n: a for n, a in self._asks.items() if n >= self._member.round} | {
                terms.round: message.ask
            }
            self._step(member.Asked(terms))
        elif kind == "receipt":
            verdict = convert.verdict_from(message.receipt)
            self._step(member.Receipted(message.receipt.round, verdict, message.receipt.reason))
        else:
            self._step(member.Interrupted(message.cancel.round, message.cancel.reason))

    def _enter(self, joined: pb.Joined) -> None:
        """The run let this device in: load its strategy, or decline by name."""
        if self._joined.is_set():
            return
        try:
            spec = RunSpec.decode(joined.spec)
            strategy, layout = spec.check()
        except KoinonError as error:
            self._run = joined.run
            self._say_leave(0, "DECLINED", f"this device cannot take part: {error}")
            self._refuse(error)
            return
        _log.info("%s is in run %s and waits for work", self.client, spec.name)
        self._run, self._spec, self._half = joined.run, spec, LocalHalf(strategy, layout)
        self._joined.set()

    def _say_leave(self, round_: int, code: str, detail: str) -> None:
        leave = pb.Leave(run=self._run, round=round_, code=code, detail=detail)
        self._link.send(pb.DeviceMessage(leave=leave))

    def _step(self, event: member.Event) -> None:
        """Move the member machine and do what it says. The lock is held."""
        self._member, effects = member.step(self._member, event)
        for effect in effects:
            match effect:
                case member.Offer(engaged):
                    offer = pb.Offer(run=self._run, evaluates=self._evaluates, engaged=engaged)
                    self._link.send(pb.DeviceMessage(offer=offer))
                case member.Begin(terms):
                    self._news.put(self._asks[terms.round])
                case member.Answer(round_, digest):
                    self._answer(round_, digest)
                case member.Resign(round_, code, detail):
                    self._say_leave(round_, code, detail)
                case member.Commit(round_):
                    self._settle(round_, "counted")
                case member.Drop(round_, reason):
                    self._settle(round_, reason)
                case member.Interrupt(reason):
                    if self._task is not None:
                        self._task.cancel(reason)

    def _answer(self, round_: int, digest: str) -> None:
        assert self._pending is not None
        assert self._member.terms is not None
        update = self._pending
        answer = pb.Answer(
            run=self._run, round=round_, terms_digest=self._member.terms.digest, head=convert.head_to(update.head),
            update=pb.Content(digest=digest, size=len(update.blob)),
        )  # fmt: skip
        self._link.answer(answer, update.blob)

    def _settle(self, round_: int, outcome: str) -> None:
        if outcome == "counted" and self._pending is not None:
            self._state = self._pending.pending
        self._pending = None
        if self._task is not None:
            self._task.outcome = outcome
        _log.info("%s: round %s: %s", self.client, round_, outcome)
