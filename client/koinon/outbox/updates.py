"""An update as a file of an outbox: the bytes that are sent, as they are, however many there are.

Nobody holds all of them. They go to the disk as they are made, and leave it piece by piece; what is read is an open
file, which stays what it is when its name changes or goes.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from koinon.outbox.files import whole
from koinon.outbox.folder import disk
from koinon_core.blob import Blob
from koinon_core.errors import BadBlob, LocalProtocolError
from koinon_core.failpoints import hit
from koinon_core.wire.convert import INLINE

__all__ = ["PIECE", "OpenFile", "UpdateDraft", "checked", "filed"]

PIECE = 1 << 20


def filed(size: int) -> bool:
    """Whether an update of `size` bytes has a file of its own; a smaller one is inside its run's `sent`."""
    return size > INLINE


class UpdateDraft:
    """An update on its way: in memory while it is small, in the file `path` from there on.

    StoreError if the disk does not take it, LocalProtocolError once it was let go; it leaves nothing behind in both.
    """

    def __init__(self, path: Path):
        self.path = path
        self.blob: Blob | None = None
        """What came of it, once it is complete."""
        self._digest = hashlib.sha256()
        self._size = 0
        self._small: list[bytes] = []
        self._file: OpenFile | None = None
        self._gone = False

    def write(self, data: bytes) -> None:
        self._ours()
        self._digest.update(data)
        self._size += len(data)
        if not filed(self._size):
            self._small.append(data)
            return
        try:
            with disk(self.path.parent):
                if self._file is None:
                    self._file = OpenFile(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                    data, self._small = b"".join([*self._small, data]), []
                self._file.write(data)
        except Exception:
            self.let_go()
            raise

    def finish(self) -> Blob:
        """The update. A large one is durable: whoever keeps it need only name it, and holds nobody up meanwhile."""
        self._ours()
        if self._file is None:
            self.blob = Blob.of(b"".join(self._small))
            return self.blob
        try:
            with disk(self.path.parent):
                hit("outbox.written", "update")
                self._file.sync()
                hit("outbox.synced", "update")
        except Exception:
            self.let_go()
            raise
        self.blob = Blob(self._digest.hexdigest(), self._size, self._file.read)
        return self.blob

    def let_go(self) -> None:
        """Nobody wants it any more. Who reads it already reads on."""
        if self._file is not None:
            with suppress(OSError):  # it takes some place until the next start, and that is all
                self.path.unlink(missing_ok=True)
        self._file, self._small, self._gone = None, [], True

    def _ours(self) -> None:
        if self._gone:
            raise LocalProtocolError(
                "this update was given up while it was made, for another one was begun or the memory was closed"
            )


class OpenFile:
    """A file, open for as long as somebody has it: nobody can say when its last reader is done."""

    def __init__(self, path: Path, flags: int):
        self._folder, self._fd = path.parent, -1
        self._fd = os.open(path, flags, 0o600)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """A window on it; StoreError if the disk cannot read it any more."""
        with disk(self._folder):
            return os.pread(self._fd, length, offset)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # one write takes at most 2 GiB, and what a full disk has place for
            rest = rest[os.write(self._fd, rest) :]

    def sync(self) -> None:
        os.fsync(self._fd)


def checked(path: Path, digest: str, size: int) -> Blob:
    """The update in `path`. Damaged if it has not `size` bytes with this SHA-256."""
    with whole(path):
        file = OpenFile(path, os.O_RDONLY)
        if file.size() != size:
            raise BadBlob(f"it has {file.size()} bytes, and {size} were written")
        blob, found = Blob(digest, size, file.read), hashlib.sha256()
        for piece in blob.pieces(PIECE):
            found.update(piece)
        if found.hexdigest() != digest:
            raise BadBlob("its content does not have the SHA-256 that it was written with")
        return blob
