"""Work that is stopped early: handed in with what was really done, or refused by name."""

import random

import numpy as np
import pytest

import koinon
from koinon_core.errors import BadBlob, UsageError
from koinon_core.update import Head

# The toy of the closed forms: f_i = a_i/2 (x - b_i)^2, devices of 10, 20, 30, 40 examples.
A, B, N, TAU = (1, 2, 4, 8), (1, -2, 3, 0.5), (10, 20, 30, 40), (1, 5, 10, 20)
UNIFORM, WEIGHTED = 0.8666666666666667, 0.918367346939


def run(strategy, rounds=1, devices=4, **settings):
    given = {"aggregation": "open", "codec": "raw", "evaluate": False, "population": 4, **settings}
    return koinon.Run(
        "early", model={"x": np.array([5.0])}, strategy=strategy, rounds=rounds, min_clients=devices,
        clients=devices, **given,
    )  # fmt: skip


def toy(steps, partial=lambda i, round_: False, eta=0.02):
    """A device of the toy that takes steps(i, round) of them."""

    def client(session):
        i = int(session.client[-1])
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            for _ in range(steps(i, task.round)):
                task.descend({"x": A[i] * (model["x"] - B[i])}, lr=eta)
            task.submit(examples=N[i], partial=partial(i, task.round) and task.kind == "train")

    return client


def dice(i, round_):
    """How many of its steps a device takes in a round: some, as time has it."""
    return random.Random(1000 * round_ + i).randint(1, TAU[i])


@pytest.mark.parametrize("aggregation", ["open", "secure"])
def test_partial_work_weighs_what_was_seen_and_is_counted_as_a_share(aggregation):
    def client(session):
        early = session.client.endswith("0")
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            assert task.takes_partial
            model["x"] += 1.0 if early else 3.0
            task.submit(examples=10 if early else 30, metrics={"loss": 1.0}, partial=early)
            assert task.partial is early

    codec = "raw" if aggregation == "open" else "exact"
    got = koinon.simulate(run(koinon.FedAvg(), aggregation=aggregation, codec=codec), client, clients=4)
    assert got.metrics[1]["partial"] == 0.25
    assert got.metrics[1]["examples"] == 100
    assert got.model["x"][0] == pytest.approx(5.0 + (10 * 1 + 90 * 3) / 100, abs=1e-6)


def test_where_nobody_stopped_nothing_is_said_of_it():
    got = koinon.simulate(run(koinon.FedAvg()), toy(lambda i, r: 1), clients=4)
    assert "partial" not in got.metrics[1]


def test_the_loop_may_go_on_where_whole_work_is_wanted():
    said = []

    def client(session):
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            assert not task.takes_partial
            with pytest.raises(UsageError, match=r"partial = false in its config") as refused:
                task.submit(examples=1, partial=True)
            said.append(str(refused.value))
            assert not task.submitted
            task.submit(examples=2)

    got = koinon.simulate(run(koinon.FedAvg(), partial=False), client, clients=4)
    assert len(said) == 4
    assert got.metrics[1]["examples"] == 8, "and the whole of it counts"


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        (koinon.chain(koinon.FedAvg(), koinon.Krum(f=1)), "Krum"),
        (koinon.chain(koinon.FedAvg(), koinon.MultiKrum(f=1)), "MultiKrum"),
        (koinon.chain(koinon.FedAvg(), koinon.CoordinateMedian(), koinon.NNM(f=1)), "NNM"),
    ],
)
def test_rules_that_judge_by_distance_refuse_it_by_name(strategy, name):
    made = run(strategy, devices=9, population=None)
    assert made.spec.whole.startswith(f"{name} takes whole work only")
    with pytest.raises(BadBlob, match=f"stopped early, and {name} takes whole work only"):
        Head(examples=1, partial=True).check(trained=True, max_examples=9, totals={}, whole=made.spec.whole)


@pytest.mark.parametrize(
    "strategy",
    [
        koinon.FedAvg(), koinon.FedAvgUniform(), koinon.FedAdam(), koinon.FedProx(), koinon.FedNova(), koinon.QFedAvg(),
        koinon.Scaffold(option=1), koinon.Scaffold(option=2), koinon.FedDyn(),
        koinon.chain(koinon.FedAvg(), koinon.Ditto()), koinon.chain(koinon.FedAvg(), koinon.CoordinateMedian()),
    ],
    ids=repr,
)  # fmt: skip
def test_all_others_take_it(strategy):
    assert run(strategy).spec.whole == ""


