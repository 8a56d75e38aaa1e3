"""Chance that is the same on every machine: a draw is a function of the run's seed, the round and the device's name.

    point(seed, round, client)   256 bits of SHA-256: where the device falls between 0 and 1
    taken(q, ...)                point < q 2^256, in whole numbers
    arrival(weight, ...)         E / weight, with E = -ln(u) for u = (2h + 1) / 2^129, h the first 128 bits of the point

Devices in the order of their arrivals are drawn without replacement with probabilities by weight: the first is device i
with probability w_i / sum w, and the same holds for what is left. It is the order of u^(1/w) from the largest down
(Efraimidis and Spirakis 2006). The logarithm is `decimal`'s, to 50 digits: that is correctly rounded by its
specification, where the one of a processor's floating point is not. Arrivals are whole numbers of 10^-50, rounded down.
"""

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

from koinon_core.canonical import sha256

__all__ = ["arrival", "point", "taken"]

_EXACTLY = Context(prec=50, rounding=ROUND_HALF_EVEN, Emin=-999999, Emax=999999)
_WHOLE = _EXACTLY.create_decimal(1 << 129)


def point(seed: int, round_: int, client: str) -> int:
    """256 bits for this device and round."""
    return int(sha256(f"draw/{seed}/{round_}/{client}".encode()), 16)


def taken(q: Fraction, seed: int, round_: int, client: str) -> bool:
    """Whether a coin that shows heads with probability q does so for this device."""
    return point(seed, round_, client) < q * (1 << 256)


def arrival(weight: Fraction, seed: int, round_: int, client: str) -> int:
    """When this device arrives in a race of exponential clocks; `weight` is above 0."""
    odd = 2 * (point(seed, round_, client) >> 128) + 1
    late = -_EXACTLY.ln(_EXACTLY.divide(Decimal(odd), _WHOLE))
    return int(_EXACTLY.scaleb(late, 50)) * weight.denominator // weight.numerator
