"""GF(2^16) against arithmetic on polynomials, bit by bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import UsageError
from koinon_core.secagg.hazmat.field import EXP, LOG, ORDER, POLYNOMIAL, inverse, mul

ELEMENTS = st.integers(0, 65535)
ALL = np.arange(65536)


def slow_mul(a: int, b: int) -> int:
    product = 0
    for bit in range(16):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(30, 15, -1):
        if product >> bit & 1:
            product ^= 0x1100B << bit - 16
    return product


def test_the_powers_of_two_are_all_elements_but_zero():
    # So the polynomial is primitive: it is irreducible, and the logarithm of every element exists.
    assert POLYNOMIAL == 0x1100B
    assert sorted(EXP[:ORDER].tolist()) == list(range(1, 65536))
    element = 1
    for power in range(ORDER):
        assert EXP[power] == element
        element = slow_mul(element, 2)
    assert element == 1


@given(ELEMENTS, ELEMENTS)
def test_a_product_is_that_of_the_polynomials(a, b):
    assert mul(a, b) == slow_mul(a, b)


@given(ELEMENTS, ELEMENTS, ELEMENTS)
def test_products_distribute_over_sums(a, b, c):
    assert mul(a, b ^ c) == mul(a, b) ^ mul(a, c)


@pytest.mark.parametrize("a", [0, 1, 2, 0x8000, 0xFFFF])
def test_products_with_every_element(a):
    assert mul(ALL, a).tolist() == [slow_mul(b, a) for b in range(65536)]


def test_products_broadcast():
    table = mul(np.arange(5)[:, None], np.arange(7))
    assert table.dtype == np.uint16
    assert table.tolist() == [[slow_mul(a, b) for b in range(7)] for a in range(5)]


def test_every_element_but_zero_has_an_inverse():
    assert (mul(ALL[1:], inverse(ALL[1:])) == 1).all()
    for zero in (0, np.array([1, 0, 2])):
        with pytest.raises(UsageError, match="zero has no inverse"):
            inverse(zero)


def test_the_tables_cannot_be_written():
    for table in (EXP, LOG):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1
