"""The coordinator in memory: the run's machine, and what the driver does around it, without a database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from koinon.run import Run
from koinon.simulated.world import Faults, World
from koinon_core import codec
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.codec import Reader
from koinon_core.errors import BadBlob, KoinonError
from koinon_core.fold import verify
from koinon_core.history import Standing
from koinon_core.round import effects
from koinon_core.round.effects import Verdict
from koinon_core.round.machine import Round
from koinon_core.run import Run as Machine
from koinon_core.strategy.closing import Contribution, Into, close, digest_of_tensors, evaluate
from koinon_core.strategy.shape import begin, shape_of
from koinon_core.tiles import Gather, Held
from koinon_core.update import Head
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["House", "Port", "RoundSummary"]


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """One simulated round."""

    number: int
    status: str
    reason: str
    clients: tuple[str, ...]
    metrics: Mapping[str, float]


class Port(Protocol):
    """A device, as the coordinator reaches it."""

    @property
    def client(self) -> str: ...
    def deliver(self, message: pb.CoordinatorMessage) -> None:
        """Hand the device a message, and let it run until it waits again."""
        ...


class House:
    """The simulated coordinator: the run's machine and what the driver does around it, in memory."""

    def __init__(self, run: Run, world: World, faults: Faults):
        self.world, self.faults, self.spec = world, faults, run.spec
        self.strategy, self.layout = run.spec.check()
        self.contents: dict[str, bytes] = {}
        self.model = run.model
        self.shape = shape_of(self.strategy, self.layout, run.spec.population or 0)
        state, down = Gather(self.shape.state), Gather(self.shape.down)
        begin(self.strategy, self.shape, self.layout, run.spec.population or 0, Held(run.model), state, down)
        self.state = state.tensors
        self._down = self._keep(codec.encode(down.tensors, self.shape.down)) if self.shape.down else ""
        weights = digest_of_tensors(Held(run.model), run.spec.model)
        self.machine = Machine(
            id="simulated", spec=run.spec, model=self._keep_model(), down=self._down, weights=weights
        )
        self.links: dict[str, Port] = {}
        self.history: dict[int, str] = {}
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

    def _keep_model(self) -> str:
        return self._keep(codec.encode(self.model, self.spec.model, self.spec.snapshots))

    # -- from devices -----------------------------------------------------------------------------------------

    def hear(self, link: Port, message: pb.DeviceMessage, blob: bytes) -> None:
        """A device said something: it arrives after the world's delay, if at all."""
        delay = self.world.random.uniform(0, self.faults.delay) if self.faults.delay else 0.0
        kind = message.WhichOneof("says")
        if kind == "answer" and self.world.random.random() < self.faults.drop:
            return
        self.world.after(delay, lambda: self._receive(link, message, blob))

    def _receive(self, link: Port, message: pb.DeviceMessage, blob: bytes) -> None:
        now, client = self.world.now, link.client
        match message.WhichOneof("says"):
            case "join":
                self.links[client] = link
                joined = pb.Joined(run=self.machine.id, spec=self.spec.encoded)
                self._tell(client, pb.CoordinatorMessage(joined=joined))
            case "recall":
                where = Standing(round=self.machine.number, head=self.machine.head)
                links = {n: link for n, link in self.history.items() if n >= message.recall.pinned}
                self._tell(client, convert.standing(self.machine.id, where, links))
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
                    how = self.layout.under(r.terms).how
                    verify(self._reader(blob), self.layout.update, how, Held(self.model))
            except BadBlob as error:
                self.move(runs.Resigned(now, client, answer.round, "REFUSED", f"refused: {error}"))
                return
            self.staged[client] = (head, blob)
        self.move(runs.Answered(now, client, answer.round, answer.update.digest))

    def leave(self, link: Port) -> None:
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
        self.history |= moved.run.links
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
                case runs.Recall(client, number):
                    counted = any(r.number == number and client in r.clients for r in self.rounds)
                    stored: Verdict = "COUNTED" if counted else "NOT_COUNTED"
                    why = "" if counted else f"late: round {number} is over"
                    self._tell(client, convert.receipt(self.machine.id, number, stored, why))
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
        links = convert.links_to(self.machine.links)
        ask = pb.Ask(run=self.machine.id, round=r.terms.round, terms=r.terms.encoded, links=links)
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
        model, state = Gather(self.spec.model), Gather(self.shape.state)
        down = Gather(self.shape.down)
        try:
            made = evaluate(self.strategy, r.terms, contributions)
            if trained:
                made = close(
                    self.strategy, self.layout, self.shape, r.terms, self.spec.population or 0, Held(self.model),
                    Held(self.state), contributions, Into(model, state, down),
                )  # fmt: skip
        except KoinonError as error:
            return runs.Unfoldable(self.world.now, r.terms.round, f"made no model: {error}")
        for name, value in made.metrics.items():
            about = self._made_by if name.startswith("eval.") else r.terms.round
            self.metrics.setdefault(about, {})[name] = value
        if trained:
            self.model, self.state, self._made_by = model.tensors, state.tensors, r.terms.round
            self.contents.clear()  # nobody asks for an older model once this round is closed
            self.models.append(self._keep_model())
            self._down = self._keep(codec.encode(down.tensors, self.shape.down)) if self.shape.down else ""
        evaluated = sum(bool(self.staged[c][0].evaluation) for c in accepted)
        return runs.Folded(
            self.world.now, r.terms.round, self.models[-1], self._down, sum=made.sum, evaluated=evaluated,
            weights=made.weights or self.machine.weights,
        )  # fmt: skip

    def _tell(self, client: str, message: pb.CoordinatorMessage) -> None:
        link = self.links.get(client)
        if link is None:
            return

        self.world.after(0.0, lambda: link.deliver(message))
