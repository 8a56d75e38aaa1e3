"""The best model, early stops, and settings that change from round to round: as pure rules, and in simulated runs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import koinon
from koinon_core.errors import UsageError
from koinon_core.flow.best import Best, Found
from koinon_core.flow.schedule import check_schedules, scheduled
from koinon_core.spec import RunSpec

LOSS = Best.make({"metric": "eval.loss", "patience": 2, "delta": 0.1})


def test_a_value_is_better_by_more_than_delta_and_waiting_ends_after_patience():
    found = LOSS.over([(1, 1.0), (2, 0.95), (3, 0.8), (4, 0.79)])
    assert found == Found(0.8, 3, 1)
    assert not LOSS.ends(found)
    assert LOSS.ends(LOSS.after(found, 5, 0.75))
    assert LOSS.sentence(Found(0.8, 3, 2)) == "eval.loss was no better in 2 measurements than 0.8 of round 3"


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("eval.loss", "min"),
        ("train.loss", "min"),
        ("eval.accuracy", "max"),
        ("eval.f1", "max"),
        ("eval.mae", "min"),
    ],
)
def test_whether_more_is_better_is_known_of_the_usual_names(metric, mode):
    assert Best.make({"metric": metric}).mode == mode
    assert Best.make({"metric": metric, "mode": "min"}).mode == "min"


def test_nan_is_never_better_and_always_worse():
    best = Best.make({"metric": "eval.accuracy"})
    assert best.over([(1, 0.5), (2, math.nan)]) == Found(0.5, 1, 1)
    assert best.over([(1, math.nan), (2, 0.1)]) == Found(0.1, 2, 0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.sampled_from(["min", "max"]))
def test_the_best_of_a_run_is_that_of_its_values_whenever_it_is_looked_for(values, mode):
    best = Best("eval.x", mode)
    rounds = list(enumerate(values))
    found = best.over(rounds)
    assert found.value == (min if mode == "min" else max)(values)
    assert found.round == values.index(found.value)
    cut = len(values) // 2
    again = best.over(rounds[:cut])
    for round_, value in rounds[cut:]:
        again = best.after(again, round_, value)
    assert again == found


def run(**settings):
    given = {"min_clients": 2, "clients": 2, "aggregation": "open", "codec": "raw", "rounds": 20, **settings}
    return koinon.Run("flow", model={"x": np.zeros(1)}, **given)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"metric": "loss"}, "for example 'eval.loss'"),
        ({"patience": 3}, "for example 'eval.loss'"),
        ({"metric": "eval.loss", "patients": 3}, "did you mean 'patience'"),
        ({"metric": "eval.loss", "mode": "down"}, "'min' or 'max'"),
        ({"metric": "eval.loss", "patience": -1}, "from 0 on"),
        ({"metric": "eval.loss", "patience": True}, "from 0 on"),
        ({"metric": "eval.loss", "delta": "a"}, "from 0 on"),
        ("eval.loss", "must be a table"),
    ],
)
def test_what_is_no_best_is_refused(table, reason):
    with pytest.raises(UsageError, match=reason):
        run(best=table)


def test_a_secure_run_must_sum_the_metric_that_it_is_to_watch():
    with pytest.raises(UsageError, match="add 'f1' to metrics"):
        run(best={"metric": "eval.f1"}, aggregation="secure", min_clients=3, clients=3, codec="balanced")
    run(best={"metric": "eval.loss"}, aggregation="secure", min_clients=3, clients=3, codec="balanced")


def test_a_spec_that_asks_for_none_of_it_is_written_as_before():
    assert b"best" not in run().spec.encoded
    assert b"evaluate_every" not in run().spec.encoded
    asked = run(best={"metric": "eval.loss"}, evaluate_every=3).spec
    assert RunSpec.decode(asked.encoded) == asked


# -- in runs --------------------------------------------------------------------------------------------------


def learner(aim, seen=None):
    """Goes towards `aim` by halves, and then away: the loss has its least in the middle."""

    def client(session):
        model = {"x": np.zeros(1)}

        def evaluate(_):
            if seen is not None:
                seen.append(float(model["x"][0]))
            return {"loss": (float(model["x"][0]) - aim) ** 2}

        for task in session.tasks(model, evaluate=evaluate):
            model["x"] += 1.0
            task.submit(examples=1)

    return client


def test_a_run_stops_when_it_no_longer_gets_better_and_says_why():
    got = koinon.simulate(run(best={"metric": "eval.loss", "patience": 3}), learner(5.0), clients=2)
    assert got.status == "finished"
    assert got.reason == "9 rounds closed early: eval.loss was no better in 4 measurements than 0 of round 5"
    assert [r.number for r in got.rounds] == list(range(1, 11)), (
        "nine rounds, and the last model's evaluation"
    )


def test_without_patience_it_only_looks():
    got = koinon.simulate(run(best={"metric": "eval.loss"}), learner(5.0), clients=2)
    assert got.reason == "20 rounds closed"


def test_a_secure_run_stops_too():
    secure = run(
        best={"metric": "eval.loss", "patience": 3},
        aggregation="secure",
        min_clients=3,
        clients=3,
        codec="exact",
    )
    got = koinon.simulate(secure, learner(5.0), clients=3)
    assert got.reason.startswith("9 rounds closed early")


def test_devices_evaluate_every_third_round_and_the_last_model():
    seen = []
    got = koinon.simulate(run(rounds=8, evaluate_every=3), learner(0.0, seen), clients=2)
    assert seen == [0.0, 0.0, 3.0, 3.0, 6.0, 6.0, 8.0, 8.0]
    assert sorted(n for n, m in got.metrics.items() if "eval.loss" in m) == [0, 3, 6, 8]


def test_a_strategy_that_needs_the_loss_before_gets_it_every_round():
    seen = []
    koinon.simulate(
        run(rounds=4, evaluate_every=3, strategy=koinon.QFedAvg(), evaluate=False), stepper(seen), clients=2
    )
    assert len(seen) == 8


def stepper(seen):
    def client(session):
        model = {"x": np.zeros(1)}

        def evaluate(_):
            seen.append(1)
            return {"loss": 1.0}

        for task in session.tasks(model, evaluate=evaluate):
            task.descend({"x": np.ones(1)}, lr=0.1)
            task.submit(examples=1)

    return client


# -- schedules ------------------------------------------------------------------------------------------------

SCHEDULES = [
    ({"schedule": "linear", "begin": 1.0, "end": 0.0}, [1.0, 0.75, 0.5, 0.25, 0.0]),
    ({"schedule": "cosine", "begin": 1.0, "end": 0.0}, [1.0, 0.853553390593, 0.5, 0.146446609407, 0.0]),
    ({"schedule": "exponential", "begin": 1.0, "factor": 0.5}, [1.0, 0.5, 0.25, 0.125, 0.0625]),
    ({"schedule": "exponential", "begin": 1.0, "factor": 0.5, "end": 0.2}, [1.0, 0.5, 0.25, 0.2, 0.2]),
    ({"schedule": "steps", "values": [3, 2, 1], "at": [1, 3]}, [3.0, 2.0, 2.0, 1.0, 1.0]),
    ({"schedule": "linear", "begin": 4.0, "end": 1.0, "whole": True}, [4, 3, 2, 2, 1]),
    ({"schedule": "linear", "begin": 1.0, "end": 0.0, "warmup": 2}, [0.333333333333, 0.666666666667, 1.0, 0.5, 0.0]),
]  # fmt: skip


@pytest.mark.parametrize(("table", "values"), SCHEDULES, ids=lambda v: str(v)[:40])
def test_a_schedule_is_its_formula(table, values):
    check_schedules({"lr": table})
    assert [scheduled({"lr": table, "x": 1}, k, 5)["lr"] for k in range(5)] == values
    assert scheduled({"lr": table, "x": 1}, 2, 5)["x"] == 1
    assert isinstance(scheduled({"lr": table}, 0, 5)["lr"], type(values[0]))


@given(st.integers(0, 50), st.integers(1, 50), st.sampled_from([t for t, _ in SCHEDULES]))
def test_every_round_has_a_finite_number(closed, rounds, table):
    assert math.isfinite(scheduled({"lr": table}, closed, rounds)["lr"])


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"schedule": "cosin"}, "must be linear, cosine"),
        ({"schedule": "cosine", "begin": 1.0}, "needs 'end'"),
        ({"schedule": "linear", "begin": 1.0, "end": math.inf}, "finite number"),
        ({"schedule": "exponential", "begin": 1.0, "factor": 0}, "above 0"),
        ({"schedule": "steps", "values": [1], "at": [1]}, "one more"),
        ({"schedule": "steps", "values": [1, 2, 3], "at": [5, 2]}, "order of rounds"),
        ({"schedule": "linear", "begin": 1, "end": 0, "warm": 3}, "has no 'warm'"),
        ({"schedule": "linear", "begin": 1, "end": 0, "warmup": -3}, "number of rounds"),
        ({"schedule": "linear", "begin": 1, "end": 0, "whole": 1}, "true or false"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_when_the_run_is_made(table, reason):
    with pytest.raises(UsageError, match=f"'lr'.*{reason}|{reason}.*'lr'"):
        run(config={"lr": table})


def test_devices_find_the_numbers_of_their_round():
    told = []

    def client(session):
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            told.append((task.round, task.config["lr"], task.epochs))
            task.submit(examples=1)

    config = {
        "lr": {"schedule": "linear", "begin": 0.3, "end": 0.1},
        "epochs": {"schedule": "steps", "values": [4, 1], "at": [2], "whole": True},
    }
    koinon.simulate(run(rounds=3, config=config), client, clients=2)
    assert sorted(set(told)) == [(1, 0.3, 4), (2, 0.2, 4), (3, 0.1, 1)]
