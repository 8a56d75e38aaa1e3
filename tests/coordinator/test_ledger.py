"""A turn of the ledger: what is said of it, and what becomes of an item that cannot be stored."""

import resource
import signal
from contextlib import closing
from dataclasses import replace

import pytest

from koinon import FedAvgM
from koinon_coordinator.book import Book, Item
from koinon_coordinator.retention import Kept
from koinon_coordinator.roster import Connection
from koinon_coordinator.store import Store, Superseded
from koinon_core import failpoints
from koinon_core import run as runs
from koinon_core.errors import BadBlob, StoreError
from koinon_core.update import Head
from koinon_core.wire.v1 import fleet_pb2 as pb
from lab import LARGE, Lab, raising


@pytest.fixture
def lab(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'koinon.db'}")
    yield Lab.create(store, min_clients=2)
    failpoints.disarm()
    store.close()


def told(lab: Lab, *facts: runs.Fact | Item) -> list[tuple[str, str, int]]:
    """(device, kind, round) of everything that a turn says."""
    lab.clock.now += 1.0
    said = lab.ledger.turn([fact if isinstance(fact, Item) else Item(fact) for fact in facts])
    heard = []
    for one in said:
        (message,) = pb.AttendResponse.FromString(one.message).messages
        kind = message.WhichOneof("says") or ""
        body = getattr(message, kind)
        what = pb.Verdict.Name(body.verdict).removeprefix("VERDICT_") if kind == "receipt" else kind
        heard.append((one.client, what, getattr(body, "round", 0)))
    return heard


def answered(lab: Lab, client: str) -> Item:
    update = lab.update(client)
    return Item(runs.Answered(lab.clock(), client, lab.run.number, update.digest), update=update)


def test_what_arrives_together_is_one_commit_and_everybody_hears_of_it(lab):
    lab.open()
    before = lab.store.database.commits
    heard = told(lab, *(answered(lab, name) for name in lab.names))
    commits = lab.store.database.commits - before
    assert commits <= 2, "the turn, and collecting what is kept no longer"
    assert heard[:3] == [(name, "STAGED", 1) for name in lab.names]
    assert heard[3:6] == [(name, "COUNTED", 1) for name in lab.names]


def test_a_device_that_comes_back_as_its_round_ends_is_not_asked_in_the_next(lab):
    """Its work would be for a round that it is not in."""
    lab.open()
    back = runs.Offered(lab.clock(), "c0")
    gone = [runs.Resigned(lab.clock(), name, 1, "DECLINED") for name in ("c1", "c2")]
    heard = told(lab, back, *gone)
    assert lab.run.number == 2
    assert ("c0", "ask", 2) not in heard
    assert [what for client, what, _ in heard if client == "c0"] == ["cancel"]


def test_one_item_that_cannot_be_stored_costs_its_sender_and_nobody_else(lab):
    lab.open()
    good = [answered(lab, name) for name in ("c0", "c2")]
    bad = answered(lab, "c1")
    bad = replace(bad, update=replace(bad.update, size=1 << 70))  # no column holds that
    heard = told(lab, good[0], bad, good[1])
    assert ("c1", "NOT_COUNTED", 1) in heard
    assert {c for c, what, _ in heard if what == "STAGED"} == {"c0", "c2"}
    (incident,) = lab.store.incidents(lab.run.id)
    assert (incident.client, incident.code) == ("c1", "STORE")
    assert "could not be stored" in incident.message
    assert lab.ledger.sound


def test_an_error_of_ours_in_one_item_does_not_stop_the_run(lab, monkeypatch):
    lab.open()
    right = runs.step

    def step(run, fact):
        if isinstance(fact, runs.Progressed):
            raise ZeroDivisionError("a mistake of ours")
        return right(run, fact)

    monkeypatch.setattr(runs, "step", step)
    heard = told(lab, answered(lab, "c0"), runs.Progressed(lab.clock(), "c1"), answered(lab, "c2"))
    assert {c for c, what, _ in heard if what == "STAGED"} == {"c0", "c2"}
    (incident,) = lab.store.incidents(lab.run.id)
    assert "a mistake of ours" in incident.message


