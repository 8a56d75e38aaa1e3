"""`koinon-coordinator db` beside a coordinator that works: what is printed, how it exits, and a backup that goes on."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import koinon
from conftest import Clients, Coordinator
from koinon.operator import Operator
from lab import REVISION

ARCHIVE = Path(__file__).parents[1] / "archive" / "0.1.0" / "database.tar.xz"
SENTENCE = re.compile(r"koinon-coordinator: [^\n]+\n")
SIZE = 20_000  # values of a model that is a file
ENV = {**os.environ, "COLUMNS": "250", "NO_COLOR": "1"}


def db(*arguments: object, code: int = 0) -> str:
    """What `koinon-coordinator db` printed; its one sentence where it must fail."""
    done = subprocess.run(
        [sys.executable, "-m", "koinon_coordinator", "db", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, env=ENV, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if done.stderr:
        assert SENTENCE.fullmatch(done.stderr), done.stderr
    return done.stderr or done.stdout


@pytest.fixture
def served(database_url: str, tmp_path: Path) -> Iterator[Coordinator]:
    one = Coordinator(tmp_path, db=database_url)
    yield one
    one.stop()
    assert "Traceback" not in one.log.read_text()


def where(coordinator: Coordinator) -> list[object]:
    return ["--db", coordinator.url, "--data", coordinator.blobs]


def device(coordinator: Coordinator, name: str, first: threading.Event) -> None:
    """It takes part until the run is over."""
    noise = np.random.default_rng(int(name[1:])).normal(size=SIZE).astype(np.float32)
    with koinon.join(coordinator.address, run="r", name=name) as session:
        model = {"w": np.zeros(SIZE, np.float32)}
        for task in session.tasks(model):
            time.sleep(0.02)
            model["w"] += noise
            task.submit(examples=1)
            if task.round > 2:
                first.set()


def start(clients: Clients, coordinator: Coordinator, names: list[str]) -> threading.Event:
    """What is set when rounds were closed."""
    first = threading.Event()
    for name in names:
        clients.start(lambda name=name: device(coordinator, name, first), name)  # type: ignore[misc]
    return first


def cancel(coordinator: Coordinator) -> None:
    """The run ends for all its devices; if they left one by one, the last would wait for another."""
    with Operator(coordinator.address) as operator:
        operator.control("r", "cancel")


def described(rounds: int) -> koinon.Run:
    return koinon.Run(
        "r", model={"w": np.zeros(SIZE, np.float32)}, rounds=rounds, min_clients=2, clients=2, codec="raw",
        aggregation="open",
        strategy=koinon.FedAvgM(lr=0.5, beta=0.9), models="3 rounds", evaluate=False, lease=2.0,
    )  # fmt: skip


def test_a_backup_of_a_living_coordinator_goes_on_by_itself(
    served: Coordinator, clients: Clients, tmp_path: Path
) -> None:
    run = described(10_000).create(served.address)
    first = start(clients, served, ["d0", "d1"])
    try:
        assert first.wait(30)
        before = len(run.rounds())
        assert db("check", *where(served)).endswith(": nothing wrong\n")
        made = json.loads(db("backup", "--json", "--to", tmp_path / "copy", *where(served)))
        assert db("check", *where(served)).startswith("1 runs, ")
        assert made["files"] >= 3
        assert made["bytes"] > made["files"] * SIZE * 4 * 0.5
        after = len(run.rounds())
        assert after > before, "nobody had to wait for it"
    finally:
        cancel(served)
    clients.join()
    folder = tmp_path / "restored"
    (tmp_path / "copy").rename(folder)  # it may be moved
    copied = Coordinator(folder)
    try:
        first = start(clients, copied, ["d2", "d3"])
        assert first.wait(30)
        cancel(copied)
        clients.join()
        assert db("check", *where(copied)).endswith(": nothing wrong\n")
    finally:
        copied.stop()
    assert "Traceback" not in copied.log.read_text()


def test_what_is_damaged_is_named_and_ends_with_1(
    served: Coordinator, clients: Clients, tmp_path: Path
) -> None:
    described(4).create(served.address)
    first = start(clients, served, ["d0", "d1"])
    clients.join()
    served.stop()
    assert first.is_set()
    blob = next(path for path in served.blobs.glob("??/*"))
    os.truncate(blob, 1000)
    said = db("check", *where(served), code=1)
    assert said.splitlines()[0] == f"content {blob.name[:12]} is damaged in {blob}"
    assert said.splitlines()[-1].endswith(": 1 wrong")
    told = json.loads(db("check", "--json", *where(served), code=1))
    assert [f["digest"] for f in told["findings"]] == [blob.name]
    refused = db("backup", "--to", tmp_path / "copy", *where(served), code=1)
    assert "is damaged" in refused
    assert not (tmp_path / "copy" / "koinon.db").exists()


def test_an_upgrade_says_from_where_to_where(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(tmp_path, filter="data")
    there: list[Any] = ["--db", f"sqlite:///{tmp_path / 'koinon.db'}"]
    assert "`koinon-coordinator db upgrade`" in db("check", *there, code=1)
    db("backup", "--to", tmp_path / "before", *there)
    assert db("upgrade", *there) == f"from revision 0001 to revision {REVISION}\n"
    assert db("upgrade", *there) == f"nothing to do: the database is at revision {REVISION}\n"
    assert db("check", *there) == "3 runs, 29 contents, 8 files: nothing wrong\n"
    restored: list[Any] = ["--db", f"sqlite:///{tmp_path / 'before' / 'koinon.db'}"]
    assert json.loads(db("upgrade", "--json", *restored)) == {"before": "0001", "now": REVISION}
    assert db("check", *restored) == "3 runs, 29 contents, 8 files: nothing wrong\n"


def test_an_upgrade_keeps_off_a_living_coordinator(coordinator: Coordinator) -> None:
    said = db("upgrade", "--db", coordinator.url, code=1)
    assert "another coordinator uses" in said


def test_what_cannot_be_done_is_one_sentence(tmp_path: Path) -> None:
    nothing = f"sqlite:///{tmp_path / 'nothing.db'}"
    assert "there is no run database" in db("check", "--db", nothing, code=1)
    assert "there is no run database" in db("backup", "--db", nothing, "--to", tmp_path / "copy", code=1)
    assert list(tmp_path.glob("nothing*")) == []
    other = tmp_path / "other.db"
    other.write_bytes(b"no database " * 1000)
    assert "not a database" in db("check", "--db", f"sqlite:///{other}", code=1)
    with sqlite3.connect(tmp_path / "foreign.db") as foreign:
        foreign.execute("CREATE TABLE mine (x)")
    assert "not Koinon's" in db("upgrade", "--db", f"sqlite:///{tmp_path / 'foreign.db'}", code=1)
    made = f"sqlite:///{tmp_path / 'new.db'}"
    assert db("upgrade", "--db", made) == f"from no tables to revision {REVISION}\n"
    assert "is not empty" in db("backup", "--db", made, "--to", tmp_path, code=2)
