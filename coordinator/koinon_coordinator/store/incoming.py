"""A file on its way: written in order, durable soon after, resumable where it stopped, and under its name only when it
is whole, checked and synced."""

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from koinon_coordinator.store.folder import Folder, disk, name_file, sync_folder
from koinon_core.errors import BadBlob, Unavailable

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["Incoming"]

_PIECE = 1 << 20
_ELSEWHERE = "this upload goes on in another stream"


class Incoming:
    """Bytes on their way to `final`: `write` in order, then `finish`. What was written stays when the link is cut.

    The SHA-256 is taken while bytes arrive. What an earlier stream left is read once: it may have been damaged since.

    Every step holds one lock, so that a stream which takes over waits for the step under way, and a stream that was
    superseded, or is finished, touches the file no more; `sync` holds another, so that more is written beside it.
    `whole` is told when the file has its name.
    """

    def __init__(
        self, folder: Folder, partial: Path, final: Path, digest: str, size: int,
        whole: Callable[[Path], object] = lambda final: None,
    ):  # fmt: skip
        self._folder, self._partial, self._final, self._whole = folder, partial, final, whole
        self._digest, self._size = digest, size
        self._busy, self._syncing = threading.Lock(), threading.Lock()
        self._wanted, self._named = True, False
        with disk(partial):
            self._file: BinaryIO = partial.open("ab", buffering=0)
            self.offset = self._file.tell()
            """Bytes that are here."""
            self.durable = 0
            """Bytes that would be here after a power cut, as far as this stream knows."""
            if self.offset > size:
                self._forget()
        self._hash: _Hash | None = None if self.offset else hashlib.sha256()

    def __enter__(self) -> "Incoming":
        return self

    def __exit__(self, *_: object) -> None:
        self.supersede()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def supersede(self) -> None:
        """Nothing more is written here; another stream may go on with it."""
        self._wanted = False
        with self._syncing, self._busy:
            self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append; more than the declared size is a BadBlob."""
        with self._busy, disk(self._partial):
            self._check_open()
            if self.offset + len(data) > self._size:
                self._forget()
                raise BadBlob(f"an upload of {self._size} bytes was declared, and more were sent")
            digest = self._hashed()
            rest = memoryview(data)
            while rest:  # one write takes at most 2 GiB, and less where the disk is full
                taken = self._file.write(rest)
                digest.update(rest[:taken])
                rest = rest[taken:]
                self.offset += taken
                self._folder.note(taken)

    def sync(self) -> None:
        """Make durable what is written; more may be written meanwhile."""
        with self._syncing, disk(self._partial):
            if self._file.closed:
                return
            written = self.offset
            os.fdatasync(self._file.fileno())
            if not self._named:  # the file's own name, and its folder's
                sync_folder(self._partial.parent)
                sync_folder(self._partial.parent.parent)
                self._named = True
            self.durable = min(written, self.offset)

    def finish(self) -> None:
        """Check the digest, sync, and give the file its name. BadBlob (and nothing kept) if it is another."""
        with self._syncing, self._busy, disk(self._partial):
            self._check_open()
            if self.offset != self._size:
                raise BadBlob(f"an upload ended after {self.offset} of {self._size} bytes; send the rest")
            found = self._hashed().hexdigest()
            if found != self._digest:
                self._forget()
                raise BadBlob(
                    f"what arrived has SHA-256 {found[:12]}..., not {self._digest[:12]}...; send it again"
                )
            name_file(self._partial, self._final, self._file.fileno())
            self._file.close()  # this handle is the finished file's now: nobody may write through it
            sync_folder(self._final.parent.parent)
        self._whole(self._final)

    def _hashed(self) -> "_Hash":
        """The SHA-256 of what is here; what an earlier stream left is read for it, unless somebody takes over."""
        if self._hash is None:
            digest = hashlib.sha256()
            self._read(digest)
            self._hash = digest
        return self._hash

    def _read(self, digest: "_Hash") -> None:
        with self._partial.open("rb") as file:
            while piece := file.read(_PIECE):
                if not self._wanted:
                    raise Unavailable(_ELSEWHERE)
                digest.update(piece)

    def _check_open(self) -> None:
        if self._file.closed:
            raise Unavailable(_ELSEWHERE)

    def _forget(self) -> None:
        self._file.truncate(0)
        self._folder.note(-self.offset)
        self.offset = self.durable = 0
        self._hash = hashlib.sha256()
