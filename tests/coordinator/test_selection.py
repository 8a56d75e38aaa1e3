"""Drawn rounds on a real store: whoever takes a run up draws the same devices, and labels come from the database."""

import asyncio

import pytest

import koinon
from koinon_coordinator.book import Item
from koinon_coordinator.devices import Devices
from koinon_coordinator.store import Store, UpdateRow
from koinon_core import run as runs
from koinon_core.update import Head
from lab import Lab, driven, until

RULES = [
    {"rule": "weighted"}, {"rule": "weighted", "by": "examples"}, {"rule": "power-of-choice", "d": 3, "by": "examples"},
    {"rule": "power-of-choice", "d": 4, "loss": "latest", "by": "examples"},
]  # fmt: skip


@pytest.fixture
def store(database_url, tmp_path):
    store = Store(database_url, tmp_path / "blobs")
    yield store
    store.close()


def create(store, name, selection):
    return Lab.create(
        store, name, devices=4, clients=2, min_clients=2, population=4, selection=selection, retention="none"
    )


def offer(lab):
    lab.turn(*(runs.Offered(lab.clock(), name, True) for name in lab.names))


def answer(lab, client):
    number, i = lab.run.number, int(client[1:])
    loss = float(
        (7 * i + 3 * number) % 5
    )  # differs from round to round, and is the same whenever it is asked
    if lab.run.round.terms.kind == "evaluate":
        head = Head(evaluation={"loss": loss}, evaluation_examples=1)
        update = UpdateRow(client, number, "", 0, "raw", head, lab.clock(), b"")
    else:
        update = lab.update(client)
        object.__setattr__(update, "head", Head(examples=2 + 3 * i, training={"loss": loss}))
    lab.turn(Item(runs.Answered(lab.clock(), client, number, update.digest), update=update))


def play(lab, moves, killed):
    """Who was asked, round by round. With `killed`, the coordinator is another one before every single turn."""

    def perhaps(lab):
        if not killed:
            return lab
        lab.store.release(lab.run.id, lab.ledger.epoch, lab.clock())
        again = Lab.take_up(lab.store, lab.store.run(lab.run.id), devices=4, clock=lab.clock)
        assert (again.run.seen, again.run.scores) == (lab.run.seen, lab.run.scores)
        offer(again)
        return again

    asked = []
    offer(lab)
    while len(asked) < moves:
        asked.append((lab.run.number, lab.run.round.terms.kind, sorted(lab.run.round.update.asked)))
        for i, name in enumerate(asked[-1][2]):
            lab = perhaps(lab)
            if len(asked) in (2, 7) and i:  # the round is abandoned, and what was handed in is not counted
                lab.turn(runs.Resigned(lab.clock(), name, lab.run.number, "DECLINED"))
            else:
                answer(lab, name)
        lab = perhaps(lab)
        offer(lab)
    return asked


@pytest.mark.parametrize("selection", RULES, ids=str)
def test_who_takes_a_run_up_draws_the_same_devices(store, selection):
    whole = play(create(store, "whole", selection), 12, killed=False)
    broken = play(create(store, "broken", selection), 12, killed=True)
    assert broken == whole
    assert len({tuple(asked) for _, _, asked in whole}) > 2


def test_losses_that_were_asked_are_found_again_though_their_updates_are_scrubbed(store):
    lab = create(store, "r", {"rule": "power-of-choice", "d": 4})
    offer(lab)
    for name in sorted(lab.run.round.update.asked):
        answer(lab, name)
    assert lab.run.gather is not None
    scores = dict(lab.run.scores)
    assert len(scores) == 4
    store.release(lab.run.id, lab.ledger.epoch, lab.clock())
    again = Lab.take_up(store, store.run(lab.run.id), devices=4, clock=lab.clock)
    assert again.run.scores == scores
    assert again.run.evaluators == 4
    offer(again)
    chosen = sorted(again.run.round.update.asked)
    assert chosen == sorted(sorted(scores, key=lambda c: -scores[c])[:2])


def test_a_label_counts_at_once_where_it_was_written_and_elsewhere_from_the_next_offer(store: Store) -> None:
    async def story() -> None:
        settings = {
            "aggregation": "open",
            "selection": {"labels": {"site": "ward-*"}, "at_least": {"cores": 4}},
        }
        async with driven(store, **settings) as (federation, run):
            devices, driver = Devices(federation), federation.drivers[run.id]
            attached = [federation.roster.attach(f"c{i}", f"i{i}") for i in range(3)]
            for one in attached:
                one.able = {"cores": 8.0}
                await devices.see(one, "1")
                devices.join(one, run.id)
                await devices.offer(one, run.id, False, 0)
            await until(driver, lambda: len(driver.run.devices) == 3)
            assert "3 attached may not be in it: c0 (it has no label site), c1" in driver.waiting_for
            for one in attached:
                row = await federation.db(store.people.label_device, one.client, "floor 2 site=ward-a")
                if one.client == "c0":  # the others are written on at another coordinator
                    federation.labelled(row.name, row.label)
            await until(driver, lambda: "c0" in driver.run.round.joined.heard)
            assert len(driver.run.round.joined.heard) == 1
            for one in attached[1:]:
                await devices.offer(one, run.id, False, 0)
            await until(driver, lambda: driver.run.round.stage == "update")
            assert len(driver.run.round.update.asked) == 3

    asyncio.run(story())


def test_a_device_whose_update_came_to_nothing_is_not_taken_for_one_that_forgot(store: Store) -> None:
    """While the next devices are gathered, the round that was abandoned is still the run's last."""

    async def story() -> None:
        settings = {
            "aggregation": "open", "strategy": koinon.Scaffold(), "min_clients": 2, "clients": 2, "population": 3,
            "selection": {"rule": "weighted"}, "join_wait": 60.0,
        }  # fmt: skip
        async with driven(store, **settings) as (federation, run):
            devices, driver = Devices(federation), federation.drivers[run.id]
            attached = {f"c{i}": federation.roster.attach(f"c{i}", f"i{i}", boot=1) for i in range(3)}
            for one in attached.values():
                await devices.see(one, "1")
                devices.join(one, run.id)
                await devices.offer(one, run.id, False, 0)
            await until(driver, lambda: driver.run.round is not None)
            first, second = sorted(driver.run.round.update.asked)
            driver.tell(
                Item(runs.Answered(federation.clock(), first, 1, "d"), update=answered(driver, first))
            )
            driver.tell(runs.Resigned(federation.clock(), second, 1, "DECLINED"))
            await until(driver, lambda: driver.run.gather is not None)
            assert driver.run.round.stage == "abandoned"
            said = await devices.recall(attached[first], run.id, 1, 0, 0)
            assert said.standing.round == 1

    asyncio.run(story())


def answered(driver, client):
    return UpdateRow(client, 1, "d", 1, "raw", Head(examples=1), 1.0, b"x")
