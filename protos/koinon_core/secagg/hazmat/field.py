"""GF(2^16): sums are XOR, products are sums of logarithms, from two tables.

Elements are polynomials over GF(2) modulo x^16 + x^12 + x^3 + x + 1 (0x1100B), bit i the coefficient of x^i. That
polynomial is primitive: the powers of x, the number 2, are all 65535 elements but zero.

Zero has no logarithm. It is given one so large that any sum with it lands where the table of powers holds zeros, and
products need no branch. Lookups are not constant-time.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from koinon_core.errors import UsageError

__all__ = ["EXP", "LOG", "ORDER", "POLYNOMIAL", "inverse", "mul"]

POLYNOMIAL = 0x1100B
ORDER = (1 << 16) - 1  # of the multiplicative group


def _tables() -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    powers = np.zeros(ORDER, np.uint16)
    element = 1
    for exponent in range(ORDER):
        powers[exponent] = element
        element <<= 1
        if element > ORDER:
            element ^= POLYNOMIAL
    exp = np.zeros(4 * ORDER + 1, np.uint16)
    exp[: 2 * ORDER] = np.tile(powers, 2)
    log = np.full(ORDER + 1, 2 * ORDER, np.int64)  # in the type that numpy gathers fastest by
    log[powers] = np.arange(ORDER)
    exp.setflags(write=False)
    log.setflags(write=False)
    return exp, log


EXP, LOG = _tables()
"""EXP[i] is 2^i, for i below 2 * ORDER, and 0 from there to 4 * ORDER; LOG is its inverse, and 2 * ORDER for zero."""


def mul(a: ArrayLike, b: ArrayLike) -> NDArray[np.uint16]:
    """The products of elements, with numpy's broadcasting; both are integers from 0 to 65535."""
    return np.asarray(EXP[LOG[np.asarray(a)] + LOG[np.asarray(b)]])


def inverse(a: ArrayLike) -> NDArray[np.uint16]:
    """The inverses of elements; UsageError if one is zero, which has none."""
    elements = np.asarray(a)
    if not elements.all():
        raise UsageError("zero has no inverse in GF(2^16); divide by what is not zero")
    return np.asarray(EXP[ORDER - LOG[elements]])
