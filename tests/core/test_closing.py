"""Closing tile by tile: the same bytes as with everything in memory, and what a strategy may and may not promise."""

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

import toy
from koinon_core.codec import encode, reader_of
from koinon_core.errors import BadBlob, UsageError
from koinon_core.schema import schema_of
from koinon_core.sections import Section
from koinon_core.strategy import Base, Clip, FedAdam, FedAvg, FedAvgM, Scaffold, chain
from koinon_core.strategy.closing import Contribution, Into, close, digest_of_tensors
from koinon_core.strategy.protocol import Need
from koinon_core.strategy.shape import begin, shape_of
from koinon_core.tensors import Tensors
from koinon_core.tiles import TILE, Gather, Held, Last, Tee
from koinon_core.update import Head, layout_of

DRAW = np.random.default_rng(5)
SIZES = {"a": TILE + 3, "b": 7, "bn.running_var": 3, "n": 0}
W = Tensors(
    {
        "a": DRAW.standard_normal(TILE + 3).astype(np.float32), "b": DRAW.standard_normal((7, 1)),
        "bn.running_mean": np.zeros(3, np.float32), "bn.running_var": np.ones(3, np.float32), "n": np.array(4),
    }
)  # fmt: skip


def closed(strategy, *, sections=(), seeds=(1, 2), bound=1024.0, whole=False):
    """(model, state, what devices get, the closing) of one round over noise."""
    layout = layout_of(schema_of(W), strategy, sections, codec="raw", bound=bound)
    terms = toy.terms(1, grid=20, weights="x")
    shape = shape_of(strategy, layout, 10)
    if whole:
        shape = replace(shape, tilewise=False)
    state, down = Gather(shape.state), Gather(shape.down)
    begin(strategy, shape, layout, 10, Held(W), state, down)
    contributions = []
    for seed in seeds:
        draw = np.random.default_rng(seed)
        update = Tensors(
            {
                f.name: (draw.standard_normal(f.shape) if f.rule == "mean" else np.array(seed)).astype(
                    f.dtype
                )
                for f in layout.update
            }
        )
        reader = reader_of(encode(update, layout.update, "raw"), layout.update)
        contributions.append(Contribution(f"c{seed}", Head(examples=seed), reader))
    model, after, given = Gather(layout.model), Gather(shape.state), Gather(shape.down)
    into = Into(model, after, given)
    closing = close(
        strategy, layout, shape, terms, 10, Held(W), Held(state.tensors), contributions, into
    )  # fmt: skip
    return model.tensors, after.tensors, given.tensors, closing


@pytest.mark.parametrize(
    "strategy", [FedAvg(), FedAvgM(), FedAdam(), Scaffold(), chain(FedAdam(), Clip(1.0))]
)
def test_tile_by_tile_and_all_at_once_are_the_same_bytes(strategy):
    one, two = closed(strategy), closed(strategy, whole=True)
    assert shape_of(strategy, layout_of(schema_of(W), strategy), 10).tilewise
    assert one[:3] == two[:3]
    assert (one[3].sum, one[3].weights) == (two[3].sum, two[3].weights)
    assert one[3].weights == digest_of_tensors(Held(one[0]), schema_of(W))


def test_the_digest_of_a_model_is_over_its_elements_alone():
    digest = hashlib.sha256(b"".join(a.tobytes() for a in W.values())).hexdigest()
    assert digest_of_tensors(Held(W), schema_of(W)) == digest
    assert digest_of_tensors(reader_of(encode(W, schema_of(W)), schema_of(W)), schema_of(W)) == digest


@dataclass(frozen=True)
class Layerwise(Base):
    """A strategy that promises nothing: it looks at whole tensors, in their shapes."""

    def server(self, s, agg, rng):
        return replace(agg, mean=agg.mean.map(lambda a: a / np.linalg.norm(a) if a.ndim == 2 else a * 0)), s


def test_a_strategy_that_promises_nothing_gets_whole_tensors_in_their_shapes():
    model, *_ = closed(Layerwise())
    assert np.linalg.norm(model["b"] - W["b"]) == pytest.approx(1.0)
    assert model["a"].tobytes() == W["a"].tobytes()


