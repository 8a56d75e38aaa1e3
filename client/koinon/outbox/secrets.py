"""The journal in folders: secrets in this machine's memory, where only a kill leaves them, masked updates beside the
other updates, where they may be large."""

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from koinon.outbox import files
from koinon.outbox.files import Damaged
from koinon.outbox.folder import disk, own, runtime_of
from koinon.outbox.journal import Entry
from koinon.outbox.updates import OpenFile, checked
from koinon_core.blob import Blob
from koinon_core.failpoints import hit

__all__ = ["DiskJournal"]


class DiskJournal:
    """In `folder` (masked updates) and, for secrets, in a folder of its own in this machine's memory."""

    def __init__(self, folder: Path, secrets: Path | None = None):
        self._folder = folder
        self._secrets = secrets or runtime_of(folder)
        with disk(self._secrets):
            own(self._secrets)

    def load(self, run: str) -> Entry | None:
        path = self._entry(run)
        with disk(self._secrets):
            try:
                head, _, secrets = path.read_bytes().partition(b"\n")
            except FileNotFoundError:
                return None
        try:
            facts = json.loads(head)
        except ValueError:
            return None  # cut short, which renaming does not leave behind: somebody else's
        # What another boot left (on a folder that is no memory after all) may be older than what was said since.
        return Entry(facts, secrets) if isinstance(facts, dict) and facts.pop("boot", "") == _boot() else None

    def save(self, run: str, entry: Entry) -> None:
        path = self._entry(run)
        new = path.with_suffix(".new")
        with disk(self._secrets):
            own(self._secrets)  # somebody's logout may have cleared it
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(
                    json.dumps({**entry.facts, "boot": _boot()}, sort_keys=True).encode()
                    + b"\n"
                    + entry.secrets
                )
            hit("journal.written", str(entry.facts.get("said", "")))
            new.replace(path)
            hit("journal.named", str(entry.facts.get("said", "")))

    def masked(self, run: str) -> "_File":
        with disk(self._folder):
            self._update(run).parent.mkdir(mode=0o700, exist_ok=True)
            return _File(self._update(run))

    def kept(self, run: str, digest: str, size: int) -> Blob | None:
        path = self._update(run)
        if not path.exists():
            return None
        try:
            return checked(path, digest, size)
        except Damaged:
            return None  # it was not finished, or the power went: nothing of it was kept for that

    def end(self, run: str) -> None:
        for path in (self._entry(run), self._update(run)):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _entry(self, run: str) -> Path:
        return self._secrets / f"{files.safe(run)}.session"

    def _update(self, run: str) -> Path:
        # Not one of the outbox's own names: it sweeps what nothing of its leads to.
        return self._folder / "masked" / files.safe(run)


class _File:
    """A masked update on its way. A kill leaves it whole; a power cut takes the session, and need not leave it."""

    def __init__(self, path: Path):
        self._folder, self._digest, self._size = path.parent, hashlib.sha256(), 0
        path.unlink(missing_ok=True)  # whoever reads the one before reads on
        self._file = OpenFile(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def write(self, data: bytes) -> None:
        with disk(self._folder):
            self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def finish(self) -> Blob:
        hit("journal.masked")
        return Blob(self._digest.hexdigest(), self._size, self._file.read)


@cache
def _boot() -> str:
    """Which start of this machine this is; empty where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
