"""Rules of selection in whole simulated runs: who is in which round, and what is refused."""

import numpy as np
import pytest

import koinon
import toy
from toy import NAMES, toy_client, toy_run


def evaluating(session):
    """A device of toy Q that also says its loss."""
    i = int(session.client[-1])
    model = {"x": np.zeros(1)}

    def evaluate(m):
        return {"loss": toy.loss(i, float(m["x"][0])), "examples": toy.N[i]}

    for task in session.tasks(model, evaluate=evaluate):
        for _ in range(toy.TAU[i]):
            task.descend({"x": np.array([toy.gradient(i, float(model["x"][0]))])}, lr=toy.ETA)
        task.submit(examples=toy.N[i], metrics={"loss": toy.loss(i, float(model["x"][0]))})


def selected(selection, rounds=8, **settings):
    given = {"clients": 2, "min_clients": 2, **settings}
    return toy_run(koinon.FedAvg(), rounds, selection=selection, **given)


RULES = [
    ({"rule": "weighted"}, {}), ({"rule": "weighted", "by": "examples"}, {}),
    ({"rule": "poisson", "q": 0.6}, {"clients": None}), ({"rule": "power-of-choice", "d": 3}, {}),
    ({"rule": "power-of-choice", "d": 3, "loss": "latest"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("selection", "settings"), RULES, ids=str)
def test_late_messages_change_nobodys_draw(selection, settings):
    run = selected(selection, **settings)
    still = koinon.simulate(run, evaluating, clients=NAMES)
    late = koinon.simulate(run, evaluating, clients=NAMES[::-1], faults=koinon.Faults(delay=1.0), seed=3)
    assert [(r.number, r.clients) for r in late.rounds] == [(r.number, r.clients) for r in still.rounds]
    assert late.model == still.model
    other = koinon.simulate(selected(selection, seed=1, **settings), evaluating, clients=NAMES)
    assert [r.clients for r in other.rounds] != [r.clients for r in still.rounds]


def test_only_devices_that_match_are_in_a_round():
    run = selected({"labels": {"site": "ward-*"}, "at_least": {"cores": 4}})
    result = koinon.simulate(
        run, toy_client(toy.TAU), clients=NAMES,
        labels={NAMES[0]: {"site": "ward-1"}, NAMES[1]: {"site": "lab"}, NAMES[2]: {"site": "ward-2"}},
        able=lambda name: {"cores": 8},
    )  # fmt: skip
    assert {r.clients for r in result.rounds} == {(NAMES[0], NAMES[2])}


def test_a_label_that_no_device_has_leaves_the_run_waiting_and_it_says_for_whom():
    run = selected({"labels": {"site": "ward-*"}})
    with pytest.raises(
        koinon.RunEnded, match="0 of at least 2 have joined; 4 attached may not be in it: client-0"
    ):
        koinon.simulate(run, toy_client(toy.TAU), clients=NAMES)


def test_a_weight_that_is_none_keeps_its_device_out():
    run = selected({"rule": "weighted"}, rounds=6)
    result = koinon.simulate(
        run, toy_client(toy.TAU), clients=NAMES, labels={NAMES[0]: {"weight": -1}, NAMES[1]: {"weight": 0}}
    )
    assert {r.clients for r in result.rounds} == {(NAMES[2], NAMES[3])}


def test_secure_rounds_are_drawn_too():
    run = selected({"rule": "poisson", "q": 0.8}, rounds=6, clients=None, min_clients=3, aggregation="secure")
    result = koinon.simulate(run, toy_client(toy.TAU), clients=NAMES)
    assert result.status == "finished"
    sizes = {len(r.clients) for r in result.rounds if r.status == "closed"}
    assert sizes == {3, 4}


def test_power_of_choice_measures_a_model_once_and_its_rounds_are_those_that_train():
    result = koinon.simulate(
        selected({"rule": "power-of-choice", "d": 4}, 5, evaluate=False), evaluating, clients=NAMES
    )
    assert len(result.models) == 6
    trained = [r.number for r in result.rounds if len(r.clients) == 2]
    assert trained == [2, 4, 6, 8, 10]
    assert result.metrics[0]["eval.loss"] == pytest.approx(
        sum(n * toy.loss(i, toy.START) for i, n in enumerate(toy.N)) / 100
    )
    losses = {name: toy.loss(i, toy.START) for i, name in enumerate(NAMES)}
    assert result.rounds[1].clients == tuple(sorted(sorted(NAMES, key=lambda c: -losses[c])[:2]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"labels": {"nobody": {"site": "a"}}}, "no such simulated device"),
        ({"labels": {NAMES[0]: {"site": "second floor"}}}, "cannot be"),
        ({"able": {NAMES[0]: {"speed": 3}}}, "says nothing of 'speed'"),
    ],
)  # fmt: skip
def test_what_no_device_could_be_known_by_is_refused(given, says):
    with pytest.raises(koinon.UsageError, match=says):
        koinon.simulate(selected({}), toy_client(toy.TAU), clients=NAMES, **given)
