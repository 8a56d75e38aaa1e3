"""What operators see of secure runs, and what they do not: the two command lines against real processes."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import koinon
from conftest import Clients, Coordinator
from hostile import until
from koinon.operator import Operator
from koinon_coordinator.replay import replay
from koinon_coordinator.store import Store, upkeep

ENV = {k: v for k, v in os.environ.items() if not k.startswith("GRPC_")} | {"COLUMNS": "250", "NO_COLOR": "1"}
SIZE = 50
NAMES = [f"d{i}" for i in range(3)]


class Cli:
    """`koinon` against one coordinator."""

    def __init__(self, coordinator: Coordinator):
        self.coordinator = coordinator

    def __call__(self, *arguments: object, code: int = 0) -> str:
        told = ["--address", self.coordinator.address]
        done = subprocess.run(
            [sys.executable, "-m", "koinon", *map(str, arguments), *told],
            capture_output=True, text=True, timeout=30, env=ENV, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))


def learn(session: koinon.Session) -> None:
    model = {"w": np.zeros(SIZE, np.float32)}
    for task in session.tasks(model, evaluate=lambda m: {"loss": float(m["w"][0]), "examples": 3}):
        model["w"] += 0.25 * np.arange(SIZE, dtype=np.float32) / SIZE
        task.submit(examples=10, metrics={"loss": 0.5, "private": 1.0})


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """One with a secure run that finished, submitted from a file."""
    one = Coordinator(tmp_path_factory.mktemp("secure"))
    yield one
    one.stop()
    assert "Traceback" not in one.log.read_text()


@pytest.fixture(scope="module")
def cli(coordinator: Coordinator) -> Cli:
    return Cli(coordinator)


@pytest.fixture(scope="module")
def digits(cli: Cli) -> str:
    folder = cli.coordinator.folder
    save_file({"w": np.zeros(SIZE, np.float32)}, folder / "init.safetensors")
    (folder / "digits.toml").write_text(
        'aggregation = "secure"\ncodec = "exact"\nmetrics = ["loss"]\nclients = 3\n'
    )
    described = (
        "digits",
        "--model",
        folder / "init.safetensors",
        "--rounds",
        2,
        "--config",
        folder / "digits.toml",
    )
    cli("run", "create", *described, "--strategy", "koinon.FedAdam(lr=0.01)")
    take_part(cli.coordinator, "digits", learn)
    return "digits"


def take_part(coordinator: Coordinator, run: str, function: Any) -> None:
    clients = Clients()

    def device(name: str) -> None:
        with koinon.join(coordinator.address, run=run, name=name) as session:
            function(session)

    for name in NAMES:
        clients.start(lambda name=name: device(name), name)  # type: ignore[misc]
    clients.join()


def test_show_says_secure_and_knows_nothing_of_single_devices(cli: Cli, digits: str) -> None:
    shown = cli("run", "show", digits)
    assert "koinon.FedAdam(" in shown.splitlines()[1]
    assert ", secure, model" in shown.splitlines()[1]
    assert re.search(r"1 +closed, secure +3/3 ", shown)
    assert re.search(r"3 +evaluation, secure +3/3 ", shown)
    assert "NMSE" not in shown
    assert "train.loss 0.5" in shown
    value = cli.json("run", "show", digits)
    assert value["run"]["aggregation"] == "secure"
    first = value["rounds"][0]
    assert first["secure"]
    assert first["metrics"]["examples"] == 30
    assert "train.private" not in first["metrics"]
    assert {p["examples"] for p in first["participants"]} == {0}
    (nbytes,) = {p["bytes_up"] for p in first["participants"]}
    assert first["bytes_up"] == 3 * nbytes > 3 * 8 * SIZE
    assert first["bits"] == 8 * nbytes / SIZE
    assert (value["rounds"][2]["bits"], first["attempt"], first["awaited"]) == (0, 0, [])
    people = cli("run", "show", digits, "--round", 1)
    assert "Round 1, train, closed, secure" in people
    assert people.splitlines()[2].split() == ["device", "status", "answered", "after", "s", "up", "why"]


def test_watch_says_secure_and_update_ls_that_nothing_is_kept(cli: Cli, digits: str) -> None:
    assert re.search(
        r"^round 1 train closed, secure, 3 counted, .* up, .*train.loss 0.5", cli("run", "watch", digits)
    )
    listed = cli("update", "ls", digits, "--round", 1).splitlines()
    assert listed[0].split() == ["round", "device", "digest", "codec", "up", "status", "bytes"]
    assert re.fullmatch(r" *1 +d0 +[0-9a-f]{12} +exact, secure +.* counted +scrubbed *", listed[1])
    shown = cli("update", "show", digits, 1, "d0")
    assert "exact, secure" in shown
    for unknown in ("examples", "steps", "training", "evaluation", "NMSE", "norm", "totals"):
        assert unknown not in shown


def test_replay_says_that_a_sum_is_gone_and_never_that_it_matches(cli: Cli, digits: str) -> None:
    told = cli("audit", "replay", digits).splitlines()
    assert told[:2] == [f"round {n}: by design: sum not recomputable (by design)" for n in (1, 2)]
    assert told[2] == "round 3: evaluation: it made no model"
    assert "the chain holds" in cli("audit", "verify", digits)


@pytest.fixture
def copied(cli: Cli, digits: str, tmp_path: Path) -> str:
    """The URL of a copy of the database, for somebody to write to behind every coordinator's back."""
    with sqlite3.connect(cli.coordinator.db) as db, sqlite3.connect(tmp_path / "copy.db") as copy:
        db.backup(copy)
    copy.close()
    db.close()
    return f"sqlite:///{tmp_path / 'copy.db'}"