def test_krum_would_make_the_round_of_whoever_stopped_first():
    """Eight directions of length 1, and one device that hardly began: it is the nearest to all of them."""
    updates = np.vstack([np.eye(8), np.full(8, 1e-3)])
    assert koinon.Krum(f=1).mix(updates @ updates.T)[0].tolist() == [0.0] * 8 + [1.0]


@pytest.mark.parametrize(
    ("strategy", "rounds"),
    [(koinon.Scaffold(), 150), (koinon.Scaffold(option=1), 150), (koinon.FedDyn(alpha=1.0), 350)],
    ids=["scaffold 2", "scaffold 1", "feddyn"],
)
def test_controls_end_at_the_optimum_whatever_part_of_the_steps_was_taken(strategy, rounds):
    """Options 1 and 2 of SCAFFOLD and FedDyn: the fixed point does not ask how many steps lead to it."""
    early = lambda i, r: dice(i, r) < TAU[i]  # noqa: E731 - a device's own clock
    got = koinon.simulate(run(strategy, rounds=rounds), toy(dice, early, eta=0.05), clients=4)
    assert got.model["x"][0] == pytest.approx(UNIFORM, abs=1e-9)
    assert sum("partial" in m for m in got.metrics.values()) > rounds / 2


def test_fednova_divides_by_the_steps_that_were_taken():
    """One device stops after 1, 5, 10, 20 steps: the same as if those were all that it was to do."""
    early = koinon.simulate(
        run(koinon.FedNova(), rounds=30), toy(lambda i, r: TAU[i], lambda i, r: i == 0), clients=4
    )
    whole = koinon.simulate(run(koinon.FedNova(), rounds=30), toy(lambda i, r: TAU[i]), clients=4)
    assert early.models == whole.models


def test_a_gradient_is_never_taken_over_some_of_the_data():
    def client(session):
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            task.descend({"x": model["x"] * 0 + 1.0}, lr=0.1)
            if task.kind == "measure":
                with pytest.raises(UsageError, match="over all of the device's data"):
                    task.submit(examples=1, partial=True)
                task.submit(examples=1)
            else:
                task.submit(examples=1, partial=True)

    got = koinon.simulate(run(koinon.Scaffold(option=1)), client, clients=4)
    assert got.metrics[1]["partial"] == 1.0


def test_passes_after_work_that_was_stopped_are_left_out_and_keep_what_was():
    """Ditto's own model: trained in round 1, untouched in round 2, in which there was no time."""
    kinds, own = [], []

    def client(session):
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            if session.client.endswith("0"):
                kinds.append((task.round, task.kind))
                own.append(None if session.personal is None else float(session.personal["x"][0]))
            task.descend({"x": np.ones(1)}, lr=1.0)
            task.submit(examples=1, partial=task.round == 2 and task.kind == "train")

    koinon.simulate(
        run(koinon.chain(koinon.FedAvgUniform(), koinon.Ditto(lam=0.0)), rounds=3), client, clients=4
    )
    assert kinds == [(1, "train"), (1, "personal"), (2, "train"), (3, "train"), (3, "personal")]
    assert own == [None, None, 4.0, 4.0, 4.0]


@pytest.mark.parametrize("keys", ["ready", "early"])
def test_a_device_knows_how_long_the_round_waits(keys):
    seen = []

    def client(session):
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            seen.append(task.remaining)
            task.submit(examples=1)

    settings = {"aggregation": "secure", "codec": "exact"} if keys == "early" else {}
    made = run(koinon.FedAvg(), deadline=50.0, **({"keys": keys} | settings if settings else {}))
    koinon.simulate(made, client, clients=4)
    assert seen == [50.0] * 4


def test_what_was_over_when_it_was_asked_is_none_of_its_time(monkeypatch):
    from koinon_core.round.state import Round

    monkeypatch.setattr(Round, "elapsed", lambda self, now, client: 12.0)
    seen = []

    def client(session):
        for task in session.tasks({"x": np.zeros(1)}):
            seen.append(task.remaining)
            task.submit(examples=1)

    koinon.simulate(run(koinon.FedAvg(), deadline=50.0), client, clients=4)
    assert seen == [38.0] * 4
