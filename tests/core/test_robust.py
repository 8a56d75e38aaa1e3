"""Robust rules against their definitions, written here in another way, and against liars."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import koinon
import toy
from koinon_core import exact
from koinon_core.errors import UsageError
from koinon_core.schema import Schema, schema_of
from koinon_core.strategy import (
    NNM,
    CenteredClipping,
    CoordinateMedian,
    FedAvg,
    FedAvgM,
    FedNova,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormBound,
    Scaffold,
    TrimmedMean,
    chain,
)
from koinon_core.strategy.closing import Contribution
from koinon_core.strategy.runner import LocalHalf
from koinon_core.tensors import Tensors
from koinon_core.tiles import Held
from koinon_core.update import Head, layout_of

DRAW = np.random.default_rng(5)
WIDE = 40_000  # more than one strip of a tile


def closed(strategy, rows, order=None, examples=None):
    """(the step, the sum's digest) of a round whose devices moved by `rows`, from weights that are all 1."""
    w = Tensors({"x": np.ones(len(rows[0]))})
    local, t = toy.half(strategy, w), toy.terms(1)
    contributions = []
    for i, row in enumerate(rows):
        end = Held({"x": 1.0 + np.asarray(row, float)})
        made = local.prepare(
            state={}, down={}, work=koinon.Work(examples=1), start=Held(w), end=end, terms=t,
            head=Head(examples=(examples or [1] * len(rows))[i]), client=f"c{i:02}",
        )  # fmt: skip
        reader = toy.Reader(made.blob.window, made.blob.size, local.layout.update)
        contributions.append(Contribution(f"c{i:02}", made.head, reader))
    if order is not None:
        contributions = [contributions[i] for i in order]
    outcome = toy.closed(strategy, local.layout, t, w, strategy.init(w, 0), 0, contributions)
    return outcome.model["x"] - 1.0, outcome.closing.sum


def distances(rows):
    return np.array([[np.sqrt(((a - b) ** 2).sum()) for b in rows] for a in rows])


def krum(rows, f):
    scores = [np.sort(np.delete(d, i) ** 2)[: len(rows) - f - 2].sum() for i, d in enumerate(distances(rows))]
    return np.argsort(scores, kind="stable")


def centred(rows, tau, steps):
    v = np.zeros(len(rows[0]))
    for _ in range(steps):
        away = [row - v for row in rows]
        v = v + np.mean([a * min(1.0, tau / np.linalg.norm(a)) for a in away], axis=0)
    return v


def mixed(rows, f):
    return [
        np.mean([rows[j] for j in np.argsort(d, kind="stable")[: len(rows) - f]], axis=0)
        for d in distances(rows)
    ]


ROWS = DRAW.normal(size=(9, 6))

DEFINED = {
    "median": (CoordinateMedian(), np.median(ROWS, axis=0)),
    "trimmed": (TrimmedMean(f=2), np.sort(ROWS, axis=0)[2:-2].mean(axis=0)),
    "trimmed-0": (TrimmedMean(f=0), ROWS.mean(axis=0)),
    "krum": (Krum(f=2), ROWS[krum(ROWS, 2)[0]]),
    "multikrum": (MultiKrum(f=2), ROWS[krum(ROWS, 2)[:7]].mean(axis=0)),
    "multikrum-3": (MultiKrum(f=2, m=3), ROWS[krum(ROWS, 2)[:3]].mean(axis=0)),
    "centred": (CenteredClipping(tau=0.7, steps=3), centred(ROWS, 0.7, 3)),
    "nnm": (NNM(f=3), np.mean(mixed(ROWS, 3), axis=0)),
    "nnm-median": (chain(CoordinateMedian(), NNM(f=3)), np.median(mixed(ROWS, 3), axis=0)),
    "nnm-krum": (chain(Krum(f=2), NNM(f=3)), np.array(mixed(ROWS, 3))[krum(np.array(mixed(ROWS, 3)), 2)[0]]),
    "norm": (NormBound(norm=1.0), np.mean([r * min(1.0, 1 / np.linalg.norm(r)) for r in ROWS], axis=0)),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFINED)
def test_a_rule_is_what_it_is_defined_to_be(name):
    rule, expected = DEFINED[name]
    step, _ = closed(chain(FedAvg(), rule), list(ROWS))
    assert step == pytest.approx(expected, abs=1e-9)


def test_the_geometric_median_is_where_the_pulls_cancel():
    step, _ = closed(chain(FedAvg(), GeometricMedian()), list(ROWS))
    pulls = [(row - step) / np.linalg.norm(row - step) for row in ROWS]
    assert np.linalg.norm(np.sum(pulls, axis=0)) < 1e-5


def test_a_median_of_an_even_number_is_between_the_two_in_the_middle():
    step, _ = closed(chain(FedAvg(), CoordinateMedian()), [[1.0], [2.0], [4.0], [100.0]])
    assert step == pytest.approx([3.0])


RULES = [
    CoordinateMedian(), TrimmedMean(f=2), Krum(f=2), MultiKrum(f=2), GeometricMedian(), CenteredClipping(tau=1.0),
    chain(CoordinateMedian(), NNM(f=2)), chain(TrimmedMean(f=2), NNM(f=2)),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("lie", [-30.0, 1e3])
def test_two_liars_of_nine_move_nothing_far(rule, lie):
    honest = 1.0 + DRAW.normal(size=(7, 5)) * 0.1
    rows = [*honest, np.full(5, lie), np.full(5, lie)]
    step, _ = closed(chain(FedAvg(), rule), rows)
    fooled, _ = closed(FedAvg(), rows)
    # Centred clipping is moved by up to its tau a step for each liar's share.
    near = 1.5 if isinstance(rule, CenteredClipping) else 0.5
    assert np.abs(step - honest.mean(axis=0)).max() < near < np.abs(fooled - honest.mean(axis=0)).max()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_order_of_arrival_and_the_number_of_examples_change_no_byte(rule):
    rows = list(DRAW.normal(size=(9, 6)))
    first = closed(chain(FedAvg(), rule), rows)
    again = closed(chain(FedAvg(), rule), rows, order=DRAW.permutation(9))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1] == again[1]
    weighed, _ = closed(chain(FedAvg(), rule), rows, examples=list(range(1, 10)))
    assert first[0].tobytes() == weighed.tobytes()
    assert closed(chain(FedAvg(), rule), [row + 1e-6 for row in rows])[1] != first[1]


def test_of_equals_the_first_by_name_is_taken():
    rows = [[1.0, 0.0], [0.0, 1.0]] * 3 + [[5.0, 5.0]]
    step, _ = closed(chain(FedAvg(), Krum(f=1)), rows)
    assert step.tolist() == [1.0, 0.0]


def test_small_updates_of_large_weights_are_told_apart():
    """In float32 and of weights, the wrong one is picked 37 times in 40 at a scale of 1e-4."""
    for seed in range(40):
        draw = np.random.default_rng(seed)
        rows = draw.normal(size=(9, 64)) * 1e-4
        step, _ = closed(chain(FedAvg(), Krum(f=2)), list(rows))
        assert step == pytest.approx(rows[krum(rows, 2)[0]], abs=1e-9)


def test_a_rule_takes_more_than_one_strip_and_a_server_rule_above():
    rows = list(DRAW.normal(size=(7, WIDE)))
    strategy = chain(FedAvgM(lr=0.5), MultiKrum(f=2, m=3))
    step, _ = closed(strategy, rows)
    chosen = krum(np.array(rows), 2)[:3]
    assert step == pytest.approx(0.5 * np.mean([rows[i] for i in chosen], axis=0), abs=1e-9)


@pytest.mark.parametrize("rule", [*RULES, NormBound()], ids=str)
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_equal_updates_are_their_own_mean(rule, value):
    step, _ = closed(chain(FedAvg(), rule), [[value] * 4] * 9)
    assert step == pytest.approx([value] * 4)


@pytest.mark.parametrize("rule", [*RULES, NormBound(), NNM(f=1)], ids=str)
def test_what_a_liar_says_beside_an_honest_change_moves_nothing(rule):
    """Statistics and counters of normalisation layers, by which no update is judged."""
    names = ("n.weight", "n.bias", "n.running_mean", "n.running_var")
    w = Tensors({**{n: np.ones(2) for n in names}, "n.num_batches_tracked": np.array(10)})
    strategy, t = chain(FedAvg(), rule), toy.terms(1)
    schema = Schema(tuple(replace(f, role="buffer") if f.name not in names[:2] else f for f in schema_of(w)))
    local = LocalHalf(strategy, layout_of(schema, strategy, codec="raw", grid=lambda bound: 30))
    contributions = []
    for i in range(9):
        moved = {n: w[n] + 0.01 * (i + 1) for n in names}
        counted = 12
        if i < 2:
            moved["n.running_var"], counted = np.full(2, -60.0), 10**12
        made = local.prepare(
            state={}, down={}, work=koinon.Work(examples=1), start=Held(w),
            end=Held({**moved, "n.num_batches_tracked": np.array(counted)}), terms=t, head=Head(examples=1),
            client=f"c{i}",
        )  # fmt: skip
        reader = toy.Reader(made.blob.window, made.blob.size, local.layout.update)
        contributions.append(Contribution(f"c{i}", made.head, reader))
    model = toy.closed(strategy, local.layout, t, w, strategy.init(w, 0), 0, contributions).model
    assert model["n.running_var"] == pytest.approx([1.05] * 2, abs=0.06)
    assert int(model["n.num_batches_tracked"]) == 12


# -- exact inner products -------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 40_000), st.integers(0, 99))
def test_inner_products_are_those_of_numpy_and_do_not_depend_on_how_many_others_there_are(
    count, columns, seed
):
    rows = np.random.default_rng(seed).normal(size=(count, columns))
    products = exact.Gram(count)
    products.add(rows)
    value = products.value
    assert value == pytest.approx(rows @ rows.T, rel=1e-10, abs=1e-10 * columns)
    assert np.array_equal(value, value.T)
    alone = exact.Gram(1)
    alone.add(rows[-1:])
    assert alone.value[0, 0] == value[-1, -1]


def test_rows_are_mixed_as_by_a_product():
    factors, rows = DRAW.normal(size=(3, 5)), DRAW.normal(size=(5, 7))
    assert exact.mixed(factors, rows) == pytest.approx(factors @ rows)


# -- what does not go together --------------------------------------------------------------------------------


def run(strategy, **settings):
    values = {"min_clients": 9, "clients": 9, "aggregation": "open", **settings}
    return koinon.Run("r", model={"x": np.zeros(3)}, strategy=strategy, **values)


def test_a_secure_run_shows_no_single_updates():
    with pytest.raises(UsageError, match="single updates"):
        run(chain(FedAvg(), Krum()), aggregation="secure")


@pytest.mark.parametrize(
    ("rule", "wanted"), [(Krum(f=4), 11), (TrimmedMean(f=5), 11), (MultiKrum(f=1, m=10), 11), (NNM(f=6), 13)]
)
def test_a_quorum_that_is_too_small_for_a_rule_is_refused(rule, wanted):
    with pytest.raises(UsageError, match=f"needs {wanted} updates.*min_clients = 9"):
        run(chain(FedAvg(), rule))
    run(chain(FedAvg(), rule), min_clients=wanted, clients=wanted)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((CoordinateMedian(), TrimmedMean()), "TrimmedMean leaves one update, and CoordinateMedian above it"),
        ((NNM(), Krum()), "Krum leaves one update, and NNM above it"),
        ((FedNova(), Krum()), "plain sums"),
        ((Scaffold(), Krum()), "may leave an update out"),
    ],
)
def test_what_a_rule_cannot_stand_beside_is_refused(parts, reason):
    with pytest.raises(UsageError, match=reason):
        chain(*parts)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Krum(f=-1),
        lambda: MultiKrum(m=-1),
        lambda: NormBound(norm=0),
        lambda: CenteredClipping(tau=0),
        lambda: GeometricMedian(nu=0),
    ],
)
def test_fields_that_make_no_rule_are_refused(make):
    with pytest.raises(UsageError, match="must"):
        make()


def test_every_pair_of_rules_is_taken_or_refused():
    taken = []
    for first, second in itertools.permutations([*RULES[:6], NNM(f=2), NormBound()], 2):
        if second.leaves_one:
            with pytest.raises(UsageError, match="change their order"):
                chain(FedAvg(), first, second)
            continue
        step, _ = closed(chain(FedAvg(), first, second), list(ROWS))
        assert np.all(np.isfinite(step))
        taken.append((first, second))
    assert len(taken) == 2 * 7
