"""The draw of a round's devices: its chances, that it is the same everywhere, and what a [selection] may say."""

import random
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

import koinon
from koinon_core.selection import Selection
from koinon_core.selection.draw import arrival, point, taken
from koinon_core.selection.traits import check_labels, labels_in, weight_of

WEIGHTS = {"a": 1, "b": 2, "c": 3, "d": 6}


def order(weights, seed, number):
    return sorted(weights, key=lambda c: arrival(Fraction(weights[c]), seed, number, c))


def chi_square(found, expected):
    return sum((found[k] - e) ** 2 / e for k, e in expected.items())


def test_the_first_of_a_weighted_draw_comes_by_weight():
    rounds = 12_000
    found = Counter(order(WEIGHTS, 1, number)[0] for number in range(rounds))
    # 16.3 is the quantile of 0.999 at 3 degrees of freedom.
    assert chi_square(found, {c: rounds * w / 12 for c, w in WEIGHTS.items()}) < 16.3


def test_the_second_of_a_weighted_draw_comes_by_weight_of_what_is_left():
    rounds = 12_000
    found = Counter(tuple(order(WEIGHTS, 2, number)[:2]) for number in range(rounds))
    expected = {
        (a, b): rounds * WEIGHTS[a] / 12 * WEIGHTS[b] / (12 - WEIGHTS[a])
        for a in WEIGHTS for b in WEIGHTS if a != b
    }  # fmt: skip
    assert chi_square(found, expected) < 31.3  # of 0.999 at 11


def test_coins_fall_by_their_probability_and_by_themselves():
    rounds, q = 6_000, Fraction("0.3")
    names = [f"c{i}" for i in range(4)]
    heads = [tuple(taken(q, 5, number, c) for c in names) for number in range(rounds)]
    found = Counter(map(sum, heads))
    binomial = {0: 0.2401, 1: 0.4116, 2: 0.2646, 3: 0.0756, 4: 0.0081}
    assert chi_square(found, {k: rounds * p for k, p in binomial.items()}) < 18.5  # of 0.999 at 4
    for one in zip(*heads, strict=True):
        assert abs(sum(one) - rounds * q) < 4 * (rounds * q * (1 - q)) ** 0.5
    both = sum(a and b for a, b in pairwise(x for h in heads for x in h))
    assert abs(both - 4 * rounds * q * q) < 4 * (4 * rounds * q * q) ** 0.5
    assert all(taken(Fraction(1), 5, number, "c") for number in range(1000))


def test_arrivals_are_these_numbers_on_every_machine():
    assert point(7, 3, "ward-7") >> 224 == 0x9DE41693
    assert arrival(Fraction(3), 7, 3, "ward-7") == 16109090543804335196330341683333333333333333333333
    assert order({f"c{i}": i + 1 for i in range(8)}, 7, 3) == ["c5", "c6", "c7", "c4", "c2", "c3", "c1", "c0"]


def test_arrivals_are_exponential_times_over_weights():
    for number in range(200):
        one = arrival(Fraction(1), 0, number, "c")
        assert one / 10**50 == pytest.approx(-np.log(point(0, number, "c") / 2**256), rel=1e-12)
        assert arrival(Fraction(5, 2), 0, number, "c") == one * 2 // 5


def test_labels_are_the_words_with_an_equals_sign():
    words = "second floor, site=ward-7; weight=3 =x 3=4 site=ward-8 a=b=c"
    assert labels_in(words) == {"site": "ward-8", "weight": "3", "a": "b=c"}


@pytest.mark.parametrize(
    ("said", "weight"),
    [
        ("3", 3), ("0.5", Fraction(1, 2)), ("1e3", 1000), ("0", 0), ("-3", None), ("many", None), ("nan", None),
        ("Infinity", None), ("1e999999", None), ("1e-999999", None), ("2e9", None), ("", None), ("1" * 21, None),
    ],
)  # fmt: skip
def test_a_weight_is_a_number_from_0_to_a_billion(said, weight):
    assert weight_of(said) == weight


def test_simulated_labels_are_such_as_an_operator_could_write():
    assert check_labels("c", {"weight": 3, "share": 0.5, "site": "a"}) == {
        "weight": "3",
        "share": "0.5",
        "site": "a",
    }
    for bad in ({"site": "second floor"}, {"7": "x"}, {"site": "a;b"}):
        with pytest.raises(koinon.UsageError, match="cannot be"):
            check_labels("c", bad)


