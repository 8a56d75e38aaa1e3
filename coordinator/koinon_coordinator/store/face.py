"""`Store`: the run database and its blobs, as the rest of the coordinator sees them.

Every method is one transaction and blocks; the driver calls them from worker threads.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import NoResultFound

from koinon_coordinator.store import changes, owners, queries, schema
from koinon_coordinator.store.blobs import Blobs
from koinon_coordinator.store.changes import Change, Incident, ModelVersion, PayloadRow, UpdateRow
from koinon_coordinator.store.drafts import Content, WrittenContent
from koinon_coordinator.store.folder import Folder, lock
from koinon_coordinator.store.owners import Held
from koinon_coordinator.store.people import People
from koinon_coordinator.store.queries import RoundRow, RunRow
from koinon_coordinator.store.tx import Database
from koinon_coordinator.store.uploads import Part, Uploads, damaged
from koinon_coordinator.store.vault import Vault
from koinon_core.audit import Entry
from koinon_core.canonical import sha256
from koinon_core.codec import Window
from koinon_core.condition import Condition
from koinon_core.costs import Spent
from koinon_core.errors import Conflict, NotFound, StoreError
from koinon_core.history import Standing
from koinon_core.round.effects import Verdict
from koinon_core.round.events import Carried, Event
from koinon_core.update import Head

__all__ = ["Store"]

T = TypeVar("T")
_log = structlog.get_logger("koinon.store")
_AT_HAND = 64
_PAGE = 500


class Store:
    """Opens (and migrates) the database at `url`, with blobs in `folder` or beside an SQLite file. `quota` is the
    most bytes that the folder may hold. With `alone`, an SQLite file that another coordinator uses is refused, whatever
    folder that has."""

    def __init__(self, url: str, folder: Path | None = None, quota: int | None = None, *, alone: bool = True):
        self.database = Database(url)
        file = self.database.url.database
        if folder is None and (self.database.url.get_backend_name() != "sqlite" or not file):
            raise StoreError("--data must name the folder for blobs where the database is no SQLite file")
        parent = Path(str(file)).parent
        if not self.shared and not parent.is_dir():
            raise StoreError(
                f"the run database {self.database} cannot be used: there is no folder {parent}; make it first"
            )
        self._alone = lock(Path(f"{file}.lock")) if alone and not self.shared else None
        try:
            self.folder = Folder(folder or Path(f"{file}.blobs"), quota)
        except BaseException:
            self._let_go()
            raise
        self.blobs, self.uploads = Blobs(self.folder), Uploads(self.folder)
        self.people = People(self.database)
        self.vault = Vault(self.folder)
        self._small: OrderedDict[str, bytes] = OrderedDict()
        try:
            schema.upgrade(self.database)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.database.close()
        self.folder.close()
        self._let_go()

    def _let_go(self) -> None:
        if self._alone is not None:
            self._alone.close()

    @property
    def shared(self) -> bool:
        """Whether other coordinators could reach this database."""
        return self.database.url.get_backend_name() != "sqlite"

    @property
    def owner(self) -> str:
        """Who owns the runs that are driven with this store's folder."""
        return self.folder.owner

    def sweep(self) -> int:
        """Put the folder in order, before anything else uses it: take in what an older version kept elsewhere, remove
        what no row names. Returns how many files went."""
        rows = self.runs()
        going_on = [row for row in rows if row.status in ("running", "paused")]
        open_ = {(row.id, number) for row in going_on for number in (row.number, *self._carried(row))}
        kept = {(row.id, number) for row in rows for number in self.kept_rounds(row.id)}
        for run, number in sorted(kept):
            named = set()
            for update in self.updates(run, number):
                if update.data is None and update.size:
                    part = Part(run, number, update.client)
                    self.uploads.adopt(part, update.digest, self.blobs.path(update.digest))
                    named.add(self.uploads.path(part, update.digest))
            if (run, number) not in open_:  # a device may go on with what it began
                self.uploads.keep(run, number, named)
        contents = self._read("contents", queries.contents)
        self.collect({digest for digest, _, _ in contents})
        for run, number in self.uploads.rounds():
            if (run, number) not in kept | open_:
                self.uploads.scrub(run, number)
        for run, number in self.vault.rounds():
            if (run, number) not in open_:
                self.vault.destroy(run, number)
        contents = self._read("contents", queries.contents)
        return self.blobs.sweep({digest for digest, _, file in contents if file})

    def _carried(self, row: RunRow) -> set[int]:
        """Earlier rounds whose work the run's open round awaits."""
        carried = [event for event in self.events(row.id, row.number) if isinstance(event, Carried)]
        return {work.round for event in carried for work in event.work}

    # -- writing ----------------------------------------------------------------------------------------------

    def create_run(self, change: Change) -> None:
        """A new run with its first model and round; Conflict if its name is taken."""
        name = change.run.spec.name
        if any(row.name == name for row in self.runs()):
            raise Conflict(f"there is a run named {name!r} already; choose another name")
        self.database.write("create run", partial(changes.create_run, change=change, created_at=change.at))
        self._written(change)

    def write(self, change: Change) -> None:
        """One turn of a run. Superseded if it is another coordinator's by now."""
        run = change.run.id
        change.sealed = [self.vault.seal(run, p.round, p.data, p.about) for p in change.payloads]
        self.database.write("turn", partial(changes.write, change=change))
        self._written(change)

    def _written(self, change: Change) -> None:
        """What is due once a change is committed: contents may be collected again, and what was scrubbed goes. What
        cannot be removed now goes when the folder is next put in order."""
        self.blobs.unpin(digest for digest, _, data in change.contents if data is None)
        try:
            for round_ in change.opened:
                self.vault.destroy(change.run.id, round_)
            for round_ in change.scrub.updates:
                self.uploads.scrub(change.run.id, round_)
            self.collect(change.scrub.contents)
        except StoreError as error:
            _log.warning("what is kept no longer was not removed yet", reason=str(error))

    def collect(self, digests: set[str]) -> None:
        """Remove those contents that no model needs any more."""

        def release(free: set[str]) -> list[str]:
            return self.database.write("collect", partial(queries.release, digests=free)) if free else []

        waiting = sorted(digests)
        for at in range(0, len(waiting), _PAGE):
            self.blobs.collect(waiting[at : at + _PAGE], release)

    def see_device(self, name: str, version: str, at: float, condition: Condition | None = None) -> None:
        """Note that a device attended, and how it is, if it says so."""
        seen = partial(changes.see_device, name=name, version=version, at=at, condition=condition)
        self.database.write("see device", seen)

    def keep_costs(self, run: str, round_: int, client: str, spent: Spent, at: float) -> bool:
        """Keep what a device's part in a round has cost, in the place of what it said before; False, and nothing kept,
        if it has no part in it."""
        kept = partial(changes.keep_costs, run=run, round_=round_, client=client, spent=spent, at=at)
        return self.database.write("keep costs", kept)

    def put(self, data: bytes) -> Content:
        """`data` as a content for the next change; if it is large it is made durable as a blob now."""
        with self.draft() as draft:
            draft.write(data)
            return draft.finish()

    def draft(self) -> WrittenContent:
        """A content for the next change, written piece by piece."""
        return WrittenContent(self.folder, self.blobs, self._remember)

    def unpin(self, contents: Iterable[Content]) -> None:
        """No row will name these."""
        self.blobs.unpin(digest for digest, _, data in contents if data is None)

    def _remember(self, digest: str, data: bytes) -> None:
        """Keep a few small contents at hand: a round's model is read again as soon as it is written."""
        self._small[digest] = data
        while len(self._small) > _AT_HAND:
            self._small.popitem(last=False)

    # -- owning -----------------------------------------------------------------------------------------------

    def take(self, run: str, now: float) -> Held:
        """Take a run up in a new epoch; Conflict while another coordinator drives it."""
        return self.database.write("take up", partial(owners.take, run=run, owner=self.owner, now=now))

    def beat(self, run: str, epoch: int, now: float) -> bool:
        """Say that the run's owner lives; False if it is another's by now."""
        return self.database.write("beat", partial(changes.beat, run=run, epoch=epoch, at=now))

    def owns(self, run: str, epoch: int) -> bool:
        """Whether the run is still owned in this epoch."""
        return self._read("owns", partial(owners.epoch_of, run=run)) == epoch

    def release(self, run: str, epoch: int, now: float) -> None:
        """Leave a run to whoever comes next."""
        self.database.write("release", partial(changes.beat, run=run, epoch=epoch, at=now, owner=""))

    # -- reading ----------------------------------------------------------------------------------------------

    def _read(self, name: str, function: Callable[[Connection], T]) -> T:
        """A read; StoreError for rows that hold something else than what was written."""
        try:
            return self.database.read(name, function)
        except (ValueError, TypeError, KeyError, NoResultFound) as error:
            raise StoreError(
                f"the run database holds {name} that cannot be read ({error}); `koinon-coordinator db check` says what "
                "is damaged"
            ) from error

    def runs(self) -> list[RunRow]:
        return self._read("runs", queries.run_rows)

    def run(self, run: str) -> RunRow:
        """One run by its id."""
        found = self._read("run", partial(queries.run_row, run=run))
        if found is None:
            raise StoreError(f"run {run} is no longer in the run database; restore it from a backup")
        return found

    def events(self, run: str, round_: int) -> list[Event]:
        return self._read("events", partial(queries.events, run=run, round_=round_))

    def updates(self, run: str, round_: int) -> list[UpdateRow]:
        """The updates of a round, as far as they are kept."""
        return self._read("updates", partial(queries.updates, run=run, round_=round_))

    def update_window(self, run: str, update: UpdateRow) -> Window:
        """A reader of an update's bytes. BadBlob if they, or their row, are damaged, so that they enter no sum."""
        if not update.whole:
            raise damaged(update.client)
        data = update.data
        if data is None and update.size:
            part = Part(run, update.round, update.client)
            if not self.uploads.has(part, update.digest):
                raise damaged(
                    update.client
                )  # the round is abandoned by name, and does not wait for what is gone
            return self.uploads.window(part, update.digest)
        known = data or b""
        if update.size and sha256(known) != update.digest:
            raise damaged(update.client)
        return lambda offset, length: known[offset : offset + length]

    def payloads(self, run: str, round_: int, attempt: int) -> list[PayloadRow]:
        """What was said in an attempt at a secure round, as it was said."""
        rows = self._read("payloads", partial(queries.payloads, run=run, round_=round_, attempt=attempt))
        return [replace(p, data=self.vault.unseal(run, p.round, p.data, p.about)) for p in rows]

    def forget_sessions(self, run: str) -> None:
        """The run is another coordinator's: this one need not read what was said in it any more. A coordinator that
        took the run from itself (it did not hear that it had) goes on with what it has. What cannot be removed now goes
        when the folder is next put in order."""
        try:
            if self.run(run).owner == self.owner:
                return
            for name, round_ in self.vault.rounds():
                if name == run:
                    self.vault.destroy(run, round_)
        except StoreError as error:
            _log.warning(
                "the keys of a run that is another coordinator's were not removed", reason=str(error)
            )

    def kept_rounds(self, run: str) -> list[int]:
        return self._read("kept rounds", partial(queries.kept_rounds, run=run))

    def kept_versions(self, run: str) -> list[ModelVersion]:
        return self._read("kept versions", partial(queries.kept_versions, run=run))

    def rounds(self, run: str, since: int = 0) -> list[RoundRow]:
        return self._read("rounds", partial(queries.round_rows, run=run, since=since))

    def incidents(self, run: str) -> list[Incident]:
        return self._read("incidents", partial(queries.incidents, run=run))

    def costs(self, run: str, round_: int | None = None) -> dict[tuple[int, str], Spent]:
        """What devices said of the cost of their part, by round and device: in one round, or in all (None)."""
        return self._read("costs", partial(queries.costs, run=run, round_=round_))

    def verdict(self, run: str, round_: int, client: str) -> tuple[Verdict, str]:
        return self._read("verdict", partial(queries.verdict, run=run, round_=round_, client=client))

    def evaluators(self, run: str, every: int, kind: str = "train") -> int:
        """How many evaluated in the last summed round of those that do."""
        return self._read("evaluators", partial(queries.evaluators, run=run, every=every, kind=kind))

    def heads(self, run: str, round_: int | None = None) -> dict[str, Head]:
        """The heads of a round's counted updates, or (None) of each device's last in rounds that trained."""
        return self._read("heads", partial(queries.heads, run=run, round_=round_))

    def measured(self, run: str, name: str) -> list[tuple[int, float]]:
        """(round, value) of one metric, in the order of rounds."""
        return self._read("measured", partial(queries.measured, run=run, name=name))

    def measure(self, run: str, round_: int, metrics: Mapping[str, float]) -> None:
        """Keep what the run's owner measured of the model that a round made. NotFound if it made none."""
        if self._read("model", partial(queries.model_at, run=run, round_=round_)) is None:
            raise NotFound(f"round {round_} made no model; `koinon run show` lists those that did")
        self.database.write("measure", partial(changes.measure, run=run, round_=round_, metrics=metrics))

    def last_counted(self, run: str, client: str) -> int:
        return self._read("last counted", partial(queries.last_counted, run=run, client=client))

    def standing(self, run: str, since: int) -> tuple[Standing, dict[int, str]]:
        """Where the run stands, and its history from round `since` on (0: none of it)."""
        return self._read("standing", partial(queries.standing, run=run, since=since))

    def audit(self, run: str, after: int = 0) -> Iterator[Entry]:
        """The run's audit log, oldest entry first, read page by page."""
        while page := self._read("audit", partial(queries.audit, run=run, after=after, most=_PAGE)):
            yield from page
            after = page[-1].number

    def latest_model(self, run: str) -> ModelVersion:
        return self.model_at(run, None)

    def model_at(self, run: str, round_: int | None) -> ModelVersion:
        """The model that a round made. NotFound if it made none, or if it is kept no longer."""
        found = self._read("model", partial(queries.model_at, run=run, round_=round_))
        if found is None:
            raise NotFound(f"round {round_} made no model; `koinon run show` lists those that did")
        version, kept = found
        if not kept:
            raise NotFound(f"the model of round {round_} is kept no longer (models in the run's config)")
        return version

    def model_before(self, run: str, round_: int) -> ModelVersion | None:
        """The model that a round stood on, if it is still kept."""
        found = self._read("model", partial(queries.model_before, run=run, round_=round_))
        return found[0] if found and found[1] else None

    def window(self, digest: str) -> tuple[Window, int]:
        """(reader, size) of a content, wherever it is."""
        known = self._small.get(digest)
        if known is not None:
            return lambda offset, length: known[offset : offset + length], len(known)
        found = self._read("content", partial(queries.content, digest=digest))
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
