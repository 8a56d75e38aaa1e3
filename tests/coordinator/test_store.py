"""The run database and its folder: what is committed is there, what is there is whole, what is not needed goes."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, create_engine, event, func, insert, select, text

import koinon
from koinon_coordinator.store import Held, Incident, ModelVersion, Scrub, Store, Superseded, models, upkeep
from koinon_coordinator.store.models import Table
from koinon_coordinator.store.owners import LEASE
from koinon_coordinator.store.schema import _config
from koinon_coordinator.store.tx import Database, RefusedWrite
from koinon_core import audit
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob, Conflict, NotFound, StoreError
from koinon_core.history import link_of
from koinon_core.round.machine import rebuild
from lab import LARGE, Lab, files, raising

ARCHIVE = Path(__file__).parents[1] / "archive" / "0.1.0"


class Died(BaseException):
    """The process ends here."""


def dump(store):
    """Every row of every table, as text."""

    def rows(tx):
        return {t.name: sorted(map(repr, tx.execute(select(t)))) for t in Table.metadata.sorted_tables}

    return store.database.read("dump", rows)


# -- what a turn writes ---------------------------------------------------------------------------------------


def test_a_run_is_rebuilt_from_its_rows_exactly(store):
    lab = Lab.create(store, clients=2, over_selection=1.5, min_clients=2).open()
    lab.answer("c0")
    lab.turn(runs.Resigned(4.0, "c1", 1, "DECLINED", "no data"))
    lab.store.beat(lab.run.id, 1, lab.clock())
    again = Lab.take_up(store, lab.row, clock=lab.clock).run
    assert again.round == lab.run.round
    here = {"devices": {}, "leases": {}, "returning": 0}  # what only the living know
    assert replace(again, **here) == replace(lab.run, **here)


def test_one_device_cannot_contribute_twice_whatever_the_code_does(store):
    lab = Lab.create(store).open()
    lab.answer("c0")
    before = dump(store)
    second = lab.update("c0", b"another")
    with pytest.raises(RefusedWrite, match=r"(?i)unique"):
        store.write(lab.change(incidents=[Incident(1.0, "", 1, "X", "x")], updates=[second]))
    assert dump(store) == before, "the whole change is undone"


def test_a_change_is_all_or_nothing(store):
    lab = Lab.create(store).open()
    lab.answer("c0")
    before = dump(store)
    with raising("store.written", Died(), "turn"), pytest.raises(Died):
        lab.answer("c1")
    assert dump(store) == before


def test_participants_tell_who_took_part_and_why_not(store):
    lab = Lab.create(store).open()
    lab.answer("c0")
    lab.turn(runs.Resigned(4.0, "c1", 1, "DECLINED", "no data"))
    row = store.rounds(lab.run.id)[0]
    told = {p.client: (p.status, p.reason) for p in row.participants}
    assert told["c1"] == ("left", "no data")
    assert row.stage == "abandoned"
    assert told["c0"][0] == "not_counted"
    assert store.verdict(lab.run.id, 1, "c0")[0] == "NOT_COUNTED"
    assert row.bytes_up == len(lab.data("c0", 1))


def test_a_taken_name_is_refused(store):
    Lab.create(store, "same")
    before = dump(store)
    with pytest.raises(Conflict, match="choose another"):
        Lab.create(store, "same")
    assert dump(store) == before


def test_contents_are_checked_against_their_names(store):
    lab = Lab.create(store)
    for data in (b"small", bytes(200_000)):
        content = store.put(data)
        store.write(lab.change(contents=[content]))
        store._small.clear()  # from the row, not from memory
        assert store.bytes(content[0]) == data
    path = store.blobs.path(content[0])
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\x01")
    with pytest.raises(StoreError, match="damaged"):
        store.bytes(content[0])
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        store.bytes(content[0])
    with pytest.raises(NotFound):
        store.bytes("0" * 64)


def test_sqlite_survives_power_cuts_by_its_settings(store):
    if store.database.kind != "sqlite":
        pytest.skip("PostgreSQL's settings are test_tx's")

    def pragma(tx, name):
        return tx.execute(text(f"PRAGMA {name}")).scalar()

    with store.database.engine.connect() as tx:
        assert pragma(tx, "journal_mode") == "wal"
        assert pragma(tx, "synchronous") == 2, "FULL"
        assert pragma(tx, "foreign_keys") == 1


def test_a_second_coordinator_with_the_same_folder_is_refused(database_url, tmp_path):
    first = Store(database_url, tmp_path / "blobs")
    with pytest.raises(StoreError, match="another coordinator"):
        Store(database_url, tmp_path / "blobs")
    owner = first.owner
    first.close()
    again = Store(database_url, tmp_path / "blobs")
    assert again.owner == owner, "whoever has the folder is who had it before"
    again.close()


# -- who owns a run -------------------------------------------------------------------------------------------


def test_what_an_epoch_that_is_over_writes_changes_nothing(store):
    lab = Lab.create(store).open()
    lab.answer("c0")
    held = store.take(lab.run.id, lab.clock())
    assert held.epoch == 2
    before = dump(store)
    with pytest.raises(Superseded, match="taken over"):
        lab.answer("c1")
    with pytest.raises(Superseded, match="taken over"):
        store.write(lab.change(incidents=[Incident(1.0, "", 1, "X", "x")], scrub=Scrub(updates=(1,))))
    assert not store.beat(lab.run.id, 1, 9e9)
    store.release(lab.run.id, 1, 9e9)
    assert dump(store) == before


def test_an_owner_takes_its_own_run_at_once_and_learns_until_when_it_was_owned(store):
    lab = Lab.create(store).open()
    last = lab.clock()
    assert store.take(lab.run.id, last + 0.5) == Held(2, last)
    assert store.take(lab.run.id, last + 0.7) == Held(3, last), "nobody wrote since: nobody owned it"


def test_a_second_coordinator_on_one_sqlite_file_is_refused_whatever_folder_it_has(tmp_path):
    url = f"sqlite:///{tmp_path / 'koinon.db'}"
    store = Store(url)
    with pytest.raises(StoreError, match="another coordinator uses"):
        Store(url, tmp_path / "other")
    store.close()
    Store(url, tmp_path / "other").close()


def test_another_owner_waits_for_a_lease_or_a_release(store, database_url, tmp_path):
    other = Store(database_url, tmp_path / "other", alone=False)
    try:
        run = Lab.create(store).run.id
        last = store.run(run).beat
        before = dump(store)
        with pytest.raises(Conflict, match="driven by another coordinator"):
            other.take(run, last + LEASE - 0.01)
        assert dump(store) == before
        assert store.beat(run, 1, last + 20)
        with pytest.raises(Conflict):
            other.take(run, last + LEASE)
        assert other.take(run, last + 20 + LEASE).epoch == 2
        assert store.run(run).owner == other.owner
        other.release(run, 2, last + 60)
        held = store.take(run, last + 60)
        assert (held.epoch, held.beat) == (3, last + 60)
    finally:
        other.close()


# -- the histories --------------------------------------------------------------------------------------------


def test_the_audit_log_in_the_database_is_the_chain_that_the_row_ends(store):
    lab = Lab.create(store).rounds(2).open()
    lab.turn(runs.Resigned(4.0, "c1", 3, "DECLINED", "no data"))
    Lab.take_up(store, lab.row, clock=lab.clock)
    row, entries = lab.row, list(store.audit(lab.run.id))
    report = audit.verify(entries)
    assert report.problems == []
    assert (report.entries, report.hash, report.head) == (row.audit_number, row.audit_hash, row.head)
    assert report.rounds == 3
    kinds = [e.value["kind"] for e in entries]
    assert kinds[0] == "created"
    assert kinds.count("taken up") == 1
    assert list(store.audit(lab.run.id, after=2)) == entries[2:]
    _, links = store.standing(lab.run.id, 1)
    assert sorted(links) == [1, 2, 3]
    assert links[3] == link_of(rebuild(store.events(lab.run.id, 3)))
    assert [r.head for r in store.rounds(lab.run.id)][2] == row.head


@pytest.mark.parametrize(
    ("harm", "value"),
    [
        ("UPDATE audit SET text = :x", b"{}"),
        ("UPDATE audit SET hash = :x", "0" * 64),
        ("DELETE FROM audit", None),
    ],
)
def test_a_changed_audit_log_is_noticed(store, harm, value):
    lab = Lab.create(store).rounds(1)
    with store.database.engine.connect() as tx, tx.begin():
        tx.execute(text(f"{harm} WHERE number = 2"), {"x": value} if value else {})
    report = audit.verify(store.audit(lab.run.id))
    assert len(report.problems) == 1
    assert "entry 2" in report.problems[0]


# -- what is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, LARGE])
def test_a_round_is_scrubbed_in_the_transaction_that_closes_it(store, size):
    lab = Lab.create(store, devices=2, size=size, retention="none").open()
    lab.answer("c0")
    run, there = lab.run.id, files(store.folder.root)
    with raising("store.written", Died(), "turn"), pytest.raises(Died):
        lab.answer("c1")
    assert [u.client for u in store.updates(run, 1)] == ["c0"]
    assert there <= files(store.folder.root)
    lab = Lab.take_up(store, lab.row, devices=2, clock=lab.clock)
    lab.answer("c1")
    assert store.updates(run, 1) == []
    assert not list((store.folder.root / "updates").rglob("*-*"))

    def data(tx):
        return tx.execute(select(func.count(models.Update.data))).scalar_one()

    assert store.database.read("data", data) == 0
    assert [p.status for p in store.rounds(run)[0].participants] == ["counted", "counted"], (
        "who took part stays"
    )


def test_files_that_a_process_had_no_time_to_remove_go_when_the_folder_is_swept(store, database_url):
    lab = Lab.create(store, devices=2, size=LARGE, retention="none", models="none").open()
    lab.answer("c0")
    with raising("store.committed", Died(), "turn"), pytest.raises(Died):
        lab.answer("c1")
    run = lab.run.id
    assert len(list((store.folder.root / "updates").rglob("*-*"))) == 2
    assert len(files(store.folder.root)) == 4
    store.close()
    again = Store(database_url, store.folder.root)
    again.sweep()
    assert files(again.folder.root) == {
        again.blobs.path(again.latest_model(run).digest).relative_to(again.folder.root)
    }
    assert again.folder.used == sum(f.stat().st_size for f in again.folder.root.rglob("*") if f.is_file())
    again.close()


def test_what_was_refused_or_never_whole_goes_with_the_next_sweep_once_its_round_is_over(store):
    lab = Lab.create(store, devices=2, size=LARGE, retention="keep").rounds(1).open()
    lab.answer("c0")
    data, digest = lab.data("c1"), sha256(lab.data("c1"))
    for number in (1, 2):
        with store.uploads.receive(lab.part("c1", number), digest, len(data)) as incoming:
            incoming.write(data[:1000])
    there = files(store.folder.root)
    store.sweep()
    (gone,) = there - files(store.folder.root)
    assert (gone.parts[-2], gone.suffix) == ("1", ".part")
    assert store.uploads.received(lab.part("c1", 2), digest) == 1000, "the open round's goes on"
    assert len(store.updates(lab.run.id, 1)) == 2
    lab.close()
    assert lab.run.closed == 2


def test_a_content_stays_whatever_a_version_names_it_for(store):
    lab = Lab.create(store)
    contents = [store.put(bytes([n]) * 100_000) for n in range(4)]
    digests = [digest for digest, _, _ in contents]
    store.write(lab.change(models=[ModelVersion(7, *digests[:3])], contents=contents))
    store.collect(set(digests))
    for digest in digests[:3]:
        assert sha256(store.bytes(digest)) == digest
    assert not store.blobs.has(digests[3])


def test_what_only_a_scrubbed_version_named_is_collected_at_once(store):
    """Models go before the states that policy would still keep: their states go with them."""
    lab = Lab.create(
        store,
        devices=2,
        size=LARGE,
        strategy=koinon.FedAvgM(lr=0.5, beta=0.9),
        retention="keep",
        models="none",
    ).rounds(3)
    versions = store.kept_versions(lab.run.id)
    assert [v.round for v in versions] == [3]

    def named(tx):
        return set(tx.execute(select(models.Content.digest)).scalars())

    assert store.database.read("contents", named) == {versions[0].digest, versions[0].state}


# -- migrations -----------------------------------------------------------------------------------------------


def test_every_table_is_what_the_migrations_make(store):
    with store.database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_there_is_no_way_back(store):
    config = _config()
    before = dump(store)
    with store.database.engine.connect() as connection:
        config.attributes["connection"] = connection
        with pytest.raises(NotImplementedError, match="restore the backup"):
            command.downgrade(config, "0001")
    assert dump(store) == before


@pytest.fixture
def archived(request, database_url, tmp_path):
    """(URL, folder) of the database that a coordinator 0.1.0 left, in either kind of database."""
    with tarfile.open(ARCHIVE / "database.tar.xz") as tar:
        tar.extractall(tmp_path / "old", filter="data")
    old = tmp_path / "old" / "koinon.db"
    if database_url.startswith("sqlite"):
        yield f"sqlite:///{old}", tmp_path / "old" / "koinon.db.blobs"
        return
    url = request.getfixturevalue("postgres").create(migrated=False)
    database, config = Database(url), _config()
    with create_engine(f"sqlite:///{old}").connect() as source, database.engine.connect() as target:
        config.attributes["connection"] = target
        command.upgrade(config, "0001")
        tables = MetaData()
        tables.reflect(source)
        for table in tables.sorted_tables:
            if table.name != "alembic_version" and (rows := source.execute(select(table)).mappings().all()):
                target.execute(insert(table), [dict(row) for row in rows])
                if (
                    "id" in table.c and table.name != "runs"
                ):  # the next row's number, as if they were inserted here
                    target.execute(
                        text(f"SELECT setval('{table.name}_id_seq', {max(r['id'] for r in rows)})")
                    )
        target.commit()
    database.close()
    yield url, tmp_path / "old" / "koinon.db.blobs"
    request.getfixturevalue("postgres").drop(url)


def test_a_database_of_0_1_0_is_taken_up(archived):
    url, data = archived
    expected = json.loads((ARCHIVE / "expected.json").read_text())["runs"]
    with upkeep.opened(url, data) as place, pytest.raises(StoreError, match="0001"):
        upkeep.check(place)
    left = data / "partial" / f"{'ab' * 32}-{'cd' * 8}"
    left.write_bytes(b"half")
    store = Store(url, data)
    store.sweep()
    for row in store.runs():
        wanted = expected[row.name]
        assert (row.id, row.status, row.closed) == (wanted["id"], wanted["status"], wanted["rounds_closed"])
        told = {str(r.number): {p.client: p.status for p in r.participants} for r in store.rounds(row.id)}
        assert told == wanted["participants"]
        assert {str(v.round): v.digest for v in store.kept_versions(row.id)} == wanted["model_digests"]
        for r in store.rounds(row.id):
            for update in store.updates(row.id, r.number):
                assert sha256(bytes(store.update_window(row.id, update)(0, update.size))) == (
                    update.digest or sha256(b"")
                )
        if row.status == "running":
            assert [u.client for u in store.updates(row.id, row.number)] == wanted["staged"]
            lab = Lab.take_up(store, row)
            assert sorted(lab.run.round.update.awaited) == wanted["awaited"]
    assert store.folder.used == sum(f.stat().st_size for f in data.rglob("*") if f.is_file())
    assert not left.exists()
    with upkeep.opened(url, data) as place:
        assert upkeep.check(place).findings == []
    store.close()


# -- no room --------------------------------------------------------------------------------------------------


def test_a_quota_is_refused_before_anything_is_written_and_room_helps(store):
    lab = Lab.create(store, devices=2, size=LARGE).open()
    lab.answer("c0")
    before, rows = files(store.folder.root), dump(store)
    store.folder.quota = store.folder.used + 1000
    with pytest.raises(StoreError, match="quota"):
        lab.answer("c1")
    with pytest.raises(StoreError, match="quota"):
        store.put(bytes(100_000))
    assert files(store.folder.root) == before
    assert dump(store) == rows
    store.folder.quota = None
    lab.answer("c1")
    assert lab.run.closed == 1


def test_sqlite_that_is_full_keeps_what_it_has_and_goes_on_when_there_is_room(tmp_path):
    limit = [0]
    store = Store(f"sqlite:///{tmp_path / 'koinon.db'}")

    def connect(connection, _record):
        if limit[0]:
            connection.execute(f"PRAGMA max_page_count={limit[0]}")

    event.listen(store.database.engine, "connect", connect)
    lab = Lab.create(store, devices=2, size=8000, retention="keep").open()
    lab.answer("c0")
    with store.database.engine.connect() as tx:
        limit[0] = tx.execute(text("PRAGMA page_count")).scalar() + 2
    store.database.engine.dispose()
    before = dump(store)
    with pytest.raises(StoreError, match="full") as raised:
        lab.answer("c1")
    assert not isinstance(raised.value, RefusedWrite), "the device's update is not at fault"
    assert dump(store) == before
    limit[0] = 0
    store.database.engine.dispose()
    lab = Lab.take_up(store, lab.row, devices=2, clock=lab.clock)
    lab.answer("c1")
    assert lab.run.closed == 1
    with upkeep.opened(str(store.database.url)) as place:
        assert upkeep.check(place).findings == []
    store.close()


def test_a_name_that_is_no_digest_is_no_content(store):
    with pytest.raises(BadBlob, match="not the SHA-256"):
        store.blobs.path("../../etc/passwd")
