"""A file on its way: written in order, resumable where it stopped, and under its name only when it is whole, checked
and synced."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from koinon_coordinator.store.folder import Folder, disk, name_file, sync_folder
from koinon_core.errors import BadBlob, Unavailable

__all__ = ["Incoming"]


class Incoming:
    """Bytes on their way to `final`: `write` in order, then `finish`. What was written stays when the link is cut.

    Every step holds one lock, so that a stream which takes over waits for the step under way, and a stream that was
    superseded, or is finished, touches the file no more. `whole` is told when it has its name.
    """

    def __init__(
        self, folder: Folder, partial: Path, final: Path, digest: str, size: int,
        whole: Callable[[Path], object] = lambda final: None,
    ):  # fmt: skip
        self._folder, self._partial, self._final, self._whole = folder, partial, final, whole
        self._digest, self._size = digest, size
        self._busy = threading.Lock()
        with disk(partial):
            self._file: BinaryIO = partial.open("ab", buffering=0)
            self.offset = self._file.tell()
            if self.offset > size:
                self._forget()

    def __enter__(self) -> "Incoming":
        return self

    def __exit__(self, *_: object) -> None:
        self.supersede()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def supersede(self) -> None:
        """Nothing more is written here; another stream may go on with it."""
        with self._busy:
            self._file.close()

    def write(self, data: bytes) -> None:
        """Append; more than the declared size is a BadBlob."""
        with self._busy, disk(self._partial):
            self._check_open()
            if self.offset + len(data) > self._size:
                self._forget()
                raise BadBlob(f"an upload of {self._size} bytes was declared, and more were sent")
            rest = memoryview(data)
            while rest:  # one write takes at most 2 GiB, and less where the disk is full
                taken = self._file.write(rest)
                rest = rest[taken:]
                self.offset += taken
                self._folder.note(taken)

    def finish(self) -> None:
        """Check the digest, sync, and give the file its name. BadBlob (and nothing kept) if it is another."""
        with self._busy, disk(self._partial):
            self._check_open()
            if self.offset != self._size:
                raise BadBlob(f"an upload ended after {self.offset} of {self._size} bytes; send the rest")
            with self._partial.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != self._digest:
                self._forget()
                raise BadBlob(
                    f"what arrived has SHA-256 {found[:12]}..., not {self._digest[:12]}...; send it again"
                )
            name_file(self._partial, self._final, self._file.fileno())
            self._file.close()  # this handle is the finished file's now: nobody may write through it
            sync_folder(self._final.parent.parent)
        self._whole(self._final)

    def _check_open(self) -> None:
        if self._file.closed:
            raise Unavailable("this upload goes on in another stream")

    def _forget(self) -> None:
        self._file.truncate(0)
        self._folder.note(-self.offset)
        self.offset = 0
