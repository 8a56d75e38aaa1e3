"""Upkeep: what is damaged is found and named, a backup is whole and goes on, both beside a coordinator that works."""

import errno
import os
import random
import shutil
import threading
from contextlib import suppress

import pytest
from sqlalchemy import text

import koinon
from koinon_coordinator.store import Store, upkeep
from koinon_coordinator.store.backup import backup
from koinon_coordinator.store.tx import Database
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.errors import KoinonError, StoreError, UsageError
from lab import LARGE, REVISION, Clock, Lab, files


@pytest.fixture
def place(store):
    """What is stored, as somebody sees it who has neither the folder's lock nor the store."""
    database = Database(str(store.database.url.render_as_string(hide_password=False)))
    yield upkeep.Place(database, store.folder.root)
    database.close()


@pytest.fixture
def lab(store):
    """A run with all that a run can have: large contents, states, an abandoned round, kept updates, an open round."""
    one = Lab.create(
        store, "large", devices=2, size=LARGE, strategy=koinon.FedAvgM(lr=0.5, beta=0.9), retention="2 rounds"
    )
    one.rounds(1).open()
    one.turn(runs.Resigned(4.0, "c0", 2, "DECLINED", "no data"))
    one.rounds(2).open().answer("c1")
    return one


@pytest.fixture
def small(store):
    """A run whose contents and updates are all rows, and which was taken up once."""
    one = Lab.create(store, "small", devices=2, strategy=koinon.FedAvgM(lr=0.5, beta=0.9)).rounds(2)
    one = Lab.take_up(store, one.row, devices=2, clock=one.clock)
    one.open().answer("c0")
    return one


FILES = 4 + 3 + 5
"""Of the large run: models, the states that its kept rounds stood on, updates."""


def found(place):
    return [f.text for f in upkeep.check(place).findings]


def harm(store, statement, **values):
    """What no coordinator writes."""
    with store.database.engine.connect() as tx, tx.begin():
        if store.database.kind == "sqlite":
            tx.exec_driver_sql("PRAGMA ignore_check_constraints=ON")
        assert tx.execute(text(statement), values).rowcount >= 1


# -- check ----------------------------------------------------------------------------------------------------


def test_what_is_well_is_said_to_be(place, lab, small, store):
    checked = upkeep.check(place)
    assert checked.findings == []
    assert (checked.runs, checked.files) == (2, FILES)
    lab.close()
    lab.turn(runs.Cancelled(9.0, "enough"))
    small.turn(runs.Paused(9.0))
    small.close()
    small.turn(runs.Recovered(9.0, 17), runs.Resumed(9.0))
    small.open()
    assert small.run.number == 18
    assert found(place) == []


