"""The conversation: what a device says to one run's coordinator, and what it makes of what it hears.

It holds the member machine, the device's memory (`outbox`) and the pin on the run's history, and has neither a
thread, a lock nor a clock: the session calls it under its own lock, the simulation in virtual time.

Whatever depends on an update is written before the update is sent, and becomes final on COUNTED alone. A coordinator
whose history does not go on from what this device saw is told so and otherwise left alone.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import Any, Protocol

from koinon.identity.device import DeviceIdentity
from koinon.masking import Masking, Word
from koinon.outbox import Kept, Outbox, Sent
from koinon.policy import Policy
from koinon_core.blob import Blob
from koinon_core.errors import BadBlob, KoinonError, RemoteProtocolError
from koinon_core.history import Pin, judge, judge_standing
from koinon_core.round import member
from koinon_core.round.member import Member
from koinon_core.round.terms import Terms
from koinon_core.spec import RunSpec
from koinon_core.strategy.protocol import State
from koinon_core.strategy.runner import LocalHalf, Prepared
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Conversation", "Owner"]

_log = logging.getLogger("koinon")


class Owner(Protocol):
    """Whom the conversation is held for."""

    @property
    def evaluates(self) -> bool:
        """Whether it evaluates models."""
        ...

    @property
    def held(self) -> str | None:
        """The digest of the tensors of the model that it keeps, "" if there is none yet; None where it never keeps
        one."""
        ...

    def entered(self) -> None:
        """The run let this device in, and its history is the one that the device knows."""

    def stays_away(self, reason: str) -> None:
        """It did, and its history is another one: the device waits until the coordinator's operator has mended that."""

    def refused(self, error: KoinonError) -> None:
        """It did not, or something is wrong that the owner must hear of."""

    def begin(self, ask: pb.Ask) -> None:
        """There is work."""

    def interrupted(self, reason: str) -> None:
        """The work under way is no longer wanted."""

    def settled(self, round_: int, outcome: str) -> None:
        """What became of an update: "counted", or why not."""

    def ended(self, status: str, reason: str) -> None:
        """The run is over."""


