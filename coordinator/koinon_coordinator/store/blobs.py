"""Large bytes as files, by their SHA-256: `blobs/ab/abcdef...`, and uploads on their way in `partial/`.

A blob appears under its name only when it is whole, checked and synced (write, fsync, rename, fsync of the
folder), so what a committed row names is always there. Small contents (up to 64 KiB) are not here but in their
database row: a file of its own would cost each of them half a millisecond.
"""

import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

from koinon_core.canonical import sha256
from koinon_core.codec import Window
from koinon_core.errors import BadBlob, StoreError, Unavailable

__all__ = ["Blobs", "Incoming"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """A folder of blobs. Safe for several threads; one process at a time may have it (StoreError)."""

    def __init__(self, root: Path):
        self._root = root
        self._partial = root / "partial"
        self._incoming: WeakValueDictionary[Path, Incoming] = WeakValueDictionary()
        self._guard = threading.Lock()
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            self._lock = (root / "lock").open("wb")
        except OSError as error:
            raise StoreError(f"the blobs' folder {root} cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise StoreError(
                f"another coordinator uses {root} and its database; stop it first, or name another --db"
            ) from None

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

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
        incoming = self.receive(digest, len(data), f"coordinator {threading.get_ident()}")
        if incoming is not None:
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
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(length)

        return window

    def receive(self, digest: str, size: int, owner: str) -> "Incoming | None":
        """Go on receiving the blob `digest` of `size` bytes from `owner`, from where it stopped; None if it is here."""
        path, partial = self.path(digest), self._part(digest, owner)
        with self._guard, _disk(path):
            path.parent.mkdir(exist_ok=True)
            # A device that was cut off and is back goes on where it was; its old stream may not know yet.
            if older := self._incoming.get(partial):
                older.supersede()
            # A device sends one update at a time: what it began and left lying is not kept beside it.
            for left in self._partial.glob(f"*-{partial.name.rpartition('-')[2]}"):
                stream = self._incoming.get(left)
                if left != partial and (stream is None or stream.closed):
                    left.unlink(missing_ok=True)
            if path.exists():
                return None
            incoming = self._incoming[partial] = Incoming(partial, path, digest, size)
        return incoming

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
    """An upload on its way: `write` in order, then `finish`. What was written stays when the link is cut.

    Every step holds one lock, so that a stream which takes over waits for the step under way, and a stream that was
    superseded, or is finished, touches the file no more.
    """

    def __init__(self, partial: Path, final: Path, digest: str, size: int):
        self._partial, self._final, self._digest, self._size = partial, final, digest, size
        self._busy = threading.Lock()
        with _disk(partial):
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
        """Nothing more is written here; another stream may go on with this upload."""
        with self._busy:
            self._file.close()

    def write(self, data: bytes) -> None:
        """Append; more than the declared size is a BadBlob."""
        with self._busy, _disk(self._partial):
            self._check_open()
            if self.offset + len(data) > self._size:
                self._forget()
                raise BadBlob(f"an upload of {self._size} bytes was declared, and more were sent")
            rest = memoryview(data)
            while rest:  # one write takes at most 2 GiB, and less where the disk is full
                taken = self._file.write(rest)
                rest = rest[taken:]
                self.offset += taken

    def finish(self) -> None:
        """Check the digest, sync, and give the blob its name. BadBlob (and nothing kept) if it is another."""
        with self._busy, _disk(self._partial):
            self._check_open()
            if self.offset != self._size:
                raise BadBlob(f"an upload ended after {self.offset} of {self._size} bytes; send the rest")
            os.fsync(self._file.fileno())
            with self._partial.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != self._digest:
                self._forget()
                raise BadBlob(
                    f"what arrived has SHA-256 {found[:12]}..., not {self._digest[:12]}...; send it again"
                )
            self._partial.rename(self._final)
            self._file.close()  # this handle is the blob's now: nobody may write through it
            for folder in (self._final.parent, self._final.parent.parent):
                fd = os.open(folder, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def _check_open(self) -> None:
        if self._file.closed:
            raise Unavailable("this upload goes on in another stream")

    def _forget(self) -> None:
        self._file.truncate(0)
        self.offset = 0


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """A disk that is full or broken is the coordinator's fault, not that of whoever's bytes these are."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path.parent} cannot be written: {error.strerror}; free some space or mend the disk"
        ) from error
