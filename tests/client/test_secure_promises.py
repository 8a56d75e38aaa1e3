"""What a device promises of secure rounds, whatever its coordinator says: no update is shown alone, no round is summed
twice, and nothing beside the sum tells of its data."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import koinon
from koinon.conversation import Conversation
from koinon.outbox import DiskOutbox, MemoryOutbox, Outbox, secrets
from koinon.outbox.journal import Entry
from koinon.outbox.secrets import DiskJournal
from koinon_core.errors import RemoteProtocolError
from koinon_core.history import Standing
from koinon_core.round.terms import Terms
from koinon_core.spec import RunSpec
from koinon_core.strategy import FedAvg
from koinon_core.tensors import Tensors
from koinon_core.update import Head
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb
from summing import Federation, spec_of
from toy import toy_run

MODEL = {"x": np.zeros(5)}
FED = Federation(spec_of(FedAvg(), MODEL, codec="exact"), Tensors(MODEL))
OPEN = spec_of(FedAvg(), MODEL, aggregation="open", codec="lossless")
TERMS = FED.terms(4, head="h0", run="id")


class Killed(BaseException):
    """The process ends here."""


class Talk:
    """A device in a run of this spec; `evaluates` and `held` are what the conversation asks its owner."""

    evaluates, held = False, None

    def __init__(self, outbox: Outbox | None = None, spec: RunSpec = FED.spec):
        self.said: list[pb.DeviceMessage] = []
        self.updates: list[pb.Answer | pb.Voice] = []
        self.told: list[tuple[str, Any]] = []
        self.one = Conversation(
            "a", "r", outbox or MemoryOutbox(), self, self.said.append, lambda said, _: self.updates.append(said)
        )  # fmt: skip
        self.one.connected()
        self.hear(joined=pb.Joined(run="id", spec=spec.encoded))
        self.stands()

    def __getattr__(self, kind: str) -> Any:
        return lambda *about: self.told.append((kind, about))

    def hear(self, **message: Any) -> None:
        self.one.heard(pb.CoordinatorMessage(**message))

    def stands(self) -> None:
        self.one.heard(convert.standing("id", Standing(round=1, head="h0"), {}))

    def ask(self, terms: Terms = TERMS) -> "Talk":
        self.one.offered()
        self.hear(ask=pb.Ask(run="id", round=terms.round, terms=terms.encoded, epoch=1))
        return self

    def submit(self) -> "Talk":
        end = {"x": np.arange(5.0)}
        self.one.submitted(FED.prepare("a", TERMS, end, Head(examples=17)))
        return self

    def not_counted(self) -> None:
        receipt = pb.Receipt(run="id", round=1, verdict=pb.VERDICT_NOT_COUNTED, reason="abandoned")
        self.hear(receipt=receipt)

    def call(self, attempt: int, epoch: int) -> None:
        call = pb.Call(run="id", round=1, attempt=attempt, collection="keys", epoch=epoch)
        self.hear(call=call)

    def begun(self) -> int:
        return [kind for kind, _ in self.told].count("begin")

    def voices(self) -> list[tuple[int, str]]:
        return [(m.voice.attempt, m.voice.collection) for m in self.said if m.HasField("voice")]

    def left(self) -> str:
        (leave,) = (m.leave for m in self.said if m.HasField("leave"))
        return str(leave.detail)


# -- one kind of sum for as long as the run lives -------------------------------------------------------------


@pytest.mark.parametrize("kept", ["its update", "its pin"])
def test_a_run_that_was_secure_is_not_opened_by_saying_so(kept: str) -> None:
    outbox = MemoryOutbox()
    before = Talk(outbox).ask().submit()
    if kept == "its pin":
        before.not_counted()
    assert (outbox.enter("id").sent is None) == (kept == "its pin")
    talk = Talk(outbox, OPEN)
    talk.one.connected()  # the stream is cut and comes back, which is no way in either
    talk.stands()
    talk.ask(replace(TERMS, round=2, aggregation="open", secure={}))
    assert talk.updates == []
    assert not talk.begun()
    ((_, (error,)),) = (told for told in talk.told if told[0] == "refused")
    assert isinstance(error, RemoteProtocolError)
    assert "was secure when the device joined it, and is said to be open now" in str(error)
    assert "was secure" in next(m.leave.detail for m in talk.said if m.HasField("leave"))


@pytest.mark.parametrize(
    "terms",
    [replace(TERMS, run="another"), replace(TERMS, aggregation="open", secure={})],
    ids=["another run", "open"],
)
def test_terms_of_another_run_or_another_kind_of_sum_are_refused_by_name(terms: Terms) -> None:
    talk = Talk().ask(terms)
    assert "of another run, or of another kind of sum" in talk.left()
    assert not talk.begun()
    talk.ask()
    assert talk.begun() == 1, "and the right ones are not"


# -- one sum of a round ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [False, True])
def test_a_round_that_came_to_nothing_is_not_worked_on_again_after_a_restart(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = DiskOutbox(tmp_path)
    talk = Talk(outbox).ask().submit()
    if killed:

        def drop(run: str, round_: int) -> None:
            DiskOutbox.drop(outbox, run, round_)
            raise Killed

        monkeypatch.setattr(outbox, "drop", drop)
        with pytest.raises(Killed):
            talk.not_counted()
    else:
        talk.not_counted()
    outbox.close()
    outbox = DiskOutbox(tmp_path)
    again = Talk(outbox).ask()
    assert again.one.member.stage == "offered"
    assert not again.begun()
    later = replace(TERMS, round=2, incarnation="01", recovery=1)
    assert again.ask(later).begun() == 1, "the next round is another"
    outbox.close()


def test_whoever_lost_the_run_is_not_answered_once_its_new_owner_called() -> None:
    talk = Talk().ask().submit()
    talk.call(attempt=1, epoch=5)
    talk.call(attempt=2, epoch=4)
    assert talk.voices() == [(0, "keys"), (1, "keys")]
    talk.call(attempt=2, epoch=5)
    assert talk.voices()[2:] == [(2, "keys")]


# -- nothing beside the sum -----------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["secure", "open"])
def test_steps_and_the_words_of_an_error_leave_the_device_in_open_runs_only(aggregation: str) -> None:
    said: list[pb.DeviceMessage] = []
    steps: list[int] = []

    def client(session: koinon.Session) -> None:
        model = {"x": np.zeros(1)}
        tasks: Iterator[koinon.Task] = session.tasks(model)
        for task in tasks:
            task.descend({"x": np.ones(1)}, lr=0.1)
            pulse = session.pulse()[1]
            assert pulse is not None
            steps.append(pulse.progress.steps)
            if session.client != "client-0":
                task.submit(examples=1)
                continue
            session._talk._send = said.append  # type: ignore[method-assign]
            with pytest.raises(ValueError, match="patient 97"):
                tasks.throw(ValueError("patient 97 has no age"))  # type: ignore[attr-defined]
            return

    koinon.simulate(toy_run(FedAvg(), 1, aggregation=aggregation, min_clients=3), client, clients=4)
    (leave,) = (m.leave for m in said if m.HasField("leave") and m.leave.code == "FAILED")
    assert "ValueError" in leave.detail
    assert ("patient 97" in leave.detail) == (aggregation == "open")
    assert set(steps) == ({1} if aggregation == "open" else {0})


# -- secrets --------------------------------------------------------------------------------------------------


def test_what_another_boot_left_is_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, entry = DiskJournal(tmp_path / "outbox", tmp_path / "memory"), Entry({"said": "keys"}, b"secret")
    journal.save("r", entry)
    assert journal.load("r") == entry
    with monkeypatch.context() as patch:
        patch.setattr(secrets, "_boot", lambda: "the next one")
        assert journal.load("r") is None
    assert journal.load("r") == entry


def test_a_runtime_folder_that_was_cleared_is_made_again(tmp_path: Path) -> None:
    """Some systems clear it when their user logs out."""
    journal, entry = DiskJournal(tmp_path / "outbox", tmp_path / "memory"), Entry({"said": "keys"}, b"secret")
    shutil.rmtree(tmp_path / "memory")
    journal.save("r", entry)
    assert journal.load("r") == entry
    assert (tmp_path / "memory").stat().st_mode & 0o777 == 0o700
