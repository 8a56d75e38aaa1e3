"""Strategies deployed: simulated and for real they make the same bytes, and a replay finds the same sums."""

import numpy as np
import pytest

import koinon
from koinon.operator import Operator

SIZE = 70_000  # more than a strip of a robust rule, and a file on disk
NAMES = [f"d{i}" for i in range(5)]
MODEL = {"x": np.zeros(SIZE), "head.y": np.zeros(3, np.float32)}
AVERAGE = koinon.FedAvg()
CASES = {
    "krum": (koinon.chain(koinon.FedAdam(), koinon.Krum()), {}),
    "nnm": (koinon.chain(AVERAGE, koinon.TrimmedMean(), koinon.NNM()), {"codec": "thin"}),
    "geometric": (koinon.chain(koinon.FedAdam(bias_correction=True), koinon.GeometricMedian()), {}),
    "exp": (koinon.FedExP(), {"codec": "compact"}),
    "fair": (koinon.QFedAvg(q=2.0), {}),
    "yogi": (koinon.FedYogi(), {"codec": "balanced"}),
    "rep": (koinon.chain(AVERAGE, koinon.FedRep(keys=("head.*",))), {}),
    "ditto": (koinon.chain(AVERAGE, koinon.Ditto()), {}),
}


def client(session: koinon.Session) -> None:
    index = int(session.client[-1])
    model = {name: array.copy() for name, array in MODEL.items()}
    for task in session.tasks(model, evaluate=lambda _: {"loss": 1.0 + index}):
        dice = np.random.default_rng([index, task.round])
        task.descend({"x": dice.normal(size=SIZE), "head.y": dice.normal(size=3)}, lr=0.1)
        task.submit(examples=index + 1, metrics={"loss": 1.0})


@pytest.mark.parametrize("strategy", [koinon.FedNova(), koinon.FedExP(), koinon.QFedAvg()], ids=repr)
def test_plain_sums_are_in_secure_rounds_that_train_and_not_in_the_one_that_evaluates(
    strategy, coordinator, clients
):
    run = koinon.Run(
        "same", model={"x": np.zeros(3), "head.y": np.zeros(3, np.float32)}, strategy=strategy, rounds=1, min_clients=3,
        clients=3, codec="exact",
    )  # fmt: skip
    handle = run.create(coordinator.address)

    def device(session: koinon.Session) -> None:
        model = {"x": np.zeros(3), "head.y": np.zeros(3, np.float32)}
        for task in session.tasks(model, evaluate=lambda _: {"loss": 1.0}):
            task.descend({name: np.ones_like(array) for name, array in model.items()}, lr=0.1)
            task.submit(examples=1)

    def attend(name: str) -> None:
        with koinon.join(coordinator.address, run="same", name=name) as session:
            device(session)

    for name in NAMES[:3]:
        clients.start(lambda name=name: attend(name), name)
    clients.join()
    assert handle.wait() == "1 rounds closed"
    assert handle.model() == koinon.simulate(run, device, clients=NAMES[:3]).model
    assert handle.rounds()[0].metrics["eval.loss"] == 1.0
    assert "Traceback" not in coordinator.log.read_text()


@pytest.mark.parametrize("case", CASES)
def test_simulated_deployed_and_replayed_it_is_the_same(case, coordinator, clients):
    strategy, settings = CASES[case]
    given = {"codec": "raw", **settings}
    run = koinon.Run(
        "same", model=MODEL, strategy=strategy, rounds=2, min_clients=5, clients=5, aggregation="open",
        retention="keep",
        **given,
    )  # fmt: skip
    handle = run.create(coordinator.address)

    def device(name: str) -> None:
        with koinon.join(coordinator.address, run="same", name=name) as session:
            client(session)

    for name in NAMES:
        clients.start(lambda name=name: device(name), name)
    clients.join()
    handle.wait()
    assert handle.model() == koinon.simulate(run, client, clients=NAMES).model
    with Operator(coordinator.address) as operator:
        replayed = {r.round: r.verdict for r in operator.replay("same")}
    assert replayed == {1: "match", 2: "match", 3: "evaluation"}
