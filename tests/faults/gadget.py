"""A device in the simulation: the real conversation, workbench and outbox, and a training whose result is a power of
two, so that a sum tells who is in it and how often."""

from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from koinon.adapt import adapt
from koinon.conversation import Conversation
from koinon.outbox import DiskOutbox
from koinon.shelf import Shelf
from koinon.work import Workbench
from koinon_coordinator.store import Part
from koinon_core.blob import Blob
from koinon_core.errors import KoinonError
from koinon_core.round.terms import Terms
from koinon_core.wire.v1 import fleet_pb2 as pb

from .house import Killed, Stream

if TYPE_CHECKING:
    from .world import World

__all__ = ["Gadget"]


class Gadget:
    """One device. It may be killed at any of its outbox's failpoints; `start` begins a new process on its memory."""

    def __init__(self, world: "World", index: int, folder: Path):
        self.world, self.index, self.folder = world, index, folder
        self.name = f"c{index}"
        self.evaluates = world.evaluates
        self.alive = False
        self.stream: Stream | None = None
        self.boots = 0
        self.start()

    def start(self) -> None:
        self.alive, self.boots = True, self.boots + 1
        self.outbox = DiskOutbox(self.folder / self.name, self.name)
        self.talk = Conversation(self.name, "run", self.outbox, self, self._send, self._send_update)
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
        if self.stream is not None:
            self.stream.say(message)

    def _send_update(self, answer: pb.Answer, update: Blob) -> None:
        blob = update.bytes()
        message = pb.DeviceMessage(answer=answer)
        self.world.laws.answers(self, message.answer)
        if self.world.files:
            self._upload(answer, blob)
            self._send(message)
            return
        message.answer.update.inline = blob
        if blob and self.world.corrupts():
            at = self.world.dice.randrange(len(blob))
            message.answer.update.inline = blob[:at] + bytes([blob[at] ^ 64]) + blob[at + 1 :]
        self._send(message)

    def _upload(self, answer: pb.Answer, blob: bytes) -> None:
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
            self._do(lambda: self.talk.heard(message))

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
                self.model["x"] += 2.0**-self.index
                steps = task._steering.recorded
                steps.steps, steps.lr, steps.displacement = 1, 1.0, 1.0
                task.submit(examples=1)
            self.talk.offered()

        self._do(work)

    def interrupted(self, reason: str) -> None:
        """It trains to the end all the same, as most loops do."""

    def settled(self, round_: int, outcome: str) -> None:
        self.world.laws.settled(self, round_, outcome)

    def ended(self, status: str, reason: str) -> None:  # type: ignore[no-redef]
        self.over = status
