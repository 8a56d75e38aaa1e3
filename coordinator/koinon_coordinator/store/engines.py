"""The two databases a coordinator may keep its runs in, and how each is told to be durable and never to wait for ever.

SQLite runs in WAL mode with synchronous=FULL. A PostgreSQL session is told synchronous_commit=on, whatever its server
says; its server ends what takes too long there, and `patience` ends what the server does not answer.
"""

from typing import Any, Literal

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError

from koinon_core.errors import StoreError

__all__ = ["Kind", "checked", "make"]

Kind = Literal["sqlite", "postgresql"]
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_PRAGMAS = ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")

# How PostgreSQL is reached. Whoever needs other values writes them into the URL: ...?connect_timeout=30
_REACH = {
    "application_name": "koinon-coordinator",
    "client_encoding": "utf8",
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "target_session_attrs": "read-write",  # of several hosts, the one that is not a standby
}
_SESSION = {
    "statement_timeout": "30s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "60s",
    "extra_float_digits": "1",  # a float comes back as it went in
}
# One snapshot for all the selects of a read. Beginning it is the same round trip as any other BEGIN.
_READING = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


def checked(text: str) -> URL:
    """`--db` as the URL of one of the two; StoreError if it is something else."""
    # What cannot be read may have a password anywhere in it: none of it is repeated, nor is the error that quotes it.
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StoreError(
            "what --db says is not a database this coordinator can use: it cannot be read as a URL; write for "
            "example sqlite:///koinon.db or postgresql+psycopg://USER@HOST/NAME"
        ) from None
    if "@" in (url.host or ""):
        raise StoreError("--db has a '@' too many; write the one in its password as %40") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise StoreError(
            f"--db {url.drivername}://... is not a database this coordinator can use; write for example "
            "sqlite:///koinon.db or postgresql+psycopg://USER@HOST/NAME"
        )
    return url.set(drivername=driver)


def make(url: URL) -> tuple[Kind, Engine, dict[str, Any]]:
    """(kind, engine, execution options of a transaction that only reads) for a URL that was `checked`."""
    if url.get_backend_name() == "sqlite":
        return "sqlite", _sqlite(url), {"koinon_read": True}
    return "postgresql", _postgres(url), _READING


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # pysqlite must not begin transactions on its own
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A write takes its lock at once, so that it can wait for another writer instead of failing half way.
    reads = connection.get_execution_options().get("koinon_read", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _postgres(url: URL) -> Engine:
    try:
        from koinon_coordinator.store.patience import PatientConnection

        engine = create_engine(
            url,
            connect_args={name: value for name, value in _REACH.items() if name not in url.query},
            # Every write of a run locks the run's row first, so each statement may see what was committed before it.
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,  # what a restarted server left behind is found before a transaction is on it
            pool_size=4,
            max_overflow=4,
            pool_timeout=30,
            hide_parameters=True,
        )
    except ImportError as error:
        raise StoreError(
            "--db names PostgreSQL, and its driver is not here; install `koinon[postgres]`"
        ) from error

    def connect(_dialect: Any, _record: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return PatientConnection.connect(*args, **kwargs)

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "connect", _prepare_postgres)
    return engine


def _prepare_postgres(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        for name, value in _SESSION.items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
        # A server may be told to acknowledge what it has not synced. remote_apply asks for more than on, and stays.
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') <> 'remote_apply'"
        )
    connection.commit()  # a setting made in a transaction goes with it
