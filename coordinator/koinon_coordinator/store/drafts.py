"""A content on its way: written piece by piece, small ones into a row, large ones into a file under their SHA-256.

Nobody knows how large a content becomes before it is written: what stays small never touches the disk here.
"""

import hashlib
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, Protocol, Self

from koinon_coordinator.store.blobs import Blobs, file_window
from koinon_coordinator.store.folder import Folder, disk
from koinon_core.blob import Window
from koinon_core.wire.convert import INLINE

__all__ = ["Content", "Draft", "Drafts", "WrittenContent"]

Content = tuple[str, int, bytes | None]
"""Digest, size, and the bytes where they are small; else they are a blob, pinned until a row names it."""


class Draft(Protocol):
    """What a content is written into. A context manager: what was not finished when it ends is gone."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def write(self, data: bytes) -> object: ...
    def finish(self) -> Content: ...


Drafts = Callable[[], Draft]


class WrittenContent:
    """A draft that becomes durable. `remember` is told of a small one."""

    def __init__(
        self,
        folder: Folder,
        blobs: Blobs,
        remember: Callable[[str, bytes], object],
        inline: int | None = None,
    ):
        self._inline = INLINE if inline is None else inline
        self._folder, self._blobs, self._remember = folder, blobs, remember
        self._small: list[bytes] = []
        self._digest = hashlib.sha256()
        self._path = folder.root / "partial" / uuid.uuid4().hex
        self._file: BinaryIO | None = None
        self._noted = 0
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and not self._file.closed:
            with suppress(OSError):  # what its buffer still holds is wanted no more
                self._file.close()
            # What its buffer held was counted, and is in no file that could be counted off.
            with disk(self._path):
                self._folder.note(self._path.stat().st_size - self._noted)
            self._folder.remove(self._path)

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)
        if self._file is None and self.size <= self._inline:
            self._small.append(data)
            return
        with disk(self._path):
            if self._file is None:
                self._path.parent.mkdir(exist_ok=True)
                self._file = self._path.open("wb", buffering=1 << 20)
                data = b"".join((*self._small, data))
            self._take(data)

    def _take(self, data: bytes) -> None:
        assert self._file is not None
        self._folder.make_room(len(data))
        self._file.write(data)
        self._folder.note(len(data))
        self._noted += len(data)

    def written(self) -> tuple[Window, int]:
        """(reader, size) of what is written so far, for who only wants to look at it."""
        if self._file is None:
            data = b"".join(self._small)
            return (lambda offset, length: data[offset : offset + length]), self.size
        with disk(self._path):
            self._file.flush()
        return file_window(self._path), self.size

    def finish(self) -> Content:
        """The content, durable unless it is small. StoreError, and nothing of it kept, if it cannot be."""
        digest = self._digest.hexdigest()
        if self._file is None:
            data = b"".join(self._small)
            self._remember(digest, data)
            return digest, self.size, data
        with disk(self._path):
            self._file.flush()
            self._blobs.take(self._path, self._file, digest)
        return digest, self.size, None
