"""Where the daemon keeps what: beside the device's memory, in a folder "edge", and in this machine's memory.

edge/lock            held by the one daemon of this device
edge/life.json       where it stands (life.py)
edge/budget.json     the bytes that were moved today and this month
edge/work/TASK/      tensors on their way between the worker and the owner's program
RUNTIME/edge/        local sockets, and the owner's end of koinon_child: gone with a reboot
"""

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import koinon.child
from koinon.identity.access import Access, device_access, device_folder
from koinon.outbox import files
from koinon.outbox.folder import disk, own, runtime_of
from koinon_core.errors import Conflict, NotFound, UsageError
from koinon_edge.settings import Settings, TaskSettings

__all__ = ["Place", "found"]


@dataclass(frozen=True, slots=True)
class Place:
    """The device `name` with its `folder`, how it gets at its coordinator, and its folder in this machine's memory."""

    name: str
    folder: Path
    access: Access
    runtime: Path

    @property
    def edge(self) -> Path:
        return self.folder / "edge"

    def work(self, task: TaskSettings) -> Path:
        """Where tensors of a task lie."""
        path = self.edge / "work" / files.safe(task.name)
        with disk(self.edge):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def socket(self, task: TaskSettings) -> Path:
        return self.runtime / f"{files.safe(task.name)[-24:]}.sock"

    @property
    def child(self) -> Path:
        """The folder with koinon_child in it, for the owner's program to import."""
        return self.runtime / "child"

    @property
    def occupied(self) -> bool:
        """Whether a daemon of this device runs."""
        if not (self.edge / "lock").exists():
            return False
        lock = self._lock()
        if lock is not None:
            lock.close()
        return lock is None

    def occupy(self) -> IO[bytes]:
        """Be the one daemon of this device, for as long as what is returned is open. Conflict if there is one."""
        with disk(self.edge):
            self.edge.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._lock()
        if lock is None:
            raise Conflict(
                f"another koinon-edge runs for device {self.name!r} on this machine; stop that one first"
            )
        with disk(self.runtime):
            own(self.runtime.parent)
            own(self.runtime)
            self._lay_out_child()
        return lock

    def _lock(self) -> IO[bytes] | None:
        """The lock, held; None if another process has it."""
        lock = os.fdopen(os.open(self.edge / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock

    def _lay_out_child(self) -> None:
        """A copy, and no link: it is mounted into containers, and read by other Pythons."""
        source = Path(koinon.child.__file__).parent
        shutil.rmtree(self.child, ignore_errors=True)
        target = self.child / "koinon_child"
        target.mkdir(parents=True)
        for path in source.glob("*.py"):
            shutil.copy(path, target / path.name)


def found(settings: Settings, insecure: bool | None = None) -> Place:
    """The place of the device that edge.toml speaks of. UsageError if it has no credentials, saying how to enrol."""
    where = (
        settings.credentials or settings.state or "the usual place (~/.local/state/koinon, or KOINON_STATE)"
    )
    try:
        access = device_access(
            settings.address,
            settings.name,
            credentials=settings.credentials,
            insecure=insecure,
            state=settings.state,
        )
    except NotFound:
        raise UsageError(
            f"{f'device {settings.name!r}' if settings.name else 'this device'} has no credentials in {where}: run "
            f"`koinon-edge enrol --config {settings.path}` with a token of an operator's; if it enrolled elsewhere, "
            "say where with state or credentials in that file"
        ) from None
    name = access.credentials.id if access.credentials is not None else settings.name
    if not name:
        raise UsageError(f"say in {settings.path} which device this is: name = ...")
    folder = device_folder(name, settings.state)
    return Place(name, folder, access, runtime_of(folder) / "edge")
