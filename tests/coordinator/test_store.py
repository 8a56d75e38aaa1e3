"""The run database and its blobs: what is committed is there, what is there is whole."""

import os
from dataclasses import replace

import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

import koinon
from koinon_coordinator.closing import Plan, first_version
from koinon_coordinator.driver import restore
from koinon_coordinator.store import Change, Incident, Store, UpdateRow
from koinon_coordinator.store.blobs import Blobs
from koinon_coordinator.store.models import Table
from koinon_coordinator.store.schema import _config
from koinon_coordinator.store.tx import RefusedWrite
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob, Conflict, NotFound, StoreError, Unavailable
from koinon_core.update import Head


@pytest.fixture
def store(database_url, tmp_path):
    one = Store(database_url, tmp_path / "blobs")
    yield one
    one.close()


def opened(store, name="r", clients=3):
    """A stored run whose first round has asked its devices."""
    described = koinon.Run(
        name,
        model={"w": np.zeros(3, np.float32)},
        rounds=5,
        min_clients=clients,
        clients=clients,
        max_examples=16,
    )
    plan = Plan.of(described.spec)
    version, contents = first_version(store, plan, described.model)
    run = runs.Run(id=sha256(name.encode())[:32], spec=described.spec, model=version.digest)
    store.create_run(Change(run, models=[version], contents=contents), 1.0)
    for i in range(clients):
        run = runs.step(run, runs.Offered(1.0, f"c{i}")).run
    run = move(store, runs.start(run).run, runs.Opening(2.0, "aa"))
    assert run.round.stage == "update"
    return run


def move(store, run, fact, **values):
    """What the driver does with a fact."""
    moved = runs.step(run, fact)
    number = moved.run.number
    change = Change(moved.run, before=run, events=[(number, e) for e in moved.records], **values)
    change.rounds = {number: moved.run.round}
    store.write(change)
    return moved.run


def update(run, client, data=b"x" * 100):
    return UpdateRow(client, run.number, sha256(data), len(data), "raw", Head(examples=1), 3.0, data)


def test_a_run_is_rebuilt_from_its_rows_exactly(store):
    run = opened(store)
    run = move(store, run, runs.Answered(3.0, "c0", 1, "d0"), updates=[update(run, "c0")])
    run = move(store, run, runs.Resigned(4.0, "c1", 1, "DECLINED", "no data"))
    row = store.runs()[0]
    again = restore(store, row)
    assert again.round == run.round
    assert replace(again, devices={}, leases={}) == replace(run, devices={}, leases={})


def test_one_device_cannot_contribute_twice_whatever_the_code_does(store):
    run = opened(store)
    run = move(store, run, runs.Answered(3.0, "c0", 1, "d0"), updates=[update(run, "c0")])
    with pytest.raises(RefusedWrite, match=r"UNIQUE|unique constraint"):
        store.write(
            Change(
                run, before=run, incidents=[Incident(1.0, "", 1, "X", "x")], updates=[update(run, "c0", b"y")]
            )
        )
    assert store.incidents(run.id) == [], "the whole change is undone"


def test_a_change_is_all_or_nothing(store):
    run = opened(store)
    before = store.rounds(run.id)
    broken = update(run, "c1")
    with pytest.raises(RefusedWrite):
        move(store, run, runs.Answered(3.0, "c0", 1, "d0"), updates=[broken, broken])
    assert store.rounds(run.id) == before
    assert len(store.events(run.id, 1)) == 4, "Opened, and three that joined"


def test_participants_tell_who_took_part_and_why_not(store):
    run = opened(store)
    run = move(store, run, runs.Answered(3.0, "c0", 1, "d0"), updates=[update(run, "c0")])
    move(store, run, runs.Resigned(4.0, "c1", 1, "DECLINED", "no data"))
    (row,) = store.rounds(run.id)
    told = {p.client: (p.status, p.reason) for p in row.participants}
    assert told["c1"] == ("left", "no data")
    assert row.stage == "abandoned"
    assert told["c0"][0] == "not_counted"
    assert store.verdict(run.id, 1, "c0")[0] == "NOT_COUNTED"
    assert row.bytes_up == 100


def test_a_taken_name_is_refused(store):
    opened(store, "same")
    with pytest.raises(Conflict, match="choose another"):
        opened(store, "same")


def test_contents_are_checked_against_their_names(store):
    digest, _, data = store.put(b"small")
    run = opened(store)
    store.write(
        Change(run, before=run, incidents=[Incident(1.0, "", 0, "X", "x")], contents=[(digest, 5, data)])
    )
    store._small.clear()  # from the row, not from memory
    assert store.bytes(digest) == b"small"
    large, size, none = store.put(bytes(200_000))
    assert none is None
    path = store.blobs.path(large)
    store.write(
        Change(run, before=run, incidents=[Incident(1.0, "", 0, "X", "x")], contents=[(large, size, None)])
    )
    assert store.bytes(large) == bytes(200_000)
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\x01")
    with pytest.raises(StoreError, match="damaged"):
        store.bytes(large)
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        store.bytes(large)
    with pytest.raises(NotFound):
        store.bytes("0" * 64)


