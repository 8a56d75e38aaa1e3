"""`check_strategy`: all that Koinon brings keeps the laws, and whoever breaks one is told which."""

import math
import operator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

import koinon
from catalogue import BUILT_IN
from koinon.testing import Broken, check_strategy
from koinon_core import exact
from koinon_core.strategy import registry
from koinon_core.strategy.buffered import knows_age


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda k: k.__name__)
def test_what_koinon_brings_keeps_the_laws_and_makes_the_same_bytes_on_any_cpu(kind):
    strategy, model = BUILT_IN[kind]
    kept = check_strategy(strategy, model=model)
    assert kept.traced == (("kernels",) if kind is koinon.LoraProjection else ())
    assert kept.secure is not (koinon.Need.SINGLE in strategy.needs or knows_age(strategy))


def test_nothing_that_koinon_brings_is_forgotten_here():
    ours = {kind for name, kind in registry._KNOWN.items() if name.startswith("koinon.")}
    assert ours == set(BUILT_IN)


# -- those that break one -------------------------------------------------------------------------------------


@koinon.register
@dataclass(frozen=True)
class Mine(koinon.Base):
    """Keeps all laws, until one is broken."""

    elementwise: ClassVar[bool] = True
    weight: ClassVar[str | None] = "uniform"
    lr: float = 0.5

    def init(self, w, population):
        return {"m": w.zeros()}

    def server(self, s, agg, rng):
        m = s["m"] * 0.5 + agg.mean
        return replace(agg, mean=m * self.lr), {"m": m}


def broken(**methods):
    return koinon.register(
        dataclass(frozen=True)(type("Mine", (Mine,), {"__module__": __name__, **methods}))
    )()


def test_a_strategy_of_ones_own_that_keeps_them_is_told_how_far_its_bytes_go():
    assert check_strategy(koinon.register(Mine)()).reproducible == "on any CPU"

    def server(self, s, agg, rng):
        return replace(agg, mean=agg.mean.map(np.tanh)), s

    kept = check_strategy(broken(server=server))
    assert (kept.reproducible, kept.traced) == ("on machines of one kind", ("tanh",))

    def normed(self, s, agg, rng):
        return replace(agg, mean=agg.mean * (1 / (1 + float(agg.mean["a"].sum() ** 2)))), s

    assert check_strategy(broken(server=normed, elementwise=False)).traced == ("add.reduce",)


bound_early, exp_of_its_own = np.asarray, math.exp


def scaled(factor):
    """A server half that scales by what `factor` makes of the mean of a tensor."""

    def server(self, s, agg, rng):
        return replace(agg, mean=agg.mean * float(factor(agg.mean["b"]))), s

    return {"server": server, "elementwise": False}


def mapped(function):
    def server(self, s, agg, rng):
        return replace(agg, mean=agg.mean.map(function)), s

    return {"server": server, "elementwise": False}


SEEN = {
    "the method dot": (scaled(lambda a: a.dot(a)), "dot"),
    "the method dot of a plain array": (scaled(lambda a: np.ones(7).dot(a)), "dot"),
    "what asarray gave": (scaled(lambda a: np.asarray(a).dot(a)), "dot"),
    "what array gave": (scaled(lambda a: np.array(a, np.float64).sum()), "add.reduce"),
    "what asarray by another name gave": (scaled(lambda a: bound_early(a).dot(a)), "dot"),
    "what ascontiguousarray gave": (scaled(lambda a: np.linalg.norm(np.ascontiguousarray(a))), "norm"),
    "the sum of fresh memory": (scaled(lambda a: np.add(a, 1, out=np.empty(7)).sum()), "add.reduce"),
    "a product of matrices": (scaled(lambda a: a @ a), "matmul"),
    "a power": (mapped(lambda a: a**3), "power"),
    "a power in place": (mapped(lambda a: operator.ipow(a.copy(), 3)), "power"),
    "a power of a number": (mapped(lambda a: 1.5**a), "power"),
    "numpy's exp of a number": (scaled(lambda a: np.exp(a.max())), "exp"),
    "Python's exp": (scaled(lambda a: math.exp(a.max())), "exp"),
    "Python's exp by another name": (scaled(lambda a: exp_of_its_own(float(a[0]))), "exp"),
    "a view that is not watched": (mapped(lambda a: a.view(np.ndarray) * 2), "unknown"),
    "a number of such a view": (scaled(lambda a: a.view(np.ndarray).dot(a.view(np.ndarray))), "unknown"),
    "a buffer": (mapped(lambda a: np.ndarray(a.shape, a.dtype, a.tobytes())), "unknown"),
}  # fmt: skip