HARM = [
    (
        "UPDATE participants SET status = 'counted' WHERE round = 3",
        "told that it counted, and it is not in the sum",
    ),
    ("UPDATE updates SET head = '{}' WHERE round = 3", "round 3: what is stored of it cannot be read"),
    (
        "UPDATE updates SET seal = 'ab' WHERE round = 3",
        "its update's row does not say any more what was written",
    ),
    (
        "UPDATE participants SET reason = 'late' WHERE client = 'c0' AND round = 1",
        "round 1, c0: its row says",
    ),
    ("DELETE FROM participants WHERE client = 'c0' AND round = 1", "round 1, c0: its row says None"),
    ("UPDATE runs SET number = 7", "its row counts 7 rounds"),
    ("UPDATE runs SET closed = 7", "and 7 that made a model"),
    ("UPDATE runs SET streak = 7", "7 rounds abandoned in a row"),
    ("UPDATE runs SET status = 'done'", "its status 'done'"),
    ("UPDATE runs SET status = 'finished'", "its status is 'finished', and that it ended at None"),
    ("UPDATE runs SET name = 'other'", "its spec has another name"),
    ("UPDATE runs SET epoch = 0", "its row says epoch 0"),
    ("UPDATE runs SET recovery = 3", "and recovery 3"),
    ("UPDATE runs SET head = 'ab'", "its row says ab"),
    ("UPDATE runs SET audit_number = 2", "its row says 2"),
    ("UPDATE runs SET audit_hash = 'ab'", "its row says"),
    ("DELETE FROM audit WHERE number = 3", "entry 3: number 4 stands here"),
    ("UPDATE audit SET hash = 'ab' WHERE number = 3", "entry 3: its hash is not"),
    ("UPDATE rounds SET link = 'ab' WHERE number = 1", "round 1: its link 'ab' is not that"),
    ("UPDATE rounds SET head = 'ab' WHERE number = 1", "round 1: its head 'ab' does not follow"),
    ("UPDATE rounds SET stage = 'abandoned' WHERE number = 1", "round 1: its row says stage = 'abandoned'"),
    ("UPDATE rounds SET terms_digest = 'ab' WHERE number = 1", "round 1: its row says terms_digest = 'ab'"),
    ("UPDATE rounds SET opened_at = 5.5 WHERE number = 1", "round 1: its row says opened_at = 5.5"),
    ("UPDATE rounds SET link = 'ab' WHERE number = 3", "round 3: it is open, and has a place in the history"),
    ("DELETE FROM events WHERE round = 1", "round 1: it has no events"),
    ("DELETE FROM events WHERE round = 1 AND kind = 'Folded'", "round 1: its row says stage = 'closed'"),
    (
        "UPDATE events SET kind = 'Nothing' WHERE round = 1 AND kind = 'Folded'",
        "what is stored of it cannot be",
    ),
    ("UPDATE events SET round = 9 WHERE round = 1", "there are events of round 9"),
    ("UPDATE models SET digest = 'ab' WHERE round = 1", "model ab is missing"),
    ("UPDATE models SET state = 'ab' WHERE round = 2", "state ab is missing"),
    ("UPDATE models SET round = 5 WHERE round = 1", "round 1: it closed, and there is no model of it"),
    ("UPDATE models SET kept = false WHERE round = 2", "its newest model is marked as gone"),
    ("DELETE FROM models", "it has no model"),
    ("UPDATE updates SET digest = 'ab' WHERE round = 3", "round 3, c0: its update ab is not the one"),
    ("UPDATE updates SET codec = 'ab' WHERE round = 3", "round 3, c0: its update is said to be 'ab'"),
    ("UPDATE updates SET size = 5 WHERE round = 3", "is damaged"),
    ("UPDATE updates SET kept = false WHERE round = 3", "round 3, c0: its update was to go"),
    (
        "UPDATE updates SET client = 'c7' WHERE round = 3",
        "round 3, c0: the round heard its update, and there",
    ),
    ("""UPDATE updates SET stats = '{"nmse": -1}' WHERE round = 3""", "the update's NMSE is said to be -1"),
    ("""UPDATE updates SET stats = '{"n": 1}' WHERE round = 3""", "what is stored of it cannot be"),
    ("UPDATE updates SET upload_s = -1 WHERE round = 3", "c0: its update's upload is said to have taken -1"),
    ("UPDATE rounds SET fold_s = -1 WHERE number = 1", "round 1: its sum is said to have taken -1"),
    ("UPDATE contents SET size = size + 1", "is damaged in the database"),
    ("UPDATE contents SET data = 'ab'", "is damaged in the database"),
    ("UPDATE contents SET digest = 'ab' || substr(digest, 3)", "is missing from the database"),
]


def test_a_row_that_does_not_agree_with_the_others_is_named(place, small, store):
    assert found(place) == []
    for statement, sentence in HARM:
        with store.database.engine.connect() as tx, tx.begin() as transaction:
            assert tx.execute(text(statement)).rowcount >= 1, statement
            checked, _ = upkeep._rows(tx)  # in this transaction, of which nothing is kept
            transaction.rollback()
        said = [finding.text for finding in checked.findings]
        assert any(sentence in one for one in said), (statement, said)
    assert found(place) == []


