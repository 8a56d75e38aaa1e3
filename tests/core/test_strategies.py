"""Every strategy against its closed form on toy Q, through the halves that a deployed run calls."""

import math
from dataclasses import replace

import numpy as np
import pytest

import toy
from koinon_core.errors import BadBlob, LocalProtocolError, UsageError
from koinon_core.schema import schema_of
from koinon_core.strategy import (
    Agg,
    Base,
    Clip,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBN,
    FedProx,
    Prox,
    Scaffold,
    Up,
    Work,
    chain,
)  # fmt: skip
from koinon_core.strategy.average import FedAvgUniform
from koinon_core.tensors import Tensors
from koinon_core.update import layout_of


def test_fedavg_with_unequal_steps_ends_where_the_closed_form_says():
    x, *_ = toy.federate(FedAvg(), rounds=60, steps=toy.TAU)
    assert x == pytest.approx(1.058199564099, abs=1e-9)


def test_fedavg_contracts_by_the_closed_form_each_round():
    after = [toy.federate(FedAvg(), rounds=r, steps=toy.TAU)[0] for r in (1, 2, 3)]
    x = 1.058199564099
    assert (after[1] - x) / (after[0] - x) == pytest.approx(0.403627251717, abs=1e-9)
    assert (after[2] - x) / (after[1] - x) == pytest.approx(0.403627251717, abs=1e-9)


def test_fedavg_with_equal_steps_still_drifts():
    assert toy.federate(FedAvg(), rounds=60)[0] == pytest.approx(0.954271800018, abs=1e-9)


def test_fedavg_with_one_step_finds_the_optimum():
    assert toy.federate(FedAvg(), rounds=600, steps=(1,) * 4)[0] == pytest.approx(toy.WEIGHTED, abs=1e-9)


def test_fedprox_ends_where_the_closed_form_says():
    x, *_ = toy.federate(FedProx(mu=0.5), rounds=60, steps=toy.TAU)
    assert x == pytest.approx(1.058681508377, abs=1e-9)


def test_fedprox_solved_exactly_ends_where_the_closed_form_says():
    x, *_ = toy.federate(FedProx(mu=0.5), rounds=60, steps=(6000,) * 4)
    assert x == pytest.approx(0.844905320108, abs=1e-9)


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("take", [4, 2])
def test_scaffold_finds_the_uniform_optimum(option, take):
    x, closing, devices = toy.federate(Scaffold(option=option), rounds=600, take=take)
    assert x == pytest.approx(toy.UNIFORM, abs=1e-9)
    mean = sum(float(d["c"]["x"][0]) for d in devices) / 4
    assert mean == pytest.approx(float(closing.state["c"]["x"][0]), abs=1e-9)


@pytest.mark.parametrize("take", [4, 2])
@pytest.mark.parametrize("norm", [0.3, 3.0])
def test_scaffold_with_clip_still_finds_it_because_state_follows_what_was_sent(take, norm):
    x, *_ = toy.federate(chain(Scaffold(), Clip(norm)), rounds=1500, take=take)
    assert x == pytest.approx(toy.UNIFORM, abs=1e-9)


@pytest.mark.parametrize("take", [4, 2])
def test_scaffold_on_a_coarse_grid_ends_within_that_grid(take):
    x, closing, devices = toy.federate(Scaffold(), rounds=800, take=take, grid=16)
    assert x == pytest.approx(toy.UNIFORM, abs=2.0**-12)
    mean = sum(float(d["c"]["x"][0]) for d in devices) / 4
    assert mean == pytest.approx(float(closing.state["c"]["x"][0]), abs=1e-12)


def test_scaffold_with_momentum_divides_by_the_length_of_the_steps():
    x, *_ = toy.federate(Scaffold(), rounds=900, momentum=0.9, lr=0.002)
    assert x == pytest.approx(toy.UNIFORM, abs=1e-9)


def test_scaffold_two_refuses_an_optimizer_that_has_no_step_length():
    w = Tensors({"x": np.array([1.0])})
    local = toy.half(Scaffold(), w)
    down = Scaffold().down(Scaffold().init(w, 4))
    with pytest.raises(LocalProtocolError, match="option=1"):
        local.strategy.finish({}, down, Work(examples=1, norm=math.nan, lr=0.1), Up(w))


def test_the_recorded_step_length_has_fednovas_closed_forms():
    assert toy.train(FedAvg().begin({}, {}, Tensors()), 1.0, 0, 7, 0.1, 0.9)[1] == pytest.approx(23.046721)
    prox = Prox(mu=0.5).begin({}, {}, Tensors())
    assert toy.train(prox, 1.0, 0, 7, 0.1)[1] == pytest.approx(6.033254078125)


SCALARS = {
    FedAdam(): (0.0990050489, 0.2327411544, 0.3134060701, 0.4018768371, 0.4818989931),
    FedAvgM(lr=0.1): (0.1, 0.29, 0.411, 0.5449, 0.66541),
    FedAvg(lr=0.5): (0.5, 1.0, 0.75, 0.875, 0.875),
}


