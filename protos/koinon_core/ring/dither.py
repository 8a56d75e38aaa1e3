"""Rounding with a dither: integers whose mean is the value, and which the coordinator can read more finely.

A value in steps is first put on a grid of 2^-8 step, X = rint(256 x); with a byte u of dither, uniform in 0..255,

    q = (X + u) >> 8          E[q] = X / 256 exactly

Whoever knows u knows that 256 q - u + 127.5 is X give or take half a step, whatever X is: a variance of step^2 / 12,
and nothing left of the value in the error (subtractive dither, Schuchman 1964). Whoever does not (private rounding,
for differential privacy) takes 256 q: the same mean, up to three times the variance. The error of the grid itself is
at most 2^-9 step.

Both estimates are counted in `UNIT`, 2^-9 step, in which they are integers.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from koinon_core.ring.seeds import keystream
from koinon_core.tensors import Array

__all__ = ["DITHER", "UNIT", "quantise", "remainder"]

DITHER = 8
UNIT = DITHER + 1
_BATCH = 257  # 257 * 255 is the most that 16 bits hold


def quantise(values: Array, scale: float, dither: NDArray[np.uint8], dtype: type[np.signedinteger]) -> Array:
    """The integers q, in `dtype`: `values` * `scale` counts 2^-8 steps and must fit with a bit to spare. `dither` has a
    byte for each value. `values` are overwritten."""
    values *= scale
    np.rint(values, out=values)
    grid = values.astype(dtype)
    grid += dither.reshape(grid.shape)
    grid >>= DITHER
    return grid


def remainder(keys: Iterable[bytes], tile: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Sum over devices of 255 - 2 u, in UNITs: what is added to 512 times the sum of q. `keys` are their dithers'."""
    total = np.zeros(shape[0] * shape[1], np.int64)
    batch = np.zeros(total.size, np.uint16)
    count = 0
    for count, key in enumerate(keys, 1):
        batch += keystream(key, tile, total.size)
        if count % _BATCH == 0:
            total += batch
            batch[:] = 0
    total += batch
    total *= -2
    total += 255 * count
    return total.reshape(shape)
