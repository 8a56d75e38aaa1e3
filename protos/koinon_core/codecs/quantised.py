"""The tile of a quantiser: integers times a step, added to a sum without ever being floats.

Every element is N * k * 2^(e - p), with N of 16 bits: of a *dithered* tile N = 256 q + 128 - b for the symbol q and the
dither's byte b, with p = 8; of a *lattice* tile N = q, with p = 0. On a grid of 2^-g that is the integer
N * k * 2^(e - p + g), and as a float32 it is exact, so that both are the same value. What was too large for a symbol
is an *escape*: a float32, which enters a sum as any float does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from koinon_core.codecs.place import Place, Step
from koinon_core.codecs.tile import BLOCK, on_grid, refused, stretches
from koinon_core.dither import keystream
from koinon_core.errors import BadBlob
from koinon_core.tensors import Array

__all__ = ["ZEROS", "Quantised"]

ZEROS = 64
"""Elements in a block that can be said to be all zeros: then they are exactly zero, without dither."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantised:
    """The decoded symbols of one chunk. Where an escape is, `symbols` is 0."""

    count: int
    dtype: str
    step: Step
    symbols: NDArray[np.int8]
    dither: Place | None
    """Whose key, section and offset the dither is made of; None for a lattice."""
    zeros: NDArray[np.bool_] | None
    """Which blocks of 64 elements of a dithered tile are exactly zero; None for none."""
    escapes: NDArray[np.float32]
    where: NDArray[np.intp]
    """The escapes' places, in order."""

    @property
    def _places(self) -> int:
        return 0 if self.dither is None else 8

    def values(self) -> Array:
        made = np.empty(self.count, dtype=self.dtype)
        unit = made.dtype.type(self.step.times(1, self._places))
        for part, block in self._integers():
            np.copyto(made[part], block)
            np.multiply(made[part], unit, out=made[part])
        made[self.where] = self.escapes
        return made

    def check(self, grid: int, bound: float, name: str) -> None:
        if self.step.e - self._places + grid < 0:
            raise BadBlob(
                f"{name!r} has a step of {self.step.value:.6g}, whose values are not all on the run's grid of "
                f"2^-{grid}; its sender must take the step from the run's terms"
            )
        on_grid(self.escapes, grid, bound, name)
        unit = self.step.times(1, self._places)
        # The largest that symbols of this size can make is mostly allowed; only else the dither is looked at.
        largest = max(abs(int(self.symbols.min(initial=0))), int(self.symbols.max(initial=0)))
        reach = 256 * largest + 128 if self.dither is not None else largest
        if reach * unit <= bound:
            return
        for _, block in self._integers():
            worst = max(-int(block.min()), int(block.max()))
            if worst * unit > bound:
                raise refused(name, float(worst * unit), bound)

    def add_to(self, acc: NDArray[np.int64], weight: int, grid: int, bound: float, name: str) -> None:
        self.check(grid, bound, name)
        acc[self.where] += on_grid(self.escapes, grid, bound, name) * weight
        factor = (self.step.k * weight) << (self.step.e - self._places + grid)
        if factor >= 1 << 63:
            return  # more than any sum holds, and within the bound: so every N is 0
        whole = np.empty(min(BLOCK, self.count), dtype=np.int64)
        for part, block in self._integers():
            w = whole[: block.size]
            np.copyto(w, block)
            np.multiply(w, factor, out=w)
            np.add(acc[part], w, out=acc[part])

    def _integers(self) -> Iterator[tuple[slice, NDArray[np.int16] | NDArray[np.int8]]]:
        """(stretch, N) a block at a time; N is overwritten by the next one."""
        if self.dither is None:
            yield from ((part, self.symbols[part]) for part in stretches(self.count))
            return
        fill = keystream(self.dither.key, self.dither.section, self.dither.offset)
        size = min(BLOCK, self.count)
        noise, wide, integers = np.empty(size, np.uint8), np.empty(size, np.int16), np.empty(size, np.int16)
        for part in stretches(self.count):
            n = part.stop - part.start
            b, w, N = noise[:n], wide[:n], integers[:n]
            fill(b)
            np.copyto(w, b)
            np.copyto(N, self.symbols[part])
            np.multiply(N, 256, out=N)
            np.add(N, 128, out=N)
            np.subtract(N, w, out=N)
            self._clear(N, part)
            yield part, N

    def _clear(self, integers: NDArray[np.int16], part: slice) -> None:
        """Zero what has no dither: blocks of zeros, and escapes, which are added by themselves."""
        if self.zeros is not None:
            blocks = self.zeros[part.start // ZEROS : -(-part.stop // ZEROS)]
            integers[np.repeat(blocks, ZEROS)[: integers.size]] = 0
        if self.where.size:
            low, high = np.searchsorted(self.where, (part.start, part.stop))
            integers[self.where[low:high] - part.start] = 0
