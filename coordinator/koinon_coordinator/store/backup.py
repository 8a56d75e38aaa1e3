"""A backup: one consistent copy of a run database and of the files that it names, while a coordinator may be running.

    FOLDER/koinon.db          SQLite, whatever it was copied from: --db sqlite:///FOLDER/koinon.db opens it
    FOLDER/koinon.db.blobs/   contents and updates, as hard links where they lie on the same disk

The database comes first, in one snapshot, and in that moment the files that it names get a second name here. A file
may go meanwhile, because its round is kept no longer: then the snapshot is taken again. The database gets its name
last, so a backup that was interrupted cannot be mistaken for one.

A backup is nobody's: it has no `owner` file (whoever opens it first draws one of its own), and its runs are owned by
nobody, as if the coordinator had released them. So whoever starts it may take its runs up at once, and can never pass
for the coordinator that still lives on the original. That the two histories part is what devices find out: they follow
the one that they saw last.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from koinon_coordinator.store import models, schema
from koinon_coordinator.store.blobs import blob_path
from koinon_coordinator.store.folder import disk, sync_folder
from koinon_coordinator.store.tx import Database
from koinon_coordinator.store.upkeep import File, Place, digest_of_file, files, revision
from koinon_core.errors import StoreError, UsageError

__all__ = ["Backup", "backup"]

_NAME = "koinon.db"
_ATTEMPTS = 5
_ROWS = 100


@dataclass(frozen=True, slots=True)
class Backup:
    """What was written: the database, how many files beside it, all bytes of both, and after how many snapshots."""

    database: Path
    files: int
    nbytes: int
    snapshots: int


class _GoneError(Exception):
    """A file that the snapshot names is there no longer."""


def backup(place: Place, to: Path) -> Backup:
    """Copy all of `place` into the empty folder `to`. UsageError if it is not empty; StoreError if something cannot be
    read, written, or is damaged: `to` is no backup then."""
    _empty(to)
    fresh, final = to / f"{_NAME}.part", to / _NAME
    blobs = to / f"{_NAME}.blobs"
    gone = ""
    for snapshot in range(1, _ATTEMPTS + 1):
        with disk(fresh):
            named = _snapshot(place, fresh, blobs)
            try:
                for file in named:
                    _fetch(place.root, blobs, file, _link_or_copy)
            except _GoneError as error:
                gone = str(error)
                continue
            copied = sum(_verified(place.root, blobs, file) for file in named)
            _tidy(blobs, {blobs / file.path for file in named})
            _sync(fresh)
            fresh.rename(final)
            sync_folder(to)
            sync_folder(to.resolve().parent)
        return Backup(final, len(named), copied + final.stat().st_size, snapshot)
    raise StoreError(
        f"{gone} is missing from {place.root} after {_ATTEMPTS} snapshots; `koinon-coordinator db check` says what "
        "else is"
    )


def _empty(to: Path) -> None:
    try:
        to.mkdir(parents=True, exist_ok=True)
        if any(to.iterdir()):
            raise UsageError(f"--to {to} is not empty; name a new folder for each backup")
    except FileExistsError:
        raise UsageError(f"--to {to} is no folder; name one that is empty or not there yet") from None
    except OSError as error:
        raise StoreError(f"{to} cannot be written: {error.strerror}; name another folder") from error


# -- the database ---------------------------------------------------------------------------------------------


def _snapshot(place: Place, fresh: Path, blobs: Path) -> list[File]:
    """The database as it is at one moment, as an SQLite file of its own, owned by nobody; the files that it names."""
    try:
        named = place.database.read("backup", partial(_one_moment, root=place.root, fresh=fresh, blobs=blobs))
        with closing(sqlite3.connect(fresh, isolation_level=None)) as raw:
            raw.execute("PRAGMA journal_mode=DELETE")  # one file, which may be moved by itself
            raw.execute("PRAGMA synchronous=FULL")
            if any(name == "owner" for _, name, *_ in raw.execute("PRAGMA table_info(runs)")):
                raw.execute("UPDATE runs SET owner = ''")
    except sqlite3.Error as error:
        raise StoreError(f"the run database {place.database} cannot be copied to {fresh}: {error}") from error
    return named


def _one_moment(tx: Connection, root: Path, fresh: Path, blobs: Path) -> list[File]:
    for end in ("", "-wal", "-shm"):
        fresh.with_name(f"{fresh.name}{end}").unlink(missing_ok=True)
    named = list(files(tx))
    for file in named:  # before the rows, which take longer: what has a second name cannot go any more
        with suppress(_GoneError, OSError):
            _fetch(root, blobs, file, _link)
    (_copy_sqlite if tx.dialect.name == "sqlite" else _copy_tables)(tx, fresh)
    return named


def _copy_sqlite(tx: Connection, fresh: Path) -> None:
    # On this very connection, so that it is the moment that the transaction sees.
    source: Any = tx.connection.driver_connection
    with closing(sqlite3.connect(fresh)) as target:
        source.backup(target)


def _copy_tables(tx: Connection, fresh: Path) -> None:
    """Every row of every table, in the snapshot that `tx` sees."""
    there, head = revision(tx)
    if there != head:
        raise StoreError(
            f"the run database is at revision {there!r}, and is copied from {head!r} only; `koinon-coordinator db "
            "upgrade` brings it there (pg_dump copies it as it is)"
        )
    target = Database(f"sqlite:///{fresh}")
    try:
        schema.upgrade(target)
        target.write("copy", partial(_fill, source=tx))
    finally:
        target.close()


def _fill(tx: Connection, source: Connection) -> None:
    for table in models.Table.metadata.sorted_tables:
        rows = source.execution_options(stream_results=True, yield_per=_ROWS).execute(select(table))
        for part in rows.mappings().partitions():
            tx.execute(insert(table), [dict(row) for row in part])


# -- the files ------------------------------------------------------------------------------------------------


def _fetch(root: Path, blobs: Path, file: File, how: Callable[[Path, Path], None]) -> None:
    """Put a file that the database names beside the copy. _GoneError if it is not there any more."""
    path = blobs / file.path
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for source in (root / file.path, root / blob_path(Path(), file.digest)):
        with suppress(FileNotFoundError):
            how(source, path)
            return
    raise _GoneError(file.what)


def _link(source: Path, path: Path) -> None:
    """The same file under another name, which is as good as a copy: what is whole is never written to again."""
    path.hardlink_to(source)


def _link_or_copy(source: Path, path: Path) -> None:
    with source.open("rb"):  # or it is not there, whatever else may be wrong
        try:
            _link(source, path)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(source, path)
            _sync(path)


def _verified(root: Path, blobs: Path, file: File) -> int:
    """The size of a copied file; StoreError if it is not what it should be."""
    if digest_of_file(blobs / file.path) != (file.size, file.digest):
        raise StoreError(
            f"{file.what} is damaged in {root}, so that no backup can be made; `koinon-coordinator db check` says what "
            "else is"
        )
    return file.size


def _tidy(blobs: Path, named: set[Path]) -> None:
    """Remove what only an earlier snapshot named, and make all names durable."""
    blobs.mkdir(exist_ok=True)
    for path in [p for p in blobs.rglob("*") if p.is_file() and p not in named]:
        path.unlink()
    for folder in (blobs, *(p for p in blobs.rglob("*") if p.is_dir())):
        sync_folder(folder)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
