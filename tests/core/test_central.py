"""What a run's owner measures: which names and values are kept, and what the run makes of them, whenever they come."""

import itertools
import math

import numpy as np
import pytest

import koinon
from koinon_core import run as runs
from koinon_core.errors import UsageError
from koinon_core.flow.best import Best, Found
from koinon_core.flow.central import central
from koinon_core.run.orders import Finish, Open
from koinon_core.spec import RunSpec


def test_metrics_get_their_whole_names_and_are_numbers():
    assert central({"loss": np.float32(0.5), "n": 3}) == {"central.loss": 0.5, "central.n": 3.0}
    assert len(central({str(i): 1e30 for i in range(64)})) == 64


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({}, "has 1 to 64 metrics, this one has 0"),
        ({str(i): 0.0 for i in range(65)}, "this one has 65"),
        ({"x" * 65: 1.0}, "names are 1 to 64 printable"),
        ({"": 1.0}, "names are 1 to 64 printable"),
        ({"a\nb": 1.0}, "names are 1 to 64 printable"),
        ({"loss": math.nan}, "'loss' is nan: metrics are numbers up to 1e"),
        ({"loss": -math.inf}, "'loss' is -inf"),
        ({"loss": 2e30}, "numbers up to 1e"),
        ({"loss": "low"}, "'loss' is 'low'"),
        ({"loss": None}, "'loss' is None"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_reason(said, sentence):
    with pytest.raises(UsageError, match=sentence):
        central(said)


def spec(**settings) -> RunSpec:
    given = {"rounds": 9, "min_clients": 3, "best": {"metric": "central.loss", "patience": 2}, **settings}
    return koinon.Run("r", model={"x": np.zeros(2)}, **given).spec


def test_a_secure_run_may_be_judged_by_its_owner_without_summing_such_a_metric():
    assert spec(metrics=["f1"]).watch == Best("central.loss", "min", 2)
    assert spec(best={"metric": "central.accuracy"}).watch == Best("central.accuracy", "max")
    with pytest.raises(UsageError, match=r"or of the owner's own, 'central.loss'"):
        spec(best={"metric": "middle.loss"})


VALUES = [(1, 5.0), (2, 3.0), (3, 4.0), (4, 3.5)]


@pytest.mark.parametrize("order", list(itertools.permutations(VALUES)))
def test_what_is_best_depends_on_the_rounds_and_not_on_when_they_were_measured(order):
    run = runs.Run(id="r", spec=spec(), model="", closed=5)
    for number, value in order:
        run = runs.step(run, runs.Measured(0.0, number, value)).run
    assert run.best == Found(3.0, 2, 2)
    # Said again it is what it was; said otherwise, the last word counts.
    assert runs.step(run, runs.Measured(0.0, 3, 4.0)).run == run
    assert runs.step(run, runs.Measured(0.0, 3, 1.0)).run.best == Found(1.0, 3, 1)


def test_an_early_stop_takes_effect_where_the_next_round_would_open():
    run = runs.Run(id="r", spec=spec(evaluate=False), model="", closed=5)
    for number, value in VALUES[:3]:
        run = runs.step(run, runs.Measured(0.0, number, value)).run
    assert isinstance(runs.start(run).orders[0], Open)
    moved = runs.step(run, runs.Measured(0.0, *VALUES[3]))
    assert moved.orders == (), "the round that is open goes on"
    (end,) = runs.start(moved.run).orders
    assert isinstance(end, Finish)
    assert (
        end.reason == "5 rounds closed early: central.loss was no better in 2 measurements than 3 of round 2"
    )
