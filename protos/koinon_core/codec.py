"""The container: tensors as self-describing bytes, readable a tile at a time. Never pickle.

    "KOIN" | u8 version | u32 manifest length | manifest (container.proto) | chunks

The manifest lists the sections (name, dtype, shape) and every chunk (which elements, which codec, how many
bytes). A `Reader` checks all of it against the schema that the *receiver* holds before it allocates anything;
then any tile can be read without the rest. A tile is 1 Mi elements; chunks are tiles.
"""

import math
import struct
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise

import numpy as np
from google.protobuf.message import DecodeError

from koinon_core import codecs
from koinon_core.errors import BadBlob
from koinon_core.schema import Field, Schema
from koinon_core.tensors import Array, Tensors
from koinon_core.wire.v1 import container_pb2 as pb

__all__ = ["TILE", "Reader", "Window", "decode", "encode", "size_limit"]

TILE = 1 << 20
"""Elements a chunk; the unit in which updates are encoded, staged and folded."""

_MAGIC = b"KOIN"
_HEAD = struct.Struct("<4sBI")
_VERSION = 1

Window = Callable[[int, int], bytes | memoryview]
"""`window(offset, length)`: that many bytes of a blob from there on, fewer only at its end."""


def _tiles(field: Field) -> Iterator[tuple[int, int]]:
    """(offset, count) of each tile of a field; an empty tensor has none."""
    for offset in range(0, field.size, TILE):
        yield offset, min(TILE, field.size - offset)


def encode(tensors: Tensors, schema: Schema, codec: str = "lossless") -> bytes:
    """`tensors`, which must be as `schema` says, in a container."""
    schema.check(tensors, "what is encoded")
    how = codecs.by_name(codec)
    manifest = pb.Manifest(schema_digest=bytes.fromhex(schema.digest))
    payloads: list[bytes] = []
    for number, field in enumerate(schema):
        manifest.sections.add(name=field.name, dtype=field.dtype, shape=field.shape)
        flat = np.ascontiguousarray(tensors[field.name]).reshape(-1)
        for offset, count in _tiles(field):
            payload = how.encode(flat[offset : offset + count])
            payloads.append(payload)
            manifest.chunks.add(
                section=number, offset=offset, count=count, codec=how.id, codec_version=how.version,
                size=len(payload),
            )  # fmt: skip
    head = manifest.SerializeToString(deterministic=True)
    return b"".join((_HEAD.pack(_MAGIC, _VERSION, len(head)), head, *payloads))


def _manifest_limit(schema: Schema) -> int:
    chunks = sum(math.ceil(f.size / TILE) for f in schema)
    names = sum(len(f.name.encode()) + 16 * (len(f.shape) + 2) for f in schema)
    return 64 + names + 48 * chunks


def size_limit(schema: Schema) -> int:
    """The longest container of `schema` that is worth receiving, in bytes."""
    chunks = sum(math.ceil(f.size / TILE) for f in schema)
    return _HEAD.size + _manifest_limit(schema) + schema.nbytes + 64 * chunks


