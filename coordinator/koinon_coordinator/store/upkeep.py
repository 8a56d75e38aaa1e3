"""Upkeep of a run database and its folder: `upgrade` brings it to this version, `check` reads all of it for damage.

Both databases are read in one snapshot that only reads, and the folder's lock is left alone, so that `check` works
beside a coordinator that is running. What goes away meanwhile, because it is kept no longer, is no finding.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Executable, inspect, select

from koinon_coordinator.store import models, queries, schema
from koinon_coordinator.store.blobs import blob_path
from koinon_coordinator.store.findings import UNREADABLE, Finding, of_run
from koinon_coordinator.store.folder import Folder
from koinon_coordinator.store.tx import Database
from koinon_coordinator.store.uploads import Part, update_path
from koinon_coordinator.store.vault import keys
from koinon_core.canonical import sha256
from koinon_core.errors import StoreError

__all__ = ["Checked", "File", "Place", "check", "digest_of_file", "files", "opened", "revision", "upgrade"]

_SETTLES = 0.2  # seconds from the end of a round to the end of its key, and more
_ROWS = 100  # held at a time: of contents that are at most 6.5 MB


@dataclass(frozen=True, slots=True)
class Place:
    """Where a coordinator keeps its runs. `root` is the folder for what is too large for a row."""

    database: Database
    root: Path


@dataclass(frozen=True, slots=True)
class File:
    """A file that a row names. `path` leads from the folder's root; `named` finds the rows that still name it."""

    path: Path
    digest: str
    size: int
    what: str
    named: Executable
    run: str = ""
    round: int | None = None
    device: str = ""

    def finding(self, wrong: str) -> Finding:
        return Finding(
            text=f"{self.what} {wrong}",
            run=self.run,
            round=self.round,
            device=self.device,
            digest=self.digest,
        )


@dataclass(slots=True)
class Checked:
    """What a check found, and how much it read."""

    findings: list[Finding] = field(default_factory=list)
    runs: int = 0
    contents: int = 0
    files: int = 0


@contextmanager
def opened(url: str, data: Path | None = None) -> Iterator[Place]:
    """A database that is there, and its folder, as they are: nothing is made, migrated or locked. StoreError if there
    is none."""
    database = Database(url)
    try:
        yield Place(database, _root(database, data))
    finally:
        database.close()


def _root(database: Database, data: Path | None) -> Path:
    if database.kind == "sqlite":
        # Opening a file that is not there would make one.
        file = database.url.database or ""
        if not file or not Path(file).is_file():
            raise StoreError(f"there is no run database at {database}; check --db")
        return data or Path(f"{file}.blobs")
    if data is None:
        raise StoreError("--data must name the folder for blobs where the database is no SQLite file")
    return data


def upgrade(url: str, data: Path | None = None) -> tuple[str | None, str]:
    """Create or migrate the tables; (revision before, revision now). StoreError while a coordinator uses the folder,
    which is looked at where it is known: beside an SQLite file, or in `data`."""
    database = Database(url)
    try:
        file = database.url.database if database.kind == "sqlite" else None
        root = data or (Path(f"{file}.blobs") if file else None)
        folder = Folder(root) if root is not None and root.is_dir() else None
        try:
            return schema.upgrade(database)
        finally:
            if folder is not None:
                folder.close()
    finally:
        database.close()


def revision(tx: Connection) -> tuple[str | None, str]:
    """(revision of the tables, None if there are none; this version's)."""
    head = ScriptDirectory(str(Path(schema.__file__).parent / "migrations")).get_current_head()
    assert head is not None
    return MigrationContext.configure(tx).get_current_revision(), head


# -- check ----------------------------------------------------------------------------------------------------


def check(place: Place) -> Checked:
    """Read everything, and change nothing. StoreError if the database cannot be opened, or is not of this version."""
    there, head = place.database.read("revision", revision)
    if there != head:
        raise StoreError(
            f"the run database {place.database} is at revision {there!r}, this version checks {head!r}; "
            "`koinon-coordinator db upgrade` brings it there"
        )
    checked = Checked()
    named: list[File] = []
    try:
        checked.findings += place.database.read("check the database", _integrity)
        found, named = place.database.read("check rows", _rows)
        found.findings = checked.findings + found.findings
        checked = found
    except UNREADABLE as error:
        checked.findings.append(Finding(text=f"the run database cannot be read: {error}"))
    for file in named:
        checked.files += 1
        checked.findings += filter(None, [_file(place, file)])
    checked.findings += _keys(place)
    return checked


