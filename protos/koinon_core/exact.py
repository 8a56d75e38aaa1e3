"""Reductions that give the same bytes on every CPU.

numpy's elementwise + - x / and sqrt are the same everywhere; its sums and BLAS's dot products are not (their
order follows the vector width). So these reduce by halving with elementwise additions in a fixed order, and
join the tiles with `math.fsum`, which rounds once.
"""

import math
from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["dot", "join", "norm", "square", "sum"]

_TILE = 4096
_BLOCK = 1 << 16


def _tiles(flat: NDArray[np.float64]) -> float:
    whole, rest = divmod(flat.size, _TILE)
    if rest:
        padded = np.zeros((whole + 1) * _TILE, dtype=np.float64)
        padded[: flat.size] = flat
        flat, whole = padded, whole + 1
    block = flat.reshape(whole, _TILE)
    width = _TILE
    while width > 1:
        width //= 2
        block = block[:, :width] + block[:, width : 2 * width]
    return join(block[:, 0].tolist())


def join(parts: Iterable[float]) -> float:
    """`math.fsum` of `parts`, except that what overflows, or adds Inf to -Inf, is Inf or NaN as in any other sum:
    the caller then says whose values these are."""
    parts = list(parts)
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):
        return reduce(add, parts)


def sum(values: ArrayLike) -> float:  # noqa: A001 - read as exact.sum
    """The sum of all elements, in float64."""
    return _tiles(np.asarray(values, dtype=np.float64).ravel())


def dot(a: ArrayLike, b: ArrayLike) -> float:
    """The sum of a[i] * b[i], in float64; `a` and `b` have the same shape."""
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"shapes differ: {left.shape} and {right.shape}")
    return _tiles((left * right).ravel())


def norm(values: ArrayLike) -> float:
    """The Euclidean norm of all elements, in float64."""
    return math.sqrt(dot(values, values))


def square(values: NDArray[np.floating[Any]]) -> float:
    """The sum of squares, ten times faster than `dot` and good to six digits: for a quantiser's step and for what is
    only shown. It may differ from one CPU to another."""
    flat = values.reshape(-1)
    blocks = (flat[at : at + _BLOCK] for at in range(0, flat.size, _BLOCK))
    return join(float(np.dot(block, block)) for block in blocks)