def test_a_spec_that_was_changed_is_named(place, small, store):
    harm(
        store,
        "UPDATE runs SET spec = :spec",
        spec=small.run.spec.encoded.replace(b'"beta":0.9', b'"beta":0.8'),
    )
    assert "its spec is not the one that it was created with" in "".join(found(place))


def flip(path, at=100):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("which", ["content", "update"])
@pytest.mark.parametrize("how", ["flipped", "shorter", "gone"])
def test_a_file_that_is_damaged_or_gone_is_named(place, lab, store, which, how):
    (row,) = store.updates(lab.run.id, 5)
    digest = lab.run.model if which == "content" else row.digest
    path = store.blobs.path(digest) if which == "content" else store.uploads.path(lab.part("c1"), digest)
    if how == "gone":
        path.unlink()
    elif how == "shorter":
        os.truncate(path, 5000)
    else:
        flip(path)
    (finding,) = upkeep.check(place).findings
    assert finding.digest == digest
    assert ("is missing from" if how == "gone" else "is damaged in") in finding.text
    if which == "update":
        assert (finding.run, finding.round, finding.device) == ("large", 5, "c1")
        assert "run 'large', round 5, c1: its update" in finding.text


def test_what_goes_while_it_is_looked_for_is_no_finding(place, store, monkeypatch):
    lab = Lab.create(store, devices=2, size=LARGE, retention="none", models="none").open()
    lab.answer("c0")
    look, names = upkeep.digest_of_file, set()

    def after_the_round(path):
        if lab.run.closed == 0:
            lab.answer("c1")
        names.add(path.name)
        return look(path)

    monkeypatch.setattr(upkeep, "digest_of_file", after_the_round)
    checked = upkeep.check(place)
    assert (checked.findings, checked.files) == ([], 2)
    assert not any((store.folder.root / name[:2] / name).exists() for name in names)


def test_a_check_changes_nothing_and_needs_no_lock(place, lab, store):
    before = {path: (store.folder.root / path).stat().st_mtime_ns for path in files(store.folder.root)}
    commits = store.database.commits
    upkeep.check(place)
    assert place.database.commits == 0
    assert {
        path: (store.folder.root / path).stat().st_mtime_ns for path in files(store.folder.root)
    } == before
    lab.close()
    assert store.database.commits > commits


def test_what_is_no_run_database_is_not_made_one(tmp_path, postgres):
    with (
        pytest.raises(StoreError, match="there is no run database"),
        upkeep.opened(f"sqlite:///{tmp_path / 'x.db'}"),
    ):
        pass
    assert list(tmp_path.glob("x.db*")) == []
    (tmp_path / "y.db").touch()
    with (
        upkeep.opened(f"sqlite:///{tmp_path / 'y.db'}") as place,
        pytest.raises(StoreError, match="db upgrade"),
    ):
        upkeep.check(place)
    with pytest.raises(StoreError, match="--data"), upkeep.opened(postgres.url()):
        pass


# -- upgrade --------------------------------------------------------------------------------------------------


def test_an_upgrade_says_what_it_did_and_keeps_off_a_living_coordinator(tmp_path):
    url = f"sqlite:///{tmp_path / 'koinon.db'}"
    assert upkeep.upgrade(url) == (None, REVISION)
    assert upkeep.upgrade(url) == (REVISION, REVISION)
    store = Store(url)
    with pytest.raises(StoreError, match="another coordinator"):
        upkeep.upgrade(url)
    store.close()
    assert upkeep.upgrade(url) == (REVISION, REVISION)


# -- backup ---------------------------------------------------------------------------------------------------


