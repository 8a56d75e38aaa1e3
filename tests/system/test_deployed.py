"""Real processes, real gRPC, real SQLite: the closed forms hold through all of it, and simulation tells the truth."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import koinon
import toy
from toy import NAMES, toy_client, toy_run

EXAMPLES = Path(__file__).parents[2] / "examples"


def deploy(run, address, clients, client, names=NAMES):
    """Run `client` on a thread for each name, against the coordinator at `address`."""
    handle = run.create(address)

    def device(name):
        with koinon.join(address, run=handle.name, name=name) as session:
            client(session)

    for name in names:
        clients.start(lambda name=name: device(name), name)
    clients.join(90)
    handle.wait()
    return handle


CASES = {
    "fedavg": (koinon.FedAvg(), toy.TAU, 60, {}, 1.058199564099),
    "fedprox": (koinon.FedProx(mu=0.5), toy.TAU, 60, {}, 1.058681508377),
    "scaffold one": (koinon.Scaffold(option=1), (10,) * 4, 200, {}, toy.UNIFORM),
    "scaffold two": (koinon.Scaffold(), (10,) * 4, 200, {}, toy.UNIFORM),
    "fednova": (koinon.FedNova(), toy.TAU, 60, {}, toy.NOVA),
    "feddyn": (koinon.FedDyn(alpha=1.0), (300,) * 4, 120, {}, toy.UNIFORM),
    "ditto": (koinon.chain(koinon.FedAvg(), koinon.Ditto(lam=0.7)), toy.TAU, 60, {}, 1.058199564099),
    "scaffold, half of them, clipped": (
        koinon.chain(koinon.Scaffold(), koinon.Clip(3.0)), (10,) * 4, 300, {"min_clients": 2, "clients": 2},
        toy.UNIFORM,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_closed_forms_hold_through_grpc_and_the_database(case, coordinator, clients):
    strategy, steps, rounds, settings, expected = CASES[case]
    run = toy_run(strategy, rounds, evaluate=False, **settings)
    handle = deploy(run, coordinator.address, clients, toy_client(steps))
    assert float(handle.model()["x"][0]) == pytest.approx(expected, abs=1e-9)
    assert sum(r.status == "closed" for r in handle.rounds()) == rounds


def test_stateful_server_rules_keep_their_state_in_the_database(coordinator, clients):
    run = toy_run(koinon.FedAdam(lr=0.3), 25)
    handle = deploy(run, coordinator.address, clients, toy_client(toy.TAU))
    assert handle.model() == koinon.simulate(run, toy_client(toy.TAU), clients=NAMES).model


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_a_strategy_from_outside_the_packages_runs_simulated_and_deployed_alike(tmp_path, clients):
    from conftest import Coordinator

    half_step = load_example("half_step")
    run = toy_run(half_step.HalfStep(share=0.5), 12)
    simulated = koinon.simulate(run, toy_client(toy.TAU), clients=NAMES)
    coordinator = Coordinator(tmp_path, "--plugin", "half_step", cwd=EXAMPLES)
    try:
        handle = deploy(run, coordinator.address, clients, toy_client(toy.TAU))
        assert handle.model() == simulated.model
        plain = koinon.simulate(toy_run(koinon.FedAvg(), 12), toy_client(toy.TAU), clients=NAMES)
        assert plain.model != simulated.model
    finally:
        coordinator.kill()


def test_the_quickstart_runs_simulated_and_deployed_alike(coordinator, clients):
    quickstart = load_example("quickstart")
    names = ["client-0", "client-1", "client-2"]
    run = quickstart.make_run(clients=3)
    simulated = koinon.simulate(run, quickstart.client, clients=names)
    # In processes of their own: torch's dice are one for a process.
    handle = run.create(coordinator.address)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import koinon, quickstart\n"
        "with koinon.join(sys.argv[2], run='quickstart', name=sys.argv[3]) as s: quickstart.client(s)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, EXAMPLES, coordinator.address, name])
        for name in names
    ]
    assert [p.wait(60) for p in processes] == [0, 0, 0]
    assert handle.wait() == "5 rounds closed"
    assert handle.model() == simulated.model


def test_the_numpy_example_learns():
    numpy_client = load_example("numpy_client")
    result = koinon.simulate(numpy_client.make_run(), numpy_client.client, clients=3)
    assert np.allclose(result.model["w"], [1.0, -2.0, 0.5], atol=1e-4)


def test_a_data_loader_with_workers_lives_beside_the_stream_for_forty_epochs(coordinator, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import koinon, torch
            from torch import nn
            from torch.utils.data import DataLoader, TensorDataset

            loader = DataLoader(TensorDataset(torch.randn(64, 2)), batch_size=16, num_workers=2)
            model = nn.Linear(2, 1)
            with koinon.join() as session:
                for task in session.tasks(model):
                    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                    for epoch in range(20):
                        for (x,) in loader:
                            optimizer.zero_grad()
                            model(x).square().mean().backward()
                            optimizer.step()
                    task.submit(examples=64)
            print("ended", session.status)
            """
        )
    )
    import torch

    run = koinon.Run("workers", model=torch.nn.Linear(2, 1), aggregation="open", rounds=2, min_clients=1)
    run.create(coordinator.address)
    out = subprocess.run(
        [sys.executable, "-m", "koinon", "client", script, "--address", coordinator.address, "--run", "workers"],
        capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert "ended finished" in out.stdout


def test_a_killed_coordinator_takes_its_runs_up_again(coordinator, clients):
    run = toy_run(koinon.Scaffold(), 60, evaluate=False)
    handle = run.create(coordinator.address)

    def device(name):
        with koinon.join(coordinator.address, run="toy", name=name) as session:
            toy_client((10,) * 4)(session)

    for name in NAMES:
        clients.start(lambda name=name: device(name), name)
    for kill_at in (10, 30):
        for seen in handle.watch():
            if seen.run.rounds_closed >= kill_at:
                break
        coordinator.kill()
        coordinator.start()
    clients.join(60)
    assert handle.wait() == "60 rounds closed"
    whole = koinon.simulate(run, toy_client((10,) * 4), clients=NAMES)
    assert handle.model() == whole.model


def test_a_loop_inside_a_running_event_loop_works_as_in_a_notebook(coordinator):
    import asyncio

    run = toy_run(koinon.FedAvg(), 2, min_clients=1, clients=1)
    handle = run.create(coordinator.address)

    async def cell():
        session = koinon.join(coordinator.address, run="toy", name="client-0")
        model = {"x": np.zeros(1)}
        tasks = session.tasks(model)
        next(tasks)  # a cell that is interrupted here, and run again:
        for task in session.tasks(model):
            model["x"] += 1
            task.submit(examples=1)
        session.close()

    asyncio.run(cell())
    assert handle.wait() == "2 rounds closed"


def test_several_runs_go_on_side_by_side(coordinator, clients):
    handles = []
    for name in ("one", "two"):
        run = koinon.Run(
            name, model={"x": np.array([toy.START])}, rounds=10, min_clients=4, clients=4, codec="raw",
            aggregation="open",
            max_examples=128,
        )  # fmt: skip
        handles.append(run.create(coordinator.address))
        for client in NAMES:

            def device(run=name, client=client):
                with koinon.join(coordinator.address, run=run, name=f"{run}-{client}") as session:
                    toy_client(toy.TAU)(session)

            clients.start(device, f"{name} {client}")
    clients.join(60)
    assert handles[0].model() == handles[1].model()
    assert [h.wait() for h in handles] == ["10 rounds closed"] * 2
