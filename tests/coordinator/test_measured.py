"""What is measured of updates and rounds: it is stored, told to the operator, and enters nothing that is compared."""

from dataclasses import replace

import pytest
from alembic import command
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, MetaData, create_engine, text

from koinon_coordinator import closing
from koinon_coordinator.admission import Answer, admit
from koinon_coordinator.book import Item
from koinon_coordinator.store import ModelVersion, Store, UpdateRow, queries, upkeep
from koinon_coordinator.store.models import Table
from koinon_coordinator.store.schema import _config
from koinon_coordinator.store.tx import Database
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.update import Head, Stats
from lab import LARGE, REVISION, Lab

MEASURED = Stats(parameters=3, nmse=0.005, norm=2.5, encode_s=0.125)


def hand_in(lab: Lab, client: str, stats: Stats = MEASURED, upload_s: float = 0.0) -> None:
    update = replace(lab.update(client), stats=stats, upload_s=upload_s)
    lab.turn(Item(runs.Answered(lab.clock(), client, lab.run.number, update.digest), update=update))


def sent(store: Store, run: str, **wanted: object) -> list[queries.SentRow]:
    about = {"round_": None, "client": None, "after": (0, ""), "most": 100, **wanted}
    return store.database.read("updates", lambda tx: queries.sent(tx, run, **about))


# -- updates --------------------------------------------------------------------------------------------------


def test_what_was_measured_of_an_update_is_in_its_row_and_outlives_its_bytes(store):
    lab = Lab.create(store, devices=2, retention="none").open()
    hand_in(lab, "c0", upload_s=1.5)
    (row,) = store.updates(lab.run.id, 1)
    assert (row.stats, row.upload_s, row.whole) == (MEASURED, 1.5, True)
    lab.close()
    first, second = sent(store, lab.run.id)
    assert (first.round, first.client, first.stats, first.upload_s) == (1, "c0", MEASURED, 1.5)
    assert (first.status, first.kept, first.size) == ("counted", False, len(lab.data("c0", 1)))
    assert (second.client, second.stats, second.upload_s) == ("c1", Stats(), 0.0)


def test_updates_are_read_page_by_page_by_round_and_device(store):
    lab = Lab.create(store, retention="keep").rounds(3)
    Lab.create(store, "other").rounds(1)
    there = [(n, name) for n in (1, 2, 3) for name in lab.names]
    found: list[tuple[int, str]] = []
    while page := sent(store, lab.run.id, after=found[-1] if found else (0, ""), most=2):
        assert len(page) <= 2
        found += [(u.round, u.client) for u in page]
    assert found == there
    assert [(u.round, u.client) for u in sent(store, lab.run.id, round_=2)] == there[3:6]
    assert [(u.round, u.client) for u in sent(store, lab.run.id, client="c1")] == there[1::3]
    assert [(u.round, u.client) for u in sent(store, lab.run.id, round_=2, client="c1")] == [(2, "c1")]
    assert sent(store, lab.run.id, round_=9) == []


def test_a_rounds_figures_are_those_of_the_updates_that_were_measured(store):
    lab = Lab.create(store).open()
    size = len(lab.data("c0"))
    hand_in(lab, "c0", MEASURED, 2.0)
    hand_in(lab, "c1", replace(MEASURED, parameters=6, nmse=0.25), 5.0)
    hand_in(lab, "c2", Stats())  # an older device's
    (row,) = store.rounds(lab.run.id)[:1]
    assert row.bits == pytest.approx((8 * size / 3 + 8 * size / 6) / 2)
    assert (row.nmse, row.upload_s) == (0.25, 5.0)


def test_a_round_of_which_nothing_was_measured_has_no_figures(store):
    row = store.rounds(Lab.create(store).rounds(1).run.id)[0]
    assert (row.bits, row.nmse, row.upload_s) == (0.0, 0.0, 0.0)


# -- rounds ---------------------------------------------------------------------------------------------------