@pytest.mark.parametrize("case", SEEN)
def test_what_may_differ_from_one_cpu_to_the_next_is_seen_whatever_way_it_is_done(case):
    methods, name = SEEN[case]
    kept = check_strategy(broken(**methods))
    assert (kept.reproducible, kept.traced) == ("on machines of one kind", (name,))


@pytest.mark.parametrize(
    "methods",
    [
        scaled(lambda a: exact.dot(a, a)),
        scaled(lambda a: exact.norm(np.asarray(a, np.float64) - 1)),
        scaled(lambda a: math.sqrt(a.max())),
        mapped(lambda a: a**2 + np.abs(a) / np.sqrt(a * a + 1)),
        mapped(lambda a: np.add(np.array(a), np.zeros(a.shape), out=np.empty_like(a))),
    ],
)
def test_what_is_the_same_everywhere_is_not_held_against_a_strategy(methods):
    assert check_strategy(broken(**methods)).reproducible == "on any CPU"


def test_draws_whose_last_bits_come_from_logarithms_are_seen():
    def noisy(draw):
        def server(self, s, agg, rng):
            return replace(agg, mean=agg.mean.map(lambda a: a + draw(rng, a.shape).astype(a.dtype))), s

        return broken(server=server, elementwise=False)

    assert check_strategy(noisy(lambda rng, shape: rng.normal(size=shape))).traced == ("rng.normal",)
    assert check_strategy(noisy(lambda rng, shape: rng.random(shape))).traced == ()


def test_numpy_is_as_it_was_after_it_was_watched():
    before = {name: id(getattr(np, name)) for name in ("asarray", "zeros", "exp", "array")} | {
        "": id(math.exp)
    }
    check_strategy(broken(**scaled(lambda a: np.exp(a.max()))))
    with pytest.raises(ZeroDivisionError):
        check_strategy(broken(**scaled(lambda a: 1 / 0)))
    after = {name: id(getattr(np, name)) for name in ("asarray", "zeros", "exp", "array")} | {
        "": id(math.exp)
    }
    assert after == before
    assert type(np.zeros(3)) is np.ndarray


# -- models, and what must be asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [koinon.FedAvg(), koinon.FedAdam(), koinon.Scaffold()])
def test_a_model_may_have_integers_and_statistics(strategy):
    model = {
        "w": np.full((3, 2), 0.1, np.float32), "bn.running_mean": np.zeros(2), "bn.running_var": np.ones(2),
        "bn.num_batches_tracked": np.array(7), "table": np.arange(4, dtype=np.int32),
    }  # fmt: skip
    assert check_strategy(strategy, model=model).secure


def stepping(scale):
    return {"server": lambda self, s, agg, rng: (replace(agg, mean=agg.mean * scale(agg)), s)}


def beginning(make):
    return {"init": lambda self, w, population: {"m": make(w, population)}}


def finishing(scale):
    return {"finish": lambda self, d, down, work, up: koinon.Up(up.delta * scale(work))}


def kept_loss(self, d, down, work, up, sent):
    return {"l": koinon.Tensors({"l": np.full(1, work.loss_before)})}


