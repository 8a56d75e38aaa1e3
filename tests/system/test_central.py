"""Central evaluation of a run at a real coordinator: followed, kept, shown, and what ends the run."""

import json
import threading

import numpy as np
import pytest
from typer.testing import CliRunner

import koinon
from koinon.cli import app
from koinon.operator import Operator
from koinon_core.errors import KoinonError, NotFound, UsageError

NAMES = ["a", "b", "c"]


def distance(model) -> dict[str, float]:
    """Best at 3."""
    return {"loss": (float(model["x"][0]) - 3.0) ** 2}


def said(coordinator, *arguments: object) -> str:
    done = CliRunner().invoke(
        app, [*map(str, arguments), "--address", coordinator.address], env={"COLUMNS": "200"}
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize("aggregation", ["open", "secure"])
def test_what_the_owner_measures_ends_the_run(aggregation, coordinator, clients):
    """Devices work on as long as nothing was said of the last model but one, so that the end is the same each time."""
    run = koinon.Run(
        "central", model={"x": np.zeros(1)}, rounds=40, min_clients=3, clients=3, aggregation=aggregation,
        codec="raw" if aggregation == "open" else "exact", best={"metric": "central.loss", "patience": 2},
    )  # fmt: skip
    handle = run.create(coordinator.address)
    measured: dict[int, threading.Event] = {n: threading.Event() for n in range(-1, 41)}
    for early in (-1, 0):
        measured[early].set()

    def client(session: koinon.Session, deployed: bool) -> None:
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            assert not deployed or measured[task.round - 2].wait(30)
            model["x"] += 1.0
            task.submit(examples=1)

    def device(name: str) -> None:
        with koinon.join(coordinator.address, run="central", name=name) as session:
            client(session, deployed=True)

    def owner() -> None:
        from koinon.central import evaluate

        with Operator(coordinator.address) as operator:
            for one in evaluate(operator, "central", distance):
                measured[one.round].set()

    for name in NAMES:
        clients.start(lambda name=name: device(name), name)
    clients.start(owner, "owner")
    clients.join()
    rounds = {r.number: r for r in handle.rounds()}
    assert "closed early: central.loss was no better in" in handle.wait()
    # Round 3 has the best; 4 and 5 are no better, and one or two more were open when that was said.
    last = max(n for n, r in rounds.items() if r.model_digest)
    assert 5 <= last <= 7
    simulated = koinon.simulate(run, lambda session: client(session, False), clients=NAMES, central=distance)
    for number in range(1, last + 1):
        assert rounds[number].metrics["central.loss"] == pytest.approx((number - 3.0) ** 2, abs=1e-5)
        if number in simulated.metrics:
            assert rounds[number].metrics["central.loss"] == simulated.metrics[number]["central.loss"]
    assert handle.best()[:2] == (3, "central.loss")
    assert "central.loss" in said(coordinator, "run", "show", "central")


def test_a_run_that_is_over_is_measured_from_the_command_line(coordinator, clients, tmp_path, monkeypatch):
    (tmp_path / "held_out_set.py").write_text(
        "import koinon\n"
        "def measure(model):\n    return {'size': abs(float(model['x'][0]))}\n"
        "def wrong(model):\n    return {'size': float('nan')}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, step in (("one", 1.0), ("two", 2.0)):
        handle = koinon.Run(
            name, model={"x": np.zeros(1)}, rounds=4, min_clients=1, clients=1, aggregation="open", codec="raw",
            **({"best": {"metric": "central.size", "mode": "max"}} if name == "two" else {}),
        ).create(coordinator.address)  # fmt: skip

        def device(name: str = name, step: float = step) -> None:
            with koinon.join(coordinator.address, run=name, name="d") as session:
                model = {"x": np.zeros(1)}
                for task in session.tasks(model):
                    model["x"] += step
                    task.submit(examples=1)

        clients.start(device)
        clients.join()
        handle.wait()
    with pytest.raises(UsageError, match="'size' is nan"):
        said(coordinator, "run", "evaluate", "one", "--with", "held_out_set:wrong")
    for wrong, why in (
        ("held_out_set", "write MODULE:FUNCTION"),
        ("held_out_set:no", "no function 'no'"),
        ("no:no", "cannot be imported"),
    ):
        with pytest.raises(UsageError, match=why):
            said(coordinator, "run", "evaluate", "one", "--with", wrong)
    told = said(coordinator, "run", "evaluate", "one", "--with", "held_out_set:measure", "--every", 3)
    assert told == "round 3 central.size 3 round 4 central.size 4"
    told = said(coordinator, "run", "evaluate", "one", "--with", "held_out_set:measure", "--follow")
    assert told == "round 1 central.size 1 round 2 central.size 2"
    assert "not measured already" in said(
        coordinator, "run", "evaluate", "one", "--with", "held_out_set:measure"
    )
    assert [
        e.round for e in koinon.RunHandle(coordinator.address, "two", "two").evaluate(distance, every=2)
    ] == [2, 4]
    koinon.RunHandle(coordinator.address, "two", "two")
    with Operator(coordinator.address) as operator:
        operator.measure("two", 1, {"size": 9.0})
        operator.measure("two", 1, {"size": 9.0})  # again, and nothing changes
        for number in (0, 5, 1 << 40):
            with pytest.raises(NotFound, match="made no model"):
                operator.measure("two", number, {"size": 9.0})
        with pytest.raises(KoinonError, match="names are 1 to 64"):
            operator.measure("two", 1, {"x" * 65: 1.0})
        with pytest.raises(NotFound, match="no run 'three'"):
            operator.measure("three", 1, {"size": 9.0})
    assert koinon.RunHandle(coordinator.address, "two", "two").best() == (1, "central.size", 9.0)
    # A coordinator that was started again has all of it.
    coordinator.kill()
    coordinator.start()
    got = json.loads(
        CliRunner().invoke(app, ["run", "show", "one", "--json", "--address", coordinator.address]).output
    )
    assert [r["metrics"].get("central.size") for r in got["rounds"]] == [1.0, 2.0, 3.0, 4.0]


def test_who_watches_hears_of_a_round_that_is_measured_long_after(coordinator, clients):
    handle = koinon.Run(
        "watched", model={"x": np.zeros(1)}, rounds=9, min_clients=1, clients=1, aggregation="open", codec="raw",
    ).create(coordinator.address)  # fmt: skip

    def device() -> None:
        with koinon.join(coordinator.address, run="watched", name="d") as session:
            for task in session.tasks({"x": np.zeros(1)}):
                if task.round == 7:
                    return  # from here on a round waits, and nothing else happens
                task.submit(examples=1)

    clients.start(device)
    clients.join()
    seen = handle.watch()
    assert {r.number for r in next(seen).rounds} >= set(range(1, 8))
    with Operator(coordinator.address) as operator:
        operator.measure("watched", 2, {"loss": 0.25})
        told = next(r for message in seen for r in message.rounds if r.metrics.get("central.loss"))
        assert (told.number, told.metrics["central.loss"]) == (2, 0.25)
        operator.control("watched", "cancel")
