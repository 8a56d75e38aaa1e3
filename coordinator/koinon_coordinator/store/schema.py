"""Bringing a database to this version's tables, or saying why that cannot be.

The whole migration is one transaction on both databases: a crash leaves the old tables or the new ones. Who finds
another coordinator migrating waits for it, for a while, and then finds nothing left to do.
"""

from functools import partial
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from koinon_coordinator.store.tx import Database
from koinon_core.errors import StoreError

__all__ = ["upgrade"]

_LOCK = int.from_bytes(b"koinon")  # of PostgreSQL's advisory locks: a number that nobody else takes
_LOCK_TIMEOUT = "10s"  # for each of the attempts of a write
_STATEMENT_TIMEOUT = "10min"  # a table of millions of events takes its time
_PATIENCE = 11 * 60.0


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def upgrade(database: Database) -> tuple[str | None, str]:
    """Create or migrate the tables; (revision before, revision now), of which the first is None if there were none.

    StoreError for a database of a newer version, or of something else.
    """
    scripts = ScriptDirectory.from_config(_config())
    head = scripts.get_current_head()
    assert head is not None
    known = {s.revision for s in scripts.walk_revisions()}
    try:
        return database.write("migrate", partial(_migrate, shown=str(database), known=known)), head
    finally:
        database.engine.dispose()  # nobody else waits as patiently as a migration


def _migrate(tx: Connection, shown: str, known: set[str]) -> str | None:
    """Returns the revision that was there."""
    if tx.dialect.name == "postgresql":
        _take_turns(tx, shown)
    current = MigrationContext.configure(tx).get_current_revision()
    if current is not None and current not in known:
        raise StoreError(
            f"the run database {shown} is at revision {current!r}, which this version does not know: it was "
            "written by a newer Koinon; install that version, or name another --db"
        )
    foreign = sorted(set(inspect(tx).get_table_names()) - {"alembic_version"})
    if current is None and foreign:
        raise StoreError(f"{shown} holds tables that are not Koinon's ({foreign[0]!r}); name another --db")
    config = _config()
    config.attributes["connection"] = tx
    command.upgrade(config, "head")
    return current


def _take_turns(tx: Connection, shown: str) -> None:
    """Hold PostgreSQL's lock for migrations until the transaction ends. SQLite's write lock is one already."""
    session: Any = tx.connection.driver_connection
    session.patience = _PATIENCE
    tx.exec_driver_sql(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'")
    tx.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
    tx.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    encoding = tx.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise StoreError(
            f"the run database {shown} holds text as {encoding}, which cannot say every name; create one with "
            "ENCODING 'UTF8'"
        )
