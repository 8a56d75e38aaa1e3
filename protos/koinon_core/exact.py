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

__all__ = ["Gram", "dot", "join", "mixed", "norm", "square", "sum"]

_TILE = 4096
_BLOCK = 1 << 16
_MOST_PARTS = 1 << 10
_STRIP = 1 << 14  # columns of some tens of rows; what is added up in which order depends on it
_BATCH = 8  # rows at a time, whose products stay in a core's cache


def _halved(flat: NDArray[np.float64]) -> list[float]:
    """The sums of tiles of 4096, of which the last is filled up with zeros."""
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
    return block[:, 0].tolist()  # type: ignore[no-any-return]


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
    flat = np.asarray(values).reshape(-1)
    blocks = (flat[at : at + _BLOCK].astype(np.float64, copy=False) for at in range(0, flat.size, _BLOCK))
    return join(part for block in blocks for part in _halved(block))


def dot(a: ArrayLike, b: ArrayLike) -> float:
    """The sum of a[i] * b[i], in float64; `a` and `b` have the same shape."""
    left, right = np.asarray(a), np.asarray(b)
    if left.shape != right.shape:
        raise ValueError(f"shapes differ: {left.shape} and {right.shape}")
    left, right = left.reshape(-1), right.reshape(-1)
    parts: list[float] = []
    for at in range(0, left.size, _BLOCK):  # what is made on the way stays in a core's cache
        block = slice(at, at + _BLOCK)
        parts += _halved(np.multiply(left[block], right[block], dtype=np.float64))
    return join(parts)


def norm(values: ArrayLike) -> float:
    """The Euclidean norm of all elements, in float64."""
    return math.sqrt(dot(values, values))


class Gram:
    """The inner products of `count` vectors, which are added a part at a time: `add` takes the same columns of all of
    them, and `value` is the matrix, (count, count) in float64. A part of other columns makes the same bytes only if it
    is cut at the same places."""

    def __init__(self, count: int):
        self._parts: list[NDArray[np.float64]] = []
        self._count = count

    def add(self, rows: NDArray[np.float64]) -> None:
        """`rows` is (count, columns)."""
        for at in range(0, rows.shape[1], _STRIP):
            self._parts.append(_products(rows[:, at : at + _STRIP]))
            if len(self._parts) == _MOST_PARTS:
                self._parts = [self.value]

    @property
    def value(self) -> NDArray[np.float64]:
        whole = np.zeros((self._count, self._count))
        for i in range(self._count):
            for j in range(i, self._count):
                whole[i, j] = whole[j, i] = join([float(part[i, j]) for part in self._parts])
        return whole


def _products(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inner products of each row with those from it on, over one strip of columns."""
    count, columns = rows.shape
    width = 1 << (columns - 1).bit_length()
    if width != columns:
        padded = np.zeros((count, width))
        padded[:, :columns] = rows
        rows = padded
    made = np.zeros((count, count))
    room = np.empty((min(count, _BATCH), width))
    for i in range(count):
        for j in range(i, count, _BATCH):
            others = rows[j : j + _BATCH]
            block = np.multiply(others, rows[i], out=room[: len(others)])
            half = width
            while half > 1:
                half //= 2
                block = np.add(block[:, :half], block[:, half : 2 * half], out=block[:, :half])
            made[i, j : j + len(others)] = block[:, 0]
    return made


def mixed(factors: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """factors @ rows, added up row by row: (m, n) and (n, columns) to (m, columns)."""
    out = np.zeros((len(factors), rows.shape[1]))
    scaled = np.empty(rows.shape[1])
    for one, into in zip(factors, out, strict=True):
        for factor, row in zip(one, rows, strict=True):
            if factor:
                into += np.multiply(row, factor, out=scaled)
    return out


def square(values: NDArray[np.floating[Any]]) -> float:
    """The sum of squares, ten times faster than `dot` and good to six digits: for a quantiser's step and for what is
    only shown. It may differ from one CPU to another."""
    flat = values.reshape(-1)
    blocks = (flat[at : at + _BLOCK] for at in range(0, flat.size, _BLOCK))
    return join(float(np.dot(block, block)) for block in blocks)
