"""The coordinator in memory: the run's machine, and what the driver does around it, without a database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from koinon.central import Central
from koinon.run import Run
from koinon.simulated.secrets import Secrets
from koinon.simulated.world import Faults, World
from koinon_core import codec
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.codec import Reader
from koinon_core.errors import BadBlob, KoinonError, RemoteProtocolError
from koinon_core.flow.central import central
from koinon_core.flow.spread import spread_of
from koinon_core.fold import verify
from koinon_core.history import Standing
from koinon_core.round import effects
from koinon_core.round.effects import Verdict
from koinon_core.round.machine import Round
from koinon_core.round.terms import COLLECTIONS
from koinon_core.run import Run as Machine
from koinon_core.secagg.recovery import Unrecoverable
from koinon_core.secure.aged import aged
from koinon_core.secure.apart import aggregate
from koinon_core.selection import Seen
from koinon_core.strategy.closing import (
    Closing,
    Contribution,
    Into,
    close,
    digest_of_tensors,
    evaluate,
    heads_of,
    judge,
    step,
)  # fmt: skip
from koinon_core.strategy.protocol import Need
from koinon_core.strategy.shape import begin, shape_of
from koinon_core.tiles import Gather, Held, Source
from koinon_core.update import Head
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["House", "Port", "RoundSummary", "Traits"]

_WORDS = COLLECTIONS["secure"][1:]  # what a device has to say for a secure sum, in order


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """One simulated round."""

    number: int
    status: str
    reason: str
    clients: tuple[str, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Traits:
    """What a simulated device is known by: the labels that an operator would have given it, and what it says of
    itself (koinon_core.selection)."""

    labels: Mapping[str, str] = field(default_factory=dict)
    able: Mapping[str, float] = field(default_factory=dict)


class Port(Protocol):
    """A device, as the coordinator reaches it."""

    @property
    def client(self) -> str: ...
    def deliver(self, message: pb.CoordinatorMessage) -> None:
        """Hand the device a message, and let it run until it waits again."""
        ...

    def reconnect(self) -> None:
        """Give the device a new stream, in which it asks where things stand."""
        ...


class House:
    """The simulated coordinator: the run's machine and what the driver does around it, in memory."""

    def __init__(
        self, run: Run, world: World, faults: Faults, central: Central | None = None,
        traits: Mapping[str, Traits] | None = None,
    ):  # fmt: skip
        self._central = central
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
        self._traits = traits or {}
        self.links: dict[str, Port] = {}
        self.history: dict[int, str] = {}
        self.staged: dict[str, tuple[Head, bytes]] = {}
        self.secrets = Secrets()
        self.rounds: list[RoundSummary] = []
        self.metrics: dict[int, dict[str, float]] = {}
        self.models = [self.machine.model]
        self._made_by = 0
        self._silent: dict[str, int] = {}
        self._counted: set[tuple[int, str]] = set()
        self._arrives: dict[str, float] = {}
        self._ticks: set[float] = set()

    def _keep(self, blob: bytes) -> str:
        digest = sha256(blob)
        self.contents[digest] = blob
        return digest

    def _keep_model(self) -> str:
        return self._keep(codec.encode(self.model, self.spec.model, self.spec.snapshots))

    # -- from devices -----------------------------------------------------------------------------------------

    def hear(self, link: Port, message: pb.DeviceMessage, blob: bytes) -> None:
        """A device said something: it arrives after the world's delay, if at all."""
        now, delay = self.world.now, 0.0
        if self.faults.delay:
            delay = self.world.random.uniform(0, self.faults.delay)
        if not self._lost(link.client, message):
            # On one stream, nothing overtakes what was sent before it.
            arrives = self._arrives[link.client] = max(self._arrives.get(link.client, now), now + delay)
            self.world.at(arrives, lambda: self._receive(link, message, blob))
        elif message.WhichOneof("says") == "answer" or (
            self.spec.buffer and message.voice.collection == "keys"
        ):
            # A stream loses nothing but by being cut, and whoever was cut off comes back and asks. It does so when
            # nobody waits for the update any more, or this one would arrive after all.
            self.world.after(self.spec.lease + 1.0, link.reconnect)

    def _lost(self, client: str, message: pb.DeviceMessage) -> bool:
        """Whether it never arrives: an update, or a word for a secure sum and all that come after it."""
        dice, drop = self.world.random, self.faults.drop
        match message.WhichOneof("says"):
            case "answer":
                return dice.random() < drop
            case "voice":
                word = _WORDS.index(message.voice.collection)
                if word == 0:  # drawn anew for every attempt
                    lost = drop and dice.random() < drop
                    self._silent[client] = dice.randrange(len(_WORDS)) if lost else len(_WORDS)
                return word >= self._silent[client]
        return False

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
                offer, known = message.offer, self._traits.get(client, Traits())
                self.move(
                    runs.Offered(
                        now, client, offer.evaluates, offer.engaged, labels=known.labels, able=known.able
                    )
                )
            case "leave" if message.leave.round:
                leave = message.leave
                self.move(runs.Resigned(now, client, leave.round, leave.code, leave.detail))
            case "leave":
                self.move(runs.Gone(now, client))
            case "answer":
                self._answer(client, message.answer, blob)
            case "voice":
                self._voice(client, message.voice, blob)

    def _answer(self, client: str, answer: pb.Answer, blob: bytes) -> None:
        now, r = self.world.now, self.machine.round
        if r is not None and self.machine.wants(client, answer.round):
            try:
                work = r.taken.get(client)
                if answer.terms_digest != (work.terms if work is not None else r.terms.digest):
                    raise BadBlob("the update was made under other terms than those of its work")
                head = convert.head_from(answer.head)
                head.check(
                    trained=r.terms.kind == "train", max_examples=r.terms.max_examples,
                    totals=self.strategy.totals(), whole=self.spec.whole,
                )  # fmt: skip
                if r.terms.kind == "train":
                    how = self.layout.under(r.terms).how
                    verify(self._reader(blob), self.layout.update, how, Held(self.model))
            except BadBlob as error:
                self.move(runs.Resigned(now, client, answer.round, "REFUSED", f"refused: {error}"))
                return
            self.staged[client] = (head, blob)
        self.move(runs.Answered(now, client, answer.round, answer.update.digest))

    def _voice(self, client: str, voice: pb.Voice, blob: bytes) -> None:
        r, number = self.machine.round, voice.round
        fact = runs.Voiced(
            self.world.now, client, number, voice.attempt, voice.collection,
            voice.update.digest or sha256(voice.payload),
        )  # fmt: skip
        if r is not None and self.machine.wants(client, number, voice.collection, voice.attempt):
            try:
                if voice.terms_digest != self.secrets.terms(r, client).digest:
                    raise RemoteProtocolError("what was said is about other terms than this round's")
                heard = self.secrets.hear(r, client, voice, blob)
            except (BadBlob, RemoteProtocolError) as error:
                self.move(runs.Resigned(self.world.now, client, number, "REFUSED", f"refused: {error}"))
                return
            fact = replace(fact, digest=heard.digest, missing=heard.missing)
        self.move(fact)

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
        self.secrets.follow(moved.run.round)
        for order in moved.orders:
            match order:
                case runs.Open(number):
                    incarnation = sha256(f"{self.spec.seed}/{number}".encode())[:32]
                    self.move(runs.Opening(self.world.now, incarnation))
                case effects.Ask(client, collection):
                    self._ask(client, collection)
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
                    counted = (number, client) in self._counted
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
        self._counted |= {(r.round_of(client), client) for client in r.accepted if r.stage == "closed"}
        if self._central is not None and r.stage == "closed" and r.terms.kind == "train":
            self._measure(r.terms.round, central(self._central(self.model)))
        own = self.metrics.get(r.terms.round, {})
        self.rounds.append(RoundSummary(r.terms.round, r.stage, r.reason, r.accepted, own))
        self.staged.clear()

    def _measure(self, number: int, metrics: Mapping[str, float]) -> None:
        """What the run's owner says of the model that round `number` made."""
        self.metrics.setdefault(number, {}).update(metrics)
        watch = self.spec.watch
        if watch is not None and watch.metric in metrics:
            self.move(runs.Measured(self.world.now, number, metrics[watch.metric]))

    def _plan_tick(self) -> None:
        at = self.machine.wakes_at
        if at is None or at in self._ticks:
            return
        self._ticks.add(at)

        def tick() -> None:
            self._ticks.remove(at)
            self.move(runs.Tick(self.world.now))

        self.world.after(max(0.0, at - self.world.now), tick)

    def _ask(self, client: str, collection: str) -> None:
        r = self.machine.round
        if r is None or not r.awaits(client):
            return  # the round has gone on since
        works = r.buffered and client in r.working
        if r.stage != collection and not works:
            return
        if not works and collection != "update" and (collection != "keys" or r.masking.attempt):
            call = pb.Call(
                run=self.machine.id, round=r.round_of(client), attempt=r.masking.attempt, collection=collection,
                payload=self.secrets.call(r, client),
            )  # fmt: skip
            self._tell(client, pb.CoordinatorMessage(call=call))
            return
        links = convert.links_to(self.machine.links)
        ask = pb.Ask(
            run=self.machine.id, round=r.terms.round, terms=r.terms.encoded, links=links,
            elapsed=r.elapsed(self.world.now, client),
        )  # fmt: skip
        for target, digest in ((ask.model, r.terms.model), (ask.down, r.terms.down)):
            if digest:
                target.CopyFrom(pb.Content(digest=digest, size=len(self.contents[digest])))
        self._tell(client, pb.CoordinatorMessage(ask=ask))

    def _fold(self, r: Round, accepted: Sequence[str]) -> runs.Fact:
        now, number, trained = self.world.now, r.terms.round, r.terms.kind == "train"
        model, state = Gather(self.spec.model), Gather(self.shape.state)
        down = Gather(self.shape.down)
        try:
            into = Into(model, state, down)
            made = self._summed(r, into) if r.secure else self._close(r, accepted, into)
        except Unrecoverable as error:
            return runs.Spoiled(now, number, str(error), error.blamed)
        except KoinonError as error:
            return runs.Unfoldable(now, number, f"made no model: {error}")
        watched = self.spec.watched(made.metrics, number, self._made_by)
        for name, value in made.metrics.items():
            about = self._made_by if name.startswith("eval.") else number
            self.metrics.setdefault(about, {})[name] = value
        if trained:
            self.model, self.state, self._made_by = model.tensors, state.tensors, number
            self._forget(r)
            self.models.append(self._keep_model())
            self._down = self._keep(codec.encode(down.tensors, self.shape.down)) if self.shape.down else ""
        return runs.Folded(
            now, number, self.models[-1], self._down, sum=made.sum, evaluated=self._evaluated(r, accepted),
            weights=made.weights or self.machine.weights, tuning=made.tuning, watched=watched,
            seen={c: Seen.of(self.staged[c][0]) for c in accepted} if self.spec.selecting.learns else {},
        )  # fmt: skip

    def _forget(self, r: Round) -> None:
        """Nobody asks for an older model once this round is closed, but who works on it for the next one."""
        going_on = [r.taken[client] for client in r.update.awaited if client in r.taken]
        wanted = {digest for work in going_on for digest in (work.model, work.down)}
        self.contents = {digest: blob for digest, blob in self.contents.items() if digest in wanted}

    def _close(self, r: Round, accepted: Sequence[str], into: Into) -> Closing:
        trained = r.terms.kind == "train"
        contributions = [
            Contribution(
                c, self.staged[c][0], self._reader(self.staged[c][1]) if trained else None, r.age(c), self._base(r, c)
            )
            for c in accepted
        ]  # fmt: skip
        spread = spread_of(heads_of(contributions)) if self.spec.spreads else {}
        if trained:
            made = close(
                self.strategy, self.layout, self.shape, r.terms, self.spec.population or 0, Held(self.model),
                Held(self.state), contributions, into,
            )  # fmt: skip
        else:
            made = evaluate(self.strategy, r.terms, contributions)
        return replace(made, metrics={**spread, **made.metrics})

    def _base(self, r: Round, client: str) -> Source | None:
        """The model that a device began with, where a buffered round's strategy needs it."""
        if client not in r.taken or Need.MODELS not in self.strategy.needs:
            return None
        return Held(codec.decode(self.contents[r.taken[client].model], self.spec.model))

    def _summed(self, r: Round, into: Into) -> Closing:
        """The same of a secure round, of which sums are all that there is."""
        w = Held(self.model)
        agreed = self.secrets.terms(r, r.accepted[0])
        total = aggregate(self.strategy, self.layout, agreed, self.secrets.sums(r), w)
        if r.buffered:
            first = r.accepted[0]
            version, known = r.taken[first].version, self.machine.tuning
            total = aged(self.strategy, total, r.terms, version, w, self._base(r, first), known)
        if r.terms.kind == "evaluate":
            return judge(total)
        return step(
            self.strategy, self.layout, self.shape, r.terms, self.spec.population or 0, w, Held(self.state), total,
            into,
        )  # fmt: skip

    def _evaluated(self, r: Round, accepted: Sequence[str]) -> int:
        """How many of them evaluated the round's model; of a secure round, how many said that they would."""
        devices = self.machine.devices
        if r.secure:
            return sum(c in devices and devices[c].evaluates for c in accepted)
        return sum(bool(self.staged[c][0].evaluation) for c in accepted)

    def _tell(self, client: str, message: pb.CoordinatorMessage) -> None:
        link = self.links.get(client)
        if link is None:
            return

        self.world.after(0.0, lambda: link.deliver(message))
