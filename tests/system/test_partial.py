"""Work that is stopped early, with a real coordinator: counted, seen by the operator, refused where it may not be."""

import numpy as np
import pytest
from typer.testing import CliRunner

import koinon
from hostile import Device, container
from koinon.cli import app

NAMES = ["a", "b", "c"]


def client(session: koinon.Session) -> None:
    """Device `a` stops each round after 10 of its 40 examples."""
    early = session.client == "a"
    model = {"x": np.zeros(5)}
    for task in session.tasks(model):
        assert task.remaining is not None
        assert 0 < task.remaining <= 60
        model["x"] += 1.0 if early else 4.0
        task.submit(examples=10 if early else 40, metrics={"loss": 1.0}, partial=early)


def said(coordinator, *arguments: object) -> str:
    done = CliRunner().invoke(
        app, [*map(str, arguments), "--address", coordinator.address], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize("aggregation", ["open", "secure"])
def test_it_is_counted_by_what_was_seen_and_shown(aggregation, coordinator, clients):
    run = koinon.Run(
        "early", model={"x": np.zeros(5)}, strategy=koinon.FedAvg(), rounds=2, min_clients=3, clients=3,
        deadline=60, aggregation=aggregation, codec="raw" if aggregation == "open" else "exact",
    )  # fmt: skip
    handle = run.create(coordinator.address)

    def device(name: str) -> None:
        with koinon.join(coordinator.address, run="early", name=name) as session:
            client(session)

    for name in NAMES:
        clients.start(lambda name=name: device(name), name)
    clients.join()
    handle.wait()
    simulated = koinon.simulate(run, client, clients=NAMES)
    assert handle.model() == simulated.model
    assert handle.model()["x"] == pytest.approx([2 * (10 + 320) / 90] * 5, abs=1e-5)
    for r in handle.rounds():
        assert r.metrics["partial"] == simulated.metrics[r.number]["partial"] == pytest.approx(1 / 3)
        known = [p.partial for p in sorted(r.participants, key=lambda p: p.client)]
        assert known == ([True, False, False] if aggregation == "open" else [False] * 3)
    shown = said(coordinator, "run", "show", "early")
    assert "counted partial up" in shown
    assert "3/3 1 " in shown
    updates = said(coordinator, "update", "ls", "early")
    assert ("partial" in updates) is (aggregation == "open"), (
        "of a secure run nothing is known of single devices"
    )
    if aggregation == "open":
        assert "10 (partial)" in said(coordinator, "run", "show", "early", "--round", 1)


def test_a_coordinator_believes_nobody_that_whole_work_is_not_wanted(coordinator):
    koinon.Run(
        "whole", model={"x": np.zeros(5)}, rounds=1, min_clients=1, clients=1, aggregation="open", partial=False,
        evaluate=False, lease=1, codec="lossless",
    ).create(coordinator.address)  # fmt: skip
    with Device(coordinator.address) as device:
        ask = device.enter("whole")
        device.answer(ask, container(x=np.ones(5)), head={"partial": True})
        receipt = device.hear("receipt")
        assert "stopped early, and this run takes whole work only (partial = false" in receipt.reason
