"""`check_strategy`: all that Koinon brings keeps the laws, and whoever breaks one is told which."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

import koinon
from catalogue import BUILT_IN
from koinon.testing import Broken, check_strategy
from koinon_core.strategy import registry
from koinon_core.strategy.buffered import knows_age


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda k: k.__name__)
def test_what_koinon_brings_keeps_the_laws_and_makes_the_same_bytes_on_any_cpu(kind):
    strategy, model = BUILT_IN[kind]
    kept = check_strategy(strategy, model=model)
    assert kept.traced == (("qr", "svd") if kind is koinon.LoraProjection else ())
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
    "promises to be private": {"commit": lambda self, d, down, work, up, sent: {"s": sent.delta}, "private": True},
    "a device's state changes": {"commit": lambda self, d, down, work, up, sent: {f"s{len(d)}": sent.delta, **d}},
}  # fmt: skip


@pytest.mark.parametrize("sentence", BROKEN)
def test_whoever_breaks_a_law_is_told_which(sentence):
    with pytest.raises(Broken, match=sentence):
        check_strategy(broken(**BROKEN[sentence]))
