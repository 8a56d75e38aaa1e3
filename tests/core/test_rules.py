"""Server rules and personal models against their closed forms, and what they refuse."""

import math
from dataclasses import replace

import numpy as np
import pytest

import toy
from koinon_core.errors import LocalProtocolError, UsageError
from koinon_core.strategy import (
    Agg,
    Base,
    Clip,
    Ditto,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedAvgUniform,
    FedDyn,
    FedExP,
    FedNova,
    FedRep,
    FedYogi,
    Prox,
    QFedAvg,
    Scaffold,
    Trait,
    Up,
    Work,
    chain,
    dump,
    load,
)
from koinon_core.tensors import Tensors

ONE = Tensors({"x": np.array([1.0])})
RNG = np.random.Generator(np.random.Philox(1))

# Delta = 1, 1, -.5, .25, 0; lr .1, tau 1e-3, v0 = tau^2, b1 = .9 (Adagrad 0), b2 = .99.
SCALARS = {
    FedAdagrad(): (0.0999000500, 0.1705607458, 0.1372496273, 0.1536787188, 0.1536787188),
    FedAdam(): (0.0990050489, 0.2327411544, 0.3134060701, 0.4018768371, 0.4818989931),
    FedYogi(): (0.0990049999, 0.2324086470, 0.3125393285, 0.4000143029, 0.4787417798),
}


def agg(delta: float, **values: object) -> Agg:
    plain = Agg(
        mean=Tensors({"x": np.array([delta])}), extra={}, totals={}, count=1, weight=1.0, population=1,
        sq_norm=delta**2,
    )  # fmt: skip
    return replace(plain, **values)  # type: ignore[arg-type]


def walk(strategy, deltas):
    x, state = Tensors({"x": np.zeros(1)}), strategy.init(Tensors({"x": np.zeros(1)}), 1)
    for delta in deltas:
        after, state = strategy.server(state, agg(delta), RNG)
        x = x + after.mean
        yield float(x["x"][0])


def handed(strategy, **work):
    given = {"examples": 10, "steps": 5, "lr": 0.1, "norm": 5.0, "loss_before": 1.0, **work}
    return strategy.finish({}, {}, Work(**given), Up(Tensors({"x": np.ones(3)})))


def test_fednova_has_room_for_a_million_examples_in_hundreds_of_thousands_of_steps():
    sent = handed(FedNova(), examples=1 << 20, norm=9e5)
    assert sent.totals["tau"] == (1 << 20) * 9e5 <= FedNova().totals()["tau"]


@pytest.mark.parametrize(("examples", "norm"), [(60_000, 17_000.0), (1, 1.1e9), (1 << 20, 1001.0)])
def test_fednova_says_which_bound_would_have_room_for_a_device(examples, norm):
    with pytest.raises(
        LocalProtocolError, match=r"beyond what FedNova\(most=1e\+09\) sums; make the run with most = "
    ) as e:
        handed(FedNova(most=1e9), examples=examples, norm=norm)
    wanted = float(str(e.value).partition("with most = ")[2].partition(",")[0])
    assert handed(FedNova(most=wanted), examples=examples, norm=norm).totals["tau"] <= wanted <= 1e10
    assert handed(FedNova(most=1e9), examples=10, norm=1e8).totals["tau"] == 1e9, "all of it may be used"


def test_fednovas_bound_is_of_what_it_sums_under_a_proximal_term_too():
    with pytest.raises(LocalProtocolError, match="steps of the length 200 are beyond"):
        handed(FedNova(most=1000), steps=200, mu=0.5)
    assert handed(FedNova(most=1000), steps=100, norm=1e6, mu=0.5).totals["tau"] == 1000


def test_qfedavg_says_that_an_update_is_too_long_for_its_sum():
    with pytest.raises(
        LocalProtocolError, match=r"norm 1.73 at the rate 1e-12 adds 3e\+12 .* its most = 1e\+09"
    ):
        handed(QFedAvg(), lr=1e-12)
    assert handed(QFedAvg(most=1e13), lr=1e-12).totals["h"] <= 1e13