@pytest.mark.parametrize("strategy", SCALARS, ids=lambda s: type(s).__name__)
def test_server_rules_follow_the_paper_step_by_step(strategy):
    x = Tensors({"x": np.zeros(1)})
    state = strategy.init(x, 1)
    rng = np.random.Generator(np.random.Philox(1))
    for delta, expected in zip((1.0, 1.0, -0.5, 0.25, 0.0), SCALARS[strategy], strict=True):
        agg = Agg(
            mean=Tensors({"x": np.array([delta])}), extra={}, totals={}, count=1, weight=1.0, population=1,
            sq_norm=delta**2,
        )  # fmt: skip
        after, state = strategy.server(state, agg, rng)
        x = x + after.mean
        assert float(x["x"][0]) == pytest.approx(expected, abs=1e-9)


def test_uniform_weights_ignore_the_number_of_examples():
    x, *_ = toy.federate(FedAvgUniform(), rounds=600, steps=(1,) * 4)
    assert x == pytest.approx(toy.UNIFORM, abs=1e-9)


def test_different_server_rules_go_different_ways():
    ends = {toy.federate(s, rounds=5)[0] for s in (FedAvg(), FedAvgM(), FedAdam(), FedAvg(lr=0.5))}
    assert len(ends) == 4


def test_the_sum_does_not_depend_on_the_order_of_arrival():
    w = Tensors({"x": np.array([toy.START])})
    strategy = chain(Scaffold(), Clip(1.0))
    local, state = toy.half(strategy, w), strategy.init(w, 4)
    t = toy.terms(1)
    made = [toy.contribute(local, {}, strategy.down(state), w, t, i, 5, 0.02)[0] for i in range(4)]
    models = {
        toy.closed(strategy, local.layout, t, w, state, 4, made[i:] + made[:i]).model["x"].tobytes()
        for i in range(4)
    }
    assert len(models) == 1


def test_the_models_digest_does_not_change_during_local_training():
    w = Tensors({"x": np.array([toy.START])})
    before = w["x"].tobytes()
    local = toy.half(FedAvg(), w)
    toy.contribute(local, {}, {}, w, toy.terms(1), 0, 5, 0.02)
    assert w["x"].tobytes() == before
    with pytest.raises(ValueError, match="read-only"):
        w["x"][0] = 1.0


# -- what composes and what does not ------------------------------------------------------------------------


def test_two_parts_that_weigh_are_refused_by_name():
    with pytest.raises(UsageError, match="FedAvg and FedAdam both set the weight"):
        chain(FedAvg(), FedAdam())


def test_gradient_terms_of_a_chain_add_up():
    w = Tensors({"x": np.array([1.0])})
    down = {"0.c": Tensors({"x": np.array([0.25])})}
    plan = chain(Scaffold(), Prox(0.1), Prox(0.2)).begin({}, down, w)
    assert plan.pull.mu == pytest.approx(0.3)
    assert plan.pull.shift is not None
    assert float(plan.pull.shift["x"][0]) == 0.25


def test_two_scaffolds_in_a_chain_are_refused():
    with pytest.raises(UsageError, match="both set the weight"):
        chain(Scaffold(), Scaffold())


def test_clip_scales_delta_and_control_by_one_factor():
    up = Up(Tensors({"x": np.array([3.0])}), {"control": Tensors({"x": np.array([4.0])})})
    clipped = Clip(1.0).finish({}, {}, Work(examples=1), up)
    assert float(clipped.delta["x"][0]) == pytest.approx(0.6)
    assert float(clipped.extra["control"]["x"][0]) == pytest.approx(0.8)


def bn_model() -> Tensors:
    return Tensors(
        {
            "conv.weight": np.ones((2, 3), np.float32),
            "bn.weight": np.ones(2, np.float32),
            "bn.bias": np.zeros(2, np.float32),
            "bn.running_mean": np.zeros(2, np.float32),
            "bn.running_var": np.ones(2, np.float32),
            "bn.num_batches_tracked": np.array(0, np.int64),
        }
    )


def test_fedbn_sends_nothing_of_a_normalisation_layer():
    layout = layout_of(schema_of(bn_model()), FedBN())
    assert [f.name for f in layout.update] == ["delta/conv.weight"]


def test_without_fedbn_statistics_are_averaged_and_counters_take_the_largest():
    layout = layout_of(schema_of(bn_model()), FedAvg())
    assert [f.name for f in layout.update] == [
        "delta/conv.weight", "delta/bn.weight", "delta/bn.bias", "delta/bn.running_mean", "delta/bn.running_var",
        "count/bn.num_batches_tracked",
    ]  # fmt: skip
    assert layout.params.names() == ("conv.weight", "bn.weight", "bn.bias")


def test_fedbn_on_a_model_without_such_layers_is_refused():
    with pytest.raises(UsageError, match="no normalisation layer"):
        layout_of(schema_of({"w": np.ones(2)}), FedBN())


def test_a_strategy_that_makes_nan_is_refused_before_the_model_is_replaced():
    class Broken(FedAvg):
        def server(self, s, agg, rng):
            return replace(agg, mean=agg.mean * float("nan")), s

    with pytest.raises(BadBlob, match="learning rate"):
        toy.federate(Broken(), rounds=1)


def test_a_server_called_tensor_by_tensor_makes_the_same_bytes():
    class Whole(FedAdam):
        elementwise = False

    w = Tensors({"x": np.array([toy.START])})
    assert toy.federate(FedAdam(), rounds=7)[0] == toy.federate(Whole(), rounds=7)[0]
    assert w.norm() == toy.START


def test_base_is_the_plain_mean():
    assert toy.federate(Base(), rounds=3)[0] == toy.federate(FedAvg(), rounds=3)[0]
