"""A federation without a network: the same run, the same client function, the same machines, a virtual clock.

    result = koinon.simulate(run, client, clients=10)

`client(session)` is the function that a device runs, deployed or here. Each simulated device has a thread, but
only one of them runs at a time, so a simulation is deterministic: everything between two devices goes through a
queue of (virtual time, message), and a seed decides what is late or lost.
"""

import heapq
import itertools
import queue
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from koinon.run import Run
from koinon.session import Session
from koinon_core import codec
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.codec import Reader
from koinon_core.errors import BadBlob, KoinonError, RunEnded, UsageError
from koinon_core.fold import verify
from koinon_core.round import effects
from koinon_core.round.machine import Round
from koinon_core.run import Run as Machine
from koinon_core.strategy.protocol import State
from koinon_core.strategy.runner import Contribution, close
from koinon_core.tensors import Tensors
from koinon_core.update import Head, pack_state, state_schema
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Faults", "RoundSummary", "Simulated", "World", "simulate"]

T = TypeVar("T")
Client = Callable[[Session], Any]
_START = 1_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What may go wrong between a device and the coordinator, by a seed: `delay` is the largest, in virtual
    seconds; `drop` the share of updates that never arrive."""

    delay: float = 0.0
    drop: float = 0.0


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """One simulated round."""

    number: int
    status: str
    reason: str
    clients: tuple[str, ...]
    metrics: Mapping[str, float]


@dataclass(slots=True)
class Simulated:
    """How a simulated run ended. `metrics` are by the round whose model they are about."""

    status: str
    reason: str
    model: Tensors
    rounds: list[RoundSummary]
    metrics: dict[int, dict[str, float]]
    models: list[str] = field(default_factory=list)
    """Digests of the models, the first included."""


class World:
    """Events in virtual time, in one order: by time, then as they were planned."""

    def __init__(self, seed: int = 0):
        self.now = _START
        self.random = random.Random(seed)  # noqa: S311 - a simulation's dice, not a secret
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Plan `action` in `delay` virtual seconds."""
        heapq.heappush(self._heap, (self.now + delay, next(self._count), action))

    def step(self) -> bool:
        """Let the next thing happen; False if nothing is planned."""
        if not self._heap:
            return False
        self.now, _, action = heapq.heappop(self._heap)
        action()
        return True


class _Stop(BaseException):
    """Ends a device's thread when the simulation is over before the device is."""


class _MemoryLink:
    """A session's link to the simulated coordinator. The device's thread runs from one `wait` to the next."""

    def __init__(self, house: "_House", client: str):
        self._house, self.client = house, client
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.idle = threading.Semaphore(0)
        self.receiver: Session | None = None
        self.ended = False

    def start(self, receiver: Session) -> None:
        self.receiver = receiver
        receiver.connected()

    def send(self, message: pb.DeviceMessage) -> None:
        self._house.hear(self, message, b"")

    def answer(self, answer: pb.Answer, blob: bytes) -> None:
        self._house.hear(self, pb.DeviceMessage(answer=answer), blob)

    def fetch(self, content: pb.Content) -> bytes:
        return self._house.contents[content.digest]

    def wait(self, take: Callable[[float], T]) -> T:
        while True:
            try:
                return take(0.0)
            except TimeoutError:
                self.idle.release()
                if not self._wake.get():
                    raise _Stop from None

    def close(self) -> None:
        self._house.leave(self)

    def resume(self, go_on: bool = True) -> None:
        """Let the device's thread run until it waits again, or ends."""
        if not self.ended:
            self._wake.put(go_on)
            self.idle.acquire()

    def stop(self) -> None:
        """End the device's thread, wherever it waits."""
        while not self.ended:
            self.resume(go_on=False)


