"""Room on disk for a sum on its way to a model: a file without a name, which is gone with whoever made it."""

import os
import tempfile
from types import TracebackType
from typing import Self

from koinon_coordinator.store.folder import Folder, disk
from koinon_core.errors import StoreError
from koinon_core.secure.scratch import MemoryScratch, Scratch

__all__ = ["Room"]

_SMALL = 8 << 20
"""Bytes that are rather kept in memory: a few tiles."""


class Room:
    """Makes scratches in a store's folder; a context manager, with whose end they are gone. StoreError if there is no
    room, or the disk fails."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._files: list[_FileScratch] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def __call__(self, nbytes: int) -> Scratch:
        if nbytes <= _SMALL:
            return MemoryScratch(nbytes)
        self._folder.make_room(nbytes)
        file = _FileScratch(self._folder, nbytes)
        self._files.append(file)
        return file


class _FileScratch:
    def __init__(self, folder: Folder, nbytes: int):
        self._folder, self._size = folder, nbytes
        self._where = folder.root / "partial"
        with disk(self._where / "scratch"):
            self._where.mkdir(exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._where, buffering=0)  # noqa: SIM115 - closed by its Room
            self._file.truncate(nbytes)
        folder.note(nbytes)

    def write(self, at: int, data: memoryview) -> None:
        with disk(self._where / "scratch"):
            while data:  # one write takes less where the disk is full, and the next says so
                done = os.pwrite(self._file.fileno(), data, at)
                data, at = data[done:], at + done

    def read(self, at: int, length: int) -> memoryview:
        data = os.pread(self._file.fileno(), length, at)
        if len(data) != length:
            raise StoreError(f"a file of the folder {self._where} has lost its end; look at the disk")
        return memoryview(data)

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            self._folder.note(-self._size)
