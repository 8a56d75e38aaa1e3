"""Masks: the keystream of AES-256, added to lanes where they lie.

A mask is as long as a model, and made from a seed of 32 bytes. Every tile of 2^20 lane bytes has a key of its own,
derived from the seed, so tiles can be masked in any order, side by side, and again after a crash. A tile's keystream is
AES of the big-endian counters 2, 3, ... behind twelve zero bytes:

    AES-256-GCM of zeros under nonce N = 0^12        counts on from N || 00000001, which it keeps for its tag
    AES-256-CTR of zeros from N || 00000002          counts the same

Both give the same bytes, which tests hold. GCM is the default: OpenSSL runs it over wide vectors (VAES) where a CPU has
them and CTR not, which is worth more than the tag that nobody asks for (10.6 against 8.3 GB/s on one core of an EPYC
Genoa). A key's stream is used once, so a fixed nonce does no harm.

A library call on 2 KiB or more lets other threads run, so masks of several tiles can be made by plain threads.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext, Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM
from numpy.typing import NDArray

from koinon_core.errors import UsageError
from koinon_core.secagg.hazmat.derive import expand

__all__ = ["BLOCK_BYTES", "TILE_BYTES", "Way", "accumulate", "fill", "tile_key"]

TILE_BYTES = 1 << 20
BLOCK_BYTES = 1 << 17
"""How much of a tile is at work: with as much scratch and as many zeros it stays in a core's L2."""

Way = Literal["gcm", "ctr"]
Signed = tuple[bytes, int]

_KEY = 32
_NONCE = bytes(12)
_FIRST = (2).to_bytes(4, "big")
_LANES = ("u1", "u2", "u4", "u8")
_ZEROS = memoryview(bytes(BLOCK_BYTES))


def tile_key(seed: bytes, index: int) -> bytes:
    """The key of tile `index` of the mask that grows from `seed`: 32 bytes."""
    return expand(seed, b"koinon.secagg/1 tile" + index.to_bytes(8, "little"))


def fill(key: bytes, out: memoryview | NDArray[np.uint8], *, how: Way = "gcm") -> None:
    """Write the first bytes of `key`'s stream over all of `out`, at most a tile. `out` is contiguous."""
    view = (out.data if isinstance(out, np.ndarray) else out).cast("B")
    if len(view) > TILE_BYTES:
        raise UsageError(
            f"a tile's keystream has {TILE_BYTES} bytes, not {len(view)}; take the next tile's key"
        )
    stream = _stream(key, how)
    for start in range(0, len(view), BLOCK_BYTES):
        part = view[start : start + BLOCK_BYTES]
        stream.update_into(_ZEROS[: len(part)], part)


def accumulate(
    lanes: NDArray[Any],
    tile_index: int,
    seeds: Sequence[Signed],
    scratch: NDArray[np.uint8] | None = None,
    *,
    how: Way = "gcm",
) -> None:
    """Add the masks of `seeds`, (seed, +1 or -1) each, to one tile in place, modulo 2^(lane bits).

    `lanes` is a vector of uint8, uint16, uint32 or uint64, at most TILE_BYTES; the keystream is read as lanes in
    little-endian. `scratch` is overwritten, BLOCK_BYTES of it at most, and worth keeping between calls.

    A block takes all masks before the next one, so that it comes from memory once. Raises UsageError for what is no
    tile, no sign or no key.
    """
    if lanes.ndim != 1 or lanes.dtype.str[1:] not in _LANES or lanes.nbytes > TILE_BYTES:
        raise UsageError(
            f"a tile to mask is a vector of unsigned lanes of at most {TILE_BYTES} bytes, not {lanes.dtype} of "
            f"shape {lanes.shape}; cut the lanes into tiles"
        )
    if any(sign not in (1, -1) for _, sign in seeds):
        raise UsageError("a mask's sign is +1 or -1; say which of the two devices adds")
    room = np.empty(BLOCK_BYTES, np.uint8) if scratch is None else scratch
    step = min(BLOCK_BYTES, room.nbytes) // lanes.itemsize
    if not step:
        raise UsageError(f"scratch of {room.nbytes} bytes holds no lane; give it {BLOCK_BYTES}")
    streams = [
        (_stream(tile_key(seed, tile_index), how), np.add if sign > 0 else np.subtract)
        for seed, sign in seeds
    ]
    for start in range(0, lanes.size, step):
        part = lanes[start : start + step]
        noise = room[: part.nbytes]
        mask = noise.view(f"<u{lanes.itemsize}")
        zeros = _ZEROS[: part.nbytes]
        for stream, apply in streams:
            stream.update_into(zeros, noise.data)
            apply(part, mask, out=part)


def _stream(key: bytes, how: Way) -> AEADEncryptionContext | CipherContext:
    if len(key) != _KEY:
        raise UsageError(f"a keystream's key has {_KEY} bytes, not {len(key)}; take it from `tile_key`")
    if how == "gcm":
        return Cipher(AES256(key), GCM(_NONCE)).encryptor()
    return Cipher(AES256(key), CTR(_NONCE + _FIRST)).encryptor()
