"""Secure sums through whole layouts: the mean of the updates comes out, within what the level says."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

import toy
from koinon_core.errors import BadUpdate
from koinon_core.secure.agreement import Agreement
from koinon_core.strategy import Base, FedAdam, FedAvg, Scaffold, Up, Work, chain
from koinon_core.strategy.average import FedAvgUniform
from koinon_core.strategy.clip import Clip
from koinon_core.strategy.registry import register
from koinon_core.tensors import Tensors
from koinon_core.update import Head, unpack_state
from summing import Federation, error, plus, spec_of

# Layers whose changes differ by four orders of magnitude, normalisation, a counter, and what must be equal.
SCALES = {"conv.weight": 1e-1, "conv.bias": 1e-3, "head.weight": 1e-4, "bn.weight": 1e-2, "head.bias": 1e-5}
MODEL = {
    "conv.weight": np.zeros((64, 48), np.float32), "conv.bias": np.zeros(64, np.float32),
    "bn.weight": np.ones(64, np.float32), "bn.running_mean": np.zeros(64, np.float32),
    "bn.running_var": np.ones(64, np.float32), "bn.num_batches_tracked": np.array(7),
    "head.weight": np.zeros((10, 300), np.float32), "head.bias": np.zeros(10, np.float32),
}  # fmt: skip


def changes(count, seed=0, scale=1.0, model=MODEL, scales=SCALES):
    """What `count` devices learned: a direction that they share, and as much of their own."""
    draw = np.random.default_rng(seed)
    shared = {n: draw.standard_normal(model[n].shape) for n in scales}
    made = {}
    for i in range(count):
        own = {n: (shared[n] + draw.standard_normal(model[n].shape)) * s * scale for n, s in scales.items()}
        for n in model:
            if "running" in n:
                own[n] = draw.uniform(-0.5, 0.5, model[n].shape)
        made[f"d{i}"] = {n: a.astype(model[n].dtype) for n, a in own.items()}
    return made


def weighted(given, examples):
    total = sum(examples.values())
    return {
        n: sum(np.asarray(g[n], float) * examples[c] for c, g in given.items()) / total
        for n in next(iter(given.values()))
    }


def flat(tensors, names=SCALES):
    return np.concatenate([np.ravel(np.asarray(tensors[n], float)) for n in names])


def federation(strategy=None, model=MODEL, **settings):
    return Federation(spec_of(strategy or FedAvg(), model, **settings), Tensors(model))


# -- levels ---------------------------------------------------------------------------------------------------

WITHIN = [
    ("balanced", 10, 0.01), ("balanced", 64, 0.01), ("balanced", 100, 0.015), ("fine", 10, 3e-4), ("fine", 100, 3e-4),
    ("compact", 100, 7.2),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "devices", "within"), WITHIN)
def test_a_tuned_sum_is_within_its_levels_error(codec, devices, within):
    fed = federation(codec=codec)
    found = []
    for number in range(3):
        before = fed.model
        given = changes(devices, seed=number)
        examples = {c: 1 + i % 40 for i, c in enumerate(given)}
        fed.learn(given, examples)
        step = flat({n: fed.model[n] - before[n] for n in SCALES})
        found.append(error(step, flat(weighted(given, examples))))
    assert found[0] < (1e-5 if codec != "compact" else within), "the first round is wide"
    assert max(found[1:]) < within
    assert max(found[1:]) > 1e-6, "and the others are not"


def test_what_the_levels_send():
    sizes = {}
    model = {"w": np.zeros(1_000_000, np.float32)}
    for codec in ("balanced", "fine", "compact", "exact"):
        fed = federation(model=model, codec=codec)
        fed.tuning = '{"devices":100,"rms":{"param":0.001},"steps":{},"version":1,"weight":100}'
        ring = Agreement.of(fed.terms(100)).ring
        sizes[codec] = sum(
            s.lanes * s.group.bits / 8 for s in ring.sections if s.group and s.group.name == "param"
        )
    assert {c: round(n / 1e6, 2) for c, n in sizes.items()} == {
        "balanced": 1.0, "fine": 1.51, "compact": 0.13, "exact": 8.0,
    }  # fmt: skip


@pytest.mark.parametrize("codec", ["balanced", "fine"])
def test_no_rounding_is_left_when_many_rounds_are_averaged(codec):
    fed = federation(codec=codec)
    given = changes(5)
    wanted, once, mean = flat(weighted(given, dict.fromkeys(given, 1))), 0.0, 0.0
    fed.learn(given)
    for _ in range(40):
        before = fed.model
        fed.learn(given)
        step = flat({n: np.asarray(fed.model[n], float) - before[n] for n in SCALES})
        once += error(step, wanted) / 40
        mean = mean + step / 40
    assert error(mean, wanted) == pytest.approx(once / 40, rel=0.35)


# -- statistics, counters, weights ----------------------------------------------------------------------------


def test_statistics_are_exact_and_counters_stay_at_home():
    fed = federation()
    given = changes(4)
    examples = {"d0": 1, "d1": 7, "d2": 64, "d3": 5}
    terms = fed.terms(4)
    made = {}
    for i, (client, change) in enumerate(given.items()):
        end = {**plus(MODEL, change), "bn.num_batches_tracked": np.array(100 + i)}
        made[client] = fed.prepare(client, terms, end, Head(examples=examples[client]))
    fed.close(terms, made)
    wanted = weighted(given, examples)
    for name in ("bn.running_mean", "bn.running_var"):
        assert np.abs(fed.model[name] - (MODEL[name] + wanted[name])).max() < 2e-7
    assert fed.model["bn.num_batches_tracked"] == 7
    assert [int(made[c].pending["own"]["bn.num_batches_tracked"]) for c in made] == [100, 101, 102, 103]


def test_a_variance_is_never_below_zero():
    model = {"w": np.zeros(3, np.float32), "bn.running_mean": np.zeros(2, np.float32)}
    model |= {"bn.running_var": np.full(2, 1e-9, np.float32), "other": np.zeros(1, np.float32)}
    fed = federation(model=model)
    lost = {"bn.running_var": np.full(2, -2e-7, np.float32), "bn.running_mean": np.full(2, -2e-7, np.float32)}
    fed.learn({f"d{i}": {"w": np.ones(3, np.float32), **lost} for i in range(3)})
    assert fed.model["bn.running_var"].tolist() == [0.0, 0.0]
    assert (fed.model["bn.running_mean"] < 0).all()


def test_what_must_be_equal_is_looked_at_on_the_device():
    fed = federation(sections=[{"match": "count/*", "rule": "equal"}])
    terms, change = fed.terms(3), changes(1)["d0"]
    same = fed.prepare("d0", terms, plus(MODEL, change), Head(examples=1))
    with pytest.raises(BadUpdate, match=r"'bn.num_batches_tracked' is not what the model has"):
        fed.prepare(
            "d0", terms, {**plus(MODEL, change), "bn.num_batches_tracked": np.array(8)}, Head(examples=1)
        )
    fed.close(terms, {"d0": same})
    assert fed.model["bn.num_batches_tracked"] == 7


def test_examples_beyond_the_largest_weight_count_as_that():
    fed = federation(codec="exact")
    given = changes(3)
    closing = fed.learn(given, {"d0": 1000, "d1": 64, "d2": 64})
    wanted = weighted(given, dict.fromkeys(given, 1))
    assert error(flat(fed.model) - flat(MODEL), flat(wanted)) < 1e-6
    assert closing.metrics["examples"] == 192.0


def test_uniform_weights_are_uniform_and_the_examples_are_summed_beside():
    fed = federation(FedAvgUniform(), codec="exact")
    given = changes(3)
    closing = fed.learn(given, {"d0": 1, "d1": 50, "d2": 9})
    wanted = weighted(given, dict.fromkeys(given, 1))
    assert error(flat(fed.model) - flat(MODEL), flat(wanted)) < 1e-6
    assert closing.metrics["examples"] == 60.0


def test_a_float64_model_keeps_what_float32_would_lose():
    model = {"w": np.full(50, 1.0), "b": np.zeros(3, np.float32)}
    fed = federation(model=model, codec="exact")
    fed.learn({f"d{i}": {"w": np.full(50, 2.0**-20 + i * 2.0**-24)} for i in range(3)})
    assert (fed.model["w"] - 1.0).tolist() == pytest.approx([2.0**-20 + 2.0**-24] * 50, abs=1e-15)
    assert fed.model["w"].dtype == np.float64


def test_a_long_update_is_scaled_to_the_clip_and_its_share_is_a_metric():
    fed = federation(clip=0.5, codec="fine")
    given = changes(4)
    given["d0"] = {n: a * 100 for n, a in given["d0"].items() if "running" not in n}
    norms = {c: np.linalg.norm(flat(g)) for c, g in given.items()}
    closing = fed.learn(given)
    wanted = sum(flat(g) * min(1.0, 0.5 / norms[c]) for c, g in given.items()) / 4
    assert error(flat(fed.model) - flat(MODEL), wanted) < 1e-5
    assert closing.metrics["clipped"] == sum(n > 0.5 for n in norms.values()) / 4 == 1.0
    calm = federation(codec="fine").learn(changes(4))
    assert calm.metrics["clipped"] == 0.0


# -- numbers --------------------------------------------------------------------------------------------------


def heads():
    return {
        "d0": Head(
            examples=10, training={"loss": 2.0}, evaluation={"loss": 3.0, "accuracy": 0.25}, evaluation_examples=4
        ),
        "d1": Head(
            examples=30, training={"loss": math.nan, "own": 5.0}, evaluation={"accuracy": 0.75}, evaluation_examples=12
        ),
        "d2": Head(examples=20, training={"loss": 0.5}, evaluation={"loss": 1e9}, evaluation_examples=64),
        "d3": Head(examples=4),
    }  # fmt: skip


def test_metrics_are_means_over_the_devices_that_had_them():
    fed = federation()
    terms, given = fed.terms(4), changes(4)
    made = {c: fed.prepare(c, terms, plus(MODEL, given[c]), head) for c, head in heads().items()}
    assert all(p.head == Head() and not p.stats.parameters for p in made.values()), (
        "nothing goes along in clear"
    )
    total, closing = fed.close(terms, made)
    assert {n: v for n, v in closing.metrics.items() if n not in ("step.norm", "clipped")} == {
        "examples": 64.0, "train.loss": (2.0 * 10 + 0.5 * 20) / 30, "eval.loss": 3.0,
        "eval.accuracy": (0.25 * 4 + 0.75 * 12) / 16,
    }  # fmt: skip
    assert (closing.evaluated, total.count, total.weight) == (3, 4, 64.0)


def test_a_round_that_evaluates_has_numbers_and_nothing_else():
    fed = federation()
    terms = fed.terms(4, "evaluate")
    assert [g.name for g in Agreement.of(terms).ring.groups] == ["numbers"]
    made = {
        c: fed.half.evaluated(terms, replace(head, examples=0, training={}), {"own": Tensors()}, c)
        for c, head in heads().items()
    }
    assert all(p.head == Head() and p.pending == {"own": Tensors()} for p in made.values())
    total, closing = fed.close(terms, made)
    assert dict(closing.metrics) == {"eval.loss": 3.0, "eval.accuracy": (0.25 * 4 + 0.75 * 12) / 16}
    assert (closing.evaluated, total.count) == (3, 4)


def test_metrics_that_the_run_does_not_name_have_no_lane():
    fed = federation(metrics=["f1"])
    terms = fed.terms(3)
    made = {
        f"d{i}": fed.prepare(
            f"d{i}", terms, plus(MODEL, c), Head(examples=2, training={"f1": 0.5 * i, "loss": 1.0})
        )
        for i, c in enumerate(changes(3).values())
    }
    metrics = fed.close(terms, made)[1].metrics
    assert {n for n in metrics if n.startswith("train.")} == {"train.f1"}
    assert metrics["train.f1"] == 0.5


@register
@dataclass(frozen=True)
class Tallied(Base):
    """FedAvg that sums what each device says, and moves by the mean of it."""

    elementwise: ClassVar[bool] = True

    def totals(self):
        return {"tally": 1000.0, "small": 1e-3}

    def finish(self, d, down, work, up):
        return Up(up.delta, up.extra, {"tally": work.examples * 3.5, "small": -work.examples * 1e-6})

    def server(self, s, agg, rng):
        return replace(agg, mean=agg.mean * 0 + agg.totals["tally"] / agg.count + agg.totals["small"]), s


def test_totals_of_a_strategy_are_summed_exactly():
    fed = federation(Tallied(), model={"w": np.zeros(5)})
    fed.learn({f"d{i}": {"w": np.ones(5)} for i in range(4)}, {"d0": 1, "d1": 2, "d2": 3, "d3": 14})
    assert fed.model["w"].tolist() == pytest.approx([20 * 3.5 / 4 - 20e-6] * 5, abs=1e-9)


# -- strategies -----------------------------------------------------------------------------------------------


def closed_form(strategy, rounds, steps=(10,) * 4, take=4, codec="exact", momentum=0.0, lr=toy.ETA):
    """The federation after so many secure rounds of toy Q (tests/toy.py)."""
    fed = federation(strategy, model={"x": np.array([toy.START])}, population=4, codec=codec)
    draw = np.random.default_rng(0)
    for _ in range(rounds):
        chosen = sorted(draw.choice(4, size=take, replace=False))
        terms, made = fed.terms(take), {}
        x = float(fed.model["x"][0])
        for i in chosen:
            plan = fed.half.begin(fed.devices.get(f"d{i}", {}), unpack_state(fed.down), fed.model)
            y, norm = toy.train(plan, x, i, steps[i], lr, momentum)
            results = {
                p.name: Tensors({"x": np.array([toy.gradient(i, x)])}) for p in plan.passes if p.measure
            }
            work = Work(examples=toy.N[i], steps=steps[i], lr=lr, norm=norm, results=results)
            made[f"d{i}"] = fed.prepare(f"d{i}", terms, {"x": np.array([y])}, Head(examples=toy.N[i]), work)
        fed.close(terms, made)
    return fed


@pytest.mark.parametrize(
    ("strategy", "settings", "x"),
    [
        (FedAvg(), {"rounds": 60, "steps": toy.TAU}, 1.058199564099),
        (FedAvg(), {"rounds": 60}, 0.954271800018),
        (FedAvg(), {"rounds": 600, "steps": (1,) * 4}, toy.WEIGHTED),
        (FedAvgUniform(), {"rounds": 600, "steps": (1,) * 4}, toy.UNIFORM),
    ],
)
def test_exact_sums_end_where_the_closed_forms_say(strategy, settings, x):
    fed = closed_form(strategy, **settings)
    assert float(fed.model["x"][0]) == pytest.approx(x, abs=1e-5)


@pytest.mark.parametrize(
    ("take", "strategy"), [(4, Scaffold()), (3, Scaffold(option=1)), (3, chain(Scaffold(), Clip(3.0)))]
)
def test_scaffold_finds_the_uniform_optimum_because_its_state_follows_what_was_summed(take, strategy):
    fed = closed_form(strategy, 900, take=take)
    assert float(fed.model["x"][0]) == pytest.approx(toy.UNIFORM, abs=1e-5)
    name = "0.c" if take == 3 and strategy != Scaffold(option=1) else "c"
    mean = sum(float(d[name]["x"][0]) for d in fed.devices.values()) / 4
    assert mean == pytest.approx(float(fed.state[f"{name}/x"][0]), abs=1e-9)


def test_scaffold_in_eight_bits_keeps_c_the_mean_of_what_devices_keep():
    fed = federation(Scaffold(), population=6)
    draw = np.random.default_rng(3)
    for number in range(4):
        chosen = sorted(draw.choice(6, size=4, replace=False))
        terms, given, made = fed.terms(4), changes(6, seed=number), {}
        for i in chosen:
            work = Work(examples=1 + i, steps=10, lr=0.1, norm=10.0)
            made[f"d{i}"] = fed.prepare(
                f"d{i}", terms, plus(fed.model, given[f"d{i}"]), Head(examples=1 + i), work
            )
        fed.close(terms, made)
    mean = sum(flat(d["c"]) for d in fed.devices.values()) / 6
    server = flat({n: fed.state[f"c/{n}"] for n in SCALES})
    assert np.abs(mean - server).max() < 1e-5 * np.abs(server).max()
    assert {g.name: g.bits for g in Agreement.of(terms).ring.groups if g.rotated} == {
        "param": 8,
        "extra/control": 8,
    }


def test_a_server_that_adapts_gets_the_mean_that_came_out():
    fed = federation(FedAdam(lr=0.1), codec="fine")
    given = changes(5)
    terms = fed.terms(5)
    made = {c: fed.prepare(c, terms, plus(MODEL, g), Head(examples=1)) for c, g in given.items()}
    total, _ = fed.close(terms, made)
    same = {n: total.values(f"delta/{n}", 0).reshape(MODEL[n].shape) for n in SCALES}
    for n in SCALES:
        assert np.abs(fed.state[f"m/{n}"] - 0.1 * same[n]).max() < 1e-7 * np.abs(same[n]).max()