UNDECLARED = {
    "the population": (stepping(lambda agg: 1 / agg.population), "POPULATION"),
    "the population, to begin with": (beginning(lambda w, population: w * (1 / population)), "POPULATION"),
    "whether there is one": (beginning(lambda w, population: w if population else w * 2), "POPULATION"),
    "the norm of the sum": (stepping(lambda agg: agg.sq_norm), "SQ_NORM"),
    "the length of the steps": (finishing(lambda work: 1 / work.norm), "NORM"),
    "the loss before": (finishing(lambda work: float(work.loss_before)), "LOSS_BEFORE"),
    "the loss before, to be kept": ({"commit": kept_loss}, "LOSS_BEFORE"),
}


@pytest.mark.parametrize("case", UNDECLARED)
def test_what_is_used_must_be_declared(case):
    methods, need = UNDECLARED[case]
    with pytest.raises(Broken, match=rf"does not declare Need\.{need}; add that to its needs"):
        check_strategy(broken(**methods))


def test_what_is_declared_may_be_used_and_anything_may_be_handed_on():
    def server(self, s, agg, rng):
        return replace(agg, mean=agg.mean * (agg.sq_norm / agg.population)), s

    needs = frozenset({koinon.Need.SQ_NORM, koinon.Need.POPULATION})
    check_strategy(broken(server=server, needs=needs))
    check_strategy(broken(server=server, needs=needs - {koinon.Need.SQ_NORM}, elementwise=False))
    check_strategy(koinon.chain(broken(), koinon.Prox()))


COUNTED = []
BROKEN = {
    "makes another strategy": {"__post_init__": lambda self: object.__setattr__(self, "lr", self.lr + 1)},
    "its revision": {"revision": "one"},
    "which the model has not": {"local": lambda self, schema: frozenset({"nowhere"})},
    "keeps the whole model at home": {"local": lambda self, schema: frozenset(schema.by_name)},
    "the bound of its total": {"totals": lambda self: {"t": float("inf")}},
    "other totals than it declares": {"totals": lambda self: {"t": 1.0}},
    "another step of the same sum": {
        "server": lambda self, s, agg, rng: (COUNTED.append(1), (replace(agg, mean=agg.mean * len(COUNTED)), s))[1],
    },
    "its state changes names": {"server": lambda self, s, agg, rng: (agg, {})},
    "its step has other names": {"server": lambda self, s, agg, rng: (replace(agg, mean=agg.mean.without(["a"])), s)},
    "its step is not finite": {
        "server": lambda self, s, agg, rng: (replace(agg, mean=agg.mean * float("inf")), s),
    },
    "another step of a part": {
        "server": lambda self, s, agg, rng: (replace(agg, mean=agg.mean * agg.mean.norm()), s),
    },
    "tensors that do not leave": {
        "begin": lambda self, d, down, w: koinon.Plan(koinon.Pull(shift=koinon.Tensors({"nowhere": np.zeros(1)}))),
    },
    "have one name": {
        "begin": lambda self, d, down, w: koinon.Plan(passes=(koinon.Pass(name="x"), koinon.Pass(name="x"))),
    },
    "sends other names": {"finish": lambda self, d, down, work, up: koinon.Up(up.delta.without(["a"]))},
    "another extra": {"finish": lambda self, d, down, work, up: koinon.Up(up.delta, {"e": up.delta})},
    "beyond its bound": {
        "totals": lambda self: {"t": 1.0},
        "finish": lambda self, d, down, work, up: koinon.Up(up.delta, {}, {"t": 2.0}),
    },
    "follows what was computed": {"commit": lambda self, d, down, work, up, sent: {"s": up.delta}},
    "promises to be private": {
        "commit": lambda self, d, down, work, up, sent: {"s": sent.delta}, "traits": frozenset({koinon.Trait.PRIVATE}),
    },
    "a device's state changes": {"commit": lambda self, d, down, work, up, sent: {f"s{len(d)}": sent.delta, **d}},
}  # fmt: skip


@pytest.mark.parametrize("sentence", BROKEN)
def test_whoever_breaks_a_law_is_told_which(sentence):
    with pytest.raises(Broken, match=sentence):
        check_strategy(broken(**BROKEN[sentence]))
