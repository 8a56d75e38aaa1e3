"""Failpoints: named places at which a test may stop, delay or break a program.

Every commit, file sync and message of both sides passes one. In an installed program all are off, and nothing but
code can arm them: there is no switch, no environment variable, no setting.
"""

from collections.abc import Callable

__all__ = ["NAMES", "arm", "disarm", "hit"]

NAMES = {
    "store.begun": "a transaction has its lock and has written nothing yet",
    "store.written": "its rows are written, and not committed",
    "store.committed": "it is committed, and nobody has been told",
    "blob.written": "a blob's bytes are written, and not synced",
    "blob.synced": "they are synced, and not under their name",
    "blob.named": "they have their name, and the folder is not synced",
    "blob.removed": "a blob that nothing names is gone",
    "outbox.written": "a device's file is written, and not synced",
    "outbox.synced": "it is synced, and not under its name",
    "outbox.named": "it has its name, and the folder is not synced",
    "outbox.removed": "a device's file is removed",
    "journal.written": "what a device knows of a secure round is written, and not under its name",
    "journal.named": "it has its name, and the word that it is about has not left",
    "journal.masked": "a masked update is whole, and the journal does not say so yet",
    "life.written": "where an edge device stands is written, and not under its name",
    "life.named": "it has its name, and what comes of it has not been done",
    "rpc.heard": "the coordinator has read a device's message",
    "rpc.said": "the coordinator is about to send a device a message",
    "rpc.upload": "a piece of an upload has arrived",
    "rpc.download": "a piece of a download is about to leave",
    "link.attend": "a device is about to open its stream",
    "link.said": "a device is about to send a message",
    "link.heard": "a device has read a message",
    "link.upload": "a device is about to send a piece of an upload",
}
"""Every failpoint, and what has happened where it is."""

Action = Callable[[str], None]
_armed: dict[str, Action] = {}


def hit(name: str, about: str = "") -> None:
    """Called where the failpoint is. `about` says more: the transaction's name, the file's, the message's kind."""
    if _armed and (action := _armed.get(name)) is not None:
        action(about)


def arm(name: str, action: Action) -> None:
    """Let `action(about)` happen there; it may raise, sleep, or end the process. For tests."""
    if name not in NAMES:
        raise ValueError(f"there is no failpoint {name!r}")
    _armed[name] = action


def disarm() -> None:
    """All off again."""
    _armed.clear()
