"""`ordinal`: the lossless difference to a base that the receiver has, for models that change little.

A float's bits are mapped to an integer that grows with the float, so that neighbours differ by one; what is written is
the difference to the base's integer, modulo 2^bits, zigzag (0, -1, 1, -2 ... as 0, 1, 2, 3 ...), in byte planes: those
of the higher bytes are mostly zeros. Integers and bools differ as they are. Every bit pattern comes back, that of a NaN
and the sign of a zero too.
"""

from typing import Any

import numpy as np

from koinon_core.codecs.lossless import Lossless, join, split
from koinon_core.codecs.place import NOWHERE, Place
from koinon_core.codecs.planes import SEARCHING, Packer, Unpacker
from koinon_core.codecs.tile import Plain
from koinon_core.errors import BadBlob, UsageError
from koinon_core.tensors import Array

__all__ = ["ORDINAL", "Ordinal"]


class Ordinal:
    id = 4
    version = 1
    exact = True

    def encode(self, flat: Array, place: Place = NOWHERE) -> bytes:
        """Raises UsageError unless the place has a base of the same dtype and length."""
        base = place.base
        if base is None or (base.dtype, base.shape) != (flat.dtype, flat.shape):
            raise UsageError(
                "ordinal writes a difference to a base of the same dtype and length; there is none"
            )
        packer = Packer(SEARCHING)
        for plane in split(_zigzag(_ordinals(flat) - _ordinals(base))):
            packer.plane(plane)
        return packer.bytes()

    def decode(self, payload: memoryview, dtype: str, count: int, place: Place = NOWHERE) -> Plain:
        base, kind = place.base, np.dtype(dtype)
        if base is None or (base.dtype, base.shape) != (kind, (count,)):
            raise BadBlob("a chunk is a difference to a base that is not here; it must be sent in full")
        difference = _unzigzag(join(Unpacker(payload), f"uint{8 * kind.itemsize}", count))
        return Plain(_elements(_ordinals(base) + difference, kind))

    def limit(self, nbytes: int) -> int:
        return Lossless().limit(nbytes)

    def takes(self, dtype: str) -> bool:
        return True


ORDINAL = Ordinal()


def _bits(flat: Array) -> Array:
    bits: Array = np.ascontiguousarray(flat).view(f"u{flat.dtype.itemsize}")
    return bits


def _negative(bits: Array) -> Array:
    """All ones where the highest bit is set, else zero."""
    places = 8 * bits.dtype.itemsize - 1
    ones: Array = (bits.view(f"i{bits.dtype.itemsize}") >> places).view(bits.dtype)
    return ones


def _ordinals(flat: Array) -> Array:
    """Unsigned integers in the order of the floats: those above zero in the upper half, the others mirrored below."""
    bits = _bits(flat)
    if flat.dtype.kind != "f":
        return bits
    ordinals: Array = bits ^ (_negative(bits) | _middle(bits))
    return ordinals


def _elements(ordinals: Array, kind: np.dtype[np.generic]) -> Array:
    """The inverse of `_ordinals`."""
    if kind.kind == "f":
        ordinals = ordinals ^ (~_negative(ordinals) | _middle(ordinals))
    return ordinals.view(kind)


def _middle(bits: Array) -> Any:
    return bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))


def _zigzag(difference: Array) -> Array:
    return np.bitwise_xor(np.left_shift(difference, 1), _negative(difference))


def _unzigzag(zigzag: Array) -> Array:
    return np.bitwise_xor(np.right_shift(zigzag, 1), np.negative(np.bitwise_and(zigzag, 1)))
