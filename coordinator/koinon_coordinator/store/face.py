"""`Store`: the run database and its blobs, as the rest of the coordinator sees them.

Every method is one transaction and blocks; the driver calls them from worker threads.
"""

from collections import OrderedDict
from functools import partial
from pathlib import Path

from koinon_coordinator.store import changes, queries, schema
from koinon_coordinator.store.blobs import Blobs
from koinon_coordinator.store.changes import Change, Incident, ModelVersion
from koinon_coordinator.store.queries import RoundRow, RunRow
from koinon_coordinator.store.tx import Database
from koinon_core.canonical import sha256
from koinon_core.codec import Window
from koinon_core.errors import Conflict, NotFound, StoreError
from koinon_core.round.effects import Verdict
from koinon_core.round.events import Event
from koinon_core.update import Head
from koinon_core.wire.convert import INLINE

__all__ = ["Store"]

_AT_HAND = 64


class Store:
    """Opens (and migrates) the database at `url`, with blobs in `folder` or beside an SQLite file."""

    def __init__(self, url: str, folder: Path | None = None):
        self.database = Database(url)
        file = self.database.url.database
        if folder is None and (self.database.url.get_backend_name() != "sqlite" or not file):
            raise StoreError(f"--data must name the folder for blobs when the database is {url!r}")
        self.blobs = Blobs(folder or Path(f"{file}.blobs"))
        self._small: OrderedDict[str, bytes] = OrderedDict()
        schema.upgrade(self.database)

    def close(self) -> None:
        self.database.close()
        self.blobs.close()

    # -- writing ----------------------------------------------------------------------------------------------

    def create_run(self, change: Change, at: float) -> None:
        """A new run with its first model and round; Conflict if its name is taken."""
        name = change.run.spec.name
        if any(row.name == name for row in self.runs()):
            raise Conflict(f"there is a run named {name!r} already; choose another name")
        self.database.write("create run", partial(changes.create_run, change=change, created_at=at))

    def write(self, change: Change) -> None:
        self.database.write("turn", partial(changes.write, change=change))

    def see_device(self, name: str, version: str, at: float) -> None:
        self.database.write("see device", partial(changes.see_device, name=name, version=version, at=at))

    def put(self, data: bytes) -> tuple[str, int, bytes | None]:
        """`data` as a content for the next change; if it is large it is made durable as a blob now."""
        if len(data) <= INLINE:
            digest = sha256(data)
            self._remember(digest, data)
            return digest, len(data), data
        return self.blobs.put(data), len(data), None

    def _remember(self, digest: str, data: bytes) -> None:
        """Keep a few small contents at hand: a round's model is read again as soon as it is written."""
        self._small[digest] = data
        while len(self._small) > _AT_HAND:
            self._small.popitem(last=False)

    # -- reading ----------------------------------------------------------------------------------------------

    def runs(self) -> list[RunRow]:
        return self.database.read("runs", queries.run_rows)

    def events(self, run: str, round_: int) -> list[Event]:
        return self.database.read("events", partial(queries.events, run=run, round_=round_))

    def heads(self, run: str, round_: int) -> dict[str, tuple[str, int, Head]]:
        return self.database.read("heads", partial(queries.heads, run=run, round_=round_))

    def rounds(self, run: str, since: int = 0) -> list[RoundRow]:
        return self.database.read("rounds", partial(queries.round_rows, run=run, since=since))

    def incidents(self, run: str) -> list[Incident]:
        return self.database.read("incidents", partial(queries.incidents, run=run))

    def verdict(self, run: str, round_: int, client: str) -> tuple[Verdict, str]:
        return self.database.read("verdict", partial(queries.verdict, run=run, round_=round_, client=client))

    def latest_model(self, run: str) -> ModelVersion:
        return self.database.read("latest model", partial(queries.latest_model, run=run))

    def model_at(self, run: str, round_: int | None) -> ModelVersion:
        """NotFound if that round made no model."""
        model = self.database.read("model", partial(queries.model_at, run=run, round_=round_))
        if model is None:
            raise NotFound(f"round {round_} made no model; `koinon run show` lists those that did")
        return model

    def window(self, digest: str) -> tuple[Window, int]:
        """(reader, size) of a content, wherever it is."""
        known = self._small.get(digest)
        if known is not None:
            return lambda offset, length: known[offset : offset + length], len(known)
        found = self.database.read("content", partial(queries.content, digest=digest))
        if found is None:
            raise NotFound(f"there is no content {digest[:12]}... here")
        size, data = found
        if data is None:
            return self.blobs.window(digest), size
        return lambda offset, length: data[offset : offset + length], size

    def bytes(self, digest: str) -> bytes:
        """All of a content, checked against its name."""
        window, size = self.window(digest)
        data = bytes(window(0, size))
        if sha256(data) != digest:
            raise StoreError(f"content {digest[:12]}... is damaged on disk; restore it from a backup")
        return data