def harm(url: str, statement: str) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as db:
        assert db.execute(statement).rowcount == 1
    db.close()


def found(url: str) -> list[str]:
    with upkeep.opened(url) as place:
        return [f.text for f in upkeep.check(place).findings]


def replayed(url: str) -> list[tuple[int, str]]:
    store = Store(url)
    try:
        (row,) = store.runs()
        return [(one.round, one.verdict) for one in replay(store, row)]
    finally:
        store.close()


def test_replay_sees_a_model_that_is_not_the_rounds(copied: str) -> None:
    assert replayed(copied) == [(1, "by design"), (2, "by design"), (3, "evaluation")]
    harm(copied, "UPDATE models SET digest = (SELECT digest FROM models WHERE round = 0) WHERE round = 1")
    assert replayed(copied)[:2] == [(1, "mismatch"), (2, "by design")]
    harm(
        copied,
        "UPDATE contents SET data = zeroblob(size) WHERE digest IN (SELECT digest FROM models WHERE round = 2)",
    )
    assert replayed(copied)[:2] == [(1, "mismatch"), (2, "mismatch")]


HARM = {
    "UPDATE updates SET kept = 1 WHERE round = 1 AND client = 'd1'": "d1: its masked update is kept, and the round is",
    "INSERT INTO payloads SELECT id, 1, 0, 'reveal', 'd1', x'00' FROM runs": "d1: what it said in a session is kept",
    "INSERT INTO payloads SELECT id, 9, 0, 'keys', 'd1', x'00' FROM runs": "there are words of sessions of round 9",
    "UPDATE updates SET head = json_set(head, '$.examples', 7) WHERE round = 2 AND client = 'd2'": (
        "d2: its update is masked, and there are numbers of it"
    ),
    "UPDATE updates SET digest = 'ab' WHERE round = 2 AND client = 'd2'": "is not the one that the round heard",
}


@pytest.mark.parametrize("statement", HARM)
def test_a_check_names_what_should_have_gone_with_its_round(copied: str, statement: str) -> None:
    assert found(copied) == []
    harm(copied, statement)
    assert any(HARM[statement] in text for text in found(copied))


def test_a_check_names_keys_of_rounds_that_are_over(cli: Cli, digits: str) -> None:
    sessions = cli.coordinator.blobs / "sessions"
    folder = next(sessions.iterdir())
    assert list(folder.iterdir()) == [], "no key outlives its round"
    key = folder / "2.key"
    key.write_bytes(bytes(32))
    try:
        (said,) = found(cli.coordinator.url)
        assert f"the key of a session of round 2, which is not open, is still there ({key})" in said
    finally:
        key.unlink()


