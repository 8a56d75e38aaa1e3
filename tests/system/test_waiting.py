"""Devices that come before their run, and first rounds that wait a moment for whoever comes."""

import numpy as np
import pytest

import koinon
from toy import NAMES, TAU, toy_client, toy_run


def test_a_device_may_be_started_before_its_run(coordinator, clients):
    def device(name):
        with koinon.join(coordinator.address, run="toy", name=name, wait=30) as session:
            toy_client(TAU)(session)

    for name in NAMES:
        clients.start(lambda name=name: device(name), name)
    handle = toy_run(koinon.FedAvg(), 3, evaluate=False).create(coordinator.address)
    clients.join(30)
    assert handle.wait() == "3 rounds closed"


def test_waiting_for_a_run_that_never_comes_ends_by_name(coordinator):
    with pytest.raises(koinon.NotFound, match="there was no run 'never'"):
        koinon.join(coordinator.address, run="never", name="a", wait=0.5, timeout=0.4)


def test_the_first_round_takes_everyone_who_comes_in_time():
    run = toy_run(koinon.FedAvg(), 3, min_clients=1, clients=None)
    result = koinon.simulate(run, toy_client(TAU), clients=NAMES)
    assert [len(r.clients) for r in result.rounds] == [4, 4, 4]


def test_a_result_goes_back_into_a_module():
    import torch

    module = torch.nn.Linear(1, 1, bias=False)
    result = koinon.simulate(
        koinon.Run(
            "m",
            model={"weight": np.ones((1, 1), np.float32)},
            aggregation="open",
            rounds=1,
            min_clients=1,
            clients=1,
        ),
        lambda session: [
            task.submit(examples=1) for task in session.tasks({"weight": np.ones((1, 1), np.float32)})
        ],
        clients=1,
    )
    koinon.load_weights(module, result.model)
    assert module.weight.item() == 1.0
    with pytest.raises(koinon.UsageError, match="what is loaded"):
        koinon.load_weights(torch.nn.Linear(2, 1, bias=False), result.model)
