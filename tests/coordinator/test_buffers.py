"""Turns of an asynchronous run: what comes while a buffer fills, is summed or closes is about the next one, and nobody
loses by it."""

from contextlib import closing
from dataclasses import replace
from unittest.mock import patch

import pytest

from koinon import FedAsync, FedBuff
from koinon_coordinator import ledger as ledgers
from koinon_coordinator.book import Item
from koinon_coordinator.replay import replay
from koinon_coordinator.store import Store
from koinon_core import run as runs
from koinon_core.wire.v1 import fleet_pb2 as pb
from lab import LARGE, Lab


@pytest.fixture
def store(tmp_path):
    with closing(Store(f"sqlite:///{tmp_path / 'koinon.db'}")) as store:
        yield store


def asynchronous(store: Store, **settings) -> Lab:
    values = {
        "buffer": 1,
        "min_clients": 1,
        "clients": None,
        "strategy": FedBuff(exponent=0.0),
        "lease": 20.0,
    }
    return Lab.create(store, **{**values, **settings})


def told(lab: Lab, *facts: runs.Fact | Item) -> list[tuple[str, str, int]]:
    """(device, kind, round) of everything that a turn says, and of the sums that it leaves to take."""
    lab.clock.now += 1.0
    said = lab.ledger.turn([fact if isinstance(fact, Item) else Item(fact) for fact in facts])
    while lab.ledger.folding:
        said += lab.ledger.turn([])
    heard = []
    for one in said:
        (message,) = pb.AttendResponse.FromString(one.message).messages
        kind = message.WhichOneof("says") or ""
        body = getattr(message, kind)
        what = pb.Verdict.Name(body.verdict).removeprefix("VERDICT_") if kind == "receipt" else kind
        heard.append((one.client, what, getattr(body, "round", 0)))
    return heard


def answered(lab: Lab, client: str, number: int = 1) -> Item:
    update = replace(lab.update(client), round=number)
    return Item(runs.Answered(lab.clock(), client, number, update.digest), update=update)


def offered(lab: Lab, client: str, engaged: int = 0) -> runs.Offered:
    return runs.Offered(lab.clock(), client, engaged=engaged)


@pytest.mark.parametrize("quick", [True, False], ids=["one transaction", "sums of their own"])
def test_two_that_answer_in_one_turn_count_in_two_rounds(store, quick):
    lab = asynchronous(store).open()
    with patch.object(ledgers, "_QUICK", ledgers._QUICK if quick else 0):
        lab.ledger._quick = quick
        heard = told(lab, answered(lab, "c0"), answered(lab, "c1"))
    assert [(c, what) for c, what, _ in heard if what.endswith("COUNTED")] == [
        ("c0", "COUNTED"),
        ("c1", "COUNTED"),
    ]
    assert lab.run.closed == 2


def test_whoever_gets_its_work_in_the_turn_that_closes_the_buffer_hears_of_it(store):
    lab = asynchronous(store)
    told(lab, offered(lab, "c0"))
    heard = told(lab, offered(lab, "c1"), answered(lab, "c0"))
    assert lab.run.number == 2
    assert ("c1", "ask", 1) in heard
    assert lab.run.round.round_of("c1") == 1
    assert ("c1", "COUNTED", 1) in told(lab, answered(lab, "c1"))


def test_what_is_asked_of_an_older_round_is_that_rounds_own(store):
    lab = asynchronous(store)
    told(lab, offered(lab, "c0"))
    terms = lab.run.round.terms
    lab.clock.now += 1.0
    said = lab.ledger.turn([Item(offered(lab, "c1")), answered(lab, "c0")])
    asks = [pb.AttendResponse.FromString(one.message).messages[0].ask for one in said if one.client == "c1"]
    assert [(ask.terms, ask.model.digest) for ask in asks] == [(terms.encoded, terms.model)]
    assert lab.run.round.taken["c1"].terms == terms.digest


def test_what_comes_while_a_buffer_is_summed_waits_for_the_next_one(store):
    lab = asynchronous(store, size=LARGE)
    lab.ledger._quick = False
    lab.open()
    lab.clock.now += 1.0
    lab.ledger.turn([answered(lab, "c0")])
    assert lab.run.round.stage == "folding"
    assert lab.run.wants("c1", 1), "and its bytes may come meanwhile"
    heard = told(lab, answered(lab, "c1"), runs.Resigned(lab.clock(), "c2", 1, "DECLINED"))
    assert ("c1", "COUNTED", 1) in heard
    assert lab.run.closed == 2
    assert not lab.run.round.update.awaited


def test_a_device_whose_word_cannot_be_stored_costs_nobody_else_while_a_buffer_is_summed(store):
    lab = asynchronous(store).open()
    lab.ledger._quick = False
    lab.clock.now += 1.0
    bad = answered(lab, "c1")
    bad = replace(bad, update=replace(bad.update, size=1 << 70))  # no column holds that
    lab.ledger.turn([answered(lab, "c0"), bad])
    heard = told(lab)
    assert ("c0", "COUNTED", 1) in heard
    assert ("c1", "NOT_COUNTED", 1) in heard
    assert ("c2", "COUNTED", 1) in told(lab, answered(lab, "c2"))


