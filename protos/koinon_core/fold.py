"""The exact sum: updates to int64 on a fixed grid, tile by tile, in any order with the same result.

Floats do not add up the same way twice (1,000 updates in 20 orders gave 20 different byte strings); integers
do. So every value is rounded to a grid of 2^-grid, multiplied by its integer weight and added in int64. That
nothing can overflow is proven when the run is submitted: bound * 2^grid * max weight * devices < 2^63.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from koinon_core.codec import TILE, Reader
from koinon_core.errors import BadBlob, UsageError
from koinon_core.schema import Schema
from koinon_core.tensors import Array, Tensors

__all__ = ["Staged", "fold", "grid_for", "on_grid", "snap", "verify"]

Note = Callable[[bytes], None]
_FINEST, _COARSEST = 40, 16


def grid_for(*, bound: float, max_weight: int, devices: int) -> int:
    """The finest grid (binary places, at most 40) on which the sum provably fits in 63 bits; UsageError if even
    2^-16 does not."""
    room = 62
    for factor in (bound, max_weight, devices):
        room -= max(0, math.ceil(math.log2(factor)))
    if room < _COARSEST:
        raise UsageError(
            f"the sum of {devices} updates of up to {max_weight} examples with values up to {bound} does not fit "
            "in 63 bits: lower max_examples, bound or the number of devices in a round"
        )
    return min(_FINEST, room)


def on_grid(values: Array, grid: int, bound: float, name: str) -> NDArray[np.int64]:
    """`values` rounded to the grid, as integers. BadBlob for NaN, Inf and what is beyond the bound."""
    wide = np.asarray(values, dtype=np.float64)
    # NaN fails the comparison too, so one pass finds all three.
    if not np.all(np.abs(wide) <= bound):
        worst = "NaN or Inf" if not np.all(np.isfinite(wide)) else f"{np.max(np.abs(wide)):.6g}"
        raise BadBlob(
            f"{name!r} holds {worst}; a value must be finite and at most {bound:g} (bound in the run's config)"
        )
    return np.rint(wide * 2.0**grid).astype(np.int64)


def snap(tensors: Tensors, grid: int, bound: float) -> Tensors:
    """Floats as the coordinator will count them: rounded to the grid. Integers as they are."""

    def one(name: str, a: Array) -> Array:
        if a.dtype.kind != "f":
            return a
        return (on_grid(a, grid, bound, name) * 2.0**-grid).astype(a.dtype)

    return Tensors({n: one(n, a) for n, a in tensors.items()})


def verify(reader: Reader, schema: Schema, grid: int, bound: float) -> None:
    """Read every tile of an update once and raise BadBlob for whatever may not enter a sum."""
    for field in schema:
        for _, tile in reader.tiles(field.name):
            if field.rule == "mean":
                on_grid(tile, grid, bound, field.name)


@dataclass(frozen=True, slots=True)
class Staged:
    """One verified update: its integer weight, and its tensors behind a reader."""

    weight: int
    reader: Reader


def fold(
    staged: Sequence[Staged], schema: Schema, grid: int, bound: float, note: Note | None = None
) -> Iterator[tuple[str, Array]]:
    """(name, joined tensor) for every field: the weighted mean of floats in float64, the largest of integers. `note`
    is given the sum itself, integers as little-endian bytes, in the schema's order: what a digest of it is over.

    Resident at any time: one tensor's result and one tile of one update.
    """
    total = sum(s.weight for s in staged)
    if total <= 0:
        raise BadBlob("the weights of the updates add up to nothing")
    for field in schema:
        joined = np.empty(field.size, dtype=np.float64 if field.rule == "mean" else field.dtype)
        for offset in range(0, field.size, TILE):
            tiles = ((s.weight, s.reader.tile(field.name, offset)) for s in staged)
            part = joined[offset : offset + TILE]
            if field.rule == "mean":
                exact = _sum(tiles, grid, bound, field.name)
                part[:] = exact * 2.0**-grid / total
            else:
                part[:] = exact = reduce(np.maximum, (tile for _, tile in tiles))
            if note is not None:
                note(np.ascontiguousarray(exact, dtype=exact.dtype.newbyteorder("<")).tobytes())
        yield field.name, joined.reshape(field.shape)


def _sum(tiles: Iterable[tuple[int, Array]], grid: int, bound: float, name: str) -> NDArray[np.int64]:
    acc: NDArray[np.int64] | int = 0
    for weight, tile in tiles:
        acc = acc + on_grid(tile, grid, bound, name) * weight
    return np.asarray(acc)
