"""The rotation: random signs and a Walsh-Hadamard transform, so that every coordinate is about as large as any other.

A group of n values, padded with zeros to 4096 * m, is looked at as 4096 rows of m (row-major), and a block is a
column: it takes every m-th value, one of every layer, which keeps blocks alike where layers are not. A tile is 1024
columns: 4096 runs of 4 KiB of the input, 16 MiB. The transform is its own inverse but for the factor 4096; what
makes it orthonormal, 2^-6, is left to whoever scales the result, so that integers stay integers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from koinon_core.errors import UsageError
from koinon_core.ring.seeds import keystream
from koinon_core.tensors import Array

__all__ = ["COLUMNS", "ROOT", "ROWS", "Read", "Rotation", "Write", "hadamard", "kept_rows", "signs", "window"]

Read = Callable[[int, int], Array]
"""(start, stop) -> the float32 values of a flat group in that range. Asked more than once; the same each time."""
Write = Callable[[int, NDArray[np.float64]], None]
"""(start, values): takes a run of a flat group."""

ROWS = 4096
COLUMNS = 1024
ROOT = 6  # sqrt(4096) = 2^6
_STRIP = 64  # columns whose blocks stay in a core's second cache


def hadamard(block: Array) -> None:
    """Transform the columns of a (power of two, w) array in place, by additions and subtractions alone: exact in
    integers, and in floats the same bytes on every CPU (and as fast as two products with a 64 x 64 matrix)."""
    for left in range(0, block.shape[1], _STRIP):
        strip = np.ascontiguousarray(block[:, left : left + _STRIP])
        half = 1
        while half < len(strip):
            pairs = strip.reshape(-1, 2, half * strip.shape[1])
            difference = pairs[:, 0] - pairs[:, 1]
            pairs[:, 0] += pairs[:, 1]
            pairs[:, 1] = difference
            half *= 2
        block[:, left : left + _STRIP] = strip


def signs(key: bytes, tile: int, rows: int, columns: int) -> NDArray[np.int8]:
    """+1 and -1, (rows, columns), a bit of keystream each."""
    count = rows * columns
    bits = np.unpackbits(keystream(key, tile, -(-count // 8)), count=count)
    return (1 - 2 * bits.astype(np.int8)).reshape(rows, columns)


def kept_rows(key: bytes, tile: int, one_in: int) -> NDArray[np.intp]:
    """The rows of a tile's rotated block that are sent, in order: one in `one_in`, each as likely as any other."""
    lots = keystream(key, tile, 8 * ROWS).view("<u8")
    return np.sort(np.argsort(lots, kind="stable")[: ROWS // one_in])


@dataclass(frozen=True, slots=True)
class Rotation:
    """Of one group in one round: `size` values, one rotated coordinate in `subset` kept, and the keys of the signs and
    of the subset."""

    size: int
    subset: int
    sign: bytes
    choice: bytes

    @property
    def columns(self) -> int:
        return -(-self.size // ROWS)

    @property
    def tiles(self) -> int:
        return -(-self.columns // COLUMNS)

    def shape(self, tile: int) -> tuple[int, int]:
        """(kept rows, columns) of a rotated tile."""
        return ROWS // self.subset, min(COLUMNS, self.columns - tile * COLUMNS)

    def forward(self, read: Read, tile: int) -> NDArray[np.float32]:
        """A tile of the input, rotated: 64 times as large as orthonormal."""
        block = self._gather(read, tile)
        block *= signs(self.sign, tile, ROWS, block.shape[1])
        hadamard(block)
        return block if self.subset == 1 else block[kept_rows(self.choice, tile, self.subset)]

    def backward(self, values: NDArray[np.int64], tile: int, write: Write, divisor: float) -> None:
        """Rotate a tile of kept coordinates back, in integers and in place, and write the values over `divisor`: only
        the conversion to float64 and the division round."""
        block = values
        if self.subset > 1:
            block = np.zeros((ROWS, values.shape[1]), np.int64)
            block[kept_rows(self.choice, tile, self.subset)] = values * self.subset
        hadamard(block)
        block *= signs(self.sign, tile, ROWS, block.shape[1])
        mean = block.reshape(-1) / divisor
        for at, start, stop in self._runs(tile):
            write(start, mean[at : at + stop - start])

    def _gather(self, read: Read, tile: int) -> NDArray[np.float32]:
        block = np.zeros((ROWS, self.shape(tile)[1]), np.float32)
        for at, start, stop in self._runs(tile):
            block.reshape(-1)[at : at + stop - start] = window(read, start, stop)
        return block

    def _runs(self, tile: int) -> Iterator[tuple[int, int, int]]:
        """(where in the tile, start, stop) of each run of the flat group: a row's, or all if there is one tile. What
        is beyond the group's end is padding."""
        width = self.shape(tile)[1]
        if width == self.columns:
            yield 0, 0, self.size
            return
        for row, start in enumerate(range(tile * COLUMNS, self.size, self.columns)):
            yield row * width, start, min(start + width, self.size)


def window(read: Read, start: int, stop: int) -> Array:
    """What `read` gives, if it is as much as was asked for: numpy would spread a single value over the whole run."""
    values = read(start, stop)
    if len(values) != stop - start:
        raise UsageError(f"the values {start} to {stop} of a group were asked for, and {len(values)} came")
    return values
