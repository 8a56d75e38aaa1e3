"""A run database that was restored from an old backup: the devices notice, and nothing goes on until the operator
says so."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import koinon
from conftest import Clients, Coordinator
from hostile import until
from koinon.operator import Operator
from koinon_core import audit
from koinon_core.errors import Conflict

DEVICES = ("a", "b")


class Gate:
    """Lets the devices through their rounds, up to a number."""

    def __init__(self) -> None:
        self._open = threading.Condition()
        self._upto = 0

    def let(self, upto: int) -> None:
        with self._open:
            self._upto = upto
            self._open.notify_all()

    def wait(self, number: int) -> None:
        with self._open:
            assert self._open.wait_for(lambda: self._upto >= number, 60)


def start_devices(coordinator: Coordinator, clients: Clients, gate: Gate) -> None:
    for name in DEVICES:

        def device(name=name):
            with koinon.join(coordinator.address, run="r", name=name) as session:
                model = {"x": np.zeros(1)}
                for task in session.tasks(model):
                    gate.wait(task.round)
                    model["x"] += 1.0
                    task.submit(examples=1)

        clients.start(device, name)


def files(coordinator: Coordinator) -> list[Path]:
    """Everything that a backup would have."""
    return [p for p in coordinator.folder.iterdir() if p.name.startswith("koinon.db")]


def copy(paths: list[Path], to: Path) -> None:
    for path in paths:
        target = to / path.name
        if target.is_dir():
            shutil.rmtree(target)
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copy(path, target)


def test_an_old_backup_is_noticed_and_recovered(coordinator, clients, tmp_path):
    gate, backup = Gate(), tmp_path / "backup"
    backup.mkdir()
    run = koinon.Run(
        "r",
        model={"x": np.zeros(1)},
        rounds=6,
        min_clients=2,
        clients=2,
        evaluate=False,
        codec="raw",
        aggregation="open",
    )
    handle = run.create(coordinator.address)
    start_devices(coordinator, clients, gate)

    def closed() -> int:
        with Operator(coordinator.address) as operator:
            return operator.get("r").run.rounds_closed

    gate.let(2)
    until(lambda: closed() == 2)
    coordinator.stop()
    copy(files(coordinator), backup)  # in it, round 3 is open, and both are asked
    coordinator.start()
    gate.let(4)
    until(lambda: closed() == 4)
    coordinator.kill()
    for path in files(coordinator):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    copy(list(backup.iterdir()), coordinator.folder)
    coordinator.start()

    with Operator(coordinator.address) as operator:
        waiting = until(lambda: "2 devices" in (w := operator.get("r").run.waiting_for) and w, 30)
        assert "`koinon run recover r`" in waiting
        assert operator.get("r").run.rounds_closed == 2, "nothing goes on by itself"
        incidents = operator.get("r").incidents
        assert {(i.client, i.code) for i in incidents if i.code == "AHEAD"} == {
            ("a", "AHEAD"),
            ("b", "AHEAD"),
        }
        gate.let(100)
        operator.control("r", "recover")
        assert handle.wait() == "6 rounds closed"
        clients.join()
        numbers = [(r.number, r.status) for r in operator.get("r").rounds]
        # And above what any device has seen: the fourth round, and the fifth, if that was asked for before the kill.
        first = numbers[3][0]
        assert first in (5, 6)
        assert numbers == [
            (1, "closed"), (2, "closed"), (3, "abandoned"), *((first + i, "closed") for i in range(4)),
        ]  # fmt: skip
        report = audit.verify(operator.audit("r"))
        assert report.problems == []
        assert report.head == operator.get("r").head
    assert handle.model()["x"][0] == 6.0


def test_there_is_nothing_to_recover_in_a_run_that_lost_nothing(coordinator):
    run = koinon.Run("r", model={"x": np.zeros(1)}, aggregation="open", rounds=1, min_clients=1)
    run.create(coordinator.address)
    with Operator(coordinator.address) as operator:
        with pytest.raises(Conflict, match=r"no device has seen more of run 'r' .*--beyond ROUND"):
            operator.control("r", "recover")
        operator.control("r", "recover", beyond=7)
        until(lambda: [r.number for r in operator.get("r").rounds] == [1, 8])