def test_every_table_is_what_the_migrations_make(store):
    with store.database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_migrations_go_down_and_up_again(store):
    config = _config()
    with store.database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        connection.commit()
    with store.database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    opened(store)


def test_sqlite_survives_power_cuts_by_its_settings(tmp_path):
    def pragma(tx, name):
        return tx.execute(text(f"PRAGMA {name}")).scalar()

    store = Store(f"sqlite:///{tmp_path / 'koinon.db'}")
    with store.database.engine.connect() as tx:
        assert pragma(tx, "journal_mode") == "wal"
        assert pragma(tx, "synchronous") == 2, "FULL"
        assert pragma(tx, "foreign_keys") == 1
    store.close()


def test_a_second_coordinator_on_the_same_database_is_refused(database_url, tmp_path):
    first = Store(database_url, tmp_path / "blobs")
    with pytest.raises(StoreError, match="another coordinator"):
        Store(database_url, tmp_path / "blobs")
    first.close()
    Store(database_url, tmp_path / "blobs").close()


def test_what_one_coordinator_stored_the_next_one_reads(database_url, tmp_path):
    first = Store(database_url, tmp_path / "blobs")
    run = opened(first)
    run = move(first, run, runs.Answered(3.0, "c0", 1, "d0"), updates=[update(run, "c0")])
    first.close()
    second = Store(database_url, tmp_path / "blobs")
    again = restore(second, second.runs()[0])
    assert again.round == run.round
    assert second.bytes(sha256(b"x" * 100)) == b"x" * 100
    second.close()


# -- blobs ----------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_was_cut(tmp_path):
    blobs = Blobs(tmp_path)
    data = os.urandom(300_000)
    with blobs.receive(sha256(data), len(data), "c0") as first:
        first.write(data[:100_000])
    assert blobs.received(sha256(data), "c0") == 100_000
    assert blobs.received(sha256(data), "c1") == 0, "another device's part is not mine to go on with"
    assert not blobs.has(sha256(data))
    with blobs.receive(sha256(data), len(data), "c0") as rest:
        assert rest.offset == 100_000
        rest.write(data[100_000:])
        rest.finish()
    window = blobs.window(sha256(data))
    assert window(0, len(data)) == data
    assert window(299_990, 50) == data[299_990:]


def test_an_upload_of_other_bytes_is_forgotten(tmp_path):
    blobs = Blobs(tmp_path)
    with blobs.receive(sha256(b"right"), 5, "c0") as incoming:
        incoming.write(b"wrong")
        with pytest.raises(BadBlob, match="SHA-256"):
            incoming.finish()
    assert blobs.received(sha256(b"right"), "c0") == 0
    assert not blobs.has(sha256(b"right"))


def test_more_bytes_than_declared_are_refused_before_they_are_written(tmp_path):
    blobs = Blobs(tmp_path)
    with blobs.receive(sha256(b"right"), 5, "c0") as incoming, pytest.raises(BadBlob, match="more were sent"):
        incoming.write(b"righteous")


def test_the_old_stream_of_a_device_that_is_back_writes_no_more(tmp_path):
    blobs = Blobs(tmp_path)
    old = blobs.receive(sha256(b"right"), 5, "c0")
    old.write(b"ri")
    with blobs.receive(sha256(b"right"), 5, "c0") as new:
        with pytest.raises(Unavailable, match="another stream"):
            old.write(b"XX")
        new.write(b"ght")
        new.finish()
    assert blobs.has(sha256(b"right"))


def test_nobody_writes_into_a_blob_that_is_finished(tmp_path):
    blobs = Blobs(tmp_path)
    with blobs.receive(sha256(b"right"), 5, "c0") as incoming:
        incoming.write(b"right")
        incoming.finish()
        with pytest.raises(Unavailable):
            incoming.write(b"!")
    assert blobs.receive(sha256(b"right"), 3, "c0") is None, "what is here is not received again"
    assert blobs.window(sha256(b"right"))(0, 10) == b"right"


def test_a_full_disk_is_the_coordinators_fault(tmp_path, monkeypatch):
    blobs = Blobs(tmp_path)

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        blobs.put(b"anything")


def test_what_a_device_began_and_left_is_not_kept_beside_its_next_upload(tmp_path):
    blobs = Blobs(tmp_path)
    for n in range(5):
        with blobs.receive(sha256(b"%d" % n), 10, "c0") as incoming:
            incoming.write(b"half")
    with blobs.receive(sha256(b"other"), 10, "c1") as other:
        other.write(b"half")
    assert [blobs.received(sha256(b"%d" % n), "c0") for n in range(5)] == [0, 0, 0, 0, 4]


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_a_name_that_is_no_digest_reaches_no_file(tmp_path, digest):
    with pytest.raises(BadBlob, match="not the SHA-256"):
        Blobs(tmp_path).path(digest)
