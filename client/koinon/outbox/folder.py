"""A device's folder: one process at a time has it, and each start in it has a number.

lock      held by the process that has the folder
device    which device this is, and how often it was started
"""

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from weakref import WeakSet

from koinon.outbox import files
from koinon_core.errors import Conflict, LocalProtocolError, StoreError

__all__ = ["Folder", "disk", "own", "runtime_of"]

_locks: WeakSet[IO[bytes]] = WeakSet()


def _let_go() -> None:
    for lock in _locks:
        lock.close()


# A forked data loader would hold the folder for its dead parent, and keep the device from starting again.
os.register_at_fork(after_in_child=_let_go)


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Where something in `folder` is read or written: StoreError says what its owner can do about the disk."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"this device cannot keep its memory in {folder}: {error.strerror or error}; free some space "
            "there, or see that its user may write there and that the disk is sound"
        ) from error


def _runtime() -> Path:
    """A folder of this user's that is memory; StoreError's way out is the outbox's own folder, if there is none."""
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        given = os.environ.get(name, "").partition(":")[0]
        if given and os.access(given, os.W_OK):
            return Path(given) / "koinon"
    shared = Path("/dev/shm")  # noqa: S108 - memory, and the folder in it is checked to be this user's alone
    base = shared if shared.is_dir() and os.access(shared, os.W_OK) else Path("/tmp")  # noqa: S108 - as above
    return base / f"koinon-{os.getuid()}"


def runtime_of(folder: Path) -> Path:
    """Where in this machine's memory a device whose folder that is keeps what a reboot may take."""
    return _runtime() / hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:24]


def own(folder: Path) -> None:
    """Make a folder that nobody else reads; OSError if another user made it first."""
    for path in (folder.parent, folder):
        path.mkdir(parents=True, mode=0o700, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(
                f"{path} belongs to somebody else; set XDG_RUNTIME_DIR to a folder of this user's"
            )
        if path == folder:
            path.chmod(0o700)


class Folder:
    """The folder at `path`, made if it is not there. Conflict if another process has it."""

    instance: str
    """The memory's own id, drawn once."""
    boot: int
    """How often a process has started on it, this one included."""

    def __init__(self, path: Path, name: str = ""):
        self.path = path.absolute()
        with disk(self.path):
            files.make(self.path)
            self.lock = os.fdopen(os.open(self.path / "lock", os.O_WRONLY | os.O_CREAT, 0o600), "wb")
            _locks.add(self.lock)
            try:
                self._occupy(name or path.name)
                self._start()
            except BaseException:
                self.lock.close()
                raise

    @property
    def gone(self) -> bool:
        """Whether this process has it no more."""
        return self.lock.closed

    def let_go(self) -> None:
        self.lock.close()

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Where the folder is read or written: StoreError for its disk, LocalProtocolError if it was let go."""
        if self.gone:
            raise LocalProtocolError(f"{self.path} was let go: this process writes there no more")
        with disk(self.path):
            yield

    def _occupy(self, name: str) -> None:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another process of this machine is device {name!r} already, and has {self.path}; stop that one, "
                "or give this one a name of its own"
            ) from None

    def _start(self) -> None:
        path, instance, boot = self.path / "device", os.urandom(16).hex(), 0
        if path.exists() or any(self.path.glob("*.run")):
            with files.whole(path):
                header, _ = files.read(path, "device", "")
                instance, boot = header["instance"], header["boot"]
        self.instance, self.boot = instance, boot + 1
        header = {"kind": "device", "run": "", "instance": self.instance, "boot": self.boot}
        files.write(files.File(path, header))
