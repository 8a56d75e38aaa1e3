"""What devices say for the operator alone, their condition and what a round has cost them: it is kept, it is shown,
and nothing depends on it."""

import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from alembic import command
from sqlalchemy import create_engine, text

import koinon
from hostile import Device, container, over, until
from koinon.operator import Operator
from koinon_coordinator.store import Store, upkeep
from koinon_coordinator.store.backup import backup
from koinon_coordinator.store.schema import _config
from koinon_core.condition import Condition
from koinon_core.costs import Phase, Spent
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb
from lab import Lab

SPENT = Spent(
    phases={"train": Phase(joules=900.0, seconds=60.0, missing=0.25), "upload": Phase(seconds=20.0, missing=1.0)},
    scope="module", source="ina3221", bytes_up=4000,
)  # fmt: skip
CHEAP = Spent(phases={"train": Phase(joules=300.0, seconds=20.0)})
HOT = Condition(heat=71.5, disk_free_mb=1000.0, state="TRAINING")
ENV = {k: v for k, v in os.environ.items() if not k.startswith("GRPC_")} | {"NO_COLOR": "1"}


# -- what is kept ---------------------------------------------------------------------------------------------


def test_costs_are_kept_for_each_device_and_round_and_the_last_word_holds(store):
    lab = Lab.create(store, retention="none").rounds(2)
    run = lab.run.id
    assert store.keep_costs(run, 1, "c0", CHEAP, 5.0)
    assert store.keep_costs(run, 1, "c0", SPENT, 6.0)
    assert store.keep_costs(run, 1, "c1", Spent(phases={"train": Phase(seconds=1.0)}), 6.0)
    assert store.costs(run, 1) == {
        (1, "c0"): SPENT,
        (1, "c1"): Spent(phases={"train": Phase(seconds=1.0)}),
    }
    assert store.costs(run, 2) == {}
    assert [(r.joules, r.metered) for r in store.rounds(run)][:2] == [(900.0, 1), (None, 0)]
    store.keep_costs(run, 1, "c1", CHEAP, 7.0)
    assert next((r.joules, r.metered) for r in store.rounds(run, 1)) == (1200.0, 2)


def test_who_has_no_part_in_a_round_has_no_costs_there(store):
    lab = Lab.create(store).open()
    assert not store.keep_costs(lab.run.id, 1, "stranger", SPENT, 5.0)
    assert not store.keep_costs(lab.run.id, 7, "c0", SPENT, 5.0)
    assert not store.keep_costs("no run", 1, "c0", SPENT, 5.0)
    assert store.costs(lab.run.id) == {}


def test_no_chain_and_no_check_knows_of_them_and_a_backup_has_them(store, database_url, tmp_path):
    lab = Lab.create(store).rounds(1)
    row, audit = lab.row, list(store.audit(lab.run.id))
    store.keep_costs(lab.run.id, 1, "c0", SPENT, 5.0)
    store.see_device("c0", "1", 5.0, HOT)
    assert (lab.row, list(store.audit(lab.run.id))) == (row, audit)
    with upkeep.opened(database_url, store.folder.root) as place:
        assert upkeep.check(place).findings == []
        made = backup(place, tmp_path / "copy")
    again = Store(f"sqlite:///{made.database}")
    assert again.costs(lab.run.id) == {(1, "c0"): SPENT}
    assert again.people.device("c0").condition == HOT.to_json()
    assert Lab.take_up(again, again.run(lab.run.id), clock=lab.clock).rounds(1).run.closed == 2
    again.close()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("UPDATE costs SET joules = 1", "round 1, c0: what its part has cost is not what it said"),
        ("UPDATE costs SET client = 'x'", "round 1, x: it said what its part has cost, and it had none"),
        ("UPDATE costs SET round = 9", "there are costs of round 9, which it does not have"),
        ("""UPDATE costs SET spent = '{"phases": {"train": {"joules": -1.0}}}'""", "cannot be read"),
        ("UPDATE costs SET spent = '[]'", "cannot be read"),
    ],
)
def test_costs_that_do_not_agree_with_themselves_are_found(store, database_url, damage, sentence):
    lab = Lab.create(store).rounds(1)
    store.keep_costs(lab.run.id, 1, "c0", SPENT, 5.0)
    store.database.write("damage", lambda tx: tx.execute(text(damage)))
    with upkeep.opened(database_url, store.folder.root) as place:
        assert any(sentence in finding.text for finding in upkeep.check(place).findings)


def test_how_a_device_was_stays_until_it_says_otherwise(store):
    store.see_device("a", "1", 5.0, HOT)
    store.see_device("a", "2", 9.0)
    row = store.people.device("a")
    assert (row.condition, row.condition_at, row.last_seen) == (HOT.to_json(), 5.0, 9.0)
    store.people.note_condition("a", Condition(state="IDLE"), 10.0)
    store.people.note_condition("a", HOT, 7.0)
    assert store.people.device("a").condition == {"state": "IDLE"}, (
        "an older word does not take a newer one's place"
    )
    store.see_device("b", "1", 5.0)
    assert (store.people.device("b").condition, store.people.device("b").condition_at) == ({}, None)


def test_devices_of_an_older_database_never_said_how_they_are(tmp_path):
    url, config = f"sqlite:///{tmp_path / 'koinon.db'}", _config()
    with create_engine(url).begin() as tx:
        config.attributes["connection"] = tx
        command.upgrade(config, "0005")
        tx.execute(
            text(
                "INSERT INTO devices (name, version, first_seen, last_seen, entry_version, label, token, revoked_by, "
                "reason) VALUES ('a', '1', 1, 1, 0, '', '', '', '')"
            )
        )
    store = Store(url)
    row = store.people.device("a")
    assert (row.condition, row.condition_at) == ({}, None)
    store.close()