def test_an_open_round_says_what_it_collects_and_who_is_still_out(cli: Cli, clients: Clients) -> None:
    address = cli.coordinator.address
    settings: dict[str, Any] = {"min_clients": 3, "clients": 3, "phase": 600.0, "lease": 600.0, "rounds": 1}
    koinon.Run("stuck", model={"w": np.zeros(SIZE, np.float32)}, aggregation="secure", **settings).create(
        address
    )

    def device(name: str) -> None:
        with koinon.join(address, run="stuck", name=name) as session:
            if name == "d2":  # it advertises its keys, and says nothing more
                said = session._talk._send
                session._talk._send = lambda m: None if m.voice.collection == "shares" else said(m)
            learn(session)

    for name in NAMES:
        clients.start(lambda name=name: device(name), name)  # type: ignore[misc]
    with Operator(address) as operator:
        until(
            lambda: (
                list(operator.get("stuck").rounds[-1].awaited) == ["d2"]
                if operator.get("stuck").rounds
                else False
            )
        )
        why = cli("run", "why", "stuck")
        assert "round 1 waits for shares of the devices' secrets: 2 of 3 are in, still out: d2" in why
        assert "round 1 collects shares, still out: d2" in why
        told = cli.json("run", "why", "stuck")
        assert (told["collection"], told["attempt"], told["awaited"]) == ("shares", 1, ["d2"])
        assert re.search(r"1 +shares, secure +0/3 ", cli("run", "show", "stuck"))
        assert "still out: d2" in cli("run", "show", "stuck", "--round", 1)
        assert found(cli.coordinator.url) == [], "an open round has words, and a key"
        operator.control("stuck", "cancel")
    clients.join()
    assert "by design" not in cli("audit", "replay", "stuck", code=3)
    assert found(cli.coordinator.url) == []


def test_what_a_lost_device_masked_in_an_earlier_attempt_is_no_finding(cli: Cli, clients: Clients) -> None:
    """Two of four do not agree to the sum: it is tried again, and one of them is not heard of any more."""
    address = cli.coordinator.address
    settings: dict[str, Any] = {
        "clients": 4,
        "phase": 2.0,
        "rounds": 1,
        "evaluate": False,
        "aggregation": "secure",
    }
    koinon.Run("again", model={"w": np.zeros(SIZE, np.float32)}, **settings).create(address)

    def device(name: str) -> None:
        with koinon.join(address, run="again", name=name) as session:
            said = session._talk._send

            def unlucky(message: Any) -> None:
                voice = message.voice
                gone = name == "d3" and (voice.collection == "consistent" or voice.attempt)
                if not gone and not (name == "d2" and voice.collection == "consistent" and not voice.attempt):
                    said(message)

            session._talk._send = unlucky
            learn(session)

    for name in (*NAMES, "d3"):
        clients.start(lambda name=name: device(name), name)  # type: ignore[misc]
    clients.join()
    (closed,) = cli.json("run", "show", "again")["rounds"]
    assert {p["client"]: p["status"] for p in closed["participants"]} == {
        "d0": "counted", "d1": "counted", "d2": "counted", "d3": "left",
    }  # fmt: skip
    assert closed["participants"][3]["bytes_up"] > 0
    assert found(cli.coordinator.url) == []


def test_the_flag_of_create_says_who_sees_updates(cli: Cli, digits: str) -> None:
    model = cli.coordinator.folder / "init.safetensors"
    cli("run", "create", "seen", "--model", model, "--aggregation", "open")
    assert cli.json("run", "show", "seen")["run"]["aggregation"] == "open"
    refused = cli(
        "run", "create", "two", "--model", model, "--aggregation", "secure", "--min-clients", 2, code=2
    )
    assert "min_clients = 2 is too few for a secure sum" in refused
    assert "aggregation = 'open'" in refused