@pytest.mark.parametrize("strategy", SCALARS, ids=lambda s: type(s).__name__)
def test_adaptive_rules_follow_the_paper_step_by_step(strategy):
    assert list(walk(strategy, (1.0, 1.0, -0.5, 0.25, 0.0))) == pytest.approx(SCALARS[strategy], abs=1e-10)


def test_fedadam_with_bias_correction_begins_with_a_whole_step_and_is_another_rule():
    corrected = FedAdam(bias_correction=True)
    # m/(1-b1) = 1 and v/(1-b2) = 1 + tau^2 b2/(1-b2), whatever the betas are.
    first = 0.1 / (math.sqrt(1 + 1e-6 * 0.99 / 0.01) + 1e-3)
    assert list(walk(corrected, [1.0])) == pytest.approx([first], abs=1e-12)
    assert not corrected.elementwise
    assert FedAdam().elementwise
    assert load({"name": "koinon.FedAdam", "revision": 1, "fields": {"lr": 0.5}}) == FedAdam(lr=0.5)


@pytest.mark.parametrize(
    "strategy", [FedAdagrad(), FedAdam(), FedYogi(), FedAdam(bias_correction=True)], ids=str
)
def test_adaptive_rules_run_through_the_closing_of_a_round(strategy):
    x, outcome, _ = toy.federate(strategy, rounds=3)
    again, *_ = toy.federate(strategy, rounds=3)
    assert x == again
    assert x != toy.federate(FedAvg(), rounds=3)[0]
    assert set(outcome.state) >= {"v"}


@pytest.mark.parametrize("make", [FedAdagrad, FedAdam, FedYogi])
def test_adaptive_rules_refuse_what_divides_by_nothing(make):
    with pytest.raises(UsageError, match="above 0"):
        make(tau=0.0)


# -- FedExP ---------------------------------------------------------------------------------------------------


def test_fedexp_extrapolates_as_the_paper_does():
    deltas = [np.array(d) for d in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.5])]
    strategy, work = FedExP(eps=1e-3), Work(examples=1)
    ups = [strategy.finish({}, {}, work, Up(Tensors({"x": d}))) for d in deltas]
    mean = Tensors({"x": sum(deltas) / 3})
    total = sum(up.totals["expsq"] for up in ups)
    given = agg(0.0, mean=mean, totals={"expsq": total}, count=3, sq_norm=mean.dot(mean))
    after, _ = strategy.server({}, given, RNG)
    assert float(after.mean["x"][1] / mean["x"][1]) == pytest.approx(2.158034528552, abs=1e-12)


def test_fedexp_never_takes_less_than_the_mean():
    given = agg(1.0, totals={"expsq": 1.0})
    assert FedExP().server({}, given, RNG)[0].mean == given.mean


def test_fedexp_goes_farther_only_where_devices_disagree():
    """From far away all go the same way; near the end they pull apart."""
    assert toy.federate(FedExP(), rounds=1)[0] == toy.federate(FedAvgUniform(), rounds=1)[0]
    assert toy.federate(FedExP(), rounds=12)[0] != toy.federate(FedAvgUniform(), rounds=12)[0]


def test_fedexp_adds_up_what_is_sent_and_not_what_was_before_a_cut():
    with pytest.raises(UsageError, match="put Clip above FedExP"):
        chain(FedExP(), Clip(1.0))
    chain(Clip(1.0), FedExP())
    work = Work(examples=1, clip=2.0)  # of a secure run
    assert FedExP().finish({}, {}, work, Up(ONE * 50.0)).totals == {"expsq": 4.0}


# -- FedNova --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lr", "end", "rounds"),
    [(0.1, 0.642017121981, 200), (0.01, 1.015019467449, 400), (0.001, 0.930680924648, 3000)],
)
def test_fednova_with_unequal_steps_ends_where_the_closed_form_says(lr, end, rounds):
    x, *_ = toy.federate(FedNova(), rounds=rounds, steps=toy.TAU, lr=lr)
    assert x == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize("rounds", [1, 7])