def test_who_does_not_match_is_told_why():
    rule = Selection.make({"labels": {"site": "ward-*"}, "at_least": {"memory_mb": 4096}})
    assert rule.misfit({"site": "ward-7"}, {"memory_mb": 4096.0}) == ""
    assert rule.misfit({}, {}) == "it has no label site"
    assert rule.misfit({"site": "lab"}, {}) == "its label site is 'lab', not 'ward-*'"
    assert "memory_mb = 0, and 4096 is the least" in rule.misfit({"site": "ward-7"}, {})
    weighted = Selection.make({"rule": "weighted"})
    assert weighted.misfit({}, {}) == ""
    for said in ("-3", "0", "many"):
        assert "no weight above 0" in weighted.misfit({"weight": said}, {})


def run(**settings):
    given = {"aggregation": "open", "min_clients": 2, "clients": 2, "population": 4, **settings}
    return koinon.Run("s", model={"w": np.zeros(2)}, **given)


BAD = [
    ({"rule": "wieghted"}, {}, "did you mean 'weighted'"),
    ({"rule": 3}, {}, "there is no rule 3"),
    ({"rle": "uniform"}, {}, "did you mean 'rule'"),
    ({"q": 0.5}, {}, "belongs to rule = 'poisson'"),
    ({"rule": "weighted", "d": 3}, {}, "belongs to rule = 'power-of-choice'"),
    ({"rule": "weighted"}, {"clients": None}, "say how many"),
    ({"rule": "weighted", "by": ""}, {"clients": None}, "say how many"),
    ({"rule": "weighted", "by": "a b"}, {}, "must be the name of a label"),
    ({"rule": "weighted", "by": "examples"}, {"aggregation": "secure", "min_clients": 3, "clients": 3}, "only sums"),
    ({"rule": "power-of-choice"}, {}, "must be a number of devices"),
    ({"rule": "power-of-choice", "d": True}, {}, "must be a number of devices"),
    ({"rule": "power-of-choice", "d": 1}, {}, "below the 2 devices"),
    ({"rule": "power-of-choice", "d": 2}, {"over_selection": 1.5}, "below the 3 devices"),
    ({"rule": "power-of-choice", "d": 4, "loss": "guessed"}, {}, "must be 'asked'"),
    ({"rule": "power-of-choice", "d": 4}, {"aggregation": "secure", "min_clients": 3, "clients": 3}, "only sums"),
    ({"rule": "poisson"}, {"clients": None}, "must be a probability"),
    ({"rule": "poisson", "q": 1.5}, {"clients": None}, "must be a probability"),
    ({"rule": "poisson", "q": 0.6}, {}, "leave clients"),
    ({"rule": "poisson", "q": 0.6}, {"clients": None, "over_selection": 2.0}, "leave clients"),
    ({"rule": "poisson", "q": 0.6}, {"clients": None, "population": None}, "set population"),
    ({"rule": "poisson", "q": 0.4}, {"clients": None}, "draws 1.6 devices on average"),
    ({"rule": "poisson", "q": 0.6}, {"clients": None, "population": 2000}, "raise max_clients"),
    ({"labels": "site"}, {}, "must be a table"),
    ({"labels": {"site": 3}}, {}, "must be a name and text"),
    ({"at_least": {"memory": 3}}, {}, "did you mean 'memory_mb'"),
    ({"at_least": {"cores": -1}}, {}, "must be a number from 0 on"),
    ({"at_least": 4}, {}, "must be a table"),
    ("weighted", {}, "must be a table"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "settings", "says"), BAD)
def test_what_cannot_be_is_refused_at_submission(table, settings, says):
    with pytest.raises(koinon.UsageError, match=says):
        run(selection=table, **settings)


def test_without_a_selection_a_spec_has_the_bytes_that_it_had():
    assert b'"selection"' not in run().spec.encoded
    assert run(selection={}).spec.encoded == run().spec.encoded
    assert b'"selection":{"labels":{"site":"a"}}' in run(selection={"labels": {"site": "a"}}).spec.encoded
    secure = {"aggregation": "secure", "min_clients": 3, "clients": 3}
    assert run(selection={"rule": "weighted"}, **secure).spec.selecting.by == "weight"


def test_a_draw_does_not_depend_on_the_order_that_devices_came_in():
    names = list(WEIGHTS)
    shuffled = random.Random(1).sample(names, 4)
    for number in range(50):
        assert order(WEIGHTS, 9, number) == order({c: WEIGHTS[c] for c in shuffled}, 9, number)
