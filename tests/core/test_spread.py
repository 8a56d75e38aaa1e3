"""Metrics as a distribution over devices: of what they said, and of counts in bins."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import koinon
from koinon_core.errors import UsageError
from koinon_core.flow.best import Best
from koinon_core.flow.spread import is_spread, read_off, spread_of, within
from koinon_core.secure import numbers
from koinon_core.update import Head

EDGES = [0.0, 0.5, 0.8, 0.9, 1.0]


def test_every_device_counts_the_same_whatever_it_has():
    heads = [
        Head(examples=10**i, training={"loss": float(i)}, evaluation={"acc": 1.0 - i / 10}) for i in range(6)
    ]
    found = spread_of(heads)
    assert {k: v for k, v in found.items() if k.startswith("train")} == {
        "train.loss.min": 0.0, "train.loss.p10": 0.5, "train.loss.median": 2.5, "train.loss.p90": 4.5,
        "train.loss.max": 5.0,
    }  # fmt: skip
    assert found["eval.acc.median"] == pytest.approx(0.75)
    assert spread_of(reversed(heads)) == found


def test_one_device_is_no_distribution():
    assert spread_of([Head(examples=1, training={"loss": 1.0}), Head(examples=1)]) == {}


@given(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=30))
def test_quantiles_are_numpys_but_for_the_last_bits(values):
    found = list(spread_of(Head(training={"m": v}) for v in values).values())
    span = max(map(abs, values))
    assert found == pytest.approx(np.quantile(values, [0, 0.1, 0.5, 0.9, 1]), rel=1e-9, abs=1e-9 * span)


def test_bins_have_their_lower_edge_and_the_outer_ones_all_beyond():
    assert [within(EDGES, v) for v in (-3.0, 0.0, 0.49, 0.5, 0.8, 0.899, 0.9, 1.0, 7.0)] == [
        0,
        0,
        0,
        1,
        2,
        2,
        3,
        3,
        3,
    ]


def test_quantiles_are_read_from_counts():
    assert read_off("acc", EDGES, [0, 10, 0, 0]) == pytest.approx(
        {"acc.p10": 0.53, "acc.median": 0.65, "acc.p90": 0.77}
    )
    assert read_off("acc", EDGES, [1, 0, 8, 1]) == pytest.approx(
        {"acc.p10": 0.5, "acc.median": 0.85, "acc.p90": 0.9}
    )
    assert read_off("acc", EDGES, [0, 0, 0, 0]) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_what_is_read_is_in_the_bin_of_what_is(values):
    counts = [0] * 4
    for value in values:
        counts[within(EDGES, value)] += 1
    read = read_off("m", EDGES, counts)
    # The value at the same rank: read from counts it can be nowhere but in that one's bin.
    for point, share in (("p10", 0.1), ("median", 0.5), ("p90", 0.9)):
        rank = next(k for k in range(1, len(values) + 1) if k >= share * len(values))
        at = within(EDGES, sorted(values)[rank - 1])
        assert EDGES[at] <= read[f"m.{point}"] <= EDGES[at + 1]


ASKED = numbers.Asked(("acc", "loss"), True, {"acc": EDGES})


def lanes(asked=ASKED, **head) -> dict[str, float]:
    labels = numbers.labels_of("train", asked, examples=False)
    return dict(zip(labels, numbers.values_of(labels, Head(**head), asked), strict=True))


def test_a_device_is_in_one_bin_of_what_it_measured_and_in_none_of_what_it_did_not():
    said = lanes(
        examples=3, training={"acc": 0.85, "loss": 2.0}, evaluation={"loss": 1.0}, evaluation_examples=1
    )
    assert {k for k, v in said.items() if " in " in k and v} == {"train.acc in 2"}
    assert said["train.acc in 2"] == 1.0
    assert not any(" in " in k and v for k, v in lanes(examples=1, training={"acc": 1e9}).items())
    assert not [k for k in lanes(numbers.Asked(("acc",))) if " in " in k]


def test_what_a_liar_takes_away_from_a_bin_leaves_none_in_it():
    labels = numbers.labels_of("train", ASKED, examples=False)
    sums = dict.fromkeys(labels, 0.0) | {"train.acc in 0": -5.0, "train.acc in 3": 2.0}
    found = numbers.measured(labels, [sums[label] for label in labels], ASKED).spread
    assert found == pytest.approx({"train.acc.p10": 0.91, "train.acc.median": 0.95, "train.acc.p90": 0.99})


def run(**settings):
    given = {"min_clients": 3, "model": {"body.w": np.zeros(3), "head.w": np.zeros(2)}, **settings}
    return koinon.Run("r", **given).spec


@pytest.mark.parametrize(
    ("histograms", "sentence"),
    [
        ({"f1": EDGES}, "'f1', which is none of its metrics; add it to metrics"),
        ({"loss": [0, 1]}, "edges of 2 to 64 bins"),
        ({"loss": [0, 1, 1]}, "that go up"),
        ({"loss": [2, 1, 0]}, "that go up"),
        ({"loss": [0, True, 2]}, "edges of 2 to 64 bins"),
        ({"loss": [0, 1, float("inf")]}, "numbers up to 16384"),
        ({"loss": [0, 1, float("nan")]}, "numbers up to 16384"),
        ({"loss": list(range(66))}, "edges of 2 to 64 bins"),
        ({"loss": "many"}, "edges of 2 to 64 bins"),
        ([0, 1], "must be a table"),
    ],
)
def test_bins_that_cannot_be_are_refused_when_the_run_is_made(histograms, sentence):
    with pytest.raises(UsageError, match=sentence):
        run(histograms=histograms)


def test_a_distribution_is_had_in_the_way_of_the_run():
    with pytest.raises(UsageError, match="needs what single devices measured"):
        run(distribution=True)
    with pytest.raises(UsageError, match="set distribution = true"):
        run(aggregation="open", histograms={"loss": EDGES})
    names = [f"m{i}" for i in range(5)]
    with pytest.raises(UsageError, match="more than 256 bins"):
        run(metrics=names, histograms={n: list(range(65)) for n in names})
    made = run(histograms={"loss": [0, 1, 2]})
    assert type(made).decode(made.encoded) == made
    assert b"histograms" not in run().encoded


@pytest.mark.parametrize(
    ("strategy", "spreads"),
    [
        (koinon.FedAvg(), False), (koinon.FedPer(keys=("head.*",)), True), (koinon.FedRep(keys=("head.*",)), True),
        (koinon.chain(koinon.FedAvg(), koinon.Ditto()), True),
    ],
    ids=repr,
)  # fmt: skip
def test_where_devices_have_models_of_their_own_it_is_always_had(strategy, spreads):
    assert run(strategy=strategy, aggregation="open").spreads is spreads
    assert run(strategy=strategy, aggregation="open", distribution=True).spreads
    assert not run(strategy=strategy).spreads


def test_the_best_model_may_be_that_which_serves_the_worst_served_best():
    assert Best.make({"metric": "eval.accuracy.p10"}) == Best("eval.accuracy.p10", "max")
    assert Best.make({"metric": "eval.loss.p90"}) == Best("eval.loss.p90", "min")
    assert run(histograms={"accuracy": EDGES}, best={"metric": "eval.accuracy.p10"}).watch
    for metric in ("eval.accuracy.p10", "eval.accuracy.min"):
        with pytest.raises(UsageError, match="secure run knows p10, median and p90"):
            run(best={"metric": metric}, histograms={} if metric.endswith("p10") else {"accuracy": EDGES})


def test_a_metric_of_an_owners_own_that_sounds_like_one_is_a_metric():
    assert is_spread("eval.loss.p10", {"eval.loss", "eval.loss.median"})
    assert not is_spread("eval.speed.max", {"eval.speed", "eval.speed.max"})
    assert all(b > a for a, b in pairwise(EDGES))
