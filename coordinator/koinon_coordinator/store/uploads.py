"""Large updates as files, each under its run, round and device: `updates/RUN/ROUND/OWNER-DIGEST`, and `....part`
while it is on its way.

An update belongs to one device's part in one round and to nothing else, so it is never shared, nobody can name
another's, and scrubbing a round is removing its folder.
"""

import hashlib
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from koinon_coordinator.store.blobs import check_digest, file_size, file_window
from koinon_coordinator.store.folder import Folder, disk, sync_folder
from koinon_coordinator.store.incoming import Incoming
from koinon_core.blob import Window
from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob
from koinon_core.failpoints import hit

__all__ = ["Part", "Uploads", "damaged", "update_path"]


_TRIES = 12
"""Different updates of one device's part that may lie here: one for every attempt at a secure sum, and what was damaged
on its way is sent anew."""


@dataclass(frozen=True, slots=True)
class Part:
    """One device's part in one round: what an upload is for."""

    run: str
    round: int
    client: str


def update_path(root: Path, part: Part, digest: str) -> Path:
    """Where an update in the folder `root` is, or would be."""
    owner = sha256(part.client.encode())[:16]
    return root / "updates" / part.run / str(part.round) / f"{owner}-{check_digest(digest)}"


def damaged(client: str) -> BadBlob:
    """What is said of an update whose bytes are not those that were handed in."""
    return BadBlob(f"the update of {client} is damaged on disk")


class Uploads:
    """The updates in a folder. Safe for several threads."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._root = folder.root / "updates"
        self._incoming: WeakValueDictionary[Path, Incoming] = WeakValueDictionary()
        self._sound: set[Path] = set()  # what was seen whole since this process has the folder
        self._began: dict[Path, float] = {}
        self._took: dict[Path, float] = {}
        self._guard = threading.Lock()

    def _shelf(self, run: str, round_: int) -> Path:
        return self._root / run / str(round_)

    def path(self, part: Part, digest: str) -> Path:
        """Where the update is, or would be."""
        return update_path(self._folder.root, part, digest)

    def has(self, part: Part, digest: str) -> bool:
        return self.path(part, digest).exists()

    def window(self, part: Part, digest: str) -> Window:
        """Read any part of an update; StoreError if it is not there. What an earlier process left is read once to
        see that it is whole still: BadBlob if it is not."""
        path = self.path(part, digest)
        file_size(path)
        if path not in self._sound:
            with disk(path), path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise damaged(part.client)
            self._found_whole(path)
        return file_window(path)

    def receive(self, part: Part, digest: str, size: int) -> Incoming | None:
        """Go on receiving an update of `size` bytes from where it stopped; None if it is here. StoreError if there is
        no room for it."""
        path = self.path(part, digest)
        partial = _partial(path)
        with self._guard, disk(path):
            # A device that was cut off and is back goes on where it was; its old stream may not know yet.
            if older := self._incoming.get(partial):
                older.supersede()
            # A device sends one update at a time: what it began and left lying is not kept beside it.
            for left in path.parent.glob(f"{path.name.partition('-')[0]}-*.part"):
                stream = self._incoming.get(left)
                if left != partial and (stream is None or stream.closed):
                    self._folder.remove(left)
            if path.exists():
                return None
            if len(list(path.parent.glob(f"{path.name.partition('-')[0]}-*"))) >= _TRIES:
                raise BadBlob(f"this device has uploaded {_TRIES} updates for one round, and may hand in one")
            self._folder.make_room(size - (partial.stat().st_size if partial.exists() else 0))
            path.parent.mkdir(parents=True, exist_ok=True)
            incoming = Incoming(self._folder, partial, path, digest, size, self._found_whole)
            self._incoming[partial] = incoming
            self._began.setdefault(path, time.monotonic())
        return incoming

    def seconds(self, part: Part, digest: str) -> float:
        """How long an update took from its first byte to its last, with all cuts; 0 if it came to an earlier
        process."""
        return self._took.get(self.path(part, digest), 0.0)

    def _found_whole(self, path: Path) -> None:
        with self._guard:
            self._sound.add(path)
            if began := self._began.pop(path, None):
                self._took[path] = time.monotonic() - began

    def received(self, part: Part, digest: str) -> int:
        """Bytes of an update that are here."""
        path = self.path(part, digest)
        for there in (path, _partial(path)):
            try:
                return there.stat().st_size
            except FileNotFoundError:
                continue
        return 0

    def adopt(self, part: Part, digest: str, blob: Path) -> None:
        """Take over an update that an older version kept among the other blobs; that file goes by itself."""
        path = self.path(part, digest)
        if path.exists() or not blob.exists():
            return
        with disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(blob)
            sync_folder(path.parent)
        self._folder.note(file_size(path))

    def rounds(self) -> Iterator[tuple[str, int]]:
        """(run, round) of every folder that is here."""
        for shelf in self._root.glob("*/*"):
            yield shelf.parent.name, int(shelf.name)

    def keep(self, run: str, round_: int, named: set[Path]) -> None:
        """Remove all of a round but these: what was refused, or never came whole."""
        for path in self._shelf(run, round_).glob("*"):
            if path not in named:
                self._folder.remove(path)

    def scrub(self, run: str, round_: int) -> None:
        """Remove all updates of a round, whole or not."""
        shelf = self._shelf(run, round_)
        if not shelf.is_dir():
            return
        with self._guard, disk(shelf):
            # A stream that is under way must not go on writing into a file that has no name any more.
            for partial, stream in list(self._incoming.items()):
                if partial.parent == shelf:
                    stream.supersede()
            size = sum(f.stat().st_size for f in shelf.iterdir())
            shutil.rmtree(shelf)
            self._sound = {path for path in self._sound if path.parent != shelf}
            for times in (self._began, self._took):
                for path in [path for path in times if path.parent == shelf]:
                    del times[path]
        self._folder.note(-size)
        hit("blob.removed", str(round_))


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
