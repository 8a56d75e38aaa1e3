"""The folder beside the database: who has it, how full it may get, and how a file in it becomes durable.

One process at a time has the folder. It carries an `owner`, drawn when it was made: a coordinator that finds its own
owner on a run, and has the folder's lock, knows that whoever served the run before is gone.
"""

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from koinon_core.errors import StoreError
from koinon_core.failpoints import hit

__all__ = ["Folder", "disk", "lock", "name_file", "sync_folder"]

_RESERVE = 64 << 20
"""Bytes of the file system that uploads leave free: a database on it must still be able to say that it is full."""


class Folder:
    """A locked folder. `quota` is the most bytes that may be in it, None: as many as the disk has."""

    def __init__(self, root: Path, quota: int | None = None):
        self.root, self.quota = root, quota
        self._counting = threading.Lock()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the blobs' folder {root} cannot be made: {error.strerror}") from error
        self._lock = lock(root / "lock")
        self.owner = self._owner()
        self.used = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())

    def _owner(self) -> str:
        path = self.root / "owner"
        with disk(path):
            if not path.exists() or not path.read_text().strip():
                fresh = path.with_suffix(".new")
                with fresh.open("w") as file:
                    file.write(os.urandom(16).hex())
                    file.flush()
                    name_file(fresh, path, file.fileno())
            return path.read_text().strip()

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def make_room(self, nbytes: int) -> None:
        """Raise StoreError, before anything is written, if so many bytes more do not fit."""
        if self.quota is not None and self.used + nbytes > self.quota:
            raise StoreError(
                f"{self.root} holds {self.used} of the {self.quota} bytes that --quota allows, and {nbytes} more are "
                "needed; raise it, or keep fewer rounds (retention and models in the run's config)"
            )
        with disk(self.root / "lock"):
            free = shutil.disk_usage(self.root).free
        if free < nbytes + _RESERVE:
            raise StoreError(
                f"the disk of {self.root} has {free} bytes left, and {nbytes} are needed beside a reserve of "
                f"{_RESERVE}; free some space"
            )

    def note(self, nbytes: int) -> None:
        """Bytes came (or, negative, went)."""
        with self._counting:
            self.used = max(0, self.used + nbytes)

    def remove(self, path: Path) -> None:
        """Remove a file that nothing names any more."""
        with disk(path):
            try:
                nbytes = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                return
            self.note(-nbytes)
            hit("blob.removed", path.name)


def lock(path: Path) -> BinaryIO:
    """The lock at `path`, held until it is closed; StoreError if another process has it."""
    with disk(path):
        held = path.open("wb")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise StoreError(
            f"another coordinator uses {path.parent} and its database; stop it first, or name another --db"
        ) from None
    return held


def name_file(temporary: Path, final: Path, fd: int) -> None:
    """Make a written file durable and give it its name: sync, rename, sync of the folder."""
    hit("blob.written", final.name)
    os.fsync(fd)
    hit("blob.synced", final.name)
    temporary.rename(final)
    hit("blob.named", final.name)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """A disk that is full or broken is the coordinator's fault, not that of whoever's bytes these are."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path.parent} cannot be written: {error.strerror}; free some space or mend the disk"
        ) from error
