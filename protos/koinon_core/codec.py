"""The container: tensors as self-describing bytes, written and read a tile at a time. Never pickle.

    "KOIN" | u8 version | chunks | manifest (container.proto) | u32 manifest length | "NIOK"

The manifest lists the sections (name, dtype, shape) and every chunk (which elements, which codec, how many bytes). A
`Reader` checks all of it against the schema that the *receiver* holds before it allocates anything; then any tile can
be read without the rest. Chunks are tiles. The manifest stands last, so that a `Writer` needs no second look at what it
wrote; in version 1 (Koinon 0.2 and before) it stood first, behind its length, and that is still read.
"""

import struct
from array import array
from collections.abc import Callable, Iterator
from itertools import accumulate

import numpy as np
from google.protobuf.message import DecodeError

from koinon_core import codecs
from koinon_core.blob import Window
from koinon_core.codecs import Codec, Place, Step
from koinon_core.codecs.ordinal import ORDINAL
from koinon_core.codecs.tile import Tile
from koinon_core.errors import BadBlob, LocalProtocolError
from koinon_core.schema import Field, Schema
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import TILE, Held, Source, copy, gather, spans
from koinon_core.wire.v1 import container_pb2 as pb

__all__ = ["TILE", "Reader", "Window", "Writer", "as_they_are", "decode", "encode", "reader_of", "size_limit"]

_MAGIC, _END = b"KOIN", b"NIOK"
_HEAD = struct.Struct("<4sB")
_OLD_HEAD = struct.Struct("<4sBI")
_TAIL = struct.Struct("<I4s")
_VERSION = 2

Choose = Callable[[str], tuple[Codec, Step | None]]
"""How the section of this name is written: the codec, and the step where that wants one."""


def as_they_are(codec: str) -> Choose:
    """Every section by one codec that needs no step."""
    how = codecs.by_name(codec)
    return lambda name: (how, None)


class Writer:
    """Writes a container of `schema` by `write`, which takes the bytes in order. A sink: put every tile, then `close`.

    `key` is the dither's, for codecs that have one. With `base`, a source of the same schema whose tensors have the
    digest `base_digest`, every chunk is a lossless difference to it.
    """

    def __init__(
        self, write: Callable[[bytes], object], schema: Schema, choose: Choose, *, key: bytes = b"",
        base: Source | None = None, base_digest: str = "",
    ):  # fmt: skip
        self._write, self._choose, self._key, self._base = write, choose, key, base
        self._numbers = schema.numbers
        self._manifest = pb.Manifest(
            schema_digest=bytes.fromhex(schema.digest), key=key, base=bytes.fromhex(base_digest)
        )
        for f in schema:
            self._manifest.sections.add(name=f.name, dtype=f.dtype, shape=f.shape)
        self._missing = schema.first_tiles[-1]
        self.size = _HEAD.size
        write(_HEAD.pack(_MAGIC, _VERSION))

    def put(self, name: str, offset: int, values: Array) -> None:
        codec, step = self._choose(name)
        base = None
        if self._base is not None:
            codec, base = ORDINAL, self._base.values(name, offset)
        place = Place(key=self._key, section=self._numbers[name], offset=offset, step=step, base=base)
        payload = codec.encode(np.ascontiguousarray(values), place)
        self._manifest.chunks.add(
            section=place.section, offset=offset, count=values.size, codec=codec.id, codec_version=codec.version,
            size=len(payload),
        )  # fmt: skip
        self._write(payload)
        self.size += len(payload)
        self._missing -= 1
        self._last = (codec, payload, str(values.dtype), values.size, place)

    def again(self) -> Tile:
        """The tile that was put last, as a reader will find it."""
        codec, payload, dtype, count, place = self._last
        return codec.decode(memoryview(payload), dtype, count, place)

    def close(self) -> None:
        """Write what tells the chunks apart."""
        if self._missing:
            raise LocalProtocolError(f"a container was closed with {self._missing} tiles missing")
        manifest = self._manifest.SerializeToString(deterministic=True)
        self._write(manifest)
        self._write(_TAIL.pack(len(manifest), _END))
        self.size += len(manifest) + _TAIL.size


