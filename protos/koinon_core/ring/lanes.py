"""Lanes: integers modulo 2^b in the smallest unsigned type that holds them, little-endian.

Addition wraps around at the lane's own width, which is a multiple of 2^b: the bits above b are noise that no sum
brings down, and are dropped once, at the end. So the sum is one numpy addition in place, the same in every order.
"""

import numpy as np
from numpy.typing import NDArray

from koinon_core.errors import BadBlob
from koinon_core.ring.config import Ring, Section
from koinon_core.tensors import Array

__all__ = ["Sum", "centred", "to_lanes"]

_ALIGN = 8


def to_lanes(values: Array, bits: int, dtype: str) -> Array:
    """Signed integers modulo 2^bits, in lanes of `dtype`."""
    lanes = values.astype(dtype)
    if bits < 8 * lanes.dtype.itemsize:
        lanes &= lanes.dtype.type((1 << bits) - 1)
    return lanes


def centred(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Integers modulo 2^bits, in place, as their representatives from -2^(bits-1) to 2^(bits-1) - 1."""
    values <<= 64 - bits
    values >>= 64 - bits
    return values


class Sum:
    """The lanes of many devices, added where they lie: as many bytes as one update has."""

    def __init__(self, ring: Ring):
        self.ring = ring
        self._bytes = np.zeros(ring.nbytes, np.uint8)

    def lanes(self, section: Section) -> Array:
        """The sum of one section, as a view."""
        return self._bytes[section.offset : section.offset + section.nbytes].view(section.dtype)

    def add(self, window: bytes | memoryview, at: int = 0) -> None:
        """Add the bytes of an update that start at `at`; BadBlob unless the window is aligned to 8 bytes and inside.

        An update may come in windows of any order and size; nothing is copied.
        """
        view = memoryview(window).cast("B")
        stop = at + len(view)
        if at < 0 or stop > self.ring.nbytes or at % _ALIGN or stop % _ALIGN:
            raise BadBlob(
                f"bytes {at} to {stop} are no window of an update of {self.ring.nbytes} bytes; "
                f"the sender must cut it at multiples of {_ALIGN}"
            )
        for section in self.ring.sections:
            start = max(at, section.offset)
            end = min(stop, section.offset + section.nbytes)
            if start < end:
                into = self._bytes[start:end].view(section.dtype)
                into += np.frombuffer(view[start - at : end - at], section.dtype)
