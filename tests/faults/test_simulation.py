"""Ten thousand rounds with everything going wrong, and every law holds (faults.laws says which there are)."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from faults.world import rounds_in, run_world

_ROUNDS = 5_000
_BLOCK = 20  # worlds a job: enough to be worth its way to another process
_WORKERS = 2


@pytest.mark.timeout(900)
def test_five_thousand_faulty_rounds_break_no_law() -> None:
    rounds, first = 0, 0
    # Not forked: pytest's process has threads, and a device's lock would be in both.
    with ProcessPoolExecutor(_WORKERS, mp_context=get_context("spawn")) as pool:
        jobs = []
        while rounds < _ROUNDS:
            while len(jobs) < 2 * _WORKERS:
                # A secure round costs some ten open ones: few of those worlds here, all of them in the soak.
                seeds = [s for s in range(first, first + _BLOCK) if s % 3 != 2 or s % 96 == 2]
                jobs.append(pool.submit(rounds_in, seeds))
                first += _BLOCK
            rounds += jobs.pop(0).result()
        for job in jobs:
            job.cancel()
    print(f"{rounds} rounds, every law holds")


@pytest.mark.parametrize("rule", ["weighted", "examples", "poisson", "latest"])
def test_where_rounds_are_drawn_no_law_is_broken_either(rule: str) -> None:
    assert sum(run_world(seed, rule=rule).laws.rounds_seen for seed in range(6)) > 100


def test_where_only_sums_are_seen_and_nobody_is_waited_for_no_law_is_broken_either() -> None:
    assert sum(run_world(seed, rule="cohorts").laws.rounds_seen for seed in range(6)) > 40


@pytest.mark.parametrize("seed", [0, 3, 12])
def test_one_seed_is_one_story(seed: int) -> None:
    assert run_world(seed, rounds=5).story == run_world(seed, rounds=5).story
