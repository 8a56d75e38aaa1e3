"""Transactions: one function is one transaction, named, retried and counted.

    database.write("close round", lambda tx: ...)

An acknowledged commit survives a power cut, and every wait has an end: `engines` sees to it.

What became of a write is one of three things, and the error says which:

    it is certainly not there, and may pass      (a lock, a deadlock): done again here, and then StoreError
    it is certainly not there, and never will be (a key taken, text that no column holds): RefusedWrite
    anything else, first of all a failed COMMIT: StoreError. It may be there: read before writing again
"""

import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as NoneFree

from koinon_coordinator.store.engines import checked, make
from koinon_core.errors import StoreError
from koinon_core.failpoints import hit

__all__ = ["Database", "RefusedWrite"]

T = TypeVar("T")
_ATTEMPTS = 5
_SERIALIZATION, _DEADLOCK, _LOCKED = "40001", "40P01", "55P03"
_PASSING = (_SERIALIZATION, _DEADLOCK, _LOCKED)


class RefusedWrite(StoreError):
    """The database is well, and what was to be written is not. Nothing of the transaction is there."""


class Database:
    """The run database at `url`. Its functions block: call them from a worker thread.

    `counts` says how often each name was done (and retried), `commits` how many writes were committed.
    """

    def __init__(self, url: str):
        self.url = checked(url)
        self.kind, self.engine, self._reading = make(self.url)
        self.counts: Counter[str] = Counter()
        self.commits = 0
        self._guard = threading.Lock()

    def __str__(self) -> str:
        """The URL, fit to be shown: without its password, wherever in it that is."""
        shown = self.url.difference_update_query(("password", "sslpassword"))
        return shown.render_as_string(hide_password=True)

    def write(self, name: str, function: Callable[[Connection], T]) -> T:
        """Run `function` in a transaction that may write. It may run several times; one of them is kept."""
        result = self._retried(name, partial(self._write, name, function))
        with self._guard:
            self.commits += 1
        hit("store.committed", name)
        return result

    def read(self, name: str, function: Callable[[Connection], T]) -> T:
        """Run `function` in a transaction that only reads, and sees one moment."""
        return self._retried(name, partial(self._read, function))

    def close(self) -> None:
        self.engine.dispose()

    def _read(self, function: Callable[[Connection], T]) -> T:
        with self.engine.connect().execution_options(**self._reading) as connection, connection.begin():
            return function(connection)

    def _write(self, name: str, function: Callable[[Connection], T]) -> T:
        with self.engine.connect() as connection, connection.begin() as transaction:
            hit("store.begun", name)
            result = function(connection)
            hit("store.written", name)
            if not self._whole(connection):
                raise StoreError(
                    f"the write {name!r} went on after an error of the database; nothing of it is kept, and the "
                    "mistake is Koinon's: please report it"
                )
            try:
                transaction.commit()
            except DBAPIError as error:
                connection.invalidate()  # SQLite's transaction may still be open
                if isinstance(error, IntegrityError) or _sqlstate(error) in _PASSING:
                    raise  # the database says itself that it undid the transaction
                raise StoreError(
                    f"the run database failed while it committed {name!r}: {_reason(error)}; it may be there or "
                    "not, so it is read before anything is written again"
                ) from error
        return result

    def _whole(self, connection: Connection) -> bool:
        """Whether a COMMIT would commit. After an error that somebody caught, both databases "commit" nothing, and
        say so to nobody."""
        raw: Any = connection.connection.driver_connection
        if self.kind == "sqlite":
            return bool(raw.in_transaction)
        return bool(raw.info.transaction_status.name != "INERROR")

    def _retried(self, name: str, once: Callable[[], T]) -> T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                result = once()
            except (StatementError, NoneFree, OverflowError, UnicodeEncodeError) as error:
                if _refused(error):
                    raise RefusedWrite(
                        f"the run database refused {name!r}: {_reason(error)}; nothing of it was written, and "
                        "what was to be written is at fault"
                    ) from error
                if not _passing(error):
                    raise StoreError(
                        f"the run database cannot be used at {name!r}: {_reason(error)}; nothing was written: "
                        "check --db, its rights, and the database's own log"
                    ) from error
                if attempt == _ATTEMPTS:
                    raise StoreError(
                        f"the run database was busy through {attempt} attempts at {name!r}: {_reason(error)}; "
                        "nothing was written: end the program that holds its lock"
                    ) from error
                self._count(f"{name} (retried)")
                # Whoever met in a deadlock must not meet again.
                time.sleep(0.02 * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            else:
                self._count(name)
                return result
        raise AssertionError("unreachable")

    def _count(self, name: str) -> None:
        with self._guard:
            self.counts[name] += 1


# -- what an error means --------------------------------------------------------------------------------------


def _sqlstate(error: Exception) -> str:
    """PostgreSQL's own code of an error; "" for SQLite's, and where the server could say nothing any more."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def _passing(error: Exception) -> bool:
    """Whether the transaction was undone for a reason that goes away by itself."""
    # The low byte is SQLite's error, the others say more about it.
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF
    return _sqlstate(error) in _PASSING or code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _refused(error: Exception) -> bool:
    """Whether the values are at fault: they break a key, or cannot be in their column, in any column, or in a row."""
    if isinstance(error, DBAPIError):
        # 54: a limit of PostgreSQL's, for example an index entry of more than 2.7 kB
        return isinstance(error, IntegrityError | DataError) or _sqlstate(error).startswith("54")
    return not isinstance(error, NoneFree)


def _reason(error: Exception) -> str:
    """What the database said, in a line; never the values it was about."""
    if isinstance(error, NoneFree):
        return "all its connections were in use for too long"
    said: Any = getattr(error, "orig", None) or error
    text = getattr(getattr(said, "diag", None), "message_primary", None) or str(said)
    return " ".join(text.split())[:300].rstrip(".")
