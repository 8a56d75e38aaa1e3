"""Large bytes as files, by their SHA-256: `blobs/ab/abcdef...`, and uploads on their way in `partial/`.

A blob appears under its name only when it is whole, checked and synced (write, fsync, rename, fsync of the
folder), so what a committed row names is always there. Small contents (up to 64 KiB) are not here but in their
database row: a file of its own would cost each of them half a millisecond.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

from koinon_core.canonical import sha256
from koinon_core.codec import Window
from koinon_core.errors import BadBlob, StoreError

__all__ = ["Blobs", "Incoming"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """A folder of blobs. Safe for several threads; one process at a time writes to it."""

    def __init__(self, root: Path):
        self._root = root
        self._partial = root / "partial"
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the blobs' folder {root} cannot be made: {error.strerror}") from error

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        if not _DIGEST.fullmatch(digest):
            raise BadBlob(f"{digest[:80]!r} is not the SHA-256 of anything")
        return self._root / digest[:2] / digest

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    def put(self, data: bytes) -> str:
        """Make `data` durable; returns its digest."""
        digest = sha256(data)
        if not self.has(digest):
            incoming = self.receive(digest, len(data), "coordinator")
            with incoming:
                incoming.write(data)
                incoming.finish()
        return digest

    def size(self, digest: str) -> int:
        """Bytes of a blob; StoreError if it is not there."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise StoreError(
                f"blob {digest[:12]}... is missing from {self._root}; restore the folder from its backup"
            ) from None

    def window(self, digest: str) -> Window:
        """Read any part of a blob; nothing is mapped, nothing stays open."""
        path = self.path(digest)
        self.size(digest)

        def window(offset: int, length: int) -> bytes:
            with path.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), length, offset)

        return window

    def receive(self, digest: str, size: int, owner: str) -> "Incoming":
        """Go on receiving the blob `digest` of `size` bytes from `owner`, from where it stopped."""
        path = self.path(digest)
        path.parent.mkdir(exist_ok=True)
        return Incoming(self._part(digest, owner), path, digest, size)

    def _part(self, digest: str, owner: str) -> Path:
        # Two devices that send the same bytes at once must not write into one file.
        return self._partial / f"{digest}-{sha256(owner.encode())[:16]}"

    def received(self, digest: str, owner: str) -> int:
        """Bytes of `owner`'s partial upload that are here."""
        self.path(digest)
        try:
            return self._part(digest, owner).stat().st_size
        except FileNotFoundError:
            return 0


class Incoming:
    """An upload on its way: `write` in order, then `finish`. What was written stays when the link is cut."""

    def __init__(self, partial: Path, final: Path, digest: str, size: int):
        self._partial, self._final, self._digest, self._size = partial, final, digest, size
        self._file: BinaryIO = partial.open("ab", buffering=0)
        self.offset = self._file.tell()
        if self.offset > size:
            self._file.truncate(0)
            self.offset = 0

    def __enter__(self) -> "Incoming":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        """Append; more than the declared size is a BadBlob."""
        if self.offset + len(data) > self._size:
            self.discard()
            raise BadBlob(f"an upload of {self._size} bytes was declared, and more were sent")
        self._file.write(data)
        self.offset += len(data)

    def finish(self) -> None:
        """Check the digest, sync, and give the blob its name. BadBlob (and nothing kept) if it is another."""
        if self.offset != self._size:
            raise BadBlob(f"an upload ended after {self.offset} of {self._size} bytes; send the rest")
        os.fsync(self._file.fileno())
        with self._partial.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self._digest:
            self.discard()
            raise BadBlob(
                f"what arrived has SHA-256 {found[:12]}..., not {self._digest[:12]}...; send it again"
            )
        self._partial.rename(self._final)
        for folder in (self._final.parent, self._final.parent.parent):
            fd = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def discard(self) -> None:
        """Forget what arrived."""
        self._file.truncate(0)
        self.offset = 0