def _integrity(tx: Connection) -> list[Finding]:
    """What the database says of itself."""
    if tx.dialect.name == "sqlite":
        said = [str(row[0]) for row in tx.exec_driver_sql("PRAGMA integrity_check(20)") if row[0] != "ok"]
        for table, row, parent, _ in tx.exec_driver_sql("PRAGMA foreign_key_check"):
            said.append(f"row {row} of {table} names none of {parent}")
    else:
        broken = (
            "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class c ON c.oid = indrelid "
            "WHERE NOT indisvalid AND c.relnamespace = current_schema()::regnamespace"
        )
        said = [f"index {row[0]} is not valid" for row in tx.exec_driver_sql(broken)]
    return [Finding(text=f"the database itself is damaged: {text}") for text in said]


def _rows(tx: Connection) -> tuple[Checked, list[File]]:
    """Every row; and the files that must be looked at when the snapshot is given back."""
    checked = Checked()
    digests = set()
    for digest, size, data in _streamed(tx, select(models.Content.__table__)):
        digests.add(digest)
        checked.contents += 1
        if data is not None and (len(data) != size or sha256(data) != digest):
            text = f"content {digest[:12]} is damaged in the database"
            checked.findings.append(Finding(text=text, digest=digest))
    for row in queries.run_rows(tx):
        checked.runs += 1
        checked.findings += of_run(tx, row, digests)
    for table in (models.Metric, models.Incident, models.Device):
        for _ in _streamed(tx, select(table.__table__)):
            pass  # whether it can be read is all that there is to know
    return checked, list(files(tx))


def _streamed(tx: Connection, query: Executable) -> Iterator[Any]:
    """The rows of a table that need not fit in memory."""
    yield from tx.execution_options(stream_results=True, yield_per=_ROWS).execute(query)


def files(tx: Connection) -> Iterator[File]:
    """Every file that a row names: contents first. BadBlob for a row whose digest is none."""
    c, u, r = models.Content, models.Update, models.Run
    large = select(c.digest, c.size).where(c.data.is_(None)).order_by(c.digest)
    for digest, size in _streamed(tx, large):
        named = select(c.digest).where(c.digest == digest, c.data.is_(None))
        yield File(blob_path(Path(), digest), digest, size, f"content {digest[:12]}", named)
    if all(column["name"] != "kept" for column in inspect(tx).get_columns("updates")):
        return  # an older version: its updates are contents
    rows = (
        select(u.id, r.id, r.name, u.round, u.client, u.digest, u.size)
        .join(r, r.id == u.run)
        .where(u.kept, u.data.is_(None), u.size > 0)
        .order_by(u.id)
    )
    for row, run, name, number, client, digest, size in _streamed(tx, rows):
        named = select(u.digest).where(u.id == row, u.kept)
        path = update_path(Path(), Part(run, number, client), digest)
        what = f"run {name!r}, round {number}, {client}: its update {digest[:12]}"
        yield File(path, digest, size, what, named, name, number, client)


def _keys(place: Place) -> Iterator[Finding]:
    """Keys of sessions whose round is not open: what was said there could still be read, from a backup of its rows."""
    if not _useless(place):
        return
    time.sleep(_SETTLES)  # beside a coordinator that has just closed a round, and is about to remove its key
    for path, run, number in _useless(place):
        text = (
            f"the key of a session of round {number}, which is not open, is still there ({path}); a coordinator that "
            "starts on this folder removes it"
        )
        yield Finding(text=text, run=run, round=number)


def _useless(place: Place) -> list[tuple[Path, str, int]]:
    there = keys(place.root)  # before the rows: a key is made for a round that is in them
    rows = place.database.read("open rounds", _open_rounds)
    return [(path, run, number) for path, run, number in there if (run, number) not in rows]


def _open_rounds(tx: Connection) -> set[tuple[str, int]]:
    r = models.Round
    rows = tx.execute(select(r.run, r.number).where(r.stage.not_in(("closed", "abandoned"))))
    return {(run, number) for run, number in rows}


def _file(place: Place, file: File) -> Finding | None:
    """What is wrong with a file, unless it went because nothing names it any more."""
    # What an older version kept among the other blobs is still there until a coordinator takes it up.
    for path in (place.root / file.path, place.root / blob_path(Path(), file.digest)):
        try:
            size, digest = digest_of_file(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            return file.finding(f"cannot be read from {path}: {error.strerror}")
        return None if (size, digest) == (file.size, file.digest) else file.finding(f"is damaged in {path}")
    if place.database.read("named", partial(_named, file=file)):
        return file.finding(f"is missing from {place.root}")
    return None


def _named(tx: Connection, file: File) -> bool:
    return tx.execute(file.named).first() is not None


def digest_of_file(path: Path) -> tuple[int, str]:
    """(size, SHA-256) of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
