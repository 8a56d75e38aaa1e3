"""A session: this device in one run, between the owner's loop and the link.

    with koinon.join("127.0.0.1:8440", run="digits") as session:
        for task in session.tasks(model):
            train(model, loader, epochs=task.epochs)
            task.submit(examples=len(loader.dataset))

The loop runs on the owner's thread; what the coordinator says comes in on the link's. Both go through one
`Conversation` under one lock.
"""

import logging
import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from koinon.adapt import adapt, check_tied
from koinon.conversation import Conversation
from koinon.costs import message as cost_message
from koinon.identity import DeviceIdentity, device_access, device_folder, identity_of
from koinon.models import Evaluate, Model
from koinon.outbox import MemoryOutbox, Outbox, open_outbox
from koinon.policy import Policy
from koinon.profile import profile
from koinon.shelf import Shelf
from koinon.task import Task
from koinon.work import Workbench
from koinon_core.condition import Condition
from koinon_core.errors import KoinonError, NotFound, Unavailable, UsageError
from koinon_core.round.terms import Terms
from koinon_core.spec import RunSpec
from koinon_core.strategy.registry import load_plugins
from koinon_core.strategy.runner import Prepared
from koinon_core.tensors import Tensors
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
    state: str | Path | None = None, credentials: str | Path | None = None, insecure: bool | None = None,
) -> "Session":  # fmt: skip
    """Take part in `run` at the coordinator `address` (HOST:PORT), as the device `name`.

    What is not given is taken from KOINON_ADDRESS, KOINON_RUN, KOINON_NAME and KOINON_PLUGINS (comma-separated).
    `wait` is how many seconds to wait for a run that does not exist yet (default: KOINON_WAIT, or 0: not at all).

    The device shows the `credentials` that `koinon enrol` made (a folder; default: KOINON_CREDENTIALS, or where it put
    them), and has the name and the address that it enrolled with. `insecure` (or KOINON_INSECURE=1) is plain text
    instead, without an identity: for a coordinator on this machine that was started with --insecure.

    A device with a name has a memory in the folder `state` (default: KOINON_STATE, or ~/.local/state/koinon): an
    update that was handed in is sent again, with the same bytes, until its fate is known, whatever happens to this
    process; and what the strategy keeps on the device outlives it. Without a name (then it is this host's and the
    process) the device could not be recognised when it comes back, and nothing is kept.

    A program that koinon-edge has started takes part through it, and needs nothing else: KOINON_SOCKET says so.

    Raises UsageError if there are no credentials, or none that are valid, Denied if the coordinator does not let this
    device in, Unavailable if nobody answers within `timeout` seconds, NotFound for an unknown run, NotFound naming the
    strategy if this device does not have the run's, and Conflict if another process is this device already.
    """
    from koinon.link import GrpcLink

    if address is None and os.environ.get("KOINON_SOCKET"):
        from koinon import child

        return cast("Session", child.join(run))  # the same to a loop: the daemon has the rest
    run = run or os.environ.get("KOINON_RUN")
    if not run:
        raise UsageError("say which run to join: koinon.join(address, run=NAME), or set KOINON_RUN")
    named = name or os.environ.get("KOINON_NAME")
    memory, shown = Path(state) if state else None, Path(credentials) if credentials else None
    access = device_access(address, named, credentials=shown, insecure=insecure, state=memory)
    if access.credentials is not None:
        named = access.credentials.id
    client = named or f"{socket.gethostname()}-{os.getpid()}"
    load_plugins([*plugins, *filter(None, os.environ.get("KOINON_PLUGINS", "").split(","))])
    wait = wait or float(os.environ.get("KOINON_WAIT") or 0.0)
    outbox = open_outbox(named, memory)
    identity = identity_of(access, client, device_folder(named, memory) if named else None)
    policy = Policy.load(device_folder(named, memory) / "device.toml" if named else None)
    link = GrpcLink(
        access.address, client, outbox.instance, outbox.boot, credentials=access.credentials,
        able=profile() if policy.profile else None,
    )  # fmt: skip
    session = Session(link, run, client, outbox=outbox, wait=wait > 0, identity=identity, policy=policy)
    try:
        session.open(timeout, wait, access.address)
    except Unavailable as error:
        session.close()
        raise Unavailable("; ".join(filter(None, (str(error), link.hint)))) from None
    except BaseException:
        session.close()
        raise
    return session


