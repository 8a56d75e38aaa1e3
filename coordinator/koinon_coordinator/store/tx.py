"""Transactions: one function is one transaction, named, retried and counted.

    database.write("close round", lambda tx: ...)

SQLite runs in WAL mode with synchronous=FULL: an acknowledged commit survives a power cut. A write takes its
lock at once (BEGIN IMMEDIATE), so that it can wait for another writer instead of failing half way.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from koinon_core.errors import StoreError

__all__ = ["Database"]

T = TypeVar("T")
_ATTEMPTS = 5
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000")


class Database:
    """A connection to the run database. Its functions block: call them from a worker thread."""

    def __init__(self, url: str):
        try:
            self.engine: Engine = create_engine(url)
        except ModuleNotFoundError as error:
            raise StoreError(
                f"--db {url!r}: this version keeps its runs in SQLite only (sqlite:///FILE)"
            ) from error
        except (ArgumentError, NoSuchModuleError) as error:
            raise StoreError(
                f"--db {url!r} is not a database this coordinator can use ({error}); "
                "write for example sqlite:///koinon.db"
            ) from error
        self.url = make_url(url)
        self.counts: Counter[str] = Counter()
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    def write(self, name: str, function: Callable[[Connection], T]) -> T:
        """Run `function` in a transaction that may write."""
        return self._run(name, function, {})

    def read(self, name: str, function: Callable[[Connection], T]) -> T:
        """Run `function` in a transaction that only reads."""
        return self._run(name, function, {"koinon_read": True})

    def _run(self, name: str, function: Callable[[Connection], T], options: dict[str, Any]) -> T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self.engine.connect().execution_options(**options) as connection, connection.begin():
                    result = function(connection)
                self.counts[name] += 1
            except OperationalError as error:
                if attempt == _ATTEMPTS or not _passing(error):
                    raise StoreError(f"the run database failed at {name!r}: {error.orig}") from error
                self.counts[f"{name} (retried)"] += 1
                time.sleep(0.02 * 2**attempt)
            except DBAPIError as error:
                raise StoreError(f"the run database failed at {name!r}: {error.orig}") from error
            else:
                return result
        raise AssertionError("unreachable")

    def close(self) -> None:
        self.engine.dispose()


def _passing(error: OperationalError) -> bool:
    text = str(error.orig).lower()
    return any(word in text for word in ("locked", "busy", "deadlock", "serializ"))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # pysqlite must not begin transactions on its own
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get("koinon_read", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
