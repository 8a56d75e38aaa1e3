"""Large contents (models, states of strategies) as files, by their SHA-256: `ab/abcdef...`.

A blob is there, whole and synced, before a row names it; and it goes only after no row does. Between the two, a
digest that was put and whose row is not committed yet is pinned, so that collecting cannot take it away.
"""

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from koinon_coordinator.store.folder import Folder, disk, name_file, sync_folder
from koinon_core.codec import Window
from koinon_core.errors import BadBlob, StoreError

__all__ = ["Blobs", "blob_path", "check_digest", "file_size", "file_window"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_digest(digest: str) -> str:
    """`digest`; BadBlob if it is none."""
    if not _DIGEST.fullmatch(digest):
        raise BadBlob(f"{digest[:80]!r} is not the SHA-256 of anything")
    return digest


def blob_path(root: Path, digest: str) -> Path:
    """Where a blob of the folder `root` is, or would be."""
    return root / check_digest(digest)[:2] / digest


class Blobs:
    """The blobs of a folder. Safe for several threads."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._guard = threading.Lock()
        self._pinned: Counter[str] = Counter()
        self._sound: set[str] = set()  # what was seen whole since this process has the folder

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        return blob_path(self._folder.root, digest)

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    def take(self, partial: Path, file: BinaryIO, digest: str) -> None:
        """A written file becomes the blob `digest`, which its bytes must have; pinned until it is given to `unpin`.
        The file is closed."""
        path = self.path(digest)
        with self._guard:
            self._pinned[digest] += 1
            there = path.exists()
        try:
            with disk(path), file:
                path.parent.mkdir(exist_ok=True)
                if not there:
                    name_file(partial, path, file.fileno())
                    self._sound.add(digest)
            if there:
                self._folder.remove(partial)
            with disk(path):
                # Also where it is there: whoever named it may be about to sync the folder, or may have failed to.
                sync_folder(path.parent)
                sync_folder(self._folder.root)
        except StoreError:
            self._folder.remove(partial)
            self.unpin([digest])
            raise

    def unpin(self, digests: Iterable[str]) -> None:
        """Rows that name these are committed."""
        with self._guard:
            self._pinned -= Counter(digests)

    def size(self, digest: str) -> int:
        """Bytes of a blob; StoreError if it is not there."""
        return file_size(self.path(digest))

    def window(self, digest: str) -> Window:
        """Read any part of a blob; nothing is mapped, nothing stays open. What an earlier process left is read once
        to see that it is whole still: StoreError if it is not."""
        path = self.path(digest)
        file_size(path)
        if digest not in self._sound:
            with disk(path), path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise StoreError(f"content {digest[:12]}... is damaged on disk; restore it from a backup")
            self._sound.add(digest)
        return file_window(path)

    def collect(self, digests: Iterable[str], release: Callable[[set[str]], Iterable[str]]) -> None:
        """Remove those of `digests` that nothing needs. `release` deletes the rows of those that no other row names,
        and returns them once that is committed."""
        with self._guard:
            for digest in release({d for d in digests if not self._pinned[d]}):
                self._sound.discard(digest)
                self._folder.remove(self.path(digest))

    def sweep(self, named: set[str]) -> int:
        """Remove every file that no row names: what was put, or was about to be removed, when a process died. To be
        called before anything else uses the folder. Returns how many there were."""
        gone = 0
        # 0.1.0 kept what was on its way in a folder of its own.
        for shelf in (*self._folder.root.glob("[0-9a-f][0-9a-f]"), *self._folder.root.glob("partial")):
            for path in shelf.iterdir():
                if path.name not in named:
                    self._folder.remove(path)
                    gone += 1
        return gone


def file_size(path: Path) -> int:
    """Bytes of a file that must be there; StoreError if it is not."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise StoreError(
            f"blob {path.name[:12]}... is missing from {path.parent}; restore the folder from its backup"
        ) from None


def file_window(path: Path) -> Window:
    """A reader of any part of a file."""

    def window(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return window
