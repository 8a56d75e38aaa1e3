"""A device's memory: lost, copied, or kept through the end of its process."""

import shutil
import threading

import numpy as np
import pytest

import koinon
from hostile import Device, until
from koinon.operator import Operator
from koinon_core.errors import Conflict
from koinon_core.wire.v1 import fleet_pb2 as pb


def work(session: koinon.Session, rounds: int) -> None:
    """Take part in so many rounds, and leave."""
    model = {"x": np.zeros(1)}
    tasks = session.tasks(model)
    for done, task in enumerate(tasks, 1):
        task.descend({"x": np.ones(1)}, lr=0.1)
        task.submit(examples=1)
        if done == rounds:
            until(lambda task=task: task.outcome)
            return


def simulated_work(session: koinon.Session) -> None:
    model = {"x": np.zeros(1)}
    for task in session.tasks(model):
        task.descend({"x": np.ones(1)}, lr=0.1)
        task.submit(examples=1)


def scaffold(coordinator, **settings):
    run = koinon.Run(
        "r", model={"x": np.zeros(1)}, strategy=koinon.Scaffold(), rounds=3, min_clients=1, clients=1, population=2,
        evaluate=False, codec="raw", aggregation="open", **settings,
    )  # fmt: skip
    return run.create(coordinator.address)


def test_a_device_that_lost_what_the_strategy_needs_is_refused_by_name(coordinator, tmp_path):
    scaffold(coordinator)
    with koinon.join(coordinator.address, run="r", name="a", state=tmp_path / "disk") as session:
        work(session, 1)
    shutil.rmtree(tmp_path / "disk")
    with pytest.raises(
        Conflict, match="'a' was counted in round 1 and knows of 0: its memory was lost or is a copy"
    ):
        koinon.join(coordinator.address, run="r", name="a", state=tmp_path / "disk")
    with koinon.join(coordinator.address, run="r", name="a2", state=tmp_path / "disk") as session:
        work(session, 2)  # as another device it may
    with Operator(coordinator.address) as operator:
        until(lambda: operator.get("r").run.status == "finished")
        incidents = [(i.client, i.round, i.code) for i in operator.get("r").incidents]
        assert incidents[0] == ("a", 1, "FORGOT")


def test_where_the_strategy_needs_no_memory_its_loss_is_only_noted(coordinator, tmp_path):
    run = koinon.Run(
        "r", model={"x": np.zeros(1)}, aggregation="open", rounds=2, min_clients=1, clients=1, evaluate=False
    )
    handle = run.create(coordinator.address)
    with koinon.join(coordinator.address, run="r", name="a", state=tmp_path / "disk") as session:
        work(session, 1)
    shutil.rmtree(tmp_path / "disk")
    with koinon.join(coordinator.address, run="r", name="a", state=tmp_path / "disk") as session:
        work(session, 1)
    assert handle.wait() == "2 rounds closed"
    with Operator(coordinator.address) as operator:
        assert [(i.client, i.code) for i in operator.get("r").incidents] == [("a", "FORGOT")]


def test_a_memory_that_is_kept_goes_on_where_it_was(coordinator, tmp_path):
    """Three sessions of one round each end where one session of three rounds does."""
    scaffold(coordinator)
    for _ in range(3):
        with koinon.join(coordinator.address, run="r", name="a", state=tmp_path / "disk") as session:
            work(session, 1)
    handle = koinon.RunHandle(coordinator.address, "r", "r")
    simulated = koinon.simulate(
        koinon.Run(
            "r", model={"x": np.zeros(1)}, strategy=koinon.Scaffold(), rounds=3, min_clients=1, clients=1,
            aggregation="open",
            population=2, evaluate=False, codec="raw",
        ),
        simulated_work, clients=["a"],
    )  # fmt: skip
    assert handle.model() == simulated.model


def test_a_copy_of_a_device_is_told_from_it(coordinator, clients, tmp_path):
    scaffold(coordinator)
    original = tmp_path / "disk"
    told: list[BaseException] = []
    ready = threading.Event()

    def device() -> None:
        with koinon.join(coordinator.address, run="r", name="a", state=original) as session:
            model = {"x": np.zeros(1)}
            try:
                for _ in session.tasks(model):
                    ready.set()
                    threading.Event().wait(0.2)  # it never gets further than this
            except Conflict as error:
                told.append(error)

    clients.start(device)
    assert ready.wait(20)
    shutil.copytree(original, tmp_path / "clone")
    with koinon.join(coordinator.address, run="r", name="a", state=tmp_path / "clone") as clone:
        clients.join(20)
        assert "two processes use one device's memory or copies of it" in str(told[0])
        work(clone, 1)


def test_a_second_process_on_the_same_memory_is_refused_before_it_says_anything(coordinator, tmp_path):
    scaffold(coordinator)
    with (
        koinon.join(coordinator.address, run="r", name="a", state=tmp_path),
        pytest.raises(Conflict, match="another process of this machine is device 'a' already"),
    ):
        koinon.join(coordinator.address, run="r", name="a", state=tmp_path)


def test_an_update_that_was_handed_in_outlives_its_process_with_the_same_bytes(coordinator, tmp_path):
    """The link is dead when the update is handed in; the next process sends it, and nothing is trained again."""
    handle = scaffold(coordinator)
    session = koinon.join(coordinator.address, run="r", name="a", state=tmp_path)
    model = {"x": np.zeros(1)}
    tasks = session.tasks(model)
    task = next(tasks)
    session._link.close()  # the network is gone, for this process for ever
    task.descend({"x": np.ones(1)}, lr=0.1)
    task.submit(examples=1)
    session._outbox.close()  # and now the process
    with koinon.join(coordinator.address, run="r", name="a", state=tmp_path) as again:
        seen = []
        for task in again.tasks(model):
            seen.append(task.round)
            task.descend({"x": np.ones(1)}, lr=0.1)
            task.submit(examples=1)
    assert seen == [2, 3]
    assert [p.status for r in handle.rounds() for p in r.participants] == ["counted"] * 3


def test_a_device_without_a_name_keeps_nothing(coordinator, tmp_path, monkeypatch):
    monkeypatch.setenv("KOINON_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("KOINON_NAME", raising=False)
    scaffold(coordinator)
    with koinon.join(coordinator.address, run="r") as session:
        work(session, 3)
    assert not (tmp_path / "state").exists()


def test_a_later_start_takes_its_place_at_once(coordinator):
    """The stream of the process before may be half open for a minute; the device need not wait for that."""
    scaffold(coordinator)
    with Device(coordinator.address, "a", instance="same", boot=1) as before:
        before.enter("r")
        with Device(coordinator.address, "a", instance="same", boot=2) as after:
            after.enter("r")
            with pytest.raises(Conflict, match="attached from a later start"):
                Device(coordinator.address, "a", instance="same", boot=1).__enter__()
            with pytest.raises(Conflict, match="attached already, from another process"):
                Device(coordinator.address, "a", instance="other", boot=9).__enter__()


def test_no_device_makes_a_run_skip_to_absurd_numbers(coordinator):
    scaffold(coordinator)
    with Device(coordinator.address, "liar") as liar, Operator(coordinator.address) as operator:
        run = liar.join("r")
        liar.say(ahead=pb.Ahead(run=run, round=(1 << 63) - 2, reason="I have seen it all"))
        assert "no device can have seen" in liar.hear("trouble").message
        with pytest.raises(Conflict, match="nothing to recover"):
            operator.control("r", "recover")
