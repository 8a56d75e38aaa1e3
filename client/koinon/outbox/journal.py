"""What a device must not lose while a secure sum is under way, and must lose when the power goes.

The secrets of a session live in a folder that is memory (systemd's RuntimeDirectory, XDG_RUNTIME_DIR or /dev/shm): a
killed process finds them again, a reboot does not, and flash that never really erases has none of them. The masked
update itself is no secret; it lies beside the other updates, because it may be large.

    begin     before the first key is drawn: from here on, what is missing has been lost
    save      before every word that leaves: what the device knows of the session, and that word
    end       the round is settled
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from koinon_core.blob import Blob
from koinon_core.draft import Draft, MemoryDraft

__all__ = ["Entry", "Journal", "MemoryJournal"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept of a session: a few JSON values, and the bytes of its secrets."""

    facts: Mapping[str, Any]
    secrets: bytes


class Journal(Protocol):
    """A device's journal of secure rounds, by run."""

    def load(self, run: str) -> Entry | None:
        """What was saved last; None if there is nothing (any more)."""
        ...

    def save(self, run: str, entry: Entry) -> None:
        """Replace what was saved."""
        ...

    def masked(self, run: str) -> Draft:
        """What a masked update is written into; it takes the place of the one before."""
        ...

    def kept(self, run: str, digest: str, size: int) -> Blob | None:
        """The masked update that was finished; None if it is not there as it was."""
        ...

    def end(self, run: str) -> None:
        """Nothing of it is needed any more."""
        ...


class MemoryJournal:
    """Nothing durable: for devices without a name of their own, and for the simulation."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._drafts: dict[str, _Finished] = {}

    def load(self, run: str) -> Entry | None:
        return self._entries.get(run)

    def save(self, run: str, entry: Entry) -> None:
        self._entries[run] = entry

    def masked(self, run: str) -> "_Finished":
        self._drafts[run] = _Finished()
        return self._drafts[run]

    def kept(self, run: str, digest: str, size: int) -> Blob | None:
        draft = self._drafts.get(run)
        return (
            draft.blob
            if draft is not None and draft.blob is not None and draft.blob.digest == digest
            else None
        )

    def end(self, run: str) -> None:
        self._entries.pop(run, None)
        self._drafts.pop(run, None)


class _Finished(MemoryDraft):
    """A draft that remembers what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.blob: Blob | None = None

    def finish(self) -> Blob:
        self.blob = super().finish()
        return self.blob
