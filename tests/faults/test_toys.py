"""Closed forms through the real coordinator, with three updates in ten lost and a crash in each round."""

from dataclasses import replace

import pytest

import koinon
import toy
from faults.toys import Toy, ToyWorld
from faults.world import run_world

MU, LAM = 0.5, 0.7
STEPS = (40, 30, 20, 20)
DITTO = koinon.chain(koinon.FedAvg(), koinon.Ditto(lam=LAM))
PROX = koinon.FedProx(mu=MU)
SCAFFOLD, FEDDYN = (8, 8, 8, 1), (100, 100, 20, 20)  # what gets there in few rounds

# The averages end where they do with all four of them; the others whoever is counted.
OPEN = {
    "fedavg": (Toy(koinon.FedAvg(), STEPS), 14, toy.fixed(STEPS)),
    "fedprox": (Toy(PROX, STEPS), 16, toy.fixed(STEPS, mu=MU)),
    "fednova": (Toy(koinon.FedNova(), STEPS), 12, toy.fixed(STEPS, nova=True)),
    "ditto": (Toy(DITTO, STEPS), 14, toy.fixed(STEPS)),
    "scaffold": (Toy(koinon.Scaffold(), SCAFFOLD, all_of_them=False), 56, toy.UNIFORM),
    "feddyn": (Toy(koinon.FedDyn(alpha=4.0), FEDDYN, all_of_them=False), 80, toy.UNIFORM),
}
FEWER = {"fedavg": 9, "fedprox": 10, "fednova": 8, "ditto": 9, "scaffold": 28, "feddyn": 40}
SECURE = {case: (replace(given, secure=True), FEWER[case], end) for case, (given, _, end) in OPEN.items()}


def test_the_closed_forms_are_the_papers():
    assert toy.fixed(toy.TAU) == pytest.approx(1.058199564099, abs=1e-12)
    assert toy.fixed(toy.TAU, mu=0.5) == pytest.approx(1.058681508377, abs=1e-12)
    assert toy.fixed((1,) * 4) == pytest.approx(toy.WEIGHTED, abs=1e-12)


def lived(given: Toy, rounds: int, seed: int = 1) -> ToyWorld:
    world = run_world(seed, rounds, given)
    assert isinstance(world, ToyWorld)
    seen = world.laws.rounds_seen
    print(f"{given.strategy}: {seen} rounds, {sum(world.kills.values())} kills {dict(world.kills)}, "
          f"{world.lost} of {world.tried} lost, x = {world.x}")  # fmt: skip
    assert seen >= rounds
    assert seen - 3 <= sum(world.kills.values()) <= seen, "a crash for each round"
    assert len(world.kills) == 4, "at every moment"
    assert world.lost > 0.2 * world.tried
    return world


@pytest.mark.parametrize("case", OPEN)
def test_a_strategy_ends_where_it_would_without_lost_updates_and_crashes(case):
    given, rounds, end = OPEN[case]
    world = lived(given, rounds)
    assert abs(world.x - end) <= 1e-9
    if case == "ditto":
        for i, state in world.own.items():
            v = (toy.A[i] * toy.B[i] + LAM * end) / (toy.A[i] + LAM)
            assert float(state["1.personal"]["x"][0]) == pytest.approx(v, abs=1e-9)


@pytest.mark.parametrize("case", SECURE)
def test_so_it_does_where_only_sums_are_seen(case):
    given, rounds, end = SECURE[case]
    assert abs(lived(given, rounds).x - end) <= 1e-5


@pytest.mark.parametrize("case", ["scaffold", "feddyn"])
def test_a_device_that_makes_its_state_final_before_it_hears_of_it_would_be_seen(case):
    """This is what the two above notice: it counts for itself what nobody else counts."""
    given, rounds, end = OPEN[case]
    assert abs(lived(replace(given, wrong=True), rounds).x - end) > 1e-3