@pytest.mark.parametrize("point", ["store.begun", "store.written", "store.committed"])
def test_after_a_write_that_may_have_happened_nothing_in_memory_is_used(lab, point):
    lab.open()
    with raising(point, StoreError("the database did not answer"), "turn"), pytest.raises(StoreError):
        told(lab, answered(lab, "c0"))
    assert not lab.ledger.sound
    with pytest.raises(AssertionError, match="take the run up again"):
        told(lab, answered(lab, "c1"))
    again = Lab.take_up(lab.store, lab.row, clock=lab.clock)
    assert ("c0" in again.run.round.update.heard) == (point == "store.committed")
    again.close()
    assert again.run.closed == 1


def test_who_lost_the_run_says_nothing_from_memory(lab):
    lab.open()
    told(lab, answered(lab, "c0"))
    successor = Lab.take_up(lab.store, lab.row, clock=lab.clock)
    with pytest.raises(Superseded):  # a second answer changes nothing, so nothing would be written
        told(lab, runs.Answered(lab.clock(), "c0", 1, "another digest"))
    with pytest.raises(Superseded):
        told(lab, answered(lab, "c1"))
    successor.close()
    assert successor.run.closed == 1


def test_a_sum_for_which_there_is_no_room_leaves_everything_as_it_was(lab, monkeypatch):
    lab.open()
    items = [answered(lab, name) for name in lab.names]

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(lab.store, "draft", full)
        with pytest.raises(StoreError, match="full"):
            told(lab, *items)
    assert lab.ledger.sound
    assert ("c1", "COUNTED", 1) in told(lab, *items), "the same items, taken again"


def test_an_outage_in_two_parts_moves_the_deadline_by_both(lab):
    """The second process is killed before its take-up is stored: what it took must not count as owned."""
    lab.open()
    deadline, last = lab.run.round.update.deadline, lab.clock()
    lab.clock.now += 100.0
    with raising("store.begun", KeyboardInterrupt(), "turn"), pytest.raises(KeyboardInterrupt):
        Lab.take_up(lab.store, lab.row, clock=lab.clock)
    lab.clock.now += 10.0
    again = Lab.take_up(lab.store, lab.row, clock=lab.clock)
    assert again.run.round.update.deadline == deadline + 110.0
    assert lab.clock() == last + 110.0


def test_an_answer_that_came_before_it_was_asked_for_is_refused_though_it_is_asked_for_now(lab):
    """It was not verified, because nobody wanted it then: heard unchecked, it would fail the round for everybody."""
    for name in lab.names[:2]:
        told(lab, runs.Offered(lab.clock(), name))
    early = runs.Answered(lab.clock(), "c2", 1, "junk")
    heard = told(lab, runs.Offered(lab.clock(), "c2"), early)
    assert ("c2", "NOT_COUNTED", 1) in heard
    (incident,) = lab.store.incidents(lab.run.id)
    assert (incident.client, "before it was asked for" in incident.message) == ("c2", True)
    assert lab.run.round.stage == "update", "the others go on"


def test_what_an_operator_wants_does_not_wait_for_a_sum(lab, monkeypatch):
    lab.open()
    items = [answered(lab, name) for name in lab.names]

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(lab.store, "draft", full)
    told(lab, *items, runs.Paused(lab.clock()))
    assert lab.run.status == "paused"
    assert lab.ledger.folding
    with pytest.raises(StoreError):
        told(lab)
    told(lab, runs.Cancelled(lab.clock(), "enough"))
    assert lab.run.status == "cancelled"


def test_who_evaluated_is_known_after_a_restart(lab):
    lab.open()
    items = [answered(lab, name) for name in lab.names]
    items = [
        replace(i, update=replace(i.update, head=Head(examples=1, evaluation={"loss": 1.0}))) for i in items
    ]
    told(lab, *items)
    assert lab.run.evaluators == 3
    assert Lab.take_up(lab.store, lab.row, clock=lab.clock).run.evaluators == 3


def test_an_update_whose_file_is_gone_costs_the_round_by_name_and_nobody_waits_for_it(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'koinon.db'}")
    lab = Lab.create(store, size=LARGE).open()
    first = lab.update("c0")
    lab.turn(Item(runs.Answered(lab.clock(), "c0", 1, first.digest), update=first))
    store.uploads.path(lab.part("c0"), first.digest).unlink()
    lab.close()
    assert (lab.run.number, lab.run.closed) == (2, 0)
    (incident,) = store.incidents(lab.run.id)
    assert "c0" in incident.message
    store.close()


