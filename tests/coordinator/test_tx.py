"""Transactions on both databases: what became of a write is always known, or known to be unknown."""

import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress

import psycopg
import pytest
from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from koinon_coordinator.store import engines, schema, tx
from koinon_coordinator.store.patience import PatientConnection
from koinon_coordinator.store.tx import Database, RefusedWrite
from koinon_core import failpoints
from koinon_core.errors import StoreError
from postgres import Postgres

METADATA = MetaData()
THINGS = Table(
    "things", METADATA, Column("id", Integer, primary_key=True), Column("word", String(8)), Column("size", Float(53))
)  # fmt: skip
PARTS = Table(
    "parts", METADATA, Column("of", Integer, ForeignKey(THINGS.c.id, deferrable=True, initially="DEFERRED"))
)  # fmt: skip


@pytest.fixture(autouse=True)
def _disarmed():
    yield
    failpoints.disarm()


@contextmanager
def opened(url):
    database = Database(url)
    try:
        database.write("tables", lambda tx: METADATA.create_all(tx, checkfirst=True))
        yield database
    finally:
        database.close()


@pytest.fixture
def database(database_url):
    with opened(database_url) as one:
        yield one


@pytest.fixture
def postgres_url(postgres):
    with postgres.database() as url:
        yield url


def add(number, word="a", size=0.5):
    return lambda tx: tx.execute(insert(THINGS).values(id=number, word=word, size=size))


def count(tx):
    return tx.execute(select(func.count()).select_from(THINGS)).scalar_one()


class Calls:
    """A function that counts how often it was run."""

    def __init__(self, function):
        self.function, self.number = function, 0

    def __call__(self, tx):
        self.number += 1
        return self.function(tx)


def other(database):
    """A connection beside the database's own, which knows nothing of it."""
    if database.kind == "sqlite":
        return sqlite3.connect(database.url.database, isolation_level=None, timeout=0.1)
    return psycopg.connect(
        database.url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
    )


@contextmanager
def locked(database):
    """Somebody else holds what a write of thing 1 needs."""
    beside = other(database)
    beside.execute("BEGIN IMMEDIATE" if database.kind == "sqlite" else "BEGIN")
    beside.execute("UPDATE things SET word = 'mine' WHERE id = 1")
    try:
        yield beside
    finally:
        with suppress(psycopg.Error, sqlite3.Error):
            beside.execute("ROLLBACK")
        beside.close()


def backend(tx):
    return tx.execute(text("SELECT pg_backend_pid()")).scalar_one()


def end_session(database, tx):
    """The server ends the session of a transaction."""
    with other(database) as beside:
        beside.execute("SELECT pg_terminate_backend(%s, 5000)", (backend(tx),))


def said(error):
    """Everything that a log could show of an error."""
    return "".join(traceback.format_exception(error))


# -- what is at fault -----------------------------------------------------------------------------------------


def test_a_write_is_committed_and_counted(database):
    before = database.commits
    database.write("add", add(1))
    database.write("add", add(2))
    assert database.read("count", count) == 2
    assert database.commits == before + 2
    assert database.counts["add"] == 2
    assert database.counts["count"] == 1


def test_a_key_that_is_taken_is_refused_and_nothing_of_the_write_stays(database):
    database.write("add", add(1))
    twice = Calls(lambda tx: (add(2)(tx), add(1)(tx)))
    with pytest.raises(RefusedWrite, match=r"refused 'add again': .*(UNIQUE|unique constraint)"):
        database.write("add again", twice)
    assert twice.number == 1
    assert database.read("count", count) == 1
    database.write("add", add(3))


def test_a_constraint_that_is_checked_at_the_commit_is_refused_too(database):
    before = database.commits
    orphan = Calls(lambda tx: tx.execute(insert(PARTS).values(of=99)))
    with pytest.raises(RefusedWrite, match=r"(?i)foreign key"):
        database.write("part", orphan)
    assert orphan.number == 1
    assert database.commits == before
    database.write("add", add(1))
    assert database.read("parts", lambda tx: tx.execute(select(PARTS)).all()) == []


