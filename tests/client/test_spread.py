"""Metrics as a distribution over devices, through whole simulated runs."""

import numpy as np
import pytest

import koinon

ACCURACY = [0.2, 0.82, 0.84, 0.86, 0.95]
"""Of the devices: one is served badly, which the mean hides."""
EDGES = [0.0, 0.5, 0.8, 0.9, 1.0]


def client(session):
    i = int(session.client[-1])
    model = {"body.w": np.zeros(3), "head.w": np.zeros(2)}
    for task in session.tasks(model, evaluate=lambda _: {"accuracy": ACCURACY[i], "examples": 10}):
        task.submit(examples=i + 1, metrics={"loss": float(i)})


def simulated(strategy, **settings):
    given = {"aggregation": "open", "codec": "raw", "rounds": 2, **settings}
    run = koinon.Run(
        "spread", model={"body.w": np.zeros(3), "head.w": np.zeros(2)}, strategy=strategy, min_clients=5, **given
    )  # fmt: skip
    return koinon.simulate(run, client, clients=5)


PERSONAL = koinon.chain(koinon.FedAvg(), koinon.FedPer(keys=("head.*",)))


def test_who_is_served_badly_is_seen_beside_the_mean():
    got = simulated(PERSONAL)
    assert got.metrics[1]["eval.accuracy"] == pytest.approx(np.mean(ACCURACY))
    wanted = dict(
        zip(("min", "p10", "median", "p90", "max"), np.quantile(ACCURACY, [0, 0.1, 0.5, 0.9, 1]), strict=True)
    )
    for number in (1, 2):  # of the last model too, which is evaluated in a round of its own
        assert {p: got.metrics[number][f"eval.accuracy.{p}"] for p in wanted} == pytest.approx(wanted)
    assert got.metrics[1]["train.loss.median"] == 2.0
    assert got.metrics[1]["train.loss.max"] == 4.0


def test_where_all_have_one_model_it_is_had_for_the_asking_and_the_sum_is_the_same():
    plain, asked = simulated(koinon.FedAvg()), simulated(koinon.FedAvg(), distribution=True)
    assert not [name for name in plain.metrics[1] if name.endswith(".median")]
    assert asked.metrics[1]["eval.accuracy.min"] == 0.2
    assert asked.models == plain.models


def test_an_owners_own_metric_keeps_its_name():
    def odd(session):
        for task in session.tasks({"x": np.zeros(1)}):
            task.submit(examples=1, metrics={"loss": float(session.client[-1]), "loss.max": 99.0})

    run = koinon.Run(
        "odd", model={"x": np.zeros(1)}, rounds=1, min_clients=3, aggregation="open", distribution=True
    )
    got = koinon.simulate(run, odd, clients=3)
    assert (got.metrics[1]["train.loss.max"], got.metrics[1]["train.loss.min"]) == (99.0, 0.0)


@pytest.mark.parametrize("weight", ["examples", "uniform"])
def test_a_secure_run_counts_devices_in_bins_and_shows_no_least_or_largest(weight):
    average = koinon.FedAvg() if weight == "examples" else koinon.FedAvgUniform()
    strategy = koinon.chain(average, koinon.FedPer(keys=("head.*",)))
    got = simulated(strategy, aggregation="secure", codec="exact", histograms={"accuracy": EDGES})
    for number in (1, 2):
        measured = {k: v for k, v in got.metrics[number].items() if k.startswith("eval.accuracy.")}
        # One of five in [0, 0.5), three in [0.8, 0.9), one above: read off as if they lay evenly.
        assert measured == pytest.approx(
            {"eval.accuracy.p10": 0.25, "eval.accuracy.median": 0.85, "eval.accuracy.p90": 0.95}
        )
    assert got.metrics[1]["eval.accuracy"] == pytest.approx(np.mean(ACCURACY), abs=1e-4)
    without = simulated(strategy, aggregation="secure", codec="exact")
    assert not [name for name in without.metrics[1] if name.startswith("eval.accuracy.")]
    assert without.model == got.model


def test_the_best_model_may_be_the_one_for_those_who_are_served_worst():
    got = simulated(PERSONAL, best={"metric": "eval.accuracy.min", "patience": 1}, rounds=5)
    assert "2 rounds closed early: eval.accuracy.min was no better" in got.reason
