"""The best model of a run, through the store: found again by whoever takes the run up, and kept."""

import pytest

from koinon_coordinator.book import Item
from koinon_coordinator.store import Store
from koinon_core import run as runs
from koinon_core.errors import NotFound
from koinon_core.flow.best import Found
from koinon_core.update import Head
from lab import Lab

LOSSES = [5.0, 3.0, 1.0, 2.0, 4.0, 4.5]
"""Of the models of rounds 0, 1, 2 ...: each is known when the next round is summed."""


def step(lab: Lab) -> None:
    """A round whose devices evaluate what it began with."""
    loss = LOSSES[lab.run.number - (lab.run.round is not None and not lab.run.round.over)]
    lab.open()
    for name in sorted(lab.run.round.update.awaited):
        update = lab.update(name)
        object.__setattr__(update, "head", Head(examples=1, evaluation={"loss": loss}, evaluation_examples=1))
        lab.turn(Item(runs.Answered(lab.clock(), name, lab.run.number, update.digest), update=update))


@pytest.fixture
def store(database_url, tmp_path):
    store = Store(database_url, tmp_path / "blobs")
    yield store
    store.close()


def test_who_takes_a_run_up_finds_the_same_best_and_stops_in_the_same_round(store):
    best = {"metric": "eval.loss", "patience": 2}
    lab = Lab.create(store, best=best)
    expected = [
        Found(5.0, 0), Found(3.0, 1), Found(1.0, 2), Found(1.0, 2, 1), Found(1.0, 2, 2),
    ]  # fmt: skip
    for found in expected:
        step(lab)
        assert lab.run.best == found
        store.release(lab.run.id, lab.ledger.epoch, lab.clock())
        lab = Lab.take_up(store, store.run(lab.run.id), clock=lab.clock) if not lab.run.over else lab
        assert lab.run.best == found
    assert lab.run.status == "finished"
    assert (
        lab.run.reason == "5 rounds closed early: eval.loss was no better in 2 measurements than 1 of round 2"
    )


def test_the_best_model_is_kept_whatever_else_goes(store):
    lab = Lab.create(store, best={"metric": "eval.loss"}, models="none", retention="none")
    kept = []
    for _ in range(5):
        step(lab)
        kept.append([v.round for v in store.kept_versions(lab.run.id)])
    assert kept[1:] == [[1, 2], [2, 3], [2, 4], [2, 5]]
    digest = store.kept_versions(lab.run.id)[0].digest
    window, size = store.window(digest)
    assert len(bytes(window(0, size))) == size


def test_the_last_evaluators_are_those_of_the_last_round_that_evaluated(store):
    lab = Lab.create(store, evaluate_every=2, evaluate=True)
    for expected in (3, 3, 3, 3):
        lab.open()
        if lab.run.spec.evaluates_in(lab.run.number):
            step(lab)
        else:
            lab.close()
        assert lab.run.evaluators == expected
        store.release(lab.run.id, lab.ledger.epoch, lab.clock())
        lab = Lab.take_up(store, store.run(lab.run.id), clock=lab.clock)
        assert lab.run.evaluators == expected


def measure(lab: Lab, number: int, value: float) -> None:
    """As `Federation.measure` does: it is kept first, and told then."""
    lab.store.measure(lab.run.id, number, {"central.loss": value})
    lab.turn(runs.Measured(lab.clock(), number, value))


def test_what_the_owner_measured_is_found_by_whoever_takes_the_run_up_and_ends_it(store):
    lab = Lab.create(store, best={"metric": "central.loss", "patience": 2})
    lab.rounds(4)
    for number, value in ((3, 2.0), (1, 1.0), (2, 1.5)):  # late, and in any order
        measure(lab, number, value)
    assert lab.run.best == Found(1.0, 1, 2)
    assert lab.run.status == "running"
    # One whose word was stored, and not heard any more.
    lab.store.measure(lab.run.id, 4, {"central.loss": 0.5, "central.other": 7.0})
    store.release(lab.run.id, lab.ledger.epoch, lab.clock())
    lab = Lab.take_up(store, store.run(lab.run.id), clock=lab.clock)
    assert lab.run.best == Found(0.5, 4)
    assert lab.run.measured == {1: 1.0, 2: 1.5, 3: 2.0, 4: 0.5}
    measure(lab, 4, 3.0)
    assert lab.run.best == Found(1.0, 1, 3)
    lab.open().close()
    assert (
        lab.run.reason
        == "5 rounds closed early: central.loss was no better in 3 measurements than 1 of round 1"
    )


def test_a_measurement_is_of_a_model_that_there_is_and_counts_once(store):
    lab = Lab.create(store)
    lab.rounds(1)
    for _ in range(2):
        lab.store.measure(lab.run.id, 1, {"central.loss": 2.0})
    assert lab.store.measured(lab.run.id, "central.loss") == [(1, 2.0)]
    with pytest.raises(NotFound, match="round 2 made no model"):
        lab.store.measure(lab.run.id, 2, {"central.loss": 2.0})


def test_the_model_that_the_owner_finds_best_is_kept(store):
    lab = Lab.create(store, best={"metric": "central.loss"}, models="none", retention="none")
    kept = []
    for number, value in enumerate([3.0, 1.0, 2.0, 2.5], 1):
        lab.open().close()
        measure(lab, number, value)
        kept.append([v.round for v in store.kept_versions(lab.run.id)])
    lab.open().close()
    assert [v.round for v in store.kept_versions(lab.run.id)] == [2, 5]