def test_text_that_cannot_be_stored_is_refused(database):
    with pytest.raises(RefusedWrite):
        database.write("add", add(1, "\ud800"))
    with pytest.raises(RefusedWrite):
        database.write("add", add(2**70))
    assert database.read("count", count) == 0


@pytest.mark.parametrize("word", ["a\0b", "far too long"])
def test_text_that_only_postgresql_cannot_store_is_refused(postgres_url, word):
    with opened(postgres_url) as database, pytest.raises(RefusedWrite):
        database.write("add", add(1, word))


def test_an_index_entry_that_is_too_large_is_refused(postgres_url):
    def entry(tx):
        tx.execute(text("CREATE TABLE wide (word TEXT PRIMARY KEY)"))
        tx.execute(
            text(
                "INSERT INTO wide SELECT string_agg(sha256(n::text::bytea)::text, '') FROM generate_series(1, 200) n"
            )
        )

    with opened(postgres_url) as database, pytest.raises(RefusedWrite, match="index row"):
        database.write("entry", entry)


def test_a_missing_table_is_not_the_fault_of_the_values(database):
    lost = Calls(lambda tx: tx.execute(text("INSERT INTO nowhere VALUES (1)")))
    with pytest.raises(StoreError, match="nowhere") as caught:
        database.write("lost", lost)
    assert not isinstance(caught.value, RefusedWrite)
    assert lost.number == 1


def test_a_write_that_goes_on_after_an_error_is_not_acknowledged(database):
    def careless(tx):
        add(1)(tx)
        if database.kind == "sqlite":
            tx.exec_driver_sql("ROLLBACK")  # as SQLite does by itself when a disk is full
        else:
            with suppress(IntegrityError):
                add(1)(tx)

    with pytest.raises(StoreError, match="went on after an error"):
        database.write("careless", careless)
    assert database.read("count", count) == 0
    database.write("add", add(1))


def test_errors_of_the_function_itself_undo_the_write_and_pass_as_they_are(database):
    def broken(tx):
        add(1)(tx)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        database.write("broken", broken)
    assert database.read("count", count) == 0


# -- what passes ----------------------------------------------------------------------------------------------


def test_a_write_waits_for_a_lock_and_is_done_again(database, monkeypatch):
    database.write("add", add(1))
    database.engine.dispose()
    monkeypatch.setitem(engines._SESSION, "lock_timeout", "50ms")
    monkeypatch.setattr(engines, "_PRAGMAS", ("busy_timeout=50", *engines._PRAGMAS[1:]))
    with locked(database) as beside:
        # Whoever pauses before another attempt finds the lock given back after it.
        monkeypatch.setattr(tx.time, "sleep", lambda _: beside.execute("ROLLBACK"))
        database.write("change", lambda tx: tx.execute(update(THINGS).values(word="ours")))
    assert database.counts["change (retried)"] == 1
    assert database.read("word", lambda tx: tx.execute(select(THINGS.c.word)).scalar_one()) == "ours"


def test_no_write_waits_for_ever(database, monkeypatch):
    database.write("add", add(1))
    database.engine.dispose()
    monkeypatch.setattr(tx, "_ATTEMPTS", 2)
    monkeypatch.setitem(engines._SESSION, "lock_timeout", "50ms")
    monkeypatch.setattr(engines, "_PRAGMAS", ("busy_timeout=50", *engines._PRAGMAS[1:]))
    started = time.monotonic()
    with locked(database), pytest.raises(StoreError, match="busy through 2 attempts") as caught:
        database.write("change", lambda tx: tx.execute(update(THINGS).values(word="ours")))
    assert time.monotonic() - started < 5
    assert not isinstance(caught.value, RefusedWrite)
    assert database.counts["change (retried)"] == 1


