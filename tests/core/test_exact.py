"""Exact reductions, against math.fsum."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core import exact

values = st.lists(st.floats(-1e100, 1e100), max_size=50)
# Integers below 2^53 in sum: every order of additions is exact, so the result has no tolerance.
whole = st.lists(st.integers(-(2**40), 2**40), max_size=50)


def wide(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size) * 1e3


def near(found: float, terms: list[float]) -> bool:
    """Within what halving may round: a few units in the last place of the sum of magnitudes."""
    return abs(found - math.fsum(terms)) <= 16 * 2.0**-53 * math.fsum(map(abs, terms))


@given(values)
def test_the_sum_is_fsums(x):
    assert near(exact.sum(x), x)


@given(whole)
def test_the_sum_of_whole_numbers_has_no_error(x):
    assert exact.sum(x) == sum(x)


@given(st.lists(st.tuples(st.floats(-1e50, 1e50), st.floats(-1e50, 1e50)), max_size=50))
def test_the_dot_product_is_fsums(pairs):
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    assert near(exact.dot(a, b), [x * y for x, y in pairs])


@given(values)
def test_the_norm_is_fsums(x):
    assert exact.norm(x) == pytest.approx(math.sqrt(math.fsum(v * v for v in x)), rel=1e-14, abs=0)


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 3 * 4096 + 5])
def test_every_element_counts_across_tiles(size):
    x = wide(size, size)
    assert near(exact.sum(x), x.tolist())
    assert near(exact.dot(x, x), (x * x).tolist())
    assert exact.sum(np.ones(size, np.float32)) == size
    assert exact.dot(np.arange(size), np.ones(size)) == size * (size - 1) // 2


def test_tiles_are_joined_with_one_rounding():
    x = np.zeros(3 * 4096)
    x[[0, 4096, 8192]] = 1e100, 1.0, -1e100
    assert exact.sum(x) == 1.0


def test_the_layout_in_memory_does_not_matter():
    x = wide(0, 60 * 70).reshape(60, 70)
    assert exact.sum(np.asfortranarray(x)) == exact.sum(x) == exact.sum(x.ravel())
    assert exact.dot(np.asfortranarray(x), x) == exact.dot(x, x)


@pytest.mark.parametrize("empty", [[], np.zeros((0, 3)), np.zeros((3, 0), np.float32)])
def test_nothing_adds_up_to_zero(empty):
    assert exact.sum(empty) == exact.norm(empty) == exact.dot(empty, empty) == 0.0


def test_half_precision_is_added_in_double():
    assert exact.sum(np.full(5000, 1000, np.float16)) == 5_000_000.0


@pytest.mark.parametrize(("a", "b"), [((3,), (1,)), ((2, 3), (3, 2)), ((3,), ()), ((0,), (1,))])
def test_shapes_that_differ_are_refused(a, b):
    with pytest.raises(ValueError, match="shapes differ"):
        exact.dot(np.ones(a), np.ones(b))


def test_overflow_is_infinite_and_infinities_that_cancel_are_nan():
    far = np.zeros(4097)
    far[[0, -1]] = 1e308
    assert exact.sum(far) == math.inf
    assert exact.sum(-far) == -math.inf
    far[[0, -1]] = math.inf, -math.inf
    assert math.isnan(exact.sum(far))
    assert math.isnan(exact.norm([1.0, math.nan]))