def slow(lab: Lab, monkeypatch: pytest.MonkeyPatch, seconds: float, error: Exception | None = None) -> None:
    """Let the sums of this run take so long."""

    def close_round(*arguments: object, **more: object) -> closing.Closed:
        lab.clock.now += seconds
        if error is not None:
            raise error
        return closing.close_round(*arguments, **more)

    monkeypatch.setattr("koinon_coordinator.ledger.close_round", close_round)


@pytest.mark.parametrize("size", [3, LARGE * 20])  # summed with the last update, and in a turn of its own
def test_the_seconds_of_a_sum_are_in_its_rounds_row_and_in_no_history(tmp_path, monkeypatch, size):
    monkeypatch.setattr("koinon_coordinator.ledger.os.urandom", bytes)  # the only thing that is drawn
    heads = set()
    for seconds in (0.0, 5.0):
        store = Store(f"sqlite:///{tmp_path / f'{seconds}.db'}")
        lab = Lab.create(store, devices=2, size=size).open()
        slow(lab, monkeypatch, seconds)
        lab.close()
        while lab.ledger.folding:
            lab.turn()
        first, second = store.rounds(lab.run.id)
        assert (first.stage, first.fold_s, second.fold_s) == ("closed", seconds, 0.0)
        heads.add(first.head)
        store.close()
    assert len(heads) == 1


def test_the_seconds_of_a_sum_that_made_no_model_are_known_too(store, monkeypatch):
    lab = Lab.create(store).open()
    slow(lab, monkeypatch, 2.0, ZeroDivisionError("a strategy's own mistake"))
    lab.close()
    row = store.rounds(lab.run.id)[0]
    assert (row.stage, row.fold_s) == ("abandoned", 2.0)


# -- admission ------------------------------------------------------------------------------------------------


def answer(lab: Lab, client: str, data: bytes, *, inline: bool = True, stats: Stats = MEASURED) -> Answer:
    assert lab.run.round is not None
    return Answer(
        client=client, round=lab.run.number, terms=lab.run.round.terms.digest, digest=sha256(data), size=len(data),
        data=data if inline else b"", head=Head(examples=1), stats=stats,
    )  # fmt: skip


def admitted(lab: Lab, one: Answer) -> Item:
    return admit(lab.store, lab.ledger.plan, lab.run, one, lab.clock())


def test_what_a_device_measured_comes_with_its_update(store):
    lab = Lab.create(store).open()
    item = admitted(lab, answer(lab, "c0", lab.data("c0")))
    assert item.update is not None
    assert (item.update.stats, item.update.upload_s) == (MEASURED, 0.0)


@pytest.mark.parametrize(
    "stats",
    [
        Stats(parameters=4),  # of three
        Stats(nmse=float("nan")),
        Stats(norm=float("inf")),
        Stats(encode_s=-1.0),
    ],
)
def test_what_cannot_have_been_measured_costs_the_update_and_is_an_incident(store, stats):
    lab = Lab.create(store).open()
    item = admitted(lab, answer(lab, "c0", lab.data("c0"), stats=stats))
    assert isinstance(item.fact, runs.Resigned)
    assert item.incident is not None
    assert "the update" in item.incident.message


def test_an_evaluation_holds_no_parameters_and_was_not_uploaded(store, monkeypatch):
    monkeypatch.setattr(type(store.uploads), "seconds", lambda *_: pytest.fail("of what?"), raising=False)
    lab = Lab.create(store, rounds=1, evaluate=True)
    lab.open()
    for name in lab.names:
        update = replace(
            lab.update(name), head=Head(examples=1, evaluation={"loss": 1.0}, evaluation_examples=1)
        )
        lab.turn(Item(runs.Answered(lab.clock(), name, 1, update.digest), update=update))
    for name in lab.names:
        lab.turn(runs.Offered(lab.clock(), name, True))
    assert lab.run.round is not None
    assert lab.run.round.terms.kind == "evaluate"
    said = replace(
        answer(lab, "c0", b""), digest="", head=Head(evaluation={"loss": 1.0}, evaluation_examples=1)
    )
    assert isinstance(admitted(lab, said).fact, runs.Resigned)
    assert isinstance(admitted(lab, replace(said, stats=Stats())).fact, runs.Answered)