def finish(store, name, rounds):
    """The digest of the model after so many more rounds of a stored run."""
    row = next(row for row in store.runs() if row.name == name)
    lab = Lab.take_up(store, row, devices=2, clock=Clock(row.beat + 1)).open()  # no lease is waited for
    lab.close().rounds(rounds)
    return lab.run.model, lab.run.head


def test_a_backup_is_whole_and_goes_on_where_the_original_was(place, lab, small, store, tmp_path):
    made = backup(place, tmp_path / "copy")
    assert made.database == tmp_path / "copy" / "koinon.db"
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == ["koinon.db", "koinon.db.blobs"]
    blobs = tmp_path / "copy" / "koinon.db.blobs"
    assert made.files == len(files(blobs)) == FILES
    assert made.nbytes == made.database.stat().st_size + sum(
        p.stat().st_size for p in blobs.rglob("*-*")
    ) + sum(p.stat().st_size for p in blobs.glob("??/*"))
    url = f"sqlite:///{made.database}"
    with upkeep.opened(url) as copied:
        assert upkeep.check(copied).findings == []
    again = Store(url)
    assert again.owner != store.owner, "it cannot pass for the coordinator that it was copied from"
    assert again.sweep() == 0
    for name in ("large", "small"):
        assert finish(again, name, 1) == finish(store, name, 1)
    again.close()