class Session:
    """This device in one run. Made by `join`; a context manager, so that what goes wrong is reported. `soon` does what
    takes a while (default: a thread of the session's own, one thing after the other), `clock` has seconds that pass."""

    def __init__(
        self, link: Any, run: str, client: str, *, outbox: Outbox | None = None, wait: bool = False,
        identity: DeviceIdentity | None = None, policy: Policy | None = None,
        soon: Callable[[Callable[[], None]], None] | None = None, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.client = client
        """This device's name."""
        self.identity = identity or DeviceIdentity.loose(client)
        """What it signs with in a secure round, and whom it believes."""
        self.status, self.reason = "", ""
        """How the run ended, once it has: "finished", "failed" or "cancelled", and why."""
        self.evaluates = False
        self.failure: KoinonError | None = None
        """Why the coordinator hears no more of this device, where that is so."""
        self.settled: Callable[[int, str], None] = lambda round_, outcome: None
        """Told of each round whose update's fate becomes known, and what it is: "counted", or why not."""
        self._link, self._run_name = link, run
        self._outbox = outbox or MemoryOutbox()
        self._policy = policy or Policy()
        self._masking = ThreadPoolExecutor(1, thread_name_prefix=f"koinon-masking-{client}")
        self._talk = Conversation(
            client, run, self._outbox, _Desk(self), link.send, link.answer, wait=wait, identity=self.identity,
            policy=self._policy, soon=soon or self._soon,
        )  # fmt: skip
        self._shelf = Shelf(self._outbox.models, link.fetch)
        self._lock = threading.RLock()
        self._talk.guard = self._lock
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._joined = threading.Event()
        self._attended = False
        self._refused: KoinonError | None = None
        self._clock = clock
        self._asked_at: dict[int, float] = {}  # when a round's work was asked for, on this clock
        self._task: Task | None = None
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
            if self._talk.run:
                raise Unavailable(
                    f"the coordinator at {address} does not say within {timeout:g} s where the run stands; its "
                    f"operator sees why with `koinon run why {self._run_name}`"
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

    def close(self, *, leave: bool = True) -> None:
        """Leave the run. What was submitted is still sent; open work is declined, or (`leave` False) left as if this
        process had been killed, for the next one to take up while the round waits for this device."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if not leave:
            self._link.close()
            self._masking.shutdown(wait=False, cancel_futures=True)
            self._outbox.close()
            return
        self._give_up("DECLINED", "the session was closed")
        # In a secure round an update that was handed in is nothing without the words that open the sum.
        open_ = ("sent", "staged") if self._talk.secure else ("sent",)
        self._link.drain(lambda: self._talk.member.stage not in open_)
        self._link.close()
        self._masking.shutdown(cancel_futures=True)
        self._talk.closed()
        self._outbox.close()

    @property
    def spec(self) -> RunSpec:
        """The run's spec."""
        assert self._talk.spec is not None
        return self._talk.spec

    @property
    def secure(self) -> bool:
        """Whether sums alone are seen in this run."""
        return self._talk.secure

    @property
    def owes(self) -> int:
        """The round of an update that was handed in and whose fate is not known yet; 0 if there is none."""
        with self._lock:
            return self._talk.owes

    @property
    def asked(self) -> bool:
        """Whether there is work that was asked for and not handed in."""
        with self._lock:
            return self._talk.member.stage == "working"

    @property
    def task(self) -> Task | None:
        """The last task that the owner's loop got."""
        return self._task

    def limit(self, rate: float) -> None:
        """Move at most so many bytes a second, up and down together."""
        self._link.limit(rate)

    def leave(self, code: str, detail: str) -> None:
        """Say why there will be no update of the round under way, or that this device takes no part until it offers
        itself again; the operator sees it."""
        with self._lock:
            if self._talk.member.stage == "working":
                self._talk.gave_up(code, detail)
            else:
                self._talk.leave(0, code, detail)

    def spent(self, round_: int, costs: Mapping[str, Any]) -> None:
        """Say what this device's part in a round has cost (koinon.costs), as far as its owner allows."""
        message = cost_message(self._talk.run, round_, costs, self._policy, self.secure)
        if message is not None:
            self._link.send(message)

    def note(self, condition: Mapping[str, Any]) -> None:
        """Say how this device is: the fields of koinon_core.condition."""
        said = convert.condition_to(Condition.from_json(condition))
        self._link.send(pb.DeviceMessage(condition=said))

    def rest(self) -> bool:
        """Let the loop of `tasks` end where it waits: nothing is to be asked of this device until it comes back. False,
        and nothing said, while there is work, or an update whose fate is not known."""
        with self._lock:
            if self._talk.owes or self._talk.member.stage not in ("idle", "offered"):
                return False
            self._talk.leave(0, "RESTS", "")
            self._news.put(_Ended("", "this device rests"))
            return True

    @property
    def personal(self) -> Tensors | None:
        """This device's own model, where the strategy keeps one beside the common one (Ditto): as it was after the last
        round that this device was counted in. None before that, and where there is none."""
        with self._lock:
            kept = self._talk.state
        return next((t for name, t in kept.items() if name.rpartition(".")[2] == "personal"), None)

    # -- the owner's thread -----------------------------------------------------------------------------------

    def tasks(
        self, model: Any, *, evaluate: Evaluate | None = None, keep_optimizer: bool = False
    ) -> Iterator[Task]:
        """Work, round by round, until the run is over. Each time the round's weights are in `model`.

        `model` is a torch module or a dict of numpy arrays; it must have the run's schema. With `evaluate`, the
        session evaluates every round's weights on this device before it trains them. An optimizer that was made outside
        of the loop begins every task without momentum and moments, which were about other weights; with
        `keep_optimizer` it keeps them, and strategies that need the length of its steps refuse momentum.
        """
        if self._tasks is not None:  # in a notebook, a cell that was interrupted and is run again
            self._tasks.close()
        self._tasks = self._loop(model, evaluate, keep_optimizer)
        return self._tasks

    def _loop(self, owned: Any, evaluate: Evaluate | None, keep: bool) -> Generator[Task, None, None]:
        model = self._accept(owned)
        if keep and hasattr(model, "keep_optimizer"):
            model.keep_optimizer = True
        self.evaluates = evaluate is not None
        assert self._talk.half is not None
        bench = Workbench(
            client=self.client, spec=self.spec, half=self._talk.half, model=model, owned=owned, evaluate=evaluate,
            shelf=self._shelf, fetch=self._link.fetch,
            draft=lambda: self._outbox.draft(self._talk.run), show=self._show,
            hand_over=self._hand_over, give_up=self._give_up, left=self._time_left,
        )  # fmt: skip
        while True:
            with self._lock:
                self._talk.offered()
            news = self._link.wait(self._take)
            if isinstance(news, _Ended):
                self.status, self.reason = news.status, news.reason
                return
            if isinstance(news, KoinonError):
                raise news
            with self._lock:
                m, state = self._talk.member, self._talk.state
            if m.stage != "working" or m.terms is None or m.terms.round != news.round:
                continue
            try:
                yield from bench.work(news, m.terms, state)
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
                if self._talk.secure:  # an error's words may hold what the device's data holds
                    _log.error("%s: the loop failed: %s", self.client, detail)
                    detail = f"{type(error).__name__} (its words are in the device's own log)"
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
            assert self._talk.half is not None
            check_tied(model, self._talk.half.strategy)
        except UsageError as error:
            self._talk.leave(0, "REFUSED", str(error))
            raise
        return model

    def _show(self, task: Task) -> None:
        """The task that the owner's loop is about to get; the round may be over already."""
        with self._lock:
            self._task = task
            if self._talk.member.late:
                task.cancel(self._talk.member.late)

    def _hand_over(self, prepared: Prepared) -> None:
        with self._lock:
            try:
                self._talk.submitted(prepared)
            except KoinonError as error:  # this device's disk: nothing is sent that is not written down
                self._talk.gave_up("FAILED", str(error))
                raise

    def _give_up(self, code: str, detail: str) -> None:
        with self._lock:
            task = self._task
            if task is not None and task.declined is not None and task.round == self._talk.member.round:
                code, detail = task.declined  # whoever leaves the loop may have said why
            self._talk.gave_up(code, detail)

    def _soon(self, work: Callable[[], None]) -> None:
        """Do what takes a while on a thread that nobody waits for, one thing after the other."""
        with suppress(RuntimeError):  # the session is closed: there is nobody to tell any more
            self._masking.submit(_reported, work)

    # -- the link's thread ------------------------------------------------------------------------------------

    def connected(self) -> None:
        """The link has a stream (again)."""
        self._attended = True
        _log.info("%s attends; it joins run %s", self.client, self._run_name)
        with self._lock:
            self._talk.connected()

    def heard(self, message: pb.CoordinatorMessage) -> None:
        """The coordinator said something."""
        with self._lock:
            if message.WhichOneof("says") == "ask":
                ask = message.ask
                self._asked_at = {n: at for n, at in self._asked_at.items() if n >= self._talk.member.round}
                self._asked_at[ask.round] = self._clock() - ask.elapsed
            self._talk.heard(message)

    def _time_left(self, terms: Terms) -> float:
        """Seconds until the deadline of a round's work."""
        with self._lock:
            return self._asked_at[terms.round] + terms.deadline - self._clock()

    def failed(self, error: KoinonError) -> None:
        """The link gave up."""
        self._refuse(error)

    def _refuse(self, error: KoinonError) -> None:
        self.failure = error
        if self._joined.is_set():
            self._news.put(error)
        else:
            self._refused = error
            self._joined.set()

    def pulse(self) -> tuple[float, pb.DeviceMessage | None]:
        """A sign of life while work is under way: the optimizer's step counter, every third of the lease."""
        with self._lock:
            talk = self._talk
            lease = talk.spec.lease if talk.spec else 1.0  # not known yet: ask again soon
            busy = talk.member.stage in ("working", "sent", "staged")
            # How many steps a device takes says how many examples it has.
            steps = self._task.steps if self._task is not None and not talk.secure else 0
            progress = pb.Progress(run=talk.run, round=talk.member.round, steps=steps)
        return lease / 3, pb.DeviceMessage(progress=progress) if busy else None


def _reported(work: Callable[[], None]) -> None:
    """What goes wrong on a thread that nobody waits for is seen all the same."""
    try:
        work()
    except Exception:
        _log.exception("a secure round's work failed")


class _Desk:
    """What the conversation has for the owner, put where the owner's thread finds it."""

    def __init__(self, session: Session):
        self._session = session

    @property
    def evaluates(self) -> bool:
        return self._session.evaluates

    @property
    def held(self) -> str | None:
        return self._session._shelf.held

    def entered(self) -> None:
        session = self._session
        if not session._joined.is_set():
            _log.info("%s is in run %s and waits for work", session.client, session.spec.name)
            session._joined.set()

    def stays_away(self, reason: str) -> None:
        self._session._joined.set()  # it is in the run all the same, and waits

    def refused(self, error: KoinonError) -> None:
        self._session._refuse(error)

    def begin(self, ask: pb.Ask) -> None:
        self._session._news.put(ask)

    def interrupted(self, reason: str) -> None:
        if self._session._task is not None:
            self._session._task.cancel(reason)

    def settled(self, round_: int, outcome: str) -> None:
        session = self._session
        session.settled(round_, outcome)
        if session._task is not None and session._task.round == round_:
            session._task.outcome = outcome
        _log.info("%s: round %s: %s", session.client, round_, outcome)

    def ended(self, status: str, reason: str) -> None:
        self._session._news.put(_Ended(status, reason))