def test_the_seconds_of_an_upload_are_those_that_its_bytes_were_on_their_way(tmp_path, monkeypatch):
    store = Store(f"sqlite:///{tmp_path / 'koinon.db'}")
    lab = Lab.create(store, size=LARGE).open()
    data = lab.data("c0")
    lab.upload("c0", data)
    asked = []

    def seconds(self, part, digest):
        asked.append((part, digest))
        return 3.25

    monkeypatch.setattr(type(store.uploads), "seconds", seconds, raising=False)
    stats = replace(MEASURED, parameters=LARGE)
    update = admitted(lab, answer(lab, "c0", data, inline=False, stats=stats)).update
    assert update is not None
    assert update.upload_s == 3.25
    assert asked == [(lab.part("c0"), sha256(data))]
    store.close()


# -- older rows -----------------------------------------------------------------------------------------------


def test_the_seal_of_a_row_is_the_one_that_0_2_0_wrote():
    """A known answer: what is measured now is not in it."""
    head = Head(examples=7, totals={"tau": 1.5}, training={"loss": 0.25}, steps=3)
    row = UpdateRow("c0", 4, "ab" * 32, 12, "raw", head, 1000.0, b"x", stats=MEASURED, upload_s=2.0)
    assert row.seal("run") == "0ebde09350c49d71abf49139dfd4d785cf186a3ce228033899d673b80e4bd737"


def taken_back(tx: Connection, revision: str) -> None:
    """Take out of a database what migrations after this one put in."""
    config, old = _config(), MetaData()
    with create_engine("sqlite://").connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        old.reflect(connection)
    ops = Operations(MigrationContext.configure(tx))
    for table in reversed(Table.metadata.sorted_tables):
        if table.name not in old.tables:
            ops.drop_table(table.name)
            continue
        for column in table.c:
            if column.name in old.tables[table.name].c:
                continue
            if column.unique:  # SQLite drops no such column: the table is made anew
                with ops.batch_alter_table(table.name) as batch:
                    batch.drop_constraint(f"uq_{table.name}_{column.name}", "unique")
            ops.drop_column(table.name, column.name)
    tx.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))


def test_a_database_of_0_2_0_is_upgraded_with_its_rows_as_they_were(store, database_url):
    lab = Lab.create(store, devices=2, retention="keep").rounds(1).open()
    hand_in(lab, "c0", MEASURED, 2.0)
    before = store.updates(lab.run.id, 2)
    folder = store.folder.root
    store.close()
    old = Database(database_url)
    with old.engine.connect() as tx, tx.begin():
        taken_back(tx, "0002")
    old.close()
    assert upkeep.upgrade(database_url, folder) == ("0002", REVISION)
    again = Store(database_url, folder)
    assert again.updates(lab.run.id, 2) == [replace(u, stats=Stats(), upload_s=0.0) for u in before]
    assert [(u.stats, u.upload_s) for u in sent(again, lab.run.id)] == [(Stats(), 0.0)] * 3
    assert [v.weights for v in again.kept_versions(lab.run.id)] == ["", ""]
    with upkeep.opened(database_url, folder) as place:
        assert upkeep.check(place).findings == []
    taken = Lab.take_up(again, again.run(lab.run.id), devices=2, clock=lab.clock)
    taken.close()
    assert taken.run.closed == 2
    again.close()


def test_a_model_version_keeps_the_digest_of_its_tensors(store):
    lab = Lab.create(store)
    version = ModelVersion(1, lab.run.model, weights="cd" * 32)
    store.write(lab.change(models=[version]))
    assert store.latest_model(lab.run.id) == version
    assert store.model_before(lab.run.id, 2) == version
    assert store.kept_versions(lab.run.id)[-1] == version
