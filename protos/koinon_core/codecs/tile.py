"""A tile: the decoded elements of one chunk, which can be added to an exact sum.

Floats do not add up the same way twice; integers do. So a value enters a sum as the integer rint(value * 2^grid), times
its weight. `Plain` rounds floats; a quantiser's tile (`quantised.py`) has integers to begin with.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from koinon_core.errors import BadBlob
from koinon_core.tensors import Array

__all__ = ["BLOCK", "Plain", "Tile", "on_grid", "refused", "stretches"]

BLOCK = 1 << 16
"""Elements worked on at a time: what they and their intermediate results take stays in a core's own cache."""


class Tile(Protocol):
    """The decoded elements of one chunk."""

    @property
    def count(self) -> int: ...

    def values(self) -> Array:
        """The elements, one-dimensional, of the section's dtype."""
        ...

    def check(self, grid: int, bound: float, name: str) -> None:
        """Raise BadBlob, which says `name`, if an element is NaN, infinite or beyond +-`bound`, or is not on the grid
        of 2^-grid and cannot be rounded to it."""
        ...

    def add_to(self, acc: NDArray[np.int64], weight: int, grid: int, bound: float, name: str) -> None:
        """Check, and acc += weight * rint(value * 2^grid). After a BadBlob `acc` is of no more use. That nothing
        overflows is the caller's proof: bound * 2^grid * the weights < 2^63."""
        ...


def stretches(count: int) -> Iterator[slice]:
    """`count` elements, a block at a time."""
    return (slice(at, min(at + BLOCK, count)) for at in range(0, count, BLOCK))


def refused(name: str, worst: float, bound: float) -> BadBlob:
    """The error for a value that may not enter a sum."""
    what = f"{worst:.6g}" if np.isfinite(worst) else "NaN or Inf"
    return BadBlob(
        f"{name!r} holds {what}; a value must be finite and at most {bound:g} (bound in the run's config)"
    )


def _largest(block: Array, bound: float, name: str) -> float:
    """The largest |value|. NaN goes through both reductions and fails the comparison, so that one finds all three."""
    low, high = float(block.min()), float(block.max())
    if not (-bound <= low and high <= bound):
        worst = float(np.max(np.abs(block))) if np.all(np.isfinite(block)) else np.nan
        raise refused(name, worst, bound)
    return max(-low, high)


class Plain:
    """Elements as they are."""

    def __init__(self, values: Array):
        self._values = values

    @property
    def count(self) -> int:
        return self._values.size

    def values(self) -> Array:
        return self._values

    def check(self, grid: int, bound: float, name: str) -> None:
        self.largest(bound, name)

    def largest(self, bound: float, name: str) -> float:
        """The largest |value|; BadBlob if that is beyond the bound."""
        return max((_largest(self._values[part], bound, name) for part in stretches(self.count)), default=0.0)

    def add_to(self, acc: NDArray[np.int64], weight: int, grid: int, bound: float, name: str) -> None:
        size = min(BLOCK, self.count)
        # Times a power of two is exact, and so is rint: float32 gives the same integers as float64.
        kind = np.float64 if self._values.dtype.itemsize > 4 else np.float32
        scale = kind(2.0**grid)
        scaled, small, whole = np.empty(size, kind), np.empty(size, np.int32), np.empty(size, np.int64)
        for part in stretches(self.count):
            block = self._values[part]
            largest = _largest(block, bound, name)
            s, i, w = scaled[: block.size], small[: block.size], whole[: block.size]
            np.multiply(block, scale, out=s, dtype=kind)
            np.rint(s, out=s)
            if largest * 2.0**grid < 2.0**31 - 1:  # by way of int32 is twice as fast
                np.copyto(i, s, casting="unsafe")
                np.copyto(w, i)
            else:
                np.copyto(w, s, casting="unsafe")
            if weight != 1:
                np.multiply(w, weight, out=w)
            np.add(acc[part], w, out=acc[part])


def on_grid(values: Array, grid: int, bound: float, name: str) -> NDArray[np.int64]:
    """`values` rounded to the grid, as integers. BadBlob for NaN, Inf and what is beyond the bound."""
    whole = np.zeros(np.shape(values), dtype=np.int64)
    Plain(np.asarray(values).reshape(-1)).add_to(whole.reshape(-1), 1, grid, bound, name)
    return whole