class Conversation:
    """One device, one run. `send` queues a message, `send_update` an answer with its update's bytes. `soon` does what
    takes a while (masking a large update), one thing after the other, and may do it elsewhere: what comes of it is said
    under `guard`."""

    def __init__(
        self, client: str, run: str, outbox: Outbox, owner: Owner, send: Callable[[pb.DeviceMessage], None],
        send_update: Callable[[pb.Answer | pb.Voice, Blob], None], *, wait: bool = False,
        identity: DeviceIdentity | None = None, policy: Policy | None = None,
        soon: Callable[[Callable[[], None]], None] = lambda work: work(),
    ):  # fmt: skip
        self.client = client
        self.run = ""
        self.spec: RunSpec | None = None
        self.half: LocalHalf | None = None
        self.member = Member()
        self.state: State = {}
        self._name, self._outbox, self._owner, self._wait = run, outbox, owner, wait
        self._send, self._send_update, self._soon = send, send_update, soon
        self.guard: AbstractContextManager[Any] = nullcontext()
        self._identity = identity or DeviceIdentity.loose(client)
        self._policy = policy or Policy()
        self._masking: Masking | None = None
        self._pin, self._settled = Pin(), 0
        self._sent: Sent | None = None
        self._links: dict[int, str] = {}
        self._asks: dict[int, pb.Ask] = {}
        self._held: pb.Ask | None = None
        self._clear = False
        self._over: pb.Ended | None = None

    def closed(self) -> None:
        """Nothing is said any more: secrets of a round that is settled go, whatever was still being done."""
        if self._masking is not None and self._sent is None:
            self._outbox.journal.end(self.run)

    @property
    def owes(self) -> int:
        """The round of the update that was handed in and whose fate is not known; 0 for none."""
        return self._sent.round if self._sent is not None else 0

    @property
    def secure(self) -> bool:
        """Whether the run's sums are."""
        return self._masking is not None

    # -- the link ---------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """There is a stream (again). Nothing of the run is said before its standing is known."""
        self._clear = False
        self._send(pb.DeviceMessage(join=pb.Join(run=self.run or self._name, wait=self._wait)))
        if self.run:
            self._recall()

    def heard(self, message: pb.CoordinatorMessage) -> None:
        """The coordinator said something."""
        match message.WhichOneof("says"):
            case "joined":
                self._joined(message.joined)
            case "standing":
                self._standing(message.standing)
            case "trouble":
                self._owner.refused(convert.trouble_from(message.trouble))
            case "ended":
                self._ended(message.ended)
            case "ask":
                self._asked(message.ask)
            case "call":
                self._called(message.call)
            case "receipt" if self._clear:
                # What another history makes of an update is nothing: once the standing is known, it is asked again.
                verdict = convert.verdict_from(message.receipt)
                self._step(member.Receipted(message.receipt.round, verdict, message.receipt.reason))
            case "cancel":
                self._step(member.Interrupted(message.cancel.round, message.cancel.reason))

    def _joined(self, joined: pb.Joined) -> None:
        """The run is there: load its strategy, or decline by name, and recall what was."""
        if self.run:
            return  # recalled with the join itself
        self.run = joined.run
        try:
            spec = RunSpec.decode(joined.spec)
            self._policy.check_run(spec)
            self.half = LocalHalf(*spec.check())
            kept = self._outbox.enter(joined.run)
            self._check_kept(kept, spec)
            self._sent = kept.sent
            self.member = Member(done=Pin.from_json(kept.pin).done)
            if spec.aggregation == "secure":
                self._masking = Masking(
                    joined.run, self._identity, self._identity.trust, self._outbox.journal
                )
            if kept.sent is not None:
                terms = Terms.decode(kept.sent.terms)
                if self._masking is not None:
                    self._masking.resume(terms, kept.sent.blob)
                self.member = Member(stage="sent", terms=terms, digest=kept.sent.digest, done=terms.round)
        except KoinonError as error:
            self.leave(0, "DECLINED", f"this device cannot take part: {error}")
            self._owner.refused(error)
            return
        self.spec, self.state, self._settled = spec, kept.state, kept.settled
        self._pin = Pin.from_json(kept.pin)
        self._recall()

    def _check_kept(self, kept: Kept, spec: RunSpec) -> None:
        """A run is secure, or it is open, for as long as it lives: what was made for a sum is never shown alone."""
        known = Pin.from_json(kept.pin).aggregation
        if kept.sent is not None:
            known = Terms.decode(kept.sent.terms).aggregation
        if known and known != spec.aggregation:
            raise RemoteProtocolError(
                f"this run was {known} when the device joined it, and is said to be {spec.aggregation} now; the "
                "coordinator must not change that"
            )

    def _recall(self) -> None:
        recall = pb.Recall(run=self.run, pinned=self._pin.round, settled=self._settled, owes=self.owes)
        self._send(pb.DeviceMessage(recall=recall))

    def _standing(self, standing: pb.Standing) -> None:
        self._links |= convert.links_from(standing.links)
        where = convert.standing_from(standing)
        reason = judge_standing(self._pin, where, self._links, self._settled)
        if reason:
            self._stay_away(reason)
            return
        if not self._clear:
            self._clear = True
            self._owner.entered()
            self._step(member.Reconnected())
        if self._held is not None:
            held, self._held = self._held, None
            self._asked(held, proven=True)

    def _stay_away(self, reason: str) -> None:
        """This coordinator is not where the device saw the run: nothing is done for it, and nothing given up."""
        self._clear = False
        _log.warning(
            "%s stays away from run %s: %s; the coordinator's operator may have restored an old backup "
            "(`koinon run recover` lets the run go on from it)", self.client, self._name, reason,
        )  # fmt: skip
        ahead = pb.Ahead(run=self.run, round=self._pin.round, reason=reason)
        self._send(pb.DeviceMessage(ahead=ahead))
        self._owner.stays_away(reason)

    def _ended(self, ended: pb.Ended) -> None:
        self._over = ended
        if self.member.stage == "working":  # an asynchronous run ends while devices are at work
            why = f"the run is {ended.status}: {ended.reason}"
            self._step(member.Interrupted(self.member.round, why))
        self._end()

    def _end(self) -> None:
        """Once the run is over and the fate of the last update is known, nothing of it is needed any more."""
        if self._over is not None and self._sent is None:
            self._outbox.forget(self.run)
            if self._masking is not None:  # perhaps of a round that a killed process had begun
                self._outbox.journal.end(self.run)
            self._owner.ended(self._over.status, self._over.reason)

    # -- a round ----------------------------------------------------------------------------------------------

    def _asked(self, ask: pb.Ask, proven: bool = False) -> None:
        if not self._clear:
            return  # before this device has looked into its memory; its offer brings the Ask again
        try:
            terms = Terms.decode(ask.terms)
        except BadBlob as error:
            self.leave(ask.round, "REFUSED", str(error))
            return
        if ask.epoch < self._pin.epoch:
            _log.warning("%s: an owner that lost run %s asks; it is not answered", self.client, self._name)
            return
        if (terms.run, terms.aggregation) != (self.run, self.spec.aggregation if self.spec else ""):
            self.leave(
                ask.round, "REFUSED", "the round's terms are of another run, or of another kind of sum"
            )
            return
        self._links |= convert.links_from(ask.links)
        judgement, reason = judge(self._pin, terms, self._links)
        if judgement == "refuse" or (proven and judgement == "prove"):
            self._stay_away(reason)
            return
        if judgement == "prove":
            self._held = ask
            self._recall()
            return
        try:
            self._policy.check_round(terms)
        except KoinonError as error:
            self.leave(ask.round, "DECLINED", f"this device's owner does not allow that: {error}")
            self._owner.refused(error)
            return
        self._pin = self._pin.move(terms, ask.epoch)
        self._links = {n: link for n, link in self._links.items() if n >= terms.round}
        self._asks = {n: a for n, a in self._asks.items() if n >= self.member.round} | {terms.round: ask}
        self._step(member.Asked(terms))

    def offered(self) -> None:
        """The owner's loop came back for work."""
        if (
            self.member.stage != "working"
        ):  # or it was interrupted while it waited, and its work is on its way
            self._step(member.Offered())

    def submitted(self, prepared: Prepared) -> None:
        """The owner's loop handed in an update: it is written down before anything is said of it."""
        m = self.member
        assert m.terms is not None
        if m.stage == "working" and not m.late:
            self._sent = Sent(
                round=m.round, terms=m.terms.encoded, blob=prepared.blob, head=prepared.head,
                pending=prepared.pending if m.terms.kind == "train" and prepared.pending else None,
                pin=self._pin.to_json(), stats=prepared.stats,
            )  # fmt: skip
            if self._masking is not None:
                self._masking.open(m.terms)
            try:
                self._outbox.keep(self.run, self._sent)
            except KoinonError:
                self._sent = None
                with suppress(KoinonError):
                    self._outbox.drop(self.run, m.round)
                raise
            if self._masking is not None:
                self._masking.provide(m.terms, prepared.blob)
        self._step(member.Submitted(prepared.blob.digest))

    def gave_up(self, code: str, detail: str) -> None:
        """There will be no update."""
        self._step(member.GaveUp(code, detail))

    def leave(self, round_: int, code: str, detail: str) -> None:
        """Say that this device takes no part: in a round, or (0) in any until its next offer."""
        leave = pb.Leave(run=self.run, round=round_, code=code, detail=detail)
        self._send(pb.DeviceMessage(leave=leave))

    def _step(self, event: member.Event) -> None:
        """Move the member machine and do what it says."""
        self.member, effects = member.step(self.member, event)
        for effect in effects:
            match effect:
                case member.Offer(engaged):
                    self._offer(engaged)
                case member.Begin(terms):
                    self._owner.begin(self._asks[terms.round])
                    if self._masking is not None and terms.secure["keys"] == "early":
                        self._masking.open(terms)
                        self._say_again()
                case member.Answer():
                    self._answer()
                case member.Resign(round_, code, detail):
                    self.leave(round_, code, detail)
                case member.Commit(round_):
                    self._commit(round_)
                case member.Drop(round_, reason):
                    self._drop(round_, reason)
                case member.Interrupt(reason):
                    self._owner.interrupted(reason)

    def _offer(self, engaged: int) -> None:
        if self._clear:
            offer = pb.Offer(
                run=self.run, evaluates=self._owner.evaluates, engaged=engaged, held=self._owner.held
            )
            self._send(pb.DeviceMessage(offer=offer))

    def _answer(self) -> None:
        sent = self._sent
        if sent is None or not self._clear:
            return
        if self._masking is not None:
            self._say_again()
            return
        assert Terms.decode(sent.terms).aggregation == "open", (
            "what was encoded for a sum is never sent alone"
        )
        answer = pb.Answer(
            run=self.run, round=sent.round, terms_digest=Terms.decode(sent.terms).digest,
            head=convert.head_to(sent.head), update=pb.Content(digest=sent.digest, size=sent.blob.size),
            stats=convert.stats_to(sent.stats),
        )  # fmt: skip
        self._send_update(answer, sent.blob)

    # -- a secure round ---------------------------------------------------------------------------------------

    def _called(self, call: pb.Call) -> None:
        """The coordinator asks for a word in a session of the round's sum."""
        m, masking = self.member, self._masking
        if masking is None or m.terms is None or call.round != m.round or m.stage in ("idle", "offered"):
            return  # of a round that this device is not in (any more): the coordinator learns that by its silence
        if call.epoch < self._pin.epoch:
            _log.warning("%s: an owner that lost run %s asks; it is not answered", self.client, self._name)
            return
        self._pin = replace(self._pin, epoch=call.epoch)
        self._soon(lambda: self._answer_call(masking, call))

    def _say_again(self) -> None:
        """The last word of the open round, or its first."""
        masking = self._masking
        assert masking is not None
        round_ = self.member.round
        self._soon(lambda: self._speak(masking, round_, lambda: masking.say(round_)))

    def _answer_call(self, masking: Masking, call: pb.Call) -> None:
        self._speak(
            masking,
            call.round,
            lambda: masking.called(call.round, call.attempt, call.collection, call.payload),
        )

    def _speak(self, masking: Masking, round_: int, say: Callable[[], Word | None]) -> None:
        """Say what is to be said in the round, if it is still this device's when it is ready."""
        try:
            word = say()
            self._identity.remember()
        except KoinonError as error:
            with self.guard:
                _log.warning("%s leaves round %s: %s", self.client, round_, error)
                self.leave(round_, "REFUSED", str(error))
                # A word that is none: whatever became of the round, it is answered with that.
                self._send(pb.DeviceMessage(voice=pb.Voice(run=self.run, round=round_)))
            return
        with self.guard:
            m = self.member
            if word is None or m.terms is None or m.round != round_ or m.stage in ("idle", "offered"):
                return
            voice = pb.Voice(
                run=self.run, round=round_, attempt=word.attempt, collection=word.collection, payload=word.payload,
                terms_digest=m.terms.digest,
            )  # fmt: skip
            if word.blob.size:
                voice.update.digest, voice.update.size = word.blob.digest, word.blob.size
                self._send_update(voice, word.blob)
            else:
                self._send(pb.DeviceMessage(voice=voice))

    # -- what became of it ------------------------------------------------------------------------------------

    def _commit(self, round_: int) -> None:
        assert self._sent is not None
        self._outbox.commit(self.run, round_)
        if self._sent.pending is not None:
            self.state = self._sent.pending
        self._sent, self._settled = None, round_
        self._forget_secrets(round_)
        self._owner.settled(round_, "counted")
        self._end()

    def _drop(self, round_: int, reason: str) -> None:
        if self._sent is not None:
            if self._masking is not None:
                # A second sum of the same round over nearly the same devices would show the difference. This is on disk
                # first: whoever is killed between the two has its update still, and makes no other.
                self._pin = replace(self._pin, done=round_)
                with suppress(KoinonError):  # a disk that fails now takes no more than a restart would forget
                    self._outbox.pin(self.run, self._pin.to_json())
            self._outbox.drop(self.run, round_)
            self._sent = None
        self._forget_secrets(round_)
        self._owner.settled(round_, reason)
        self._end()

    def _forget_secrets(self, round_: int) -> None:
        masking = self._masking
        if masking is not None:
            self._soon(lambda: masking.end(round_))
