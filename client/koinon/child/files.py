"""Safetensors files: how the tensors of a model go between the owner's program and the worker.

A file is the length of its header, the header (JSON: what each tensor is and where it lies), and the raw values, little
endian. What a header says is compared with the size of the file before anything is allocated for it. A file that is
written is there whole, and on the disk, or not at all.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from .errors import BadBlob, StoreError, UsageError

__all__ = ["CODES", "Entry", "Field", "TensorFile", "check_dtype", "check_steering", "write"]

CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""The names of element types, numpy's and torch's, and those of the files."""
_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_SHORT = ("F16", "BF16")
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 16 << 20


class Field(NamedTuple):
    """One tensor of a model as it is sent: its name, shape, dtype (numpy's name) and role ("param" or "buffer")."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str

    @property
    def size(self) -> int:
        """Elements."""
        return _size(self.shape)


class Entry(NamedTuple):
    """One tensor in a file: where it begins, and how many bytes it has."""

    code: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


def check_dtype(field: Field) -> None:
    """UsageError for an element type that cannot be federated."""
    if field.dtype not in CODES or field.dtype == "bfloat16":
        raise UsageError(f"{field.name!r} is {field.dtype}, which cannot be federated")


class TensorFile:
    """The file at `path`, opened: who replaces it later does not change what is read here. BadBlob for what is none."""

    def __init__(self, path: str):
        self._path, self._fd = path, -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadBlob(
                f"{path} cannot be read: {error.strerror}; koinon-edge was to put tensors there"
            ) from error
        self.entries: Mapping[str, Entry] = self._header(os.fstat(self._fd).st_size)

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self._fd)

    def check(self, fields: Sequence[Field]) -> None:
        """BadBlob if a field is missing, or is there as something else."""
        for field in fields:
            entry = self.entries.get(field.name)
            if entry is None:
                raise self._bad(f"it has no tensor {field.name!r}")
            shorter = field.dtype.startswith("float") and entry.code in _SHORT
            if entry.shape != field.shape or not (entry.code == CODES[field.dtype] or shorter):
                raise self._bad(
                    f"it has {field.name!r} as {entry.code}{list(entry.shape)}, and the model has it as "
                    f"{CODES[field.dtype]}{list(field.shape)}"
                )

    def read(self, name: str, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes of a tensor from its `offset`."""
        entry = self.entries[name]
        assert offset + len(into) <= entry.nbytes
        at = entry.begin + offset
        while into:
            got = os.preadv(self._fd, [into], at)
            if not got:
                raise self._bad("it was cut short while it was read")
            into, at = into[got:], at + got

    def _header(self, size: int) -> Mapping[str, Entry]:
        head = os.pread(self._fd, _LENGTH.size, 0)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else size
        if length > min(_LONGEST_HEADER, size - _LENGTH.size):
            raise self._bad(
                f"its header is longer than its {size} bytes, or than {_LONGEST_HEADER >> 20} MiB"
            )
        try:
            said = json.loads(os.pread(self._fd, length, _LENGTH.size))
            said.pop("__metadata__", None)
            return {
                name: self._entry(name, entry, _LENGTH.size + length, size) for name, entry in said.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._bad(f"its header cannot be read ({error!r:.80})") from None

    def _entry(self, name: str, said: Mapping[str, Any], begin: int, size: int) -> Entry:
        code, shape, (first, last) = said["dtype"], said["shape"], said["data_offsets"]
        for number in (*shape, first, last):
            if type(number) is not int or number < 0:
                raise self._bad(f"{name!r:.80} has {number!r:.20} where a size was to be")
        if code not in _SIZES:
            raise self._bad(f"{name!r:.80} is of type {code!r:.20}, which is none that travels")
        if last - first != _size(shape) * _SIZES[code] or last > size - begin:
            raise self._bad(f"{name!r:.80} lies between {first} and {last}, which is not where it fits")
        return Entry(code, tuple(shape), begin + first, last - first)

    def _bad(self, why: str) -> BadBlob:
        return BadBlob(f"{self._path} is not the safetensors file that koinon-edge was to put there: {why}")


def check_steering(fields: Sequence[Field], anchor: TensorFile | None, shift: TensorFile | None) -> None:
    """BadBlob where these are not about the parameters among `fields`: an anchor for each, and shifts for some."""
    params = [f for f in fields if f.role == "param"]
    if anchor is not None:
        anchor.check(params)
    if shift is not None:
        shift.check([f for f in params if f.name in shift.entries])


def write(path: str, fields: Sequence[Field], pieces: Callable[[Field], Iterable[Any]]) -> None:
    """Put `fields` into the file at `path`, with the bytes in which `pieces` gives each; it is durable afterwards.
    StoreError if the disk does not take it."""
    entries: dict[str, Any] = {}
    at = 0
    for field in fields:
        code = CODES[field.dtype]
        last = at + field.size * _SIZES[code]
        entries[field.name] = {"dtype": code, "shape": list(field.shape), "data_offsets": [at, last]}
        at = last
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    new = path + ".new"
    try:
        with suppress(FileNotFoundError):
            os.unlink(new)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(_LENGTH.pack(len(header)) + header)
            for field in fields:
                for piece in pieces(field):
                    file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        _sync(os.path.dirname(path) or ".")
    except OSError as error:
        with suppress(OSError):
            os.unlink(new)
        raise StoreError(
            f"the weights cannot be saved in {path}: {error.strerror or error}; free some space there, or see that "
            "this user may write there"
        ) from error


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _size(shape: Iterable[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
