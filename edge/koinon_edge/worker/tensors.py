"""Tensors in a safetensors file, a tile at a time: what goes between the worker and the owner's program.

Both sides know the model's schema. A file is compared with it before anything of it is used; what it declares of sizes
and places must be what the schema says and lie within the file.
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from koinon.outbox.files import sync
from koinon_core.errors import BadUpdate
from koinon_core.schema import TILE, Schema
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import Held, copy, gather

__all__ = ["TensorFile", "write"]

_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 16 << 20


class TensorFile:
    """The tensors of `schema` in the file at `path`: a Source and a Sink. Make it with `new` or `found`."""

    def __init__(self, path: Path, schema: Schema, places: Mapping[str, int], fd: int):
        self.path, self.schema = path, schema
        self._places, self._fd = places, fd

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self._fd)

    @classmethod
    def new(cls, path: Path, schema: Schema) -> "TensorFile":
        """A file to put tiles into; it replaces what was there."""
        entries: dict[str, Any] = {}
        at = 0
        for field in schema:
            entries[field.name] = {
                "dtype": _CODES[field.dtype], "shape": list(field.shape), "data_offsets": [at, at + field.nbytes],
            }  # fmt: skip
            at += field.nbytes
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        path.unlink(missing_ok=True)  # who reads the one before reads on
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        begin = _LENGTH.size + len(header)
        places = {name: begin + entry["data_offsets"][0] for name, entry in entries.items()}
        made = cls(path, schema, places, fd)
        os.pwrite(fd, _LENGTH.pack(len(header)) + header, 0)
        os.ftruncate(fd, begin + at)
        return made

    @classmethod
    def found(cls, path: Path, schema: Schema) -> "TensorFile":
        """The tensors that the owner's program wrote. BadUpdate if they are not those of the schema."""
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise BadUpdate(f"what the training program saved cannot be read: {error.strerror}") from error
        made = cls(path, schema, {}, fd)
        made._places = _places(fd, schema)
        return made

    def sync(self) -> None:
        os.fsync(self._fd)
        sync(self.path.parent)

    def values(self, name: str, offset: int) -> Array:
        field = self.schema.by_name[name]
        dtype = np.dtype(field.dtype).newbyteorder("<")
        count = min(TILE, field.size - offset)
        data = os.pread(self._fd, count * dtype.itemsize, self._places[name] + offset * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise BadUpdate(f"{self.path.name} was cut short while it was read; is the disk full?")
        return np.frombuffer(data, dtype)

    def put(self, name: str, offset: int, values: Array) -> None:
        dtype = np.dtype(self.schema.by_name[name].dtype).newbyteorder("<")
        data = memoryview(np.ascontiguousarray(values, dtype).data).cast("B")
        at = self._places[name] + offset * dtype.itemsize
        while data:
            taken = os.pwrite(self._fd, data, at)
            data, at = data[taken:], at + taken

    def tensors(self) -> Tensors:
        return gather(self, self.schema)


def write(path: Path, schema: Schema, tensors: Mapping[str, Array]) -> Path:
    """A file with these of the schema's tensors."""
    made = TensorFile.new(path, schema.only(tensors))
    copy(Held(tensors), made.schema, made)
    return path


def _places(fd: int, schema: Schema) -> dict[str, int]:
    """Where in the file each tensor begins."""
    size = os.fstat(fd).st_size
    head = os.pread(fd, _LENGTH.size, 0)
    length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else size
    if length > min(_LONGEST_HEADER, size - _LENGTH.size):
        raise BadUpdate(
            "what the training program saved is no safetensors file; it must not write there itself"
        )
    try:
        entries = json.loads(os.pread(fd, length, _LENGTH.size))
        entries.pop("__metadata__", None)
        _check_names(entries, schema)
        return {f.name: _place(entries[f.name], f, _LENGTH.size + length, size) for f in schema}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadUpdate(f"what the training program saved cannot be read ({error!r})") from error


def _check_names(found: Iterable[str], schema: Schema) -> None:
    if odd := set(found) ^ set(schema.by_name):
        raise BadUpdate(f"the training program saved other tensors than the run's model has: {min(odd)!r}")


def _place(entry: Any, field: Any, begin: int, size: int) -> int:
    first, last = entry["data_offsets"]
    fits = (
        entry["dtype"] == _CODES[field.dtype]
        and tuple(entry["shape"]) == field.shape
        and isinstance(first, int)
        and first >= 0
        and last - first == field.nbytes
        and begin + last <= size
    )
    if not fits:
        raise BadUpdate(
            f"the training program saved {field.name!r} as {entry['dtype']}{entry['shape']}, and the run's model has "
            f"it as {field.dtype}{list(field.shape)}"
        )
    return begin + int(first)