class _House:
    """The simulated coordinator: the run's machine and what the driver does around it, in memory."""

    def __init__(self, run: Run, world: World, faults: Faults):
        self.world, self.faults, self.spec = world, faults, run.spec
        self.strategy, self.layout = run.spec.check()
        self.contents: dict[str, bytes] = {}
        self.model = run.model
        self.state: State = self.strategy.init(
            run.model.select(self.layout.params.by_name), run.spec.population or 0
        )
        blob = codec.encode(run.model, run.spec.model)
        self.machine = Machine(id="simulated", spec=run.spec, model=self._keep(blob), down=self._down())
        self.links: dict[str, _MemoryLink] = {}
        self.staged: dict[str, tuple[Head, bytes]] = {}
        self.rounds: list[RoundSummary] = []
        self.metrics: dict[int, dict[str, float]] = {}
        self.models = [self.machine.model]
        self._made_by = 0
        self._ticking: float | None = None

    def _keep(self, blob: bytes) -> str:
        digest = sha256(blob)
        self.contents[digest] = blob
        return digest

    def _down(self) -> str:
        down = self.strategy.down(self.state)
        return self._keep(codec.encode(pack_state(down), state_schema(down))) if down else ""

    # -- from devices -----------------------------------------------------------------------------------------

    def hear(self, link: _MemoryLink, message: pb.DeviceMessage, blob: bytes) -> None:
        """A device said something: it arrives after the world's delay, if at all."""
        delay = self.world.random.uniform(0, self.faults.delay) if self.faults.delay else 0.0
        kind = message.WhichOneof("says")
        if kind == "answer" and self.world.random.random() < self.faults.drop:
            return
        self.world.after(delay, lambda: self._receive(link, message, blob))

    def _receive(self, link: _MemoryLink, message: pb.DeviceMessage, blob: bytes) -> None:
        now, client = self.world.now, link.client
        match message.WhichOneof("says"):
            case "join":
                self.links[client] = link
                joined = pb.Joined(run=self.machine.id, spec=self.spec.encoded)
                self._tell(client, pb.CoordinatorMessage(joined=joined))
            case "offer":
                self.move(runs.Offered(now, client, message.offer.evaluates, message.offer.engaged))
            case "leave" if message.leave.round:
                leave = message.leave
                self.move(runs.Resigned(now, client, leave.round, leave.code, leave.detail))
            case "leave":
                self.move(runs.Gone(now, client))
            case "answer":
                self._answer(client, message.answer, blob)

    def _answer(self, client: str, answer: pb.Answer, blob: bytes) -> None:
        now, r = self.world.now, self.machine.round
        if r is not None and self.machine.wants(client, answer.round):
            try:
                head = convert.head_from(answer.head)
                head.check(
                    trained=r.terms.kind == "train", max_examples=r.terms.max_examples,
                    totals=self.strategy.totals(),
                )  # fmt: skip
                if r.terms.kind == "train":
                    verify(self._reader(blob), self.layout.update, r.terms.grid, r.terms.bound)
            except BadBlob as error:
                self.move(runs.Resigned(now, client, answer.round, "REFUSED", f"refused: {error}"))
                return
            self.staged[client] = (head, blob)
        self.move(runs.Answered(now, client, answer.round, answer.update.digest))

    def leave(self, link: _MemoryLink) -> None:
        self.world.after(0.0, lambda: self.move(runs.Gone(self.world.now, link.client)))

    def _reader(self, blob: bytes) -> Reader:
        return Reader(lambda offset, length: blob[offset : offset + length], len(blob), self.layout.update)

    # -- the machine ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._do(runs.start(self.machine))

    def move(self, fact: runs.Fact) -> None:
        self._do(runs.step(self.machine, fact))

    def _do(self, moved: runs.Moved) -> None:
        self.machine = moved.run
        for order in moved.orders:
            match order:
                case runs.Open(number):
                    incarnation = sha256(f"{self.spec.seed}/{number}".encode())[:32]
                    self.move(runs.Opening(self.world.now, incarnation))
                case effects.Ask(client):
                    self._ask(client)
                case effects.Receipt(client, number, verdict, reason):
                    self._tell(client, convert.receipt(self.machine.id, number, verdict, reason))
                case effects.Cancel(client, number, reason):
                    cancel = pb.Cancel(run=self.machine.id, round=number, reason=reason)
                    self._tell(client, pb.CoordinatorMessage(cancel=cancel))
                case effects.Fold(accepted):
                    assert self.machine.round is not None
                    self.move(self._fold(self.machine.round, accepted))
                case effects.Close():
                    self._note(moved.run.round)
                case runs.Finish(status, reason):
                    ended = pb.CoordinatorMessage(
                        ended=pb.Ended(run=self.machine.id, status=status, reason=reason)
                    )
                    for client in self.links:
                        self._tell(client, ended)
        self._plan_tick()

    def _note(self, r: Round | None) -> None:
        assert r is not None
        own = self.metrics.get(r.terms.round, {})
        self.rounds.append(RoundSummary(r.terms.round, r.stage, r.reason, r.accepted, own))
        self.staged.clear()

    def _plan_tick(self) -> None:
        at = self.machine.wakes_at
        if at is None or at == self._ticking:
            return
        self._ticking = at

        def tick() -> None:
            self._ticking = None
            self.move(runs.Tick(self.world.now))

        self.world.after(max(0.0, at - self.world.now), tick)

    def _ask(self, client: str) -> None:
        r = self.machine.round
        assert r is not None
        ask = pb.Ask(run=self.machine.id, round=r.terms.round, terms=r.terms.encoded)
        for target, digest in ((ask.model, r.terms.model), (ask.down, r.terms.down)):
            if digest:
                target.CopyFrom(pb.Content(digest=digest, size=len(self.contents[digest])))
        self._tell(client, pb.CoordinatorMessage(ask=ask))

    def _fold(self, r: Round, accepted: Sequence[str]) -> runs.Fact:
        trained = r.terms.kind == "train"
        contributions = [
            Contribution(c, self.staged[c][0], self._reader(self.staged[c][1]) if trained else None)
            for c in accepted
        ]
        try:
            made = close(
                self.strategy, self.layout, r.terms, self.model, self.state, self.spec.population or 0,
                contributions,
            )  # fmt: skip
        except KoinonError as error:
            return runs.Unfoldable(self.world.now, r.terms.round, f"made no model: {error}")
        for name, value in made.metrics.items():
            about = self._made_by if name.startswith("eval.") else r.terms.round
            self.metrics.setdefault(about, {})[name] = value
        if trained:
            self.model, self.state, self._made_by = made.model, made.state, r.terms.round
            self.contents.clear()  # nobody asks for an older model once this round is closed
            self.models.append(self._keep(codec.encode(self.model, self.spec.model)))
        return runs.Folded(self.world.now, r.terms.round, self.models[-1], self._down())

    def _tell(self, client: str, message: pb.CoordinatorMessage) -> None:
        link = self.links.get(client)
        if link is None:
            return

        def arrive() -> None:
            assert link.receiver is not None
            link.receiver.heard(message)
            link.resume()

        self.world.after(0.0, arrive)


