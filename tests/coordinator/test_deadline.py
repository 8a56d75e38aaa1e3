"""How much of a round's deadline is over: said to devices that are asked again, in the ledger's own words."""

import pytest

from koinon_coordinator.book import Item
from koinon_coordinator.store import Store
from koinon_core import run as runs
from koinon_core.wire.v1 import fleet_pb2 as pb
from lab import Lab


@pytest.fixture
def store(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'koinon.db'}")
    yield store
    store.close()


def asks(lab: Lab, *facts: runs.Fact) -> dict[str, pb.Ask]:
    said = lab.ledger.turn([Item(fact) for fact in facts])
    heard = [(one.client, m) for one in said for m in pb.AttendResponse.FromString(one.message).messages]
    return {client: m.ask for client, m in heard if m.HasField("ask")}


def test_who_comes_back_hears_how_much_of_the_deadline_is_over(store):
    lab = Lab.create(store, deadline=60.0)
    first = asks(lab, *(runs.Offered(lab.clock(), name) for name in lab.names))
    assert [ask.elapsed for ask in first.values()] == [0.0] * 3
    lab.clock.now += 25.0
    again = asks(lab, runs.Offered(lab.clock(), "c1"))
    assert list(again) == ["c1"]
    assert again["c1"].elapsed == pytest.approx(25.0)
    assert again["c1"].terms == first["c1"].terms


def test_time_in_which_nobody_owned_the_run_is_none_of_the_deadline(store):
    lab = Lab.create(store, deadline=60.0).open()
    lab.clock.now += 10.0
    store.release(lab.run.id, lab.ledger.epoch, lab.clock())
    lab.clock.now += 1000.0
    lab = Lab.take_up(store, store.run(lab.run.id), clock=lab.clock)
    lab.clock.now += 5.0
    again = asks(lab, runs.Offered(lab.clock(), "c1"))
    assert again["c1"].elapsed == pytest.approx(15.0, abs=2.0)
