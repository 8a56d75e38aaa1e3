"""Bringing a database to this version's tables, or saying why that cannot be."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect
from sqlalchemy.exc import DatabaseError

from koinon_coordinator.store.tx import Database
from koinon_core.errors import StoreError

__all__ = ["upgrade"]


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def upgrade(database: Database) -> None:
    """Create or migrate the tables. StoreError for a database of a newer version, or of something else."""
    config = _config()
    known = {s.revision for s in ScriptDirectory.from_config(config).walk_revisions()}
    try:
        with database.engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            tables = inspect(connection).get_table_names()
            if current is not None and current not in known:
                raise StoreError(
                    f"the run database {_safe(database)} is at revision {current!r}, which this version does not "
                    "know: it was written by a newer Koinon; install that version, or name another --db"
                )
            if current is None and tables:
                raise StoreError(
                    f"{_safe(database)} holds tables that are not Koinon's ({tables[0]!r}); name another --db"
                )
            connection.rollback()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    except DatabaseError as error:
        raise StoreError(
            f"the run database {_safe(database)} cannot be used: {error.orig}; check the path and its rights, or "
            "restore it from a backup"
        ) from error


def _safe(database: Database) -> str:
    return database.url.render_as_string(hide_password=True)
