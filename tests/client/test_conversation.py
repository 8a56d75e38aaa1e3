"""The conversation of a device with one run, message by message, without a thread or a network."""

import numpy as np
import pytest

import koinon
import toy
from koinon.conversation import Conversation
from koinon.outbox import DiskOutbox, MemoryOutbox, Sent
from koinon_core.blob import Blob
from koinon_core.errors import StoreError
from koinon_core.history import Standing, extend
from koinon_core.round.terms import Terms
from koinon_core.strategy.runner import Prepared
from koinon_core.update import Head, Stats
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

SPEC = koinon.Run("r", model={"x": np.zeros(1)}, aggregation="open", rounds=3).spec


class Owner:
    """Notes what it is told."""

    evaluates = False
    held = None

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def __getattr__(self, kind: str):
        return lambda *about: self.told.append((kind, about))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]


class Talk:
    """A conversation, and what it says."""

    def __init__(self, outbox=None) -> None:
        self.owner, self.said, self.updates, self.stats = Owner(), [], [], []
        self.one = Conversation(
            "a", "r", outbox or MemoryOutbox(), self.owner, self.said.append,
            self._note,
        )  # fmt: skip

    def _note(self, answer: pb.Answer, blob) -> None:
        self.updates.append((answer.round, blob.bytes()))
        self.stats.append(convert.stats_from(answer.stats))

    def hear(self, **message) -> None:
        self.one.heard(pb.CoordinatorMessage(**message))

    def join(self, where: Standing = Standing(round=1, head="h0"), links=None) -> "Talk":  # noqa: B008 - frozen
        self.one.connected()
        self.hear(joined=pb.Joined(run="id", spec=SPEC.encoded))
        self.one.heard(convert.standing("id", where, links or {}))
        return self

    def ask(self, number: int = 1, epoch: int = 1, **terms) -> Terms:
        asked = toy.terms(number, head="h0", run="id", **terms)
        self.hear(ask=pb.Ask(run="id", round=number, terms=asked.encoded, epoch=epoch))
        return asked

    def submit(self, stats: Stats = Stats()) -> None:  # noqa: B008 - frozen
        self.one.submitted(Prepared(Blob.of(b"bytes"), Head(examples=1), {}, stats))

    def receipt(self, number: int, verdict: int) -> None:
        self.hear(receipt=pb.Receipt(run="id", round=number, verdict=verdict))


def kinds(talk: Talk) -> list[str]:
    return [m.WhichOneof("says") for m in talk.said]


def test_nothing_is_offered_or_begun_before_the_runs_standing_is_known():
    talk = Talk()
    talk.one.connected()
    talk.hear(joined=pb.Joined(run="id", spec=SPEC.encoded))
    talk.ask()
    talk.one.offered()
    assert kinds(talk) == ["join", "recall"]
    assert talk.owner.kinds() == []
    talk.one.heard(convert.standing("id", Standing(round=1, head="h0"), {}))
    assert kinds(talk)[2:] == ["offer"], "which brings the Ask again"
    assert talk.owner.kinds() == ["entered"]


def test_what_was_measured_goes_with_the_update_whoever_sends_it_again():
    measured = Stats(parameters=1, nmse=0.25, norm=3.0, encode_s=0.5)
    outbox = MemoryOutbox()
    talk = Talk(outbox).join()
    talk.one.offered()
    talk.ask()
    talk.submit(measured)
    again = Talk(outbox).join()
    again.one.offered()
    assert talk.stats == [measured]
    assert set(again.stats) == {measured}, "another process has it from the memory"


def test_an_update_larger_than_a_message_is_sent_again_by_the_next_process(tmp_path):
    content, outbox = bytes(range(256)) * 257, DiskOutbox(tmp_path)
    talk = Talk(outbox).join()
    talk.one.offered()
    talk.ask()
    draft = outbox.draft("id")
    draft.write(content)
    talk.one.submitted(Prepared(draft.finish(), Head(examples=1), {}))
    outbox.close()
    assert talk.updates == [(1, content)]
    outbox = DiskOutbox(tmp_path)
    again = Talk(outbox).join()
    assert again.updates == [(1, content)]
    outbox.close()


def test_what_a_coordinator_of_another_history_says_became_of_an_update_is_not_believed():
    talk = Talk().join()
    talk.one.offered()
    talk.ask(1)
    talk.submit()
    talk.one.connected()  # an older database is there now, which knows nothing of round 1
    talk.receipt(1, pb.VERDICT_NOT_COUNTED)
    assert talk.one.member.stage == "sent", "the update is kept until the run's history is known"
    talk.one.heard(convert.standing("id", Standing(round=1, head="h0"), {}))
    assert [round_ for round_, _ in talk.updates] == [1, 1], "and then its fate is asked for again"
    talk.receipt(1, pb.VERDICT_COUNTED)
    assert talk.one.member.stage != "sent"


def test_an_owner_of_an_earlier_epoch_is_not_answered():
    talk = Talk().join()
    talk.one.offered()
    talk.ask(1, epoch=5)
    talk.one.gave_up("DECLINED", "")
    talk.one.offered()
    talk.ask(1, epoch=4)
    assert talk.owner.kinds().count("begin") == 1
    talk.ask(1, epoch=5)
    assert talk.owner.kinds().count("begin") == 2


def test_an_update_is_kept_before_it_is_sent_and_sent_again_until_its_fate_is_known():
    outbox = MemoryOutbox()
    talk = Talk(outbox).join()
    talk.one.offered()
    talk.ask()
    talk.submit()
    assert outbox.enter("id").sent is not None
    assert talk.updates == [(1, b"bytes")]
    talk.receipt(1, pb.VERDICT_STAGED)
    talk.join(Standing(round=1, head="h0"))
    assert talk.updates == [(1, b"bytes")] * 2, "STAGED is not a fate"
    talk.receipt(1, pb.VERDICT_COUNTED)
    link = "aa" * 32
    talk.join(Standing(round=2, head=extend("h0", link)), {1: link})
    assert "stays_away" not in talk.owner.kinds()
    assert talk.updates == [(1, b"bytes")] * 2, "and that it was counted is one"


def test_what_cannot_be_kept_is_not_sent(monkeypatch):
    outbox = MemoryOutbox()
    talk = Talk(outbox).join()
    talk.one.offered()
    talk.ask()

    def full(run: str, sent: Sent) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(outbox, "keep", full)
    with pytest.raises(StoreError):
        talk.submit()
    assert talk.updates == []
    talk.one.gave_up("FAILED", "the disk is full")
    assert kinds(talk)[-1] == "leave"


def test_the_runs_end_is_told_after_the_fate_of_the_last_update():
    talk = Talk().join()
    talk.one.offered()
    talk.ask()
    talk.submit()
    talk.hear(ended=pb.Ended(run="id", status="finished"))
    assert "ended" not in talk.owner.kinds()
    talk.receipt(1, pb.VERDICT_COUNTED)
    assert talk.owner.kinds()[-2:] == ["settled", "ended"]


def test_whoever_is_at_work_when_the_run_ends_may_stop():
    talk = Talk().join()
    talk.one.offered()
    talk.ask()
    talk.hear(ended=pb.Ended(run="id", status="finished", reason="3 rounds closed"))
    assert talk.owner.told[-2:] == [
        ("interrupted", ("the run is finished: 3 rounds closed",)), ("ended", ("finished", "3 rounds closed")),
    ]  # fmt: skip
    talk.submit()  # it did not look
    assert not talk.updates
    assert talk.owner.told[-2][0] == "settled"