def _manifest_limit(schema: Schema) -> int:
    names = sum(len(f.name.encode()) + 16 * (len(f.shape) + 2) for f in schema)
    return 192 + names + 48 * schema.first_tiles[-1]


def size_limit(schema: Schema) -> int:
    """The longest container of `schema` that is worth receiving, in bytes."""
    kinds = [codecs.by_name(name) for name in codecs.names()]
    chunks = sum(
        max(kind.limit(count * np.dtype(f.dtype).itemsize) for kind in kinds)
        for f in schema
        for _, count in spans(f)
    )
    return _OLD_HEAD.size + _TAIL.size + _manifest_limit(schema) + chunks


class Reader:
    """A container, checked against the receiver's `schema`, read tile by tile through `window`. A source. `base` is
    what its chunks are differences to, where they are.

    Raises BadBlob for whatever is not as the schema says: other sections, gaps, overlaps, unknown codecs,
    impossible sizes, bytes too many or too few.
    """

    def __init__(
        self, window: Window, size: int, schema: Schema, whose: str = "this blob", base: Source | None = None
    ):
        self._window, self._schema, self._whose, self._base = window, schema, whose, base
        manifest, start, end = self._open(size)
        self._check_sections(manifest)
        self._key = manifest.key
        self.base = manifest.base.hex()
        """The digest of the tensors that this container is a difference to; "" for one that stands alone."""
        # Three numbers a tile, and no objects: a round has as many readers as devices.
        self._begin, self._size, self._codec = self._check_chunks(manifest, start, end)

    def _open(self, size: int) -> tuple[pb.Manifest, int, int]:
        """The manifest, and where the chunks begin and end."""
        head = bytes(self._window(0, _OLD_HEAD.size))
        if size < _OLD_HEAD.size or len(head) < _OLD_HEAD.size or head[:4] != _MAGIC:
            raise BadBlob(f"{self._whose} is not a Koinon container")
        version = head[4]
        if version == 1:
            _, _, length = _OLD_HEAD.unpack(head)
            at, start, end = _OLD_HEAD.size, _OLD_HEAD.size + length, size
            most = size - _OLD_HEAD.size
        elif version == _VERSION:
            tail = bytes(self._window(size - _TAIL.size, _TAIL.size))
            length, mark = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, b"")
            if mark != _END:
                raise BadBlob(f"{self._whose} ends in the middle")
            at = size - _TAIL.size - length
            start, end = _HEAD.size, at
            most = size - _HEAD.size - _TAIL.size
        else:
            raise BadBlob(
                f"{self._whose} is a container of version {version}; this side reads up to {_VERSION}"
            )
        if length > min(most, _manifest_limit(self._schema)):
            raise BadBlob(
                f"{self._whose} has a manifest of {length} bytes, which the run's model cannot need"
            )
        try:
            return pb.Manifest.FromString(bytes(self._window(at, length))), start, end
        except DecodeError as error:
            raise BadBlob(f"{self._whose} has a manifest that cannot be read") from error

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
        if len(manifest.key) not in (0, 32) or len(manifest.base) not in (0, 32):
            raise BadBlob(f"{self._whose} has a key or a base of an impossible length")

    def _check_chunks(
        self, manifest: pb.Manifest, start: int, end: int
    ) -> tuple["array[int]", "array[int]", "array[int]"]:
        """Where each tile is, its size, and its codec and version. Sections may take turns; within one, tiles come in
        order."""
        first = self._schema.first_tiles
        if len(manifest.chunks) != first[-1]:
            raise BadBlob(f"{self._whose} has {len(manifest.chunks)} chunks; {first[-1]} cover the model")
        ends = list(accumulate((c.size for c in manifest.chunks), initial=start))
        if ends[-1] != end:
            raise BadBlob(f"{self._whose} has {end} bytes; its manifest accounts for {ends[-1]}")
        index = tuple(array("q", bytes(8 * first[-1])) for _ in range(3))
        seen = [0] * len(self._schema)
        for chunk, begin in zip(manifest.chunks, ends[:-1], strict=True):
            number = chunk.section
            field = self._schema.fields[number] if number < len(seen) else None
            offset = seen[number] * TILE if field else 0
            if field is None or (chunk.offset, chunk.count) != (offset, min(TILE, field.size - offset)):
                where = field.name if field else number
                raise BadBlob(f"{self._whose} has its chunks out of order at {where!r}")
            self._check_codec(chunk, field)
            slot = first[number] + seen[number]
            for numbers, value in zip(
                index, (begin, chunk.size, chunk.codec << 32 | chunk.codec_version), strict=True
            ):
                numbers[slot] = value
            seen[number] += 1
        return index[0], index[1], index[2]

    def _check_codec(self, chunk: pb.Chunk, field: Field) -> None:
        codec = codecs.by_id(chunk.codec, chunk.codec_version)
        if not codec.takes(field.dtype):
            raise BadBlob(f"{self._whose} has {field.name!r} in a codec that takes no {field.dtype}")
        if codec is ORDINAL and self._base is None:
            raise BadBlob(f"{self._whose} has differences to a model that is not here")
        if chunk.size > codec.limit(chunk.count * np.dtype(field.dtype).itemsize):
            raise BadBlob(
                f"{self._whose} takes {chunk.size} bytes for {chunk.count} elements of {field.name!r}"
            )

    def used(self) -> Iterator[tuple[str, int, int]]:
        """(section, codec number, codec version) of every chunk."""
        first = self._schema.first_tiles
        for number, field in enumerate(self._schema):
            for one in self._codec[first[number] : first[number + 1]]:
                yield field.name, one >> 32, one & 0xFFFFFFFF

    def tile(self, name: str, offset: int) -> Tile:
        """The tile of `name` that starts at element `offset`."""
        number = self._schema.numbers[name]
        field, slot = self._schema.fields[number], self._schema.first_tiles[number] + offset // TILE
        payload = memoryview(self._window(self._begin[slot], self._size[slot]))
        if len(payload) != self._size[slot]:
            raise BadBlob(f"{self._whose} ends in the middle of {name!r}")
        base = self._base.values(name, offset) if self._base is not None else None
        place = Place(key=self._key, section=number, offset=offset, base=base)
        codec = codecs.by_id(self._codec[slot] >> 32, self._codec[slot] & 0xFFFFFFFF)
        return codec.decode(payload, field.dtype, min(TILE, field.size - offset), place)

    def values(self, name: str, offset: int) -> Array:
        elements = self.tile(name, offset).values()
        # numpy takes any byte for a bool, and then differs with itself on what True is.
        if elements.dtype.kind == "b" and np.any(elements.view(np.uint8) > 1):
            raise BadBlob(f"{self._whose} has bytes in {name!r} that are neither true nor false")
        return elements

    def tensors(self) -> Tensors:
        """All of it, in memory."""
        return gather(self, self._schema)


def encode(tensors: Tensors, schema: Schema, codec: str = "lossless") -> bytes:
    """`tensors`, which must be as `schema` says, in a container held in memory."""
    schema.check(tensors, "what is encoded")
    parts: list[bytes] = []
    writer, source = Writer(parts.append, schema, as_they_are(codec)), Held(tensors)
    copy(source, schema, writer)
    writer.close()
    return b"".join(parts)


def reader_of(blob: bytes | memoryview, schema: Schema, whose: str = "this blob") -> Reader:
    """A reader of a container that is held in memory."""
    view = memoryview(blob)
    return Reader(lambda offset, length: view[offset : offset + length], len(view), schema, whose)


def decode(blob: bytes | memoryview, schema: Schema, whose: str = "this blob") -> Tensors:
    """All tensors of a container that is held in memory; raises BadBlob."""
    return reader_of(blob, schema, whose).tensors()
