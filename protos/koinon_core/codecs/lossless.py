"""`lossless`: byte planes, each compressed by zstd where that is smaller.

The bytes of a float are of different kinds: signs and exponents repeat, the ends of mantissas are noise. Laid
out plane by plane, zstd finds the former and leaves the latter as they are. Nothing is lost.

A payload is one plane (`planes.py`) for each byte of an element, the lowest first.
"""

import numpy as np
from numpy.typing import NDArray

from koinon_core.codecs.place import NOWHERE, Place
from koinon_core.codecs.planes import HEAD_BYTES, SEARCHING, Packer, Unpacker
from koinon_core.codecs.tile import Plain
from koinon_core.tensors import Array

__all__ = ["Lossless", "join", "split"]

_WIDEST = 8


class Lossless:
    id = 2
    version = 1
    exact = True

    def encode(self, flat: Array, place: Place = NOWHERE) -> bytes:
        packer = Packer(SEARCHING)
        for plane in split(flat):
            packer.plane(plane)
        return packer.bytes()

    def decode(self, payload: memoryview, dtype: str, count: int, place: Place = NOWHERE) -> Plain:
        return Plain(join(Unpacker(payload), dtype, count))

    def limit(self, nbytes: int) -> int:
        return nbytes + _WIDEST * HEAD_BYTES

    def takes(self, dtype: str) -> bool:
        return True


def split(flat: Array) -> NDArray[np.uint8]:
    """The byte planes of `flat`, one-dimensional: shape (bytes of an element, elements)."""
    wire = np.ascontiguousarray(flat.astype(flat.dtype.newbyteorder("<"), copy=False))
    return np.ascontiguousarray(wire.view(np.uint8).reshape(-1, flat.dtype.itemsize).T)


def join(source: Unpacker, dtype: str, count: int) -> Array:
    """`count` elements of `dtype` from all that is left in `source`."""
    kind = np.dtype(dtype)
    elements = np.empty((count, kind.itemsize), dtype=np.uint8)
    for byte in range(kind.itemsize):
        elements[:, byte] = source.plane(count)
    source.end()
    return elements.reshape(-1).view(kind.newbyteorder("<")).astype(kind, copy=False)
