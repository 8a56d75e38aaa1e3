"""What a closed form tells of devices and coordinators that keep no order: two of the four devices of toy Q in a
round, one upload in twenty with a fault. Whoever does it right ends at the optimum; each mistake is seen.
"""

import numpy as np
import pytest

import toy
from koinon_core.strategy import FedDyn, Scaffold
from koinon_core.tensors import Tensors

RULES = {
    "scaffold": (Scaffold(), (8, 8, 8, 1)),
    "feddyn": (FedDyn(alpha=4.0), (100, 100, 20, 20)),
}
FAULTS, SEEDS = 0.05, 5


def ended(rule: str, fault: str, seed: int, rounds: int) -> float:
    """|x - x*| after a run in which that goes wrong."""
    strategy, steps = RULES[rule]
    w = Tensors({"x": np.array([toy.START])})
    local, state, draw = toy.half(strategy, w), strategy.init(w, 4), np.random.default_rng(seed)
    devices = [{} for _ in toy.A]
    for number in range(1, rounds + 1):
        t, counted = toy.terms(number), []
        for i in sorted(draw.choice(4, size=2, replace=False)):
            one, pending = toy.contribute(local, devices[i], strategy.down(state), w, t, i, steps[i], toy.ETA)
            wrong = fault if draw.random() < FAULTS else ""
            if not wrong.startswith("lost"):
                counted += [one] * (2 if wrong == "counted twice" else 1)
            if wrong != "lost":
                devices[i] = {} if wrong == "forgotten after it was counted" else pending
        if counted:
            outcome = toy.closed(strategy, local.layout, t, w, state, 4, counted)
            w, state = outcome.model, outcome.state
    return abs(float(w["x"][0]) - toy.UNIFORM)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fault", ["none", "lost"])
def test_a_lost_update_costs_nothing_where_the_device_waits_for_its_receipt(rule, fault):
    assert ended(rule, fault, 0, rounds=250) <= 1e-9


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "fault", ["lost, and made final before that", "counted twice", "forgotten after it was counted"]
)
def test_every_mistake_moves_the_end(rule, fault):
    ends = [ended(rule, fault, seed, rounds=80) for seed in range(SEEDS)]
    print(f"{rule}, {fault}: {np.mean(ends):.3f}")
    assert np.mean(ends) > 0.02