def test_a_backup_shares_files_where_it_can_and_copies_them_where_it_cannot(
    place, lab, store, tmp_path, monkeypatch
):
    path = store.blobs.path(lab.run.model)
    backup(place, tmp_path / "linked")
    assert (tmp_path / "linked" / "koinon.db.blobs" / path.relative_to(store.folder.root)).samefile(path)

    def elsewhere(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", elsewhere)
    backup(place, tmp_path / "copied")
    copy = tmp_path / "copied" / "koinon.db.blobs" / path.relative_to(store.folder.root)
    assert not copy.samefile(path)
    assert sha256(copy.read_bytes()) == lab.run.model


def test_what_goes_while_it_is_copied_begins_the_backup_anew(place, store, tmp_path, monkeypatch):
    lab = Lab.create(store, "r", devices=2, size=LARGE, retention="none", models="none").open()
    lab.answer("c0")
    link = os.link

    def after_a_round(source, *rest, **options):
        if lab.run.closed < 3:
            lab.close().open()
            lab.answer("c0")
        return link(source, *rest, **options)

    monkeypatch.setattr(os, "link", after_a_round)
    made = backup(place, tmp_path / "copy")
    assert 1 < made.snapshots <= 5
    assert len(files(tmp_path / "copy" / "koinon.db.blobs")) == made.files == 2, (
        "and no file of an earlier try is left"
    )
    with upkeep.opened(f"sqlite:///{made.database}") as copied:
        assert upkeep.check(copied).findings == []


@pytest.mark.parametrize(
    ("how", "sentence"), [("gone", "is missing from .* after 5 snapshots"), ("flipped", "damaged")]
)
def test_what_is_damaged_is_no_backup(place, lab, store, tmp_path, how, sentence):
    path = store.blobs.path(lab.run.model)
    path.unlink() if how == "gone" else flip(path)
    with pytest.raises(StoreError, match=sentence):
        backup(place, tmp_path / "copy")
    assert not (tmp_path / "copy" / "koinon.db").exists()


def test_a_folder_that_is_not_empty_is_refused(place, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "koinon.db").write_text("yesterday's")
    with pytest.raises(UsageError, match="not empty"):
        backup(place, tmp_path / "copy")
    with pytest.raises(UsageError, match="no folder"):
        backup(place, tmp_path / "copy" / "koinon.db")
    assert (tmp_path / "copy" / "koinon.db").read_text() == "yesterday's"


def test_backups_and_checks_beside_a_run_that_goes_on_are_whole(place, store, tmp_path):
    lab = Lab.create(store, "r", devices=2, size=LARGE, retention="none", models="1 rounds")
    stop, errors = threading.Event(), []

    def work():
        try:
            while not stop.wait(0.02):
                lab.rounds(1)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        copies = [backup(place, tmp_path / f"copy-{n}") for n in range(3)]
        assert all(found(place) == [] for _ in range(3))
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert lab.run.closed
    for made in copies:
        with upkeep.opened(f"sqlite:///{made.database}") as copied:
            assert upkeep.check(copied).findings == []
        again = Store(f"sqlite:///{made.database}")
        Lab.take_up(again, again.runs()[0], devices=2, clock=lab.clock).open().close()
        again.close()


# -- bits that fall over --------------------------------------------------------------------------------------

FLIPS = 25
SEED = 2


@pytest.fixture
def original(tmp_path):
    """(folder of a small database that a coordinator left, heads and models that its runs come to)."""
    folder = tmp_path / "original"
    folder.mkdir()
    store = Store(f"sqlite:///{folder / 'koinon.db'}")
    for name, size in (("small", 3), ("large", 17_000)):
        lab = Lab.create(
            store, name, devices=2, size=size, strategy=koinon.FedAvgM(lr=0.5, beta=0.9), retention="2 rounds"
        )
        lab.rounds(2).open().answer("c0")
        store.release(lab.run.id, 1, lab.clock())
    store.close()
    with upkeep.opened(f"sqlite:///{folder / 'koinon.db'}") as place:
        assert upkeep.check(place).findings == []
    assert not (folder / "koinon.db-wal").exists()
    whole = shutil.copytree(folder, tmp_path / "whole")
    return folder, coordinate(whole)


def coordinate(folder):
    """What a coordinator makes of a database: every run's (head, model) after one more round; what it says if it
    cannot."""
    came = {}
    try:
        store = Store(f"sqlite:///{folder / 'koinon.db'}")
    except KoinonError as error:
        return {"": str(error)}
    try:
        with suppress(StoreError):  # as a coordinator does
            store.sweep()
        for row in store.runs():
            if row.status != "running":
                continue
            try:
                lab = Lab.take_up(store, row, devices=2, clock=Clock(5000.0)).open()
                lab.close()
                came[row.name] = (lab.run.closed, lab.run.head, sha256(store.bytes(lab.run.model)))
            except KoinonError as error:
                came[row.name] = str(error)
    except KoinonError as error:
        came[""] = str(error)
    finally:
        store.close()
    return came


def flipped(draw, original, folder):
    """A copy of a folder in which one bit is another; whether that is in a file of bytes, not in the database."""
    shutil.copytree(original, folder)
    database = folder / "koinon.db"
    others = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 1000 and p != database)
    path = draw.choice([*[database] * 2 * len(others), *others])
    with path.open("r+b") as file:
        at = draw.randrange(path.stat().st_size)
        file.seek(at)
        byte = file.read(1)[0] ^ (1 << draw.randrange(8))
        file.seek(at)
        file.write(bytes([byte]))
    return path != database, f"{path.name} at {at}"


def complaints(folder):
    try:
        with upkeep.opened(f"sqlite:///{folder / 'koinon.db'}") as place:
            return found(place)
    except KoinonError as error:
        return [str(error)]


def test_a_bit_that_falls_over_is_found_or_does_no_harm(original, tmp_path):
    folder, well = original
    draw = random.Random(SEED)
    assert all(isinstance(came, tuple) and came[0] == 3 for came in well.values())
    for n in range(FLIPS):
        copy = tmp_path / f"flipped-{n}"
        in_file, where = flipped(draw, folder, copy)
        said = complaints(copy)
        came = coordinate(copy)
        if in_file:
            assert said, where
        for name, (_, _, model) in well.items():
            one = came.get(name, "not there")
            if in_file and isinstance(one, tuple):
                assert one[0] == 2 or one[2] == model, f"{where}: {name} goes on with what is damaged"
            assert said or one == well[name], f"{where}: nothing is said, and {name} comes to {one}"
        shutil.rmtree(copy)