def test_of_two_writes_that_block_each_other_both_are_done(postgres_url):
    with opened(postgres_url) as database:
        database.write("add", lambda tx: (add(1, "")(tx), add(2, "")(tx)))
        met = threading.Barrier(2)

        def change(word, first, second):
            def function(tx):
                for number in (first, second):
                    tx.execute(update(THINGS).where(THINGS.c.id == number).values(word=THINGS.c.word + word))
                    if not met.broken and number == first:
                        with suppress(threading.BrokenBarrierError):
                            met.wait(5)
                            met.abort()  # they meet once

            return lambda: database.write("change", function)

        threads = [threading.Thread(target=change("a", 1, 2)), threading.Thread(target=change("b", 2, 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert database.counts["change"] == 2
        assert database.counts["change (retried)"] == 1
        words = database.read("words", lambda tx: tx.execute(select(THINGS.c.word)).scalars().all())
        assert [sorted(word) for word in words] == [["a", "b"], ["a", "b"]]


def test_a_serialization_failure_is_done_again(postgres_url):
    with opened(postgres_url) as database, other(database) as beside:
        database.write("add", add(1, size=1.0))

        def double(tx):
            tx.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            size = tx.execute(select(THINGS.c.size)).scalar_one()
            if size == 1.0:
                beside.execute("UPDATE things SET size = 5")
            tx.execute(update(THINGS).values(size=size * 2))

        database.write("double", double)
        assert database.counts["double (retried)"] == 1
        assert beside.execute("SELECT size FROM things").fetchone() == (10.0,)


# -- what may or may not be there -----------------------------------------------------------------------------


def test_a_session_that_ends_in_the_middle_is_an_error_and_the_next_write_has_a_new_one(postgres_url):
    with opened(postgres_url) as database:
        cut = Calls(lambda tx: (add(1)(tx), end_session(database, tx), add(2)(tx)))
        with pytest.raises(StoreError, match="cannot be used at 'cut'"):
            database.write("cut", cut)
        assert cut.number == 1
        database.write("add", add(3))
        assert database.read("count", count) == 1


def test_a_session_that_ends_before_its_commit_leaves_the_write_in_doubt(postgres_url):
    with opened(postgres_url) as database:
        kept = []
        once = Calls(lambda tx: (kept.append(tx), add(1)(tx)))
        failpoints.arm("store.written", lambda _: end_session(database, kept[0]))
        with pytest.raises(StoreError, match=r"while it committed 'once'.*it may be there or not"):
            database.write("once", once)
        failpoints.disarm()
        assert once.number == 1
        assert database.read("count", count) == 0
        database.write("add", add(1))


def test_a_commit_whose_answer_got_lost_is_not_done_again(database, monkeypatch):
    commit = database.engine.dialect.do_commit
    before = database.commits

    def lost(raw):
        commit(raw)
        raise database.engine.dialect.loaded_dbapi.OperationalError(
            "database is locked, or deadlock, or nobody knows"
        )

    monkeypatch.setattr(database.engine.dialect, "do_commit", lost)
    once = Calls(lambda tx: tx.execute(insert(THINGS).values(word="only")))
    with pytest.raises(StoreError, match="it may be there or not") as caught:
        database.write("once", once)
    monkeypatch.undo()
    assert not isinstance(caught.value, RefusedWrite)
    assert once.number == 1
    assert database.read("count", count) == 1
    assert database.commits == before


def test_a_commit_of_sqlite_that_is_locked_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_PRAGMAS", ("busy_timeout=50", "journal_mode=DELETE"))
    with opened(f"sqlite:///{tmp_path / 'koinon.db'}") as database:
        beside = other(database)
        beside.execute("BEGIN")
        beside.execute("SELECT * FROM things").fetchall()  # without WAL a reader blocks a commit
        once = Calls(add(1))
        with pytest.raises(StoreError, match="while it committed 'once': database is locked"):
            database.write("once", once)
        assert once.number == 1
        beside.close()
        assert database.read("count", count) == 0
        database.write("add", add(1))


@contextmanager
def stopped(pid):
    """A process of the server stands still, as on a broken disk; its network does not."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_server_that_says_nothing_any_more_is_not_waited_for(postgres_url, monkeypatch):
    monkeypatch.setattr(PatientConnection, "patience", 0.5)

    def hang(tx):
        with stopped(backend(tx)):
            add(1)(tx)

    with opened(postgres_url) as database:
        with pytest.raises(StoreError, match=r"the server has not answered for 0\.5 s"):
            database.write("hang", hang)
        database.write("add", add(2))
        assert database.read("count", count) == 1


def test_a_session_that_hangs_before_it_is_used_is_replaced(postgres_url, monkeypatch):
    monkeypatch.setattr(PatientConnection, "patience", 0.5)
    with opened(postgres_url) as database:
        with stopped(database.write("pid", backend)):
            database.write("add", add(1))
        assert database.read("count", count) == 1


def test_a_commit_that_waits_for_a_standby_for_ever_may_be_there_or_not(monkeypatch):
    monkeypatch.setattr(PatientConnection, "patience", 0.5)
    with Postgres() as server, opened(server.create()) as database:
        with server.connect() as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            admin.execute("SELECT pg_reload_conf()")
            while admin.execute("SHOW synchronous_standby_names").fetchone() != ("nobody",):
                time.sleep(0.01)
        once = Calls(add(1))
        with pytest.raises(
            StoreError, match=r"while it committed 'once'.*not answered.*it may be there or not"
        ):
            database.write("once", once)
        assert once.number == 1
        server.kill()
        server.start()
        assert database.read("count", count) == 1, "here it is there"


def test_what_was_acknowledged_is_there_after_the_server_was_killed():
    with (
        Postgres(durable=True, settings={"synchronous_commit": "off"}) as server,
        opened(server.create()) as database,
    ):
        for number in range(20):
            database.write("add", add(number))
        server.kill()
        with pytest.raises(StoreError, match="cannot be used at 'add'"):
            database.write("add", add(20))
        server.start()
        assert database.read("count", count) == 20
        database.write("add", add(21))


# -- sessions -------------------------------------------------------------------------------------------------


def settings(database, *names):
    def function(tx):
        return tuple(tx.execute(text(f"SHOW {name}")).scalar_one() for name in names)

    return function


@pytest.mark.parametrize(
    ("given", "held"), [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")]
)
def test_a_server_that_acknowledges_too_early_is_told_not_to(postgres_url, given, held):
    with opened(postgres_url) as database:
        name = database.url.database
        with other(database) as beside:
            beside.execute(f"ALTER DATABASE {name} SET synchronous_commit = {given}")
            beside.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
        database.engine.dispose()
        with pytest.raises(ZeroDivisionError):
            database.write("broken", lambda _: 1 / 0)  # what a rolled back transaction set would be gone
        show = settings(database, "synchronous_commit", "transaction_isolation")
        assert database.write("show", show) == (held, "read committed")


def test_every_wait_of_a_session_has_an_end(postgres_url):
    with opened(postgres_url) as database:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        assert database.write("show", settings(database, *names)) == ("30s", "5s", "1min")
        raw = database.engine.raw_connection()
        told = raw.driver_connection.info.get_parameters()
        raw.close()
        assert told["connect_timeout"] == "10"
        assert told["tcp_user_timeout"] == "30000"
        assert told["keepalives_idle"] == "30"


def test_who_started_it_may_say_otherwise_in_the_url(postgres_url):
    with opened(f"{postgres_url}?connect_timeout=3&application_name=ours") as database:
        assert database.write("show", settings(database, "application_name")) == ("ours",)


def test_a_statement_that_takes_too_long_is_ended(postgres_url, monkeypatch):
    monkeypatch.setitem(engines._SESSION, "statement_timeout", "100ms")
    with opened(postgres_url) as database:
        slow = Calls(lambda tx: tx.execute(text("SELECT pg_sleep(20)")))
        started = time.monotonic()
        with pytest.raises(StoreError, match="statement timeout"):
            database.read("slow", slow)
        assert time.monotonic() - started < 5
        assert slow.number == 1


def test_a_transaction_that_nobody_goes_on_with_is_ended(postgres_url, monkeypatch):
    monkeypatch.setitem(engines._SESSION, "idle_in_transaction_session_timeout", "100ms")
    with opened(postgres_url) as database, pytest.raises(StoreError):
        database.write("idle", lambda tx: (add(1)(tx), time.sleep(0.5), add(2)(tx)))


def test_nobody_waits_for_ever_for_a_connection(postgres_url):
    with opened(postgres_url) as database:
        database.engine.pool._timeout = 0.05
        taken = [database.engine.connect() for _ in range(8)]
        with pytest.raises(StoreError, match="all its connections were in use"):
            database.read("count", count)
        for connection in taken:
            connection.close()
        assert database.read("count", count) == 0


def test_a_read_sees_one_moment(database):
    def twice(tx):
        first = count(tx)
        database.write("add", add(1))
        return first, count(tx)

    assert database.read("twice", twice) == (0, 0)
    assert database.read("count", count) == 1


def test_a_read_of_postgresql_cannot_write_and_leaves_no_trace_on_its_session(postgres_url):
    with opened(postgres_url) as database:
        with pytest.raises(StoreError, match="read-only"):
            database.read("add", add(1))
        assert database.engine.pool.checkedin() == 1, "the next write has the same session"
        database.write("add", add(1))
        show = settings(database, "transaction_isolation", "transaction_read_only")
        assert database.write("show", show) == ("read committed", "off")


def test_a_float_comes_back_as_it_went_in(database):
    if database.kind == "postgresql":
        with other(database) as beside:
            beside.execute(f"ALTER DATABASE {database.url.database} SET extra_float_digits = 0")
        database.engine.dispose()
    database.write("add", add(1, size=0.1 + 0.2))
    assert database.read("size", lambda tx: tx.execute(select(THINGS.c.size)).scalar_one()) == 0.1 + 0.2


# -- failpoints -----------------------------------------------------------------------------------------------


def test_a_write_passes_its_failpoints_and_a_read_none(database):
    passed = []
    for point in ("store.begun", "store.written", "store.committed"):

        def seen(name, point=point):
            with other(database) as beside:
                (rows,) = beside.execute("SELECT count(*) FROM things").fetchone()
            passed.append((point, name, rows, database.counts["add"]))

        failpoints.arm(point, seen)
    database.write("add", add(1))
    assert passed == [
        ("store.begun", "add", 0, 0), ("store.written", "add", 0, 0), ("store.committed", "add", 1, 1)
    ]  # fmt: skip
    passed.clear()
    database.read("count", count)
    assert passed == []
    with pytest.raises(RefusedWrite):
        database.write("again", add(1))
    assert [point for point, *_ in passed] == ["store.begun"]


# -- what --db says -------------------------------------------------------------------------------------------

SECRET = "hunter2secret"  # what is looked for in every error


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://koinon:{SECRET}@127.0.0.1:1/koinon",
        f"postgresql+psycopg://koinon:{SECRET}@no.such.host.invalid/koinon",
        f"postgresql+psycopg://koinon:{SECRET}@127.0.0.1:port/koinon",
        f"postgresql+psycopg://127.0.0.1:{SECRET}/koinon",
        f"postgresql+psycopg://koinon:a@{SECRET}@127.0.0.1/koinon",
        f"postgresql+psycopg://koinon@127.0.0.1:1/koinon?password={SECRET}",
        f"postgresql+psycopg://koinon:{SECRET}@127.0.0.1:1/koinon?no_such_option=1",
        f"koinon:{SECRET}@127.0.0.1",
        f"mysql://koinon:{SECRET}@127.0.0.1/koinon",
        f"postgresql+asyncpg://koinon:{SECRET}@127.0.0.1/koinon",
    ],
)
def test_no_error_shows_the_password(url):
    shown = []

    def start():
        database = Database(url)
        shown.append(str(database))
        schema.upgrade(database)

    with pytest.raises(StoreError) as caught:
        start()
    assert SECRET not in "".join(shown)
    assert SECRET not in said(caught.value)
    assert "--db" in str(caught.value)


def test_a_wrong_password_and_a_database_that_is_not_there_are_told(postgres):
    for url, why in (
        (postgres.url().replace(postgres.password, SECRET), "password authentication failed"),
        (postgres.url("nowhere"), 'database "nowhere" does not exist'),
    ):
        with pytest.raises(StoreError, match=why) as caught:
            schema.upgrade(Database(url))
        assert SECRET not in said(caught.value)
        assert postgres.password not in said(caught.value)


def test_values_are_not_shown_in_errors(database):
    word = "secret"[::-1]  # a traceback shows the lines of this test too
    database.write("add", add(1))
    with pytest.raises(RefusedWrite) as caught:
        database.write("add", add(1, word))
    assert word not in said(caught.value)


def test_a_missing_driver_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"install `koinon\[postgres\]`"):
        Database("postgresql+psycopg://koinon@127.0.0.1/koinon")


def test_a_url_without_a_driver_means_ours(postgres_url):
    with opened(postgres_url.replace("+psycopg", "")) as database:
        database.write("add", add(1))


# -- migrations -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'koinon.db'}"
        return
    with request.getfixturevalue("postgres").database(migrated=False) as url:
        yield url


def head():
    return schema.ScriptDirectory.from_config(schema._config()).get_current_head()


def test_a_migration_says_what_it_did(empty_url):
    database = Database(empty_url)
    assert schema.upgrade(database) == (None, head())
    assert schema.upgrade(database) == (head(), head())
    database.close()


def test_of_several_coordinators_that_start_at_once_one_migrates(empty_url):
    together, done, errors = threading.Barrier(4), [], []

    def start():
        database = Database(empty_url)
        together.wait(10)
        try:
            done.append(schema.upgrade(database)[0])
        except StoreError as error:
            errors.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert (len(done), done.count(None), done.count(head())) == (4, 1, 3)


def test_who_migrates_for_ever_is_not_waited_for(postgres, monkeypatch):
    monkeypatch.setattr(tx, "_ATTEMPTS", 2)
    monkeypatch.setattr(schema, "_LOCK_TIMEOUT", "50ms")
    with postgres.database(migrated=False) as url:
        database = Database(url)
        with other(database) as beside:
            beside.execute("SELECT pg_advisory_lock(%s)", (schema._LOCK,))
            started = time.monotonic()
            with pytest.raises(StoreError, match="busy through 2 attempts at 'migrate'"):
                schema.upgrade(database)
            assert time.monotonic() - started < 4
        assert schema.upgrade(database)[0] is None
        database.close()


def test_a_migration_that_stops_before_its_commit_did_nothing(empty_url):
    class Stop(Exception):
        pass

    def stop(_name):
        raise Stop

    database = Database(empty_url)
    failpoints.arm("store.written", stop)
    with pytest.raises(Stop):
        schema.upgrade(database)
    failpoints.disarm()
    assert database.read("tables", lambda tx: schema.inspect(tx).get_table_names()) == []
    assert schema.upgrade(database) == (None, head())
    database.close()


def test_a_database_of_something_else_is_left_alone(empty_url):
    database = Database(empty_url)
    database.write("foreign", lambda tx: tx.execute(text("CREATE TABLE recipes (name TEXT)")))
    with pytest.raises(StoreError, match=r"holds tables that are not Koinon's \('recipes'\)"):
        schema.upgrade(database)
    assert database.read("tables", lambda tx: schema.inspect(tx).get_table_names()) == ["recipes"]
    database.close()


def test_a_database_of_a_newer_version_is_left_alone(empty_url):
    database = Database(empty_url)
    schema.upgrade(database)
    database.write("newer", lambda tx: tx.execute(text("UPDATE alembic_version SET version_num = 'ffff'")))
    with pytest.raises(StoreError, match=r"is at revision 'ffff'.*written by a newer Koinon") as caught:
        schema.upgrade(database)
    if database.url.password:
        assert database.url.password not in said(caught.value)
    database.close()


def test_a_database_that_cannot_say_every_name_is_refused(postgres):
    with postgres.database(migrated=False, encoding="LATIN1") as url:
        database = Database(url)
        with pytest.raises(StoreError, match="holds text as LATIN1"):
            schema.upgrade(database)
        database.close()


def test_a_role_that_may_not_make_tables_is_told(postgres):
    with postgres.database(migrated=False) as url:
        database = Database(url)
        with other(database) as beside:
            beside.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
        guest = Database(
            database.url.set(username="guest", password="guest").render_as_string(hide_password=False)
        )
        with pytest.raises(StoreError, match="permission denied for schema public"):
            schema.upgrade(guest)
        guest.close()
        database.close()
        with postgres.connect() as admin:
            admin.execute("DROP ROLE guest")


def test_the_error_behind_is_kept_for_the_log(database):
    with pytest.raises(StoreError) as caught:
        database.write("lost", lambda tx: tx.execute(text("INSERT INTO nowhere VALUES (1)")))
    assert isinstance(caught.value.__cause__, DBAPIError)