@dataclass(frozen=True)
class Counting(Base):
    """It promises to be elementwise, and keeps one number a tensor."""

    elementwise: ClassVar[bool] = True

    def init(self, w, population):
        return {"steps": Tensors({name: np.zeros(1) for name in w})}

    def server(self, s, agg, rng):
        return agg, {"steps": s["steps"] + 1.0}


def test_state_that_is_not_of_the_parameters_shape_is_noticed():
    _, state, *_ = closed(Counting())
    assert not shape_of(Counting(), layout_of(schema_of(W), Counting()), 0).tilewise
    assert [state[f"steps/{name}"].tolist() for name in ("a", "b")] == [[1.0], [1.0]]


@dataclass(frozen=True)
class Losing(Base):
    elementwise: ClassVar[bool] = True

    def init(self, w, population):
        return {"m": w.zeros()}

    def server(self, s, agg, rng):
        return agg, ({"m": Tensors()} if "b" in agg.mean else s)


def test_a_state_that_loses_a_tensor_makes_no_model():
    with pytest.raises(BadBlob, match="changed its names, shapes or dtypes"):
        closed(Losing())


@dataclass(frozen=True)
class Norm(Base):
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SQ_NORM})
    elementwise: ClassVar[bool] = True

    def server(self, s, agg, rng):
        return replace(agg, mean=agg.mean / float(np.sqrt(agg.sq_norm))), s


def test_the_norm_of_the_whole_mean_is_known_to_who_asks_for_it():
    model, *_ = closed(Norm())
    step = Tensors({n: model[n].astype(np.float64) - W[n] for n in ("a", "b")})
    assert step.norm() == pytest.approx(1.0, rel=1e-5)


def test_rules_of_sections_hold_at_the_sum():
    sections = [Section(match="stat/*", rule="local"), Section(match="count/n", rule="equal")]
    model, *_ = closed(FedAvg(), sections=sections, seeds=(3, 3))
    assert model["bn.running_var"].tobytes() == W["bn.running_var"].tobytes()
    assert int(model["n"]) == 3
    assert int(closed(FedAvg(), seeds=(3, 9))[0]["n"]) == 9


@pytest.mark.parametrize("match", ["param/nothing", "stat/bn.weight", "extra/control/*", "lora_a/*"])
def test_a_section_that_is_about_no_tensor_is_refused(match):
    with pytest.raises(UsageError, match=r"is about no tensor of the model; there is for example '\w+/"):
        layout_of(schema_of(W), FedAvg(), [Section(match=match, codec="raw")])


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"bound": True}, "bound = True .* must be a number above 0"),
        ({"bound": "x"}, "bound = x .* must be a number above 0"),
        ({"bound": 1 << 70}, "must be a number above 0"),
        ({"codec": ["raw"]}, "no codec"),
        ({"rule": ["mean"]}, "must be one of mean"),
        ({"colour": 1}, "no key 'colour'"),
    ],
)  # fmt: skip
def test_a_section_that_cannot_be_is_refused_in_a_sentence(said, sentence):
    with pytest.raises(UsageError, match=sentence):
        Section.make({"match": "param/*", **said})


def test_a_round_of_an_older_version_has_one_bound_and_one_grid():
    layout = layout_of(schema_of(W), FedAvg(), bound=16.0, grid=lambda bound: 30)
    old = layout.under(toy.terms(1, grid=33, bound=16.0))
    assert {(way.bound, way.grid) for way in old.how.values()} == {(16.0, 33)}
    now = layout.under(toy.terms(1, grid=33, bound=16.0, weights="x"))
    assert {(way.bound, way.grid) for way in now.how.values()} == {(16.0, 33), (1024.0, 30)}


def test_who_reads_along_costs_no_second_reading():
    asked = []

    class Counted:
        def values(self, name, offset):
            asked.append((name, offset))
            return W[name].reshape(-1)[offset : offset + TILE]

    last = Last(Counted())
    for _ in range(2):
        last.values("a", 0)
    last.values("a", TILE)
    assert asked == [("a", 0), ("a", TILE)]
    one, two = Gather(schema_of(W)), Gather(schema_of(W))
    for name, array in W.items():
        for offset in range(0, array.size, TILE):
            Tee(one, two).put(name, offset, array.reshape(-1)[offset : offset + TILE])
    assert one.tensors == two.tensors == W
