"""Check lanes: how many coordinates of a sum wrapped around, without knowing any device's.

A Gaussian that wraps is flat, so the decoded sum itself does not show it. Every device therefore adds, in exact
64-bit lanes, the sum of r q over each of 16 bands of a tile (at most 2^18 coordinates), with public signs r and its
integers q before they are taken modulo 2^b. What the decoded sum differs by is 2^b times the signed number of wraps,
and since the signs are random the square of that number has the number itself as its mean.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from koinon_core.errors import BadBlob
from koinon_core.ring.rotation import signs
from koinon_core.tensors import Array

__all__ = ["CHECKS", "Wraps", "allowed", "checks", "wrapped"]

CHECKS = 16
"""Bands, and lanes, of a tile. One of 2^20 coordinates would do for large models; the estimate of a small one needs
several squares to be an estimate."""
_TIMES = 4  # how far beyond the stated rate is too far
_FEWEST = 4  # where fewer wraps than these are expected, their number is chance


@dataclass(frozen=True, slots=True)
class Wraps:
    """What a group's check lanes say: by band the signed sum of wraps, and how many in all are `allowed` (0: none)."""

    signed: tuple[int, ...]
    allowed: float

    @property
    def estimate(self) -> int:
        """The number of wraps, unbiased."""
        return sum(n * n for n in self.signed)

    @property
    def overflow(self) -> bool:
        return self.estimate > self.allowed


def checks(q: Array, key: bytes, tile: int) -> NDArray[np.int64]:
    """The 16 check lanes of a tile's (rows, columns) integers, modulo 2^64. A sign is a row's times a column's: any two
    are independent, which is all that the estimate's mean needs."""
    rows, columns = q.shape
    by_row = signs(key, 2 * tile, rows, 1).astype(q.dtype)
    by_column = signs(key, 2 * tile + 1, 1, columns)
    bands = (q * by_row).reshape(CHECKS, rows // CHECKS, columns).sum(axis=1, dtype=q.dtype)
    lanes: NDArray[np.int64] = (bands.astype(np.int64) * by_column).sum(axis=1)
    return lanes


def wrapped(found: NDArray[np.int64], stated: Array, bits: int, name: str) -> list[int]:
    """By how many wraps the checks of a decoded tile differ from what devices state. BadBlob where it is by anything
    else: then somebody's lanes and checks are not of the same values."""
    off = stated.view(np.int64) - found
    if np.any(off & ((1 << bits) - 1)):
        raise BadBlob(
            f"the check lanes of group {name!r} are of other values; a device of this sum is broken"
        )
    counts: list[int] = (off >> bits).tolist()
    return counts


def allowed(rate: float, coordinates: int) -> float:
    """The most wraps that are no overflow: none by the exact rule (rate 0), else four times the stated share."""
    return _TIMES * max(_FEWEST, rate * coordinates) if rate else 0.0
