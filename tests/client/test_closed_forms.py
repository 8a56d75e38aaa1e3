"""Closed forms through a whole run, simulated: in the clear and under secure sums, with devices that fail."""

import numpy as np
import pytest

import koinon
import toy
from toy import NAMES, toy_client, toy_run

EXACT = (600,) * 4
CASES = {
    "fedavg": (koinon.FedAvg(), toy.TAU, 40, 1.058199564099),
    "fedprox": (koinon.FedProx(mu=0.5), toy.TAU, 40, 1.058681508377),
    "scaffold two": (koinon.Scaffold(), (10,) * 4, 110, toy.UNIFORM),
    "feddyn": (koinon.FedDyn(alpha=1.0), EXACT, 70, toy.UNIFORM),
    "fednova": (koinon.FedNova(), toy.TAU, 40, toy.NOVA),
    "ditto": (koinon.chain(koinon.FedAvg(), koinon.Ditto(lam=0.7)), toy.TAU, 40, 1.058199564099),
}


@pytest.mark.parametrize("case", CASES)
def test_secure_runs_end_where_the_closed_form_says(case):
    """In the clear they do so deployed, in the system's tests."""
    strategy, steps, rounds, end = CASES[case]
    run = toy_run(strategy, rounds, evaluate=False, aggregation="secure")
    got = koinon.simulate(run, toy_client(steps), clients=NAMES)
    assert float(got.model["x"][0]) == pytest.approx(end, abs=1e-5)


@pytest.mark.parametrize("case", ["scaffold two", "feddyn"])
def test_states_survive_that_three_updates_in_ten_are_lost(case):
    strategy, steps, rounds, end = CASES[case]
    settings = {"evaluate": False, "min_clients": 2, "clients": 3, "patience": 1000, "lease": 5.0}
    faults = koinon.Faults(delay=1.0, drop=0.3)
    got = koinon.simulate(
        toy_run(strategy, 3 * rounds, **settings), toy_client(steps), clients=NAMES, faults=faults, seed=5
    )
    assert any(r.status == "abandoned" for r in got.rounds)
    assert {2, 3} <= {len(r.clients) for r in got.rounds}
    assert float(got.model["x"][0]) == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize("lease", [5.0, 60.0])
def test_devices_whose_updates_were_lost_come_back(lease):
    """Where a lease is as long as the deadline, all of them once waited for ever for a fate that was told already."""
    run = toy_run(
        koinon.Scaffold(),
        150,
        evaluate=False,
        min_clients=1,
        clients=3,
        patience=1000,
        deadline=60.0,
        lease=lease,
    )
    faults = koinon.Faults(delay=3.0, drop=0.3)
    got = koinon.simulate(run, toy_client((1,) * 4), clients=NAMES, faults=faults, seed=5)
    assert got.status == "finished"
    assert {name for r in got.rounds[-60:] for name in r.clients} == set(NAMES)


def test_qfedavg_takes_the_losses_of_the_devices_own_evaluation():
    def client(session):
        i = int(session.client[-1])
        model = {"x": np.zeros(1)}

        def evaluate(_):
            return {"loss": toy.loss(i, float(model["x"][0]))}

        for task in session.tasks(model, evaluate=evaluate):
            task.descend({"x": np.array([toy.gradient(i, float(model["x"][0]))])}, lr=toy.ETA)
            task.submit(examples=toy.N[i])

    run = toy_run(koinon.QFedAvg(q=1.0, loss=5.0), 40, evaluate=False)
    got = float(koinon.simulate(run, client, clients=NAMES).model["x"][0])
    assert got == pytest.approx(
        toy.federate(koinon.QFedAvg(q=1.0, loss=5.0), rounds=40, steps=(1,) * 4)[0], abs=1e-9
    )


def test_the_step_of_a_robust_rule_is_that_of_a_run():
    run = toy_run(koinon.chain(koinon.FedAvg(), koinon.CoordinateMedian()), 1, evaluate=False)
    got = float(koinon.simulate(run, toy_client((1,) * 4), clients=NAMES).model["x"][0])
    moved = sorted(-toy.ETA * toy.gradient(i, toy.START) for i in range(4))
    assert got == pytest.approx(toy.START + (moved[1] + moved[2]) / 2, abs=1e-9)