def test_nobody_is_late_or_forgotten_because_a_coordinator_died_while_it_summed(store):
    lab = asynchronous(store, deadline=50.0).open()
    lab.ledger._quick = False
    lab.clock.now += 1.0
    lab.ledger.turn([answered(lab, "c0")])
    since = lab.run.round.taken["c1"].since
    lab.clock.now += 500.0
    again = Lab.take_up(store, lab.row, clock=lab.clock)
    told(again)
    assert again.run.number == 2
    assert again.run.round.taken["c1"].since == pytest.approx(since + 500.0)
    assert again.run.leases["c1"] == lab.clock.now - 1.0 + 20.0
    assert ("c1", "COUNTED", 1) in told(again, answered(lab, "c1"))


def test_when_the_run_is_over_nothing_is_kept_for_those_who_still_work(store):
    lab = asynchronous(store, rounds=2, retention="none", models="none").open()
    told(lab, answered(lab, "c0"))
    assert store.kept_rounds(lab.run.id) == [1], "c1 and c2 work on"
    told(lab, answered(lab, "c1"))
    assert lab.run.over
    assert store.kept_rounds(lab.run.id) == []
    assert [version.round for version in store.kept_versions(lab.run.id)] == [2]


def test_those_who_answer_while_the_run_ends_are_told(store):
    lab = asynchronous(store, rounds=1).open()
    lab.ledger._quick = False
    lab.clock.now += 1.0
    lab.ledger.turn([answered(lab, "c0"), answered(lab, "c1")])
    told(lab)
    assert lab.run.over
    said = lab.ledger.belated([])
    assert [
        (one.client, pb.AttendResponse.FromString(one.message).messages[0].receipt.verdict) for one in said
    ] == [("c1", pb.VERDICT_NOT_COUNTED)]


def test_what_a_silent_device_works_on_stays_while_its_round_is_open(store):
    """Its update may come, and a strategy that joins models needs the one that it began with."""
    lab = asynchronous(
        store, buffer=2, models="none", retention="none", strategy=FedAsync(), lease=300.0
    ).open()
    told(lab, answered(lab, "c0"), answered(lab, "c1"))
    began = lab.run.round.taken["c2"].model
    lab.clock.now += 400.0
    told(lab, runs.Tick(lab.clock()))
    assert lab.run.round.silent == {"c2"}
    again = Lab.take_up(store, lab.row, clock=lab.clock)
    assert began in {version.digest for version in store.kept_versions(lab.run.id)}
    told(again, offered(again, "c0"))
    heard = told(again, answered(again, "c2"), answered(again, "c0", 2))
    assert ("c2", "COUNTED", 1) in heard


def test_a_round_whose_older_models_went_cannot_be_replayed_and_is_not_accused(store):
    lab = asynchronous(store, models="1 rounds", retention="keep", strategy=FedAsync()).open()
    for name in ("c0", "c1", "c2"):
        told(lab, answered(lab, name))
    verdicts = {r.round: (r.verdict, r.detail) for r in replay(store, lab.row)}
    assert verdicts[3] == ("gone", "the model that c2 began with is kept no longer")


def test_the_log_says_who_goes_on(store):
    lab = asynchronous(store).open()
    told(lab, answered(lab, "c0"))
    (ended,) = [e.value for e in store.audit(lab.run.id) if e.value["kind"] == "ended"]
    assert [device[:2] for device in ended["devices"]] == [
        ["c0", "counted"],
        ["c1", "goes on"],
        ["c2", "goes on"],
    ]


def test_three_that_answer_in_one_turn_stand_on_each_others_models(store):
    """A model that is a file can be read once its row is stored."""
    lab = asynchronous(store, size=LARGE).open()
    heard = told(lab, *(answered(lab, name) for name in lab.names))
    assert [c for c, what, _ in heard if what == "COUNTED"] == lab.names
    assert [r.stage for r in store.rounds(lab.run.id)][:3] == ["closed"] * 3
    assert {store.verdict(lab.run.id, 1, name) for name in lab.names} == {("COUNTED", "")}


def test_what_became_of_work_is_what_was_heard_of_it_last(store):
    """A device that fell silent comes back, and its update is heard in the next round, all in one turn."""
    lab = asynchronous(store, lease=30.0).open()
    lab.clock.now += 5.0
    told(lab, runs.Progressed(lab.clock(), "c0"))
    lab.clock.now += 26.0
    told(lab, runs.Tick(lab.clock()))
    assert lab.run.round.silent == {"c1", "c2"}
    told(lab, offered(lab, "c1", engaged=1), answered(lab, "c0"), answered(lab, "c1"))
    assert store.verdict(lab.run.id, 1, "c1") == ("COUNTED", "")