class _Device(threading.Thread):
    """A simulated device: its client function on a thread that runs only when the simulation lets it."""

    def __init__(self, house: _House, client: Client, name: str):
        super().__init__(name=f"koinon-{name}", daemon=True)
        self.link = _MemoryLink(house, name)
        self.session = Session(self.link, house.spec.name, name)
        self._function = client
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self.session:
                self.link.start(self.session)
                self.link.wait(self._joined)
                self._function(self.session)
        except _Stop:
            self.error = None
        except BaseException as error:
            self.error = error
        finally:
            self.link.ended = True
            self.link.idle.release()

    def _joined(self, _timeout: float) -> bool:
        if self.session.joined_or_raise():
            return True
        raise TimeoutError


def simulate(
    run: Run,
    client: Client,
    *,
    clients: int | Iterable[str] = 10,
    faults: Faults | None = None,
    seed: int = 0,
) -> Simulated:
    """Run `run` with `clients` simulated devices (a number, or their names) that each call `client(session)`.

    The same names, seeds and client function give the same model as a deployed run, byte for byte, where the
    training itself is deterministic. Raises RunEnded if the run could not finish, and re-raises the first error
    of a client function that made it fail.
    """
    names = [f"client-{i}" for i in range(clients)] if isinstance(clients, int) else list(clients)
    if len(names) < run.spec.min_clients:
        raise UsageError(
            f"{len(names)} simulated clients can never be the run's min_clients = {run.spec.min_clients}"
        )
    world = World(seed)
    house = _House(run, world, faults or Faults())
    devices = [_Device(house, client, name) for name in names]
    for device in devices:
        device.start()
        device.link.idle.acquire()
    house.begin()
    try:
        while not house.machine.over and world.step():
            pass
        while world.step():  # let everyone hear the end
            pass
    finally:
        for device in devices:
            device.link.stop()
    return _result(house, devices)


def _result(house: _House, devices: Sequence[_Device]) -> Simulated:
    machine = house.machine
    if machine.status != "finished":
        for device in devices:
            if device.error is not None:
                raise device.error
        raise RunEnded(
            f"the simulated run {machine.status}: {machine.reason or machine.waiting_for or 'every client left'}"
        )
    return Simulated(
        machine.status, machine.reason, house.model, house.rounds, house.metrics, list(house.models)
    )
