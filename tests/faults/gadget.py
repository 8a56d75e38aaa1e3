"""A device in the simulation: the real conversation, workbench and outbox, and a training whose result is a power of
two, so that a sum tells who is in it and how often."""

import math
import shutil
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from koinon.adapt import adapt
from koinon.conversation import Conversation
from koinon.identity.device import DeviceIdentity
from koinon.outbox import DiskOutbox
from koinon.shelf import Shelf
from koinon.work import Workbench
from koinon_coordinator.store import Part
from koinon_core.blob import Blob
from koinon_core.errors import KoinonError
from koinon_core.identity import Entry, Trust
from koinon_core.round.terms import Terms
from koinon_core.secagg import statements
from koinon_core.wire.v1 import fleet_pb2 as pb
from koinon_core.wire.v1 import secagg_pb2

from .forging import forged
from .house import Killed, Stream

if TYPE_CHECKING:
    from .world import World

__all__ = ["Gadget"]


class _Key:
    """A device's signing key and its entry, for as long as its world lasts."""

    def __init__(self, name: str, key: bytes):
        self.signing_key, self.entry = key, Entry.loose(name, key).encoded


class Gadget:
    """One device. It may be killed at any of its outbox's failpoints; `start` begins a new process on its memory."""

    def __init__(self, world: "World", index: int, folder: Path):
        self.world, self.index, self.folder = world, index, folder
        self.name = f"c{index}"
        self.evaluates = world.evaluates
        self.lies = world.liars.get(index, "")
        self._key, self._survivors = _Key(self.name, world.entropy(32)), b""
        self.alive = False
        self.stream: Stream | None = None
        self.boots = 0
        self.start()

    def start(self) -> None:
        self.alive, self.boots = True, self.boots + 1
        self.outbox = DiskOutbox(self.folder / self.name, self.name)
        me = DeviceIdentity(self.name, Trust.loose(), self._key)
        self.talk = Conversation(
            self.name, "run", self.outbox, self, self._send, self._send_update, identity=me
        )
        self.model = {"x": np.zeros(1)}
        self.over = ""
        self._connect()

    def die(self, how: str) -> None:
        if not self.alive:
            return
        self.world.tell(f"{self.name} is killed {how}")
        self.alive = False
        self.outbox._lock.close()
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.cut("the device died")
        self.world.later(self.world.down_for(), self.start)

    def lose_power(self) -> None:
        """What was in this machine's memory is gone, and of the masked update, which nobody synced, perhaps a part."""
        self.die("by a power cut")
        self.world.laws.may_refuse(self.name)
        shutil.rmtree(self.outbox.journal._secrets, ignore_errors=True)
        for path in (self.outbox.journal._folder / "masked").glob("*"):
            if self.world.dice.random() < 0.5:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    # -- the network ------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        boot = self.boots

        def attempt() -> None:
            if not self.alive or boot != self.boots or self.stream is not None:
                return
            house = self.world.reach()
            try:
                if house is None:
                    raise KoinonError("nobody answers")
                self.stream = house.attach(self)
            except KoinonError:
                self._connect()
                return
            self._do(self.talk.connected)

        self.world.later(self.world.dice.uniform(0, 2.0), attempt)

    def lost(self, stream: Stream) -> None:
        """This end notices that its stream is gone."""
        if self.stream is stream:
            self.stream = None
            self._connect()

    def _send(self, message: pb.DeviceMessage) -> None:
        if message.HasField("ahead"):
            self.world.laws.stays_away(self, message.ahead.reason)
        if message.HasField("voice"):
            self.world.laws.sessions.speaks(self, message.voice)
            if self.world.falls():
                self.world.later(0.0, lambda: self.die(f"before it says {message.voice.collection!r}"))
                return
            if self.lies:
                message.voice.payload = self._lie(message.voice)
        if self.stream is not None:
            self.stream.say(message)

    def _lie(self, voice: pb.Voice) -> bytes:
        """Its word with wrong shares in it, signed as if they were right; the same lie every time."""
        me = self.talk._identity
        if voice.collection == self.lies == "shares":
            shares = secagg_pb2.Shares.FromString(voice.payload)
            shares.sealed = bytes(b ^ 1 for b in shares.sealed)
            digest = statements.dealt_digest(shares.sealed)
            shares.signature = me.sign(statements.dealt(shares.session, me.id, digest, shares.commitment))
            return shares.SerializeToString()
        if voice.collection == self.lies == "reveal":
            reveal = secagg_pb2.Reveal.FromString(voice.payload)
            reveal.shares = bytes(b ^ 1 for b in reveal.shares)
            agreed = statements.agreement(self._survivors)
            digest = statements.opened_digest(reveal.owners, reveal.shares)
            reveal.signature = me.sign(statements.opened(reveal.session, me.id, agreed, digest))
            return reveal.SerializeToString()
        return voice.payload

    def _send_update(self, said: pb.Answer | pb.Voice, update: Blob) -> None:
        blob = update.bytes()
        if isinstance(said, pb.Voice):
            message = pb.DeviceMessage(voice=said)
            inner: pb.Answer | pb.Voice = message.voice
            self.world.laws.sessions.speaks(self, said)
        else:
            message = pb.DeviceMessage(answer=said)
            inner = message.answer
            self.world.laws.answers(self, said)
        if self.world.files:
            self._upload(said, blob)
            self._send(message)
            return
        inner.update.inline = blob
        if blob and self.world.corrupts():
            self.world.laws.may_refuse(self.name)
            at = self.world.dice.randrange(len(blob))
            inner.update.inline = blob[:at] + bytes([blob[at] ^ 64]) + blob[at + 1 :]
        self._send(message)

    def _upload(self, answer: pb.Answer | pb.Voice, blob: bytes) -> None:
        """Bring the bytes to where the answer is heard; the stream carries what names them."""
        if self.stream is None or not self.stream.open:
            return
        federation, part = self.stream.house.federation, Part(answer.run, answer.round, self.name)
        with suppress(KoinonError):  # the answer's receipt says what was wrong
            self.stream.house.fleet.devices.may_upload(
                self.stream.connection, answer.run, answer.round, len(blob)
            )
            incoming = federation.store.uploads.receive(part, answer.update.digest, len(blob))
            if incoming is not None:
                with incoming:
                    incoming.write(blob)
                    incoming.finish()

    def hear(self, message: pb.CoordinatorMessage) -> None:
        if self.alive:
            self.world.laws.heard(self, message)
            if message.HasField("call") and message.call.collection == "consistent":
                self._survivors = secagg_pb2.Survivors.FromString(message.call.payload).survivors
            self._do(lambda: self.talk.heard(message))
            if message.HasField("call"):
                self._hear_forged(message.call)

    def _hear_forged(self, call: pb.Call) -> None:
        """Whoever asks next wants to know more than it may."""
        wanted = forged(call)
        if wanted is not None and self.alive and self.world.forges():
            self.world.tell(
                f"{self.name} hears a forged call after {call.collection!r} of round {call.round}"
            )
            self.world.laws.may_refuse(self.name)
            self._do(lambda: self.talk.heard(wanted))

    def _do(self, action: Any) -> None:
        """Something happens in this process, which may die of it."""
        if not self.alive:
            return
        self.world.acting = self
        try:
            action()
        except Killed:
            self.world.acting = None
            self.die("while it wrote")
        finally:
            self.world.acting = None

    # -- the owner (koinon.conversation.Owner) ----------------------------------------------------------------

    held = None  # the models here are small, and come with the Ask

    def entered(self) -> None:
        self.talk.offered()

    def stays_away(self, reason: str) -> None:
        """The law has said what it thinks of that already, when the coordinator was told."""

    def refused(self, error: KoinonError) -> None:
        self.world.laws.refused(self, error)

    def begin(self, ask: pb.Ask) -> None:
        terms = Terms.decode(ask.terms)
        self.world.laws.begins(self, terms)
        bench = Workbench(
            client=self.name, spec=self.talk.spec, half=self.talk.half, model=adapt(self.model), owned=self.model,
            evaluate=(lambda _: {"loss": 0.5}) if self.evaluates else None,
            shelf=Shelf(None, lambda content, into: Blob.of(content.inline)),
            fetch=lambda content: Blob.of(content.inline), draft=lambda: self.outbox.draft(self.talk.run),
            show=lambda task: None, hand_over=self.talk.submitted, give_up=self.talk.gave_up,
            left=lambda terms: math.inf,
        )  # fmt: skip
        tasks = bench.work(ask, terms, self.talk.state)
        boot = self.boots
        takes, pulse = self.world.trains_for(), self.talk.spec.lease / 3
        for i in range(1, int(takes / pulse) + 1):
            self.world.later(i * pulse, lambda: self._pulse(boot))
        self.world.later(takes, lambda: self._train(tasks, terms, boot))

    def _pulse(self, boot: int) -> None:
        if self.alive and boot == self.boots and self.talk._clear:
            self._send(
                pb.DeviceMessage(progress=pb.Progress(run=self.talk.run, round=self.talk.member.round))
            )

    def _train(self, tasks: Generator[Any, None, None], terms: Terms, boot: int) -> None:
        if not self.alive or boot != self.boots:
            return

        def work() -> None:
            for task in tasks:
                if self.world.declines():
                    continue
                self.learn(task)
            self.talk.offered()

        self._do(work)

    def learn(self, task: Any) -> None:
        """The owner's loop."""
        self.model["x"] += 2.0**-self.index
        steps = task.steering.recorded
        steps.steps, steps.lr, steps.displacement = 1, 1.0, 1.0
        task.submit(examples=1)

    def interrupted(self, reason: str) -> None:
        """It trains to the end all the same, as most loops do."""

    def settled(self, round_: int, outcome: str) -> None:
        self.world.laws.settled(self, round_, outcome)

    def ended(self, status: str, reason: str) -> None:  # type: ignore[no-redef]
        self.over = status
