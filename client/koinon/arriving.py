"""What is downloaded, on its way: in memory, or in a file that a later process goes on with.

Both take the SHA-256 while bytes arrive, and give a blob of the whole once it is what was meant.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from koinon.outbox.files import sync
from koinon_core.blob import Blob
from koinon_core.errors import BadBlob, StoreError

__all__ = ["Arriving", "InFile", "InMemory", "file_blob", "inlined", "whole_file"]

_PIECE = _SYNC_BYTES = 1 << 20
_SYNC_EVERY = 0.1


class Arriving(Protocol):
    """Bytes in order. Its methods may block, and are called one at a time."""

    offset: int
    """Bytes that are here."""

    def write(self, data: memoryview) -> None: ...
    def sync(self) -> None:
        """Nothing comes: make what is here durable."""
        ...

    def finish(self, digest: str) -> Blob:
        """The whole; BadBlob, and nothing kept, if its SHA-256 is another."""
        ...

    def close(self) -> None:
        """What is here may go on later."""
        ...


class InMemory:
    """In memory, and gone with the process."""

    def __init__(self) -> None:
        self._data, self._hash = bytearray(), hashlib.sha256()
        self.offset = 0

    def write(self, data: memoryview) -> None:
        self._hash.update(data)
        self._data += data
        self.offset += len(data)

    def sync(self) -> None:
        """Memory is not durable."""

    def finish(self, digest: str) -> Blob:
        _check(self._hash.hexdigest(), digest)
        view = memoryview(self._data).toreadonly()
        return Blob(digest, self.offset, lambda offset, length: view[offset : offset + length])

    def close(self) -> None:
        """Nothing is open."""


class InFile:
    """In the file `into`; beside it, in `into` + ".part", until it is whole. What an earlier process left there is gone
    on with, up to `size` bytes. It is durable every 1 MiB or 100 ms, whichever comes first. StoreError if this device's
    disk fails."""

    def __init__(self, into: Path, size: int):
        self._into, self._part = into, into.with_name(f"{into.name}.part")
        self._synced = 0
        self._synced_at = time.monotonic()
        with _disk(self._part):
            into.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self._part.open("a+b", buffering=0)
            self.offset = self._file.seek(0, os.SEEK_END)
            if self.offset > size:  # something else had that name
                self._file.truncate(0)
                self.offset = 0
            self._hash = _hash_of(self._file)
        self.inherited = self.offset
        """Bytes that an earlier process left."""

    def write(self, data: memoryview) -> None:
        with _disk(self._part):
            while data:
                taken = self._file.write(data)
                self._hash.update(data[:taken])
                self.offset += taken
                data = data[taken:]
            if self.offset - self._synced >= _SYNC_BYTES or time.monotonic() - self._synced_at >= _SYNC_EVERY:
                self.sync()

    def sync(self) -> None:
        if self.offset > self._synced:
            with _disk(self._part):
                os.fdatasync(self._file.fileno())
                if not self._synced:
                    sync(self._part.parent)
            self._synced = self.offset
        self._synced_at = time.monotonic()

    def finish(self, digest: str) -> Blob:
        with _disk(self._part), self._file:
            if self._hash.hexdigest() != digest:
                self._part.unlink(missing_ok=True)
            _check(self._hash.hexdigest(), digest)
            os.fsync(self._file.fileno())
            self._part.rename(self._into)
            sync(self._into.parent)
        return file_blob(self._into, digest, self.offset)

    def close(self) -> None:
        self._file.close()


def file_blob(path: Path, digest: str, size: int) -> Blob:
    """The blob in a file. Nothing stays open; StoreError if the file cannot be read any more."""

    def window(offset: int, length: int) -> bytes:
        with _disk(path), path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return Blob(digest, size, window)


def inlined(data: bytes, digest: str) -> Blob:
    """What came in a message; BadBlob if its SHA-256 is another."""
    blob = Blob.of(data)
    _check(blob.digest, digest)
    return blob


def whole_file(path: Path, digest: str, size: int) -> Blob | None:
    """The blob in `path`, if it is there and has that SHA-256."""
    with _disk(path):
        if not path.exists() or path.stat().st_size != size:
            return None
        with path.open("rb") as file:
            return file_blob(path, digest, size) if _hash_of(file).hexdigest() == digest else None


def _hash_of(file: BinaryIO) -> "hashlib._Hash":
    """The SHA-256 of all of a file, which is at its end afterwards."""
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest


def _check(found: str, digest: str) -> None:
    if found != digest:
        raise BadBlob(
            "what the coordinator sent is not what its digest says; the link or its disk is damaged"
        )


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} on this device cannot be used: {error.strerror}; free some space or mend the disk"
        ) from error
