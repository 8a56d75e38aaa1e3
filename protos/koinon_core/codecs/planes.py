"""Planes: runs of bytes of a known length, each compressed by zstd where that is smaller.

A plane is u8 kind (0 as it is, 1 zstd), u32 length, bytes. Its decoded size is known before a byte of it is read; a
frame that claims another one is refused unopened (`max_output_size` alone would not: zstd ignores it where the frame
embeds its size).
"""

import struct

import numpy as np
import zstandard
from numpy.typing import NDArray

from koinon_core.errors import BadBlob

__all__ = ["HEAD_BYTES", "QUICK", "SEARCHING", "Packer", "Unpacker"]

SEARCHING = zstandard.ZstdCompressionParameters.from_level(3)
"""For bytes of which whole stretches repeat."""
QUICK = zstandard.ZstdCompressionParameters.from_level(1, min_match=7, hash_log=12)
"""For bytes of which some are frequent: short repetitions are chance there, and cost more than they save."""

_HEAD = struct.Struct("<BI")
_STORED, _ZSTD = 0, 1
HEAD_BYTES = _HEAD.size
"""What a plane takes beyond its bytes, at most."""


class Packer:
    """Writes planes. `zstd` says how hard to search for repetitions."""

    def __init__(self, zstd: zstandard.ZstdCompressionParameters):
        self._zstd = zstandard.ZstdCompressor(compression_params=zstd)
        self._parts: list[bytes] = []

    def put(self, data: bytes) -> None:
        """Bytes as they are."""
        self._parts.append(data)

    def plane(self, plane: NDArray[np.uint8] | NDArray[np.int8]) -> None:
        """The next plane, contiguous."""
        packed = self._zstd.compress(plane.data)
        kind, data = (_ZSTD, packed) if len(packed) < plane.nbytes else (_STORED, plane.tobytes())
        self._parts += (_HEAD.pack(kind, len(data)), data)

    def bytes(self) -> bytes:
        return b"".join(self._parts)


class Unpacker:
    """Reads planes in the order in which they were added. Raises BadBlob for bytes that are not what they should be."""

    def __init__(self, payload: memoryview):
        self._payload, self._at = payload, 0
        self._zstd = zstandard.ZstdDecompressor()

    def take(self, size: int) -> memoryview:
        """The next `size` bytes as they are."""
        data = self._payload[self._at : self._at + size]
        self._at += size
        if len(data) != size:
            raise BadBlob("a chunk's payload is cut off; the sender must send it again")
        return data

    def plane(self, size: int) -> NDArray[np.uint8]:
        """The next plane, which has `size` bytes; not to be written to."""
        how, length = _HEAD.unpack(self.take(_HEAD.size))
        data = self.take(length)
        if how == _STORED and length != size:
            raise BadBlob(f"a byte plane has {length} bytes, not {size}")
        if how not in (_STORED, _ZSTD):
            raise BadBlob(f"a byte plane is written in a way numbered {how}, which is not known here")
        return np.frombuffer(data if how == _STORED else self._open(data, size), dtype=np.uint8)

    def end(self) -> None:
        """Nothing may follow."""
        if self._at != len(self._payload):
            raise BadBlob(f"{len(self._payload) - self._at} bytes follow the last byte plane")

    def _open(self, data: memoryview, size: int) -> bytes:
        try:
            frame = zstandard.get_frame_parameters(data)
            if frame.content_size != size:
                raise BadBlob(f"a byte plane claims to unpack to {frame.content_size} bytes, not {size}")
            plain = self._zstd.decompress(data, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise BadBlob(f"a byte plane cannot be unpacked: {error}") from error
        if len(plain) != size:
            raise BadBlob(f"a byte plane unpacks to {len(plain)} bytes, not {size}")
        return plain