# -- what is heard and shown ----------------------------------------------------------------------------------


def cli(address: str, *arguments: str, width: int = 250) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "koinon", *arguments, "--address", address],
        capture_output=True, text=True, timeout=30, env={**ENV, "COLUMNS": str(width)}, check=True,
    )  # fmt: skip
    return done.stdout


def described(**settings: Any) -> koinon.Run:
    given = {
        "aggregation": "open",
        "min_clients": 2,
        "clients": 2,
        "codec": "lossless",
        "evaluate": False,
        **settings,
    }
    return koinon.Run("r", model={"x": np.zeros(3, np.float32)}, **given)


def devices_of(address: str) -> dict[str, Any]:
    with Operator(address) as operator:
        return {d.id: d for d in operator.devices()}


def test_how_a_device_is_is_shown_and_kept_when_it_leaves(coordinator):
    address = coordinator.address
    with Device(address, "hot", condition=convert.condition_to(HOT)) as hot, Device(address, "mute"):
        first = devices_of(address)["hot"]
        assert (first.condition.heat, first.condition.state) == (71.5, "TRAINING")
        assert abs(first.condition_at - time.time()) < 60
        for state in ("PAUSED", "IDLE"):
            hot.say(condition=pb.Condition(heat=40.0, state=state))
        until(lambda: devices_of(address)["hot"].condition.state == "IDLE")
        assert not devices_of(address)["hot"].condition.HasField("disk_free_mb")
        table = cli(address, "device", "ls")
        told = json.loads(cli(address, "device", "ls", "--json"))
    assert [line.split()[-2:] for line in table.splitlines() if line.strip().startswith("hot")] == [
        ["40", "IDLE"]
    ]
    assert "heat" not in cli(address, "device", "ls", width=60)
    assert told[0]["condition"] == {
        "heat": 40.0,
        "state": "IDLE",
        "power_mode": "",
        "board": "",
    }
    assert "condition" not in told[1], "it never said how it is"
    until(lambda: not devices_of(address)["hot"].attached)
    until(lambda: devices_of(address)["hot"].condition.state == "IDLE")


def test_a_device_that_says_what_cannot_be_is_heard_all_the_same(coordinator):
    described().create(coordinator.address)
    with Device(coordinator.address, "odd", condition=pb.Condition(heat=1e9)) as odd:
        run = odd.join("r")
        odd.say(condition=pb.Condition(battery=300.0))
        odd.say(spent=pb.Spent(run=run, round=1, phases=[pb.Phase(name="train", joules=-1.0)]))
        odd.say(spent=pb.Spent(run=run, round=1, phases=[pb.Phase(name="train", joules=1.0)]))
        odd.say(spent=pb.Spent(run="another", round=1))
        odd.say(recall=pb.Recall(run=run))
        assert odd.hear("standing").run == run, "none of it is answered with trouble"
        found = devices_of(coordinator.address)["odd"]
    assert (found.condition_at, found.HasField("condition")) == (0.0, False)


def test_what_a_round_has_cost_is_shown_as_far_as_it_is_known(coordinator):
    address = coordinator.address
    described(rounds=2).create(address)
    update = container(x=np.ones(3, np.float32))
    with Device(address, "a") as a, Device(address, "b") as b:
        for device in (a, b):
            device.offer(device.join("r"))
        for round_ in (1, 2):
            for device in (a, b):
                ask = device.asked()
                device.answer(ask, update)
                assert device.hear("receipt").verdict == pb.VERDICT_STAGED
                if device is a or round_ == 2:
                    spent = SPENT if device is a else CHEAP
                    device.say(spent=convert.spent_to(ask.run, round_, spent))
            for device in (a, b):
                device.offer(ask.run) if round_ == 1 else device.hear("ended")
        over(address, "r")
        with Operator(address) as operator:
            until(lambda: operator.get("r").rounds[1].metered == 2)
            plain, whole, second = (
                operator.get("r", **how) for how in ({}, {"costs": True}, {"costs": True, "round_": 2})
            )
    assert [(r.joules, r.metered) for r in plain.rounds] == [(900.0, 1), (1200.0, 2)]
    assert not any(p.HasField("spent") for r in plain.rounds for p in r.participants)
    kept = [{p.client: p.spent for p in r.participants if p.HasField("spent")} for r in whole.rounds]
    assert convert.spent_from(kept[0]["a"]) == SPENT
    assert [sorted(of) for of in kept] == [["a"], ["a", "b"]]
    assert [len([p for p in r.participants if p.HasField("spent")]) for r in second.rounds] == [0, 2]

    shown = cli(address, "run", "show", "r")
    assert "900 J (1 of 2)" in shown
    assert "1.2 kJ (2 of 2)" in shown
    by_device = cli(address, "run", "show", "r", "--round", "1")
    assert "train 900 J 60 s, upload 20 s (module; 44% missing)" in by_device
    assert "train 300 J 20 s" in cli(address, "run", "show", "r", "--round", "2")
    told = json.loads(cli(address, "run", "show", "r", "--json"))
    first = {p["client"]: p.get("spent") for p in told["rounds"][0]["participants"]}
    assert first["b"] is None
    assert (first["a"]["bytes_up"], first["a"]["scope"]) == (4000, "module")
    assert "bytes_down" not in first["a"], "what is not known is not 0"
    assert "joules" not in {p["name"]: p for p in first["a"]["phases"]}["upload"]


def test_a_round_that_nobody_measured_shows_no_energy(coordinator):
    described(rounds=1).create(coordinator.address)
    assert "energy" not in cli(coordinator.address, "run", "show", "r")
    with Operator(coordinator.address) as operator:
        assert not operator.get("r").rounds[0].HasField("joules")