def test_fednova_with_equal_steps_is_fedavg_bit_for_bit(rounds):
    nova, *_ = toy.federate(FedNova(steps=10.0), rounds=rounds)
    assert nova == toy.federate(FedAvg(), rounds=rounds)[0]
    assert toy.federate(FedNova(), rounds=rounds)[0] == pytest.approx(nova, abs=1e-9)


def test_fednova_weighs_momentums_length_and_not_the_steps():
    plain, *_ = toy.federate(FedNova(), rounds=400, steps=(7,) * 4, momentum=0.9, lr=0.002)
    assert plain == pytest.approx(
        toy.federate(FedAvg(), rounds=400, steps=(7,) * 4, momentum=0.9, lr=0.002)[0]
    )


def test_fednova_under_a_proximal_term_takes_the_steps_for_the_length_of_the_mean():
    up = FedNova().finish({}, {}, Work(examples=3, steps=7, lr=0.1, norm=6.0, mu=0.5), Up(ONE))
    assert up.totals == {"tau": 21.0}
    assert float(up.delta["x"][0]) == pytest.approx(1 / 6)


def test_fednova_refuses_an_optimizer_without_a_length():
    with pytest.raises(LocalProtocolError, match="only SGD"):
        FedNova().finish({}, {}, Work(examples=1, steps=1, norm=math.nan, lr=0.1), Up(ONE))


# -- q-FedAvg -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "end"), [(0.0, 0.8), (1.0, 0.715896346583), (5.0, 0.680519570142)])
def test_qfedavg_ends_where_the_closed_form_says(q, end, monkeypatch):
    monkeypatch.setattr(toy, "A", (1.0, 4.0))
    monkeypatch.setattr(toy, "B", (0.0, 1.0))
    monkeypatch.setattr(toy, "START", 0.5)
    x, *_ = toy.federate(QFedAvg(q=q, loss=0.2), rounds=4000, steps=(1, 1), take=2)
    assert x == pytest.approx(end, abs=1e-7)


def test_qfedavg_with_q_0_is_the_uniform_mean():
    assert toy.federate(QFedAvg(q=0.0), rounds=9)[0] == pytest.approx(
        toy.federate(FedAvgUniform(), rounds=9)[0], abs=1e-9
    )


@pytest.mark.parametrize("loss", [None, math.nan, -1.0])
def test_qfedavg_without_a_loss_says_where_to_give_one(loss):
    with pytest.raises(LocalProtocolError, match="evaluate that returns"):
        QFedAvg().finish({}, {}, Work(examples=1, steps=1, norm=1.0, lr=0.1, loss_before=loss), Up(ONE))


def test_qfedavg_goes_on_where_losses_have_become_small():
    """Their power is lost in the rounding of sums: below a floor all count alike."""
    strategy = QFedAvg(q=3.0)
    work = Work(examples=1, steps=1, norm=1.0, lr=0.1, loss_before=0.003)
    up = strategy.finish({}, {}, work, Up(ONE * 0.01))
    assert float(up.delta["x"][0]) == pytest.approx(0.01 * 2**-10)
    after, _ = strategy.server({}, agg(float(up.delta["x"][0]), totals={"h": up.totals["h"]}), RNG)
    assert 0 < float(after.mean["x"][0]) <= 0.01


def test_qfedavg_says_that_a_loss_is_far_above_the_usual_one():
    work = Work(examples=1, steps=1, norm=1.0, lr=0.1, loss_before=300.0)
    with pytest.raises(LocalProtocolError, match=r"the loss 300 is far above.*loss=1"):
        QFedAvg(q=5.0).finish({}, {}, work, Up(ONE))


# -- FedDyn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("take", [4, 2])
def test_feddyn_finds_the_uniform_optimum_and_its_states_are_the_gradients_there(take):
    x, _, devices = toy.federate(FedDyn(alpha=1.0), rounds=400, steps=(600,) * 4, take=take)
    assert x == pytest.approx(toy.UNIFORM, abs=1e-9)
    states = [float(d["g"]["x"][0]) for d in devices]
    assert states[0] == pytest.approx(-0.133333333333, abs=1e-8)
    assert states == pytest.approx([toy.gradient(i, toy.UNIFORM) for i in range(4)], abs=1e-8)


