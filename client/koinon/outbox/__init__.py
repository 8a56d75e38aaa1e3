"""The outbox: an update written here is sent until its fate is known, whatever happens to the power.

memory.py   what a device remembers, what may happen to it, and the memory of a device without a name
disk.py     the same in a folder
updates.py  a large update there: a file of its own, which nobody need have in memory
states.py   a strategy's state there
files.py    what a file there looks like, and how it gets its name
folder.py   the folder itself, and whose it is
journal.py  what a device keeps of a secure round's sessions, and secrets.py where: a kill leaves it, a power cut not
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from koinon.lazily import lazily
from koinon_core.errors import UsageError

if TYPE_CHECKING:
    from koinon.outbox.disk import DiskOutbox
    from koinon.outbox.memory import Kept, MemoryOutbox, Outbox, Sent

__all__ = ["DiskOutbox", "Kept", "MemoryOutbox", "Outbox", "Sent", "open_outbox"]

__getattr__ = lazily(
    __name__,
    {
        "koinon.outbox.disk": ["DiskOutbox"],
        "koinon.outbox.memory": ["Kept", "MemoryOutbox", "Outbox", "Sent"],
    },
)


def open_outbox(name: str | None, folder: Path | None = None) -> "Outbox":
    """The memory of the device that its owner calls `name`, in `folder` ($KOINON_STATE, $XDG_STATE_HOME/koinon,
    ~/.local/state/koinon). Without a name it could not be recognised when it comes back: nothing is kept for it.

    Raises Conflict if another process has that memory, StoreError if it is damaged or cannot be written.
    """
    from koinon.outbox.disk import DiskOutbox
    from koinon.outbox.files import safe
    from koinon.outbox.memory import MemoryOutbox

    if not name:
        return MemoryOutbox()
    return DiskOutbox((folder or _home()) / safe(name), name)


def _home() -> Path:
    if given := os.environ.get("KOINON_STATE"):
        return Path(given)
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "koinon"
    try:
        return Path.home() / ".local" / "state" / "koinon"
    except RuntimeError:
        raise UsageError(
            "this user has no home to keep the device's memory in; name a folder in KOINON_STATE"
        ) from None
