"""Metrics as a distribution over devices, of deployed runs: stored, shown, compared."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import koinon
from koinon.cli import app
from koinon.operator import Operator

ACCURACY = {"a": 0.2, "b": 0.82, "c": 0.95}
MODEL = {"body.w": np.zeros(3), "head.w": np.zeros(2)}


def client(session: koinon.Session) -> None:
    model = {name: array.copy() for name, array in MODEL.items()}
    for task in session.tasks(model, evaluate=lambda _: {"accuracy": ACCURACY[session.client]}):
        model["body.w"] += 1.0
        task.submit(examples=10, metrics={"loss": 1.0})


def said(coordinator, *arguments: object) -> str:
    done = CliRunner().invoke(
        app, [*map(str, arguments), "--address", coordinator.address], env={"COLUMNS": "250"}
    )
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_it_is_stored_shown_and_compared(coordinator, clients):
    cases = {
        "open": {"aggregation": "open", "codec": "raw", "retention": "keep"},
        "secure": {"codec": "exact", "histograms": {"accuracy": [0, 0.5, 0.8, 0.9, 1]}},
    }
    runs = {
        name: koinon.Run(
            name, model=MODEL, strategy=koinon.chain(koinon.FedAvg(), koinon.FedPer(keys=("head.*",))), rounds=2,
            min_clients=3, clients=3, **given,
        )
        for name, given in cases.items()
    }  # fmt: skip
    for name, run in runs.items():
        handle = run.create(coordinator.address)

        def device(device: str, run: str) -> None:
            with koinon.join(coordinator.address, run=run, name=device) as session:
                client(session)

        for one in ACCURACY:
            clients.start(lambda one=one, name=name: device(one, name), one)
        clients.join()
        handle.wait()
        simulated = koinon.simulate(run, client, clients=list(ACCURACY))
        assert handle.model() == simulated.model
        deployed = {r.number: dict(r.metrics) for r in handle.rounds()}
        for number, metrics in simulated.metrics.items():
            stored = {k: deployed[number][k] for k in metrics} if number in deployed else metrics
            assert stored == metrics
    shown = said(coordinator, "run", "show", "open")
    assert "eval.accuracy 0.6567 [0.2 0.324 0.82 0.924 0.95]" in shown
    assert "in brackets: over devices" in shown
    assert "accuracy.p10" not in shown
    secure = said(coordinator, "run", "show", "secure")
    assert "eval.accuracy 0.6567 [0.15 0.85 0.97]" in secure
    compared = said(coordinator, "run", "compare", "open", "secure")
    assert "over devices" in compared
    assert "0.2 0.324 0.82 0.924 0.95" in compared
    by_the_worst = json.loads(
        CliRunner().invoke(app, [
            "run", "compare", "open", "secure", "--metric", "eval.accuracy.p10", "--json", "--address",
            coordinator.address,
        ]).output
    )  # fmt: skip
    assert [row["last"] for row in by_the_worst["runs"]] == pytest.approx([0.324, 0.15])
    # What is beside the sum is no part of it: a replay finds the same.
    with Operator(coordinator.address) as operator:
        assert {r.verdict for r in operator.replay("open")} == {"match", "evaluation"}