@pytest.mark.parametrize("norm", [0.3, 3.0])
def test_feddyn_with_clip_still_finds_it_because_state_follows_what_was_sent(norm):
    x, *_ = toy.federate(chain(FedDyn(alpha=1.0), Clip(norm)), rounds=800, steps=(600,) * 4)
    assert x == pytest.approx(toy.UNIFORM, abs=1e-8)


def test_feddyn_refuses_an_adaptive_optimizer():
    with pytest.raises(LocalProtocolError, match="SGD"):
        FedDyn().finish({}, {}, Work(examples=1, steps=1, norm=math.nan, lr=0.1), Up(ONE))


# -- Ditto ----------------------------------------------------------------------------------------------------


def test_dittos_personal_models_are_between_their_own_and_the_common_one():
    x, _, devices = toy.federate(chain(FedAvg(), Ditto(lam=0.7)), rounds=200, steps=(400,) * 4)
    own = [float(d["1.personal"]["x"][0]) for d in devices]
    ends = [(a * b + 0.7 * x) / (a + 0.7) for a, b in zip(toy.A, toy.B, strict=True)]
    assert own == pytest.approx(ends, abs=1e-9)
    at = [toy.descended(Ditto(lam=0.7).begin({}, {}, ONE).passes[0].pull, 1.3, 0.0, 1, 2000, 0.02)[0]]
    assert at == pytest.approx([-1.144444444444], abs=1e-9)


def test_ditto_changes_nothing_that_is_sent():
    with_ditto, *_ = toy.federate(chain(FedAvg(), Ditto()), rounds=5)
    assert with_ditto == toy.federate(FedAvg(), rounds=5)[0]


# -- what does not go together --------------------------------------------------------------------------------


@pytest.mark.parametrize("stateful", [Scaffold(), FedDyn()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("rescaling", [FedNova(), QFedAvg()], ids=lambda s: type(s).__name__)
def test_a_state_that_follows_what_was_sent_needs_the_units_of_weights(stateful, rescaling):
    class Plain(type(stateful)):  # without its weight, which two parts may not both set
        weight = None

    plain = object.__new__(Plain)
    plain.__dict__.update(stateful.__dict__)
    for parts in ((plain, rescaling), (rescaling, plain)):
        with pytest.raises(UsageError, match="in other units"):
            chain(*parts)


def test_two_parts_that_train_in_their_own_way_are_refused_when_they_are_chained():
    with pytest.raises(UsageError, match="FedRep and FedRep both choose what is trained"):
        chain(FedAvg(), FedRep(keys=("a",)), FedRep(keys=("b",)))
    with pytest.raises(UsageError, match="both keep a model"):
        chain(FedAvg(), Ditto(), Ditto())


def test_what_was_added_to_a_strategy_later_is_left_out_of_recipes_that_do_not_use_it():
    assert "bias_correction" not in dump(FedAdam())["fields"]
    assert dump(FedAdam(bias_correction=True))["fields"]["bias_correction"] is True
    assert load(dump(FedAdam(bias_correction=True))) == FedAdam(bias_correction=True)


def test_ditto_keeps_its_own_model_whatever_the_units_of_what_is_sent_are():
    assert chain(FedNova(), Ditto()).traits == {Trait.RESCALES, Trait.PRIVATE}
    assert not Base.traits


def test_every_server_rule_goes_its_own_way():
    rules = (
        FedAvg(), FedAvgUniform(), FedAvgM(), FedAdagrad(), FedAdam(), FedYogi(), FedExP(), FedNova(),
        QFedAvg(loss=50.0), FedDyn(), Scaffold(), chain(FedAvg(), Prox(0.5)),
    )  # fmt: skip
    ends = {toy.federate(rule, rounds=12, steps=toy.TAU)[0] for rule in rules}
    assert len(ends) == len(rules)
