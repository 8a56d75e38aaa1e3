"""The dither: public random bytes that both ends make from the update's key, so that what one adds the other takes off.

The bytes are the keystream of ChaCha20 (RFC 8439) under the key, a nonce for every tile: u32 section, u64 number of the
tile in its section, little-endian. So the bytes of any stretch of a tile can be made without those before it, and are
the same on every machine and in every version (which no library promises of its random numbers).
"""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from koinon_core.errors import BadBlob
from koinon_core.tiles import TILE

__all__ = ["KEY_BYTES", "keystream"]

KEY_BYTES = 32
_BLOCK = 64  # bytes that one value of ChaCha20's counter gives
_NONCE = struct.Struct("<IIQ")

Fill = Callable[[NDArray[Any]], None]
"""Fills an array with the next bytes of a keystream."""


def keystream(key: bytes, section: int, offset: int, width: int = 1) -> Fill:
    """The bytes for the elements of `section` from element `offset` on, `width` to an element, a stretch a call.

    Raises BadBlob for a key that is not of 32 bytes.
    """
    if len(key) != KEY_BYTES:
        raise BadBlob(
            f"the update's dither key has {len(key)} bytes, not {KEY_BYTES}; its sender must draw one for every update"
        )
    tile, element = divmod(offset, TILE)
    counter, skip = divmod(element * width, _BLOCK)
    encryptor = Cipher(ChaCha20(key, _NONCE.pack(counter, section, tile)), mode=None).encryptor()
    encryptor.update(bytes(skip))
    nothing = bytearray()

    def fill(out: NDArray[Any]) -> None:
        nonlocal nothing
        if len(nothing) < out.nbytes:
            nothing = bytearray(out.nbytes)
        encryptor.update_into(memoryview(nothing)[: out.nbytes], out.view(np.uint8).data)

    return fill
