"""Bits and steps of the ring: the design's own figures, and that what is suggested is allowed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import UsageError
from koinon_core.ring import LEVELS, Group, Ring, bits_for, exact_bits, suggest, suggest_exact
from koinon_core.ring.sizing import best_range, nmse


def step(size) -> float:
    return 8 / size.gain * 2.0**-size.grid


def ring(size, devices: int, bound: float) -> Ring:
    group = Group(
        name="w", size=1, bits=size.bits, grid=size.grid, gain=size.gain, bound=bound, wraps=size.wraps
    )
    return Ring(groups=(group,), devices=devices)


@pytest.mark.parametrize(
    ("devices", "target", "bits"), [(64, 0.01, 8), (100, 0.01, 9), (1000, 0.01, 10), (1, 0.5, 2)]
)
def test_the_rule_of_bits(devices, target, bits):
    # 8.02 bits for a hundred devices at 1 %: eight are not enough.
    assert bits_for(devices, target) == bits
    assert 6.75 * devices / 4.0**bits <= target or bits == 2


@pytest.mark.parametrize(("m", "predicted"), [(5, 0.132), (6, 0.0330), (8, 0.0021)])
def test_the_table_of_twenty_clients_at_four_and_a_half_sigma(m, predicted):
    assert 20 * 9**2 / 12 / 4**m == pytest.approx(predicted, rel=0.02)
    assert predicted * 0.98 < nmse(20, m, 4.5) < predicted * 1.35


def test_a_hundred_devices_in_a_byte_and_in_twelve_bits():
    assert best_range(100, 8) == pytest.approx(4.34, abs=0.05)
    assert nmse(100, 8, best_range(100, 8)) == pytest.approx(0.0107, rel=0.02)
    assert nmse(100, 8, 1.5 * 4.5) == pytest.approx(0.023, rel=0.02)
    assert nmse(100, 12, best_range(100, 12)) == pytest.approx(6.5e-5, rel=0.02)


@given(st.floats(1e-6, 1e-1))
def test_the_levels_keep_their_promise_whatever_the_scale(sigma):
    assert suggest(LEVELS["balanced"], 64, sigma).nmse <= 0.01
    assert suggest(LEVELS["balanced"], 100, sigma).nmse <= 0.015
    assert suggest(LEVELS["fine"], 100, sigma).nmse <= 1e-4


@given(st.integers(4, 16), st.integers(1, 10_000), st.floats(1e-8, 1e-2), st.floats(1.0, 2.0))
def test_a_suggested_range_is_the_finest_that_is_wide_enough(bits, devices, sigma, margin):
    try:
        size = suggest(bits, devices, sigma, margin=margin)
    except UsageError:
        steps = 2 ** (bits - 1) / (best_range(devices, bits) * margin * sigma)
        assert not 1 <= steps < 2**41 or nmse(devices, bits, best_range(devices, bits)) >= 1
        return
    wanted = best_range(devices, bits) * margin
    assert size.range == pytest.approx(step(size) * 2 ** (bits - 1) / sigma)
    assert wanted * (1 - 1e-9) <= size.range <= wanted * 9 / 8 * (1 + 1e-9)
    assert ring(size, devices, 1.0).groups[0].wraps == size.wraps > 0


def test_a_subset_multiplies_what_rounding_costs_and_adds_what_is_not_sent():
    assert nmse(20, 8, 5.0, subset=8) == pytest.approx(8 * nmse(20, 8, 5.0) + 7)


@given(st.integers(8, 32), st.integers(1, 100), st.floats(1e-3, 1e3))
def test_what_the_exact_rule_suggests_is_proven_to_fit_and_hardly_coarser_than_it_must_be(
    bits, devices, bound
):
    try:
        size = suggest_exact(bits, devices, bound, sigma=1.0)
    except UsageError:
        assert not 4 <= 2 ** (bits - 1) / devices / bound < 2**40
        return
    ring(size, devices, bound)
    finer = math.ldexp(bound * (size.gain + 1) / 8, size.grid)
    assert devices * (1.001 * finer + 1) >= 2 ** (bits - 1) * (1 - 1e-6)
    assert size.nmse == pytest.approx(devices * step(size) ** 2 / 12)


@given(st.integers(1, 1000), st.floats(1e-3, 1e3), st.integers(0, 12))
def test_exact_bits_are_the_fewest_that_a_ring_accepts(devices, bound, grid):
    bits = exact_bits(devices, bound, grid)
    if not 2 < bits <= 32:
        return
    Ring(groups=(Group(name="w", size=1, bits=bits, grid=grid, bound=bound),), devices=devices)
    with pytest.raises(UsageError, match="does not fit"):
        Ring(groups=(Group(name="w", size=1, bits=bits - 1, grid=grid, bound=bound),), devices=devices)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: suggest(8, 10, 0.0),
        lambda: suggest(8, 10, math.nan),
        lambda: suggest(8, 10, math.inf),
        lambda: suggest(2, 1000, 1e-3),
        lambda: suggest(8, 10, 1e9),
        lambda: suggest(8, 10, 1e-15),
        lambda: suggest_exact(2, 10, 1.0, 1.0),
        lambda: bits_for(10, 0.0),
        lambda: bits_for(10, 1.0),
    ],
)
def test_what_cannot_be_sized_is_refused(ask):
    with pytest.raises(UsageError):
        ask()
