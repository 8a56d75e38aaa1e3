"""Selection through real processes and gRPC: the devices of every round are those of the simulation."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

import koinon
import toy
from koinon.operator import Operator
from toy import NAMES, toy_run

WEIGHTS = {name: {"weight": i + 1, "site": f"ward-{i}"} for i, name in enumerate(NAMES)}


def evaluating(session):
    i = int(session.client[-1])
    model = {"x": np.zeros(1)}

    def evaluate(m):
        return {"loss": toy.loss(i, float(m["x"][0])), "examples": toy.N[i]}

    for task in session.tasks(model, evaluate=evaluate):
        for _ in range(toy.TAU[i]):
            task.descend({"x": np.array([toy.gradient(i, float(model["x"][0]))])}, lr=toy.ETA)
        task.submit(examples=toy.N[i], metrics={"loss": toy.loss(i, float(model["x"][0]))})


def attend(coordinator, clients, run, labels):
    """Devices that wait for the run, each with its labels; the run is created once they are all there."""

    def device(name):
        with koinon.join(coordinator.address, run=run, name=name, wait=60) as session:
            evaluating(session)

    for name in NAMES:
        clients.start(lambda name=name: device(name), name)
    with Operator(coordinator.address, insecure=True) as operator:
        deadline = time.monotonic() + 30
        while sum(d.attached for d in operator.devices()) < len(NAMES):
            assert time.monotonic() < deadline, "the devices did not come"
            time.sleep(0.05)
        for name, given in labels.items():
            operator.label_device(name, " ".join(f"{k}={v}" for k, v in given.items()))


def who(rounds):
    """(number, devices counted) of rounds as the coordinator tells them; the last evaluation takes whoever comes."""
    counted = [tuple(sorted(p.client for p in r.participants if p.status == "counted")) for r in rounds]
    return [(r.number, those) for r, those in zip(rounds, counted, strict=True)][:-1]


def who_was_simulated(simulated):
    return [(r.number, r.clients) for r in simulated.rounds][:-1]


RULES = [
    ({"rule": "weighted"}, {}), ({"rule": "poisson", "q": 0.6}, {"clients": None}),
    ({"rule": "power-of-choice", "d": 3, "by": "examples"}, {}),
    ({"rule": "power-of-choice", "d": 4, "loss": "latest"}, {}),
    ({"rule": "weighted", "by": "examples", "labels": {"site": "ward-[012]"}}, {}),
    ({"rule": "poisson", "q": 0.9}, {"clients": None, "aggregation": "secure", "min_clients": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("selection", "settings"), RULES, ids=str)
def test_the_devices_of_every_round_are_those_of_the_simulation(selection, settings, coordinator, clients):
    given = {"clients": 2, "min_clients": 2, "join_wait": 10.0, **settings}
    run = toy_run(koinon.FedAvg(), 12, selection=selection, **given)
    simulated = koinon.simulate(run, evaluating, clients=NAMES, labels=WEIGHTS)
    attend(coordinator, clients, "toy", WEIGHTS)
    began = time.monotonic()
    handle = run.create(coordinator.address)
    clients.join(90)
    handle.wait()
    assert who(handle.rounds()) == who_was_simulated(simulated)
    assert handle.model() == simulated.model
    assert time.monotonic() - began < 9.0, "nobody waited for anybody"
    check = subprocess.run(
        [sys.executable, "-m", "koinon_coordinator", "db", "check", "--db", coordinator.url, "--data",
         coordinator.blobs],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert coordinator.stop() == 0
    assert check.returncode == 0, check.stdout + check.stderr


def test_a_killed_coordinator_goes_on_with_the_same_draws(coordinator, clients):
    run = toy_run(
        koinon.FedAvg(),
        30,
        selection={"rule": "power-of-choice", "d": 3},
        clients=2,
        min_clients=2,
        join_wait=20.0,
    )
    simulated = koinon.simulate(run, evaluating, clients=NAMES)
    attend(coordinator, clients, "toy", {})
    handle = run.create(coordinator.address)
    for kill_at in (5, 15):
        for seen in handle.watch():
            if seen.run.rounds_closed >= kill_at:
                break
        coordinator.kill()
        coordinator.start()
    clients.join(90)
    handle.wait()
    assert who(handle.rounds()) == who_was_simulated(simulated)
    assert handle.model() == simulated.model


def test_why_names_the_devices_that_do_not_match_and_ls_what_they_say(coordinator, clients):
    selection = {"labels": {"site": "ward-0"}, "at_least": {"cores": 100_000}}
    attend(coordinator, clients, "toy", WEIGHTS)
    handle = toy_run(koinon.FedAvg(), 2, selection=selection, clients=2, min_clients=2).create(
        coordinator.address
    )

    def cli(*arguments):
        command = [sys.executable, "-m", "koinon", *arguments, "--address", coordinator.address]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    deadline = time.monotonic() + 20
    while "4 attached may not be in it" not in (said := " ".join(cli("run", "why", "toy").split())):
        assert time.monotonic() < deadline, said
    assert "client-1 (its label site is 'ward-1', not 'ward-0')" in said
    assert "client-0 (it says that it has cores = " in said
    listed = json.loads(cli("device", "ls", "--json"))
    assert [d["label"] for d in listed] == [f"weight={i + 1} site=ward-{i}" for i in range(4)]
    assert all(d["able"]["cores"] >= 1 and d["able"]["memory_mb"] > 100 for d in listed)
    assert "cores" in cli("device", "ls")
    assert "ward-1: second floor site=ward-1" in cli(
        "device", "label", "client-1", "second", "floor", "site=ward-1"
    ).replace("client-1", "ward-1")
    assert "(to [selection]: site = 'ward-1')" in cli("device", "label", "client-1", "site=ward-1")
    assert "no label; write NAME=VALUE" in " ".join(cli("device", "label", "client-1", "site = 1").split())
    with Operator(coordinator.address, insecure=True) as operator:
        operator.control("toy", "cancel", "enough seen")
    clients.join(30)
    assert handle.name == "toy"
