"""How many bits, and which step: sized to the sum, never to a device.

A rotated sum is about Gaussian. Where its coordinates have a standard deviation of sigma, 2^b steps span 2 c sigma, and
each of K devices rounds with a variance of step^2 / 12, the error of the sum over its energy is

    NMSE = K (2c)^2 / (12 * 4^b)  +  P(|z| > c) (2c)^2          a wrap moves a value by 2 c sigma

of which c = 4.5 without the second term is the rule b = 1/2 log2(6.75 K / NMSE) (Bonawitz et al. 2019). Sending one
coordinate in p multiplies the first by p and adds p - 1. Rounding privately makes it up to three times as large.
"""

import math
from dataclasses import dataclass

from koinon_core.errors import UsageError
from koinon_core.ring.config import GAIN, MAX_GRID, SLACK

__all__ = ["LEVELS", "Size", "best_range", "bits_for", "exact_bits", "nmse", "suggest", "suggest_exact"]

LEVELS = {"balanced": 8, "fine": 12}
"""Bits by name: `balanced` keeps the NMSE of 64 devices below 1 % and of 100 below 1.5 %, in a byte a
coordinate; `fine` that of 100 below 1e-4. The level `exact` is an unrotated group: grid 24, 64 bits."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a rotated group is to have. `range` is c, in sigmas of the sum; `nmse` and `wraps` are what to expect."""

    bits: int
    grid: int
    gain: int
    range: float
    nmse: float
    wraps: float


def wraps(devices: int, bits: int, c: float) -> float:
    """The share of coordinates beyond c sigma, with what rounding adds to sigma."""
    spread = math.sqrt(1 + devices * (2 * c) ** 2 / 12 / 4.0**bits)
    return math.erfc(c / spread / math.sqrt(2))


def nmse(devices: int, bits: int, c: float, subset: int = 1) -> float:
    """||decoded - sum||^2 / ||sum||^2, expected."""
    rounded = devices * (2 * c) ** 2 / 12 / 4.0**bits
    return (rounded + wraps(devices, bits, c) * (2 * c) ** 2) * subset + subset - 1


def bits_for(devices: int, target: float) -> int:
    """The fewest bits that keep the NMSE at `target` with a range of 4.5 sigma: 1/2 log2(6.75 K / NMSE)."""
    if not 0 < target < 1:
        raise UsageError(f"an NMSE of {target} was asked for; ask for more than 0 and less than 1")
    return max(2, math.ceil(0.5 * math.log2(6.75 * devices / target)))


def best_range(devices: int, bits: int) -> float:
    """The range c with the least NMSE, to 0.01: wider rounds more coarsely, narrower wraps more often."""
    return min((c / 100 for c in range(100, 1201)), key=lambda c: nmse(devices, bits, c))


def suggest(bits: int, devices: int, sigma: float, *, margin: float = 1.0, subset: int = 1) -> Size:
    """The statistical rule: the finest step whose range is at least the best one times `margin`.

    `sigma` is the standard deviation of a coordinate of the sum over `devices` (all that may come, each with its
    values times weight / 2^k), ||sum|| / sqrt(padded size), as the last aggregate shows it.
    """
    if not (sigma > 0 and math.isfinite(sigma)):
        raise UsageError(f"the sum's sigma is {sigma}; give the last aggregate's, above 0")
    if nmse(devices, bits, best_range(devices, bits)) >= 1:
        raise UsageError(
            f"{bits} bits leave nothing of a sum of {devices} devices; use {bits_for(devices, 0.1)}"
        )
    half = 2.0 ** (bits - 1)
    grid, gain = _step(half / (best_range(devices, bits) * margin * sigma), sigma)
    c = half / (gain / GAIN * 2.0**grid) / sigma
    return Size(bits, grid, gain, c, nmse(devices, bits, c, subset), wraps(devices, bits, c))


def exact_bits(devices: int, bound: float, grid: int) -> int:
    """The exact rule: the fewest bits in which the sum of `devices` values up to `bound` never wraps."""
    return max(2, math.floor(math.log2(devices * (SLACK * math.ldexp(bound, grid) + 1))) + 2)


def suggest_exact(bits: int, devices: int, bound: float, sigma: float) -> Size:
    """The finest step with which nothing can wrap, for a first round: `bound` is the clip. The NMSE is that of a sum
    of standard deviation `sigma`, which only states it."""
    room = (2.0 ** (bits - 1) / devices - 1) / SLACK
    if room <= 0:
        raise UsageError(f"the sum of {devices} devices cannot be exact in {bits} bits; use more bits")
    # Below the room, never on it, whatever floats make of it: the sum must stay under 2^(b-1).
    grid, gain = _step(room * (1 - 1e-9) / bound, bound)
    c = 2.0 ** (bits - 1) / (gain / GAIN * 2.0**grid) / sigma
    return Size(bits, grid, gain, c, devices * (2 * c) ** 2 / 12 / 4.0**bits, 0.0)


def _step(steps: float, of: float) -> tuple[int, int]:
    """(grid, gain) of the most steps a unit, at most `steps`."""
    mantissa, exponent = math.frexp(steps)
    grid, gain = exponent - 1, math.floor(2 * GAIN * mantissa)
    if not 0 <= grid <= MAX_GRID:
        raise UsageError(
            f"values of about {of:g} want a grid of 2^{-grid}, which is outside of 2^0 to 2^-{MAX_GRID}; "
            "use other bits, or measure in other units"
        )
    return grid, gain