def test_one_device_cannot_fill_the_folder_with_updates_of_one_round(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'koinon.db'}")
    lab = Lab.create(store, size=LARGE).open()
    for i in range(12):  # a secure sum may take some attempts
        lab.upload("c0", bytes([i]) * 100_000)
    with pytest.raises(BadBlob, match="has uploaded 12 updates for one round"):
        lab.upload("c0", b"\xff" * 100_000)
    lab.upload("c1", b"9" * 100_000)  # the others may
    store.close()


def test_a_device_that_takes_nothing_of_what_it_asks_for_is_cut_off():
    connection = Connection("a", "instance")
    piece = bytes(1 << 20)
    for _ in range(80):
        connection.send(piece)
    queued = [connection.outbox.get_nowait() for _ in range(connection.outbox.qsize())]
    assert None in queued, "the stream ends"
    assert len([m for m in queued if m]) == 64


def test_a_disk_that_fails_while_a_model_is_written_keeps_the_round_and_leaves_nothing_behind(tmp_path):
    with closing(Store(f"sqlite:///{tmp_path / 'koinon.db'}")) as store:
        lab = Lab.create(store, size=600_000)
        lab.open()
        told(lab, *(answered(lab, name) for name in lab.names))
        before = {path for path in store.folder.root.rglob("*") if path.is_file()}
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (1_500_000, limits[1])
        )  # a write beyond it fails, as on a full disk
        try:
            with pytest.raises(StoreError, match="File too large"):
                told(lab)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert lab.ledger.folding, "the round waits for room"
        assert {path for path in store.folder.root.rglob("*") if path.is_file()} == before
        told(lab)
        assert lab.run.closed == 1
        assert not +store.blobs._pinned


def test_contents_of_a_close_that_failed_are_let_go(tmp_path, monkeypatch):
    """A pin that stays would keep its file until the next start."""
    with closing(Store(f"sqlite:///{tmp_path / 'koinon.db'}")) as store:
        lab = Lab.create(store, size=60_000, strategy=FedAvgM())
        lab.open()
        take, calls = store.blobs.take, []

        def second_fails(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise StoreError("the disk is full")
            return take(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(store.blobs, "take", second_fails)
            with pytest.raises(StoreError, match="full"):
                told(lab, *(answered(lab, name) for name in lab.names))
        assert len(calls) == 2
        assert not +store.blobs._pinned


def test_a_sum_for_which_there_is_no_memory_waits(lab, monkeypatch):
    lab.open()
    items = [answered(lab, name) for name in lab.names]

    def full(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(lab.store, "draft", full)
        with pytest.raises(StoreError, match="not enough memory to sum round 1"):
            told(lab, *items)
    assert ("c1", "COUNTED", 1) in told(lab, *items)


@pytest.mark.parametrize("when", ["in the same turn", "while it ends"])
@pytest.mark.parametrize("refused", [False, True])
def test_who_answers_as_the_run_is_cancelled_hears_that_it_does_not_count(lab, when, refused):
    """It would wait for ever otherwise. An update may be refused by then because its bytes went with its round."""
    lab.open()
    late = answered(lab, "c1")
    if refused:
        late = Item(runs.Resigned(lab.clock(), "c1", 1, "REFUSED", "refused: its bytes never arrived"))
    together = [late] if when == "in the same turn" else []
    told(lab, runs.Cancelled(lab.clock(), "enough"), *together)
    said = lab.ledger.belated([] if together else [late.fact])
    assert [
        (one.client, pb.AttendResponse.FromString(one.message).messages[0].receipt.verdict) for one in said
    ] == [("c1", pb.VERDICT_NOT_COUNTED)]


def test_a_book_knows_of_whom_it_does_not_know_what_they_said(lab):
    """Devices that wait for a session say it again, where a coordinator took the run up between two rounds."""
    told(lab, runs.Offered(0.0, "a"))
    run = lab.ledger.run
    waiting = replace(run, round=replace(run.round, ready={"a": "d1", "b": "d2"}))
    book = Book(
        waiting, lab.ledger.version, Kept(), said={("keys", "a"): b"keys", ("shares", "b"): b"shares"}
    )
    assert book.forgotten == {"b"}
    assert Book(replace(run, round=None), lab.ledger.version, Kept()).forgotten == frozenset()
