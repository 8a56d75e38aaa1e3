"""`koinon.simulate`: the same run and client function without a network."""

import numpy as np
import pytest

import koinon
import toy
from koinon.simulation import Faults
from toy import NAMES, toy_client, toy_run


def test_a_simulated_run_ends_at_the_closed_form():
    result = koinon.simulate(toy_run(koinon.FedAvg(), 60), toy_client(toy.TAU), clients=NAMES)
    assert result.status == "finished"
    assert float(result.model["x"][0]) == pytest.approx(1.058199564099, abs=1e-9)
    assert [r.number for r in result.rounds] == list(range(1, 61))


@pytest.mark.parametrize("option", [1, 2])
def test_scaffolds_measuring_pass_is_one_more_run_of_the_owners_loop(option):
    run = toy_run(koinon.Scaffold(option=option), 300)
    result = koinon.simulate(run, toy_client((10,) * 4), clients=NAMES)
    assert float(result.model["x"][0]) == pytest.approx(toy.UNIFORM, abs=1e-9)


def test_half_of_the_clients_in_each_round_still_finds_the_optimum():
    run = toy_run(koinon.Scaffold(), 400, min_clients=2, clients=2, evaluate=False)
    result = koinon.simulate(run, toy_client((10,) * 4), clients=NAMES)
    assert float(result.model["x"][0]) == pytest.approx(toy.UNIFORM, abs=1e-9)
    assert {len(r.clients) for r in result.rounds} == {2}
    assert len({r.clients for r in result.rounds}) > 3


def test_the_same_seed_gives_the_same_bytes_and_another_another():
    def models(seed):
        run = toy_run(koinon.FedAvg(), 8, min_clients=2, clients=2, seed=seed)
        return koinon.simulate(run, toy_client(toy.TAU), clients=NAMES).models

    assert models(1) == models(1)
    assert models(1) != models(2)


def test_lost_updates_and_late_devices_do_not_stop_a_run():
    run = toy_run(koinon.FedAvg(), 12, min_clients=2, clients=4, deadline=30.0, lease=10.0)
    result = koinon.simulate(
        run, toy_client(toy.TAU), clients=NAMES, faults=Faults(delay=3.0, drop=0.2), seed=5
    )
    assert result.status == "finished"
    assert any(len(r.clients) < 4 for r in result.rounds), "some updates were lost"
    assert all(len(r.clients) >= 2 for r in result.rounds if r.status == "closed")


def test_a_clients_exception_is_the_callers_when_the_run_cannot_go_on():
    def broken(session):
        for _ in session.tasks({"x": np.zeros(1)}):
            raise ZeroDivisionError("in the owner's loop")

    with pytest.raises(ZeroDivisionError, match="in the owner's loop"):
        koinon.simulate(toy_run(koinon.FedAvg(), 2), broken, clients=NAMES)


def test_one_clients_exception_does_not_stop_the_others():
    honest = toy_client(toy.TAU)

    def client(session):
        if session.client == "client-3":
            raise ZeroDivisionError
        honest(session)

    result = koinon.simulate(toy_run(koinon.FedAvg(), 5, min_clients=3, clients=3), client, clients=NAMES)
    assert result.status == "finished"
    assert result.rounds[-1].clients == ("client-0", "client-1", "client-2")


def test_declining_a_round_costs_only_that_part():
    honest = toy_client(toy.TAU)

    def client(session):
        if session.client != "client-0":
            return honest(session)
        for _ in session.tasks({"x": np.zeros(1)}):
            continue
        return None

    result = koinon.simulate(toy_run(koinon.FedAvg(), 3, min_clients=2), client, clients=NAMES)
    assert result.status == "finished"
    assert all("client-0" not in r.clients for r in result.rounds if r.status == "closed")


def test_nan_is_refused_where_it_is_made_and_the_round_goes_on():
    honest = toy_client(toy.TAU)
    seen = []

    def client(session):
        if session.client != "client-0":
            return honest(session)
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            model["x"][:] = np.nan
            try:
                task.submit(examples=10)
            except koinon.BadUpdate as error:
                seen.append(str(error))
        return None

    result = koinon.simulate(toy_run(koinon.FedAvg(), 3, min_clients=3), client, clients=NAMES)
    assert result.status == "finished"
    assert "holds NaN or Inf" in seen[0]
    assert np.isfinite(result.model["x"]).all()


def test_metrics_are_means_by_examples_of_the_model_they_are_about():
    def client(session):
        i = int(session.client[-1])
        model = {"x": np.zeros(1)}
        for task in session.tasks(model, evaluate=lambda m: {"x": float(m["x"][0]), "examples": toy.N[i]}):
            model["x"] += 1.0
            task.submit(examples=toy.N[i], metrics={"i": i})

    result = koinon.simulate(toy_run(koinon.FedAvg(), 2), client, clients=NAMES)
    assert result.metrics[0]["eval.x"] == toy.START
    assert result.metrics[2]["eval.x"] == pytest.approx(toy.START + 2)
    assert result.metrics[1]["train.i"] == pytest.approx(sum(i * n for i, n in enumerate(toy.N)) / 100)


def test_too_few_simulated_clients_are_refused_at_once():
    with pytest.raises(koinon.UsageError, match="can never be"):
        koinon.simulate(toy_run(koinon.FedAvg(), 2), toy_client(toy.TAU), clients=3)