class Reader:
    """A container, checked against the receiver's `schema`, read tile by tile through `window`.

    Raises BadBlob for whatever is not as the schema says: other sections, gaps, overlaps, unknown codecs,
    impossible sizes, bytes too many or too few.
    """

    def __init__(self, window: Window, size: int, schema: Schema, whose: str = "this blob"):
        self._window, self._schema, self._whose = window, schema, whose
        manifest, start = self._open(size)
        self._check_sections(manifest)
        self._index = self._check_chunks(manifest, start, size)

    def _open(self, size: int) -> tuple[pb.Manifest, int]:
        head = bytes(self._window(0, _HEAD.size))
        if len(head) < _HEAD.size or head[:4] != _MAGIC:
            raise BadBlob(f"{self._whose} is not a Koinon container")
        _, version, length = _HEAD.unpack(head)
        if version != _VERSION:
            raise BadBlob(f"{self._whose} is a container of version {version}; this side reads {_VERSION}")
        if length > min(size, _manifest_limit(self._schema)):
            raise BadBlob(
                f"{self._whose} has a manifest of {length} bytes, which the run's model cannot need"
            )
        try:
            manifest = pb.Manifest.FromString(bytes(self._window(_HEAD.size, length)))
        except DecodeError as error:
            raise BadBlob(f"{self._whose} has a manifest that cannot be read") from error
        return manifest, _HEAD.size + length

    def _check_sections(self, manifest: pb.Manifest) -> None:
        if len(manifest.sections) != len(self._schema):
            raise BadBlob(
                f"{self._whose} has {len(manifest.sections)} tensors; the run's has {len(self._schema)}"
            )
        for section, field in zip(manifest.sections, self._schema, strict=True):
            if (section.name, section.dtype, tuple(section.shape)) != (field.name, field.dtype, field.shape):
                raise BadBlob(
                    f"{self._whose} has {section.name[:80]!r} as {section.dtype[:16]}{list(section.shape)[:8]} "
                    f"where the run has {field.name!r} as {field.dtype}{list(field.shape)}"
                )
        if manifest.schema_digest != bytes.fromhex(self._schema.digest):
            raise BadBlob(f"{self._whose} was made for another schema")

    def _check_chunks(
        self, manifest: pb.Manifest, start: int, size: int
    ) -> dict[tuple[str, int], tuple[int, pb.Chunk]]:
        wanted = [(n, f, o, c) for n, f in enumerate(self._schema) for o, c in _tiles(f)]
        if len(manifest.chunks) != len(wanted):
            raise BadBlob(f"{self._whose} has {len(manifest.chunks)} chunks; {len(wanted)} cover the model")
        ends = list(accumulate((c.size for c in manifest.chunks), initial=start))
        if ends[-1] != size:
            raise BadBlob(f"{self._whose} has {size} bytes; its manifest accounts for {ends[-1]}")
        index: dict[tuple[str, int], tuple[int, pb.Chunk]] = {}
        for (number, field, offset, count), chunk, (begin, end) in zip(
            wanted, manifest.chunks, pairwise(ends), strict=True
        ):
            if (chunk.section, chunk.offset, chunk.count) != (number, offset, count):
                raise BadBlob(f"{self._whose} has its chunks out of order at {field.name!r}")
            codec = codecs.by_id(chunk.codec, chunk.codec_version)
            if end - begin > codec.limit(count * np.dtype(field.dtype).itemsize):
                raise BadBlob(
                    f"{self._whose} takes {end - begin} bytes for {count} elements of {field.name!r}"
                )
            index[field.name, offset] = (begin, chunk)
        return index

    def tile(self, name: str, offset: int) -> Array:
        """The elements of `name` in the tile that starts at element `offset`, one-dimensional."""
        begin, chunk = self._index[name, offset]
        payload = memoryview(self._window(begin, chunk.size))
        if len(payload) != chunk.size:
            raise BadBlob(f"{self._whose} ends in the middle of {name!r}")
        codec = codecs.by_id(chunk.codec, chunk.codec_version)
        elements = codec.decode(payload, self._schema.by_name[name].dtype, chunk.count)
        # numpy takes any byte for a bool, and then differs with itself on what True is.
        if elements.dtype.kind == "b" and np.any(elements.view(np.uint8) > 1):
            raise BadBlob(f"{self._whose} has bytes in {name!r} that are neither true nor false")
        return elements

    def tiles(self, name: str) -> Iterator[tuple[int, Array]]:
        """(offset, elements) of each tile of `name`."""
        for offset, _ in _tiles(self._schema.by_name[name]):
            yield offset, self.tile(name, offset)

    def tensor(self, name: str) -> Array:
        """All of `name`, in its shape."""
        field = self._schema.by_name[name]
        whole = np.empty(field.size, dtype=field.dtype)
        for offset, part in self.tiles(name):
            whole[offset : offset + part.size] = part
        return whole.reshape(field.shape)


def decode(blob: bytes | memoryview, schema: Schema, whose: str = "this blob") -> Tensors:
    """All tensors of a container that is held in memory; raises BadBlob."""
    view = memoryview(blob)
    reader = Reader(lambda offset, length: view[offset : offset + length], len(view), schema, whose)
    return Tensors({f.name: reader.tensor(f.name) for f in schema})
