"""`lossless`: byte planes, each compressed by zstd where that is smaller.

The bytes of a float are of different kinds: signs and exponents repeat, the ends of mantissas are noise. Laid
out plane by plane, zstd finds the former and leaves the latter as they are. Nothing is lost.

A payload is, per plane: u8 kind (0 as it is, 1 zstd), u32 length, bytes. The size of a decoded plane is known
from the schema before a byte is read; a frame that claims another one is refused unopened
(`max_output_size` alone would not: zstd ignores it where the frame embeds its size).
"""

import struct

import numpy as np
import zstandard

from koinon_core.errors import BadBlob
from koinon_core.tensors import Array

__all__ = ["Lossless"]

_HEAD = struct.Struct("<BI")
_LEVEL = 3
_STORED, _ZSTD = 0, 1


class Lossless:
    id = 2
    version = 1
    exact = True

    def encode(self, flat: Array) -> bytes:
        wire = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
        planes = np.ascontiguousarray(wire).view(np.uint8).reshape(-1, flat.dtype.itemsize).T
        packer = zstandard.ZstdCompressor(level=_LEVEL)
        parts: list[bytes] = []
        for plane in planes:
            plain = plane.tobytes()
            packed = packer.compress(plain)
            kind, data = (_ZSTD, packed) if len(packed) < len(plain) else (_STORED, plain)
            parts += (_HEAD.pack(kind, len(data)), data)
        return b"".join(parts)

    def decode(self, payload: memoryview, dtype: str, count: int) -> Array:
        kind = np.dtype(dtype)
        planes = np.empty((kind.itemsize, count), dtype=np.uint8)
        opener = zstandard.ZstdDecompressor()
        at = 0
        for plane in planes:
            if at + _HEAD.size > len(payload):
                raise BadBlob("a byte plane is cut off; the sender must send it again")
            how, length = _HEAD.unpack_from(payload, at)
            at += _HEAD.size
            data = payload[at : at + length]
            at += length
            if len(data) != length:
                raise BadBlob("a byte plane is cut off; the sender must send it again")
            plane[:] = np.frombuffer(_open(opener, how, data, count), dtype=np.uint8)
        if at != len(payload):
            raise BadBlob(f"{len(payload) - at} bytes follow the last byte plane")
        return (
            np.ascontiguousarray(planes.T).reshape(-1).view(kind.newbyteorder("<")).astype(kind, copy=False)
        )

    def limit(self, nbytes: int) -> int:
        return nbytes + 8 * _HEAD.size


def _open(opener: zstandard.ZstdDecompressor, how: int, data: memoryview, count: int) -> bytes | memoryview:
    if how == _STORED:
        if len(data) != count:
            raise BadBlob(f"a byte plane has {len(data)} bytes, not {count}")
        return data
    if how != _ZSTD:
        raise BadBlob(f"a byte plane is written in a way numbered {how}, which is not known here")
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.content_size != count:
            raise BadBlob(f"a byte plane claims to unpack to {frame.content_size} bytes, not {count}")
        plain = opener.decompress(data, max_output_size=count, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadBlob(f"a byte plane cannot be unpacked: {error}") from error
    if len(plain) != count:
        raise BadBlob(f"a byte plane unpacks to {len(plain)} bytes, not {count}")
    return plain
