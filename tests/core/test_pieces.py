"""The step of an elementwise strategy is taken a piece of a tile at a time, and makes the bytes of the whole."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from koinon_core.errors import BadBlob
from koinon_core.strategy import Clip, FedAdagrad, FedAdam, FedAvgM, FedYogi, Scaffold, chain
from koinon_core.strategy.pieces import kept_room, step_by_pieces
from koinon_core.strategy.protocol import Agg, Base, State
from koinon_core.tensors import Tensors

SIZE = 1000


def rng():
    return np.random.Generator(np.random.Philox(3))


def draw(seed, dtype=np.float32):
    return Tensors({"w": np.random.default_rng(seed).normal(size=SIZE).astype(dtype)})


def agg_of(mean, extra=()):
    return Agg(
        mean=mean, extra={what: draw(8, np.float64) for what in extra}, totals={}, count=4, weight=20.0,
        population=8, sq_norm=1.0,
    )  # fmt: skip


def taken(strategy, state, agg, piece):
    tile = step_by_pieces(strategy, "w", state, agg, rng(), "float32", kept_room(SIZE), piece)
    return {"step": tile.step.tobytes(), **{what: a.tobytes() for what, a in tile.kept.items()}}


@pytest.mark.parametrize(
    ("strategy", "extra"),
    [
        (FedAvgM(), ()),
        (FedAdam(), ()),
        (FedYogi(), ()),
        (FedAdagrad(), ()),
        (Scaffold(), ("control",)),
        (chain(FedAdam(), Clip()), ()),
    ],
)
@pytest.mark.parametrize("piece", [4, 28, 3996, 4000])
def test_pieces_of_any_length_make_the_bytes_of_the_whole(strategy, extra, piece):
    state = strategy.init(draw(1), 8)
    mean = draw(2, np.float64)
    rounded = {what: draw(8) for what in extra}
    agg = replace(agg_of(mean.map(lambda a: a.astype(np.float32))), extra=rounded)
    after, following = strategy.server(state, agg, rng())
    wanted = {"step": after.mean["w"].tobytes()}
    wanted |= {f"state/{what}": t["w"].tobytes() for what, t in following.items()}
    wanted |= {f"down/{what}": t["w"].tobytes() for what, t in strategy.down(following).items()}

    assert taken(strategy, state, agg_of(mean, extra), piece) == wanted


def test_no_call_gets_more_than_a_piece():
    seen = []

    @dataclass(frozen=True)
    class Watching(Base):
        def server(self, s, agg, rng):
            seen.append(agg.mean["w"].size)
            return agg, s

    taken(Watching(), {}, agg_of(draw(1)), 1600)
    assert seen == [400, 400, 200]


def test_whoever_draws_gets_the_tile_in_one_piece():
    @dataclass(frozen=True)
    class Noisy(Base):
        elementwise: ClassVar[bool] = True

        def server(self, s, agg, rng):
            n = agg.mean["w"].size
            noise = rng.normal(size=n).astype(np.float32) * rng.uniform(size=n).astype(np.float32)
            return replace(agg, mean=agg.mean + Tensors({"w": noise})), s

    agg = agg_of(draw(1))
    whole = Noisy().server({}, agg, rng())[0].mean["w"].tobytes()
    assert taken(Noisy(), {}, agg, 400)["step"] == whole


@pytest.mark.parametrize("change", ["dtype", "name", "gone", "late"])
def test_a_state_that_changes_is_refused(change):
    calls = []

    @dataclass(frozen=True)
    class Changing(Base):
        def server(self, s: State, agg, rng):
            calls.append(1)
            m = s["m"]["w"]
            made: dict[str, State] = {
                "dtype": {"m": Tensors({"w": m.astype(np.float64)})},
                "name": {"m": Tensors({"w": m, "v": m})},
                "gone": {},
                "late": {"m": Tensors({"w": m})} if len(calls) == 1 else {},
            }
            return agg, made[change]

    with pytest.raises(BadBlob, match="state changed"):
        taken(Changing(), {"m": draw(4)}, agg_of(draw(1)), 2000)


def test_room_is_kept_from_tile_to_tile():
    room = kept_room(8)
    first = room("step", np.dtype(np.float32), 8)
    assert room("step", np.dtype(np.float32), 3).base is first.base
    assert room("step", np.dtype(np.float64), 3).dtype == np.float64
    assert room("state/m", np.dtype(np.float32), 8).base is not first.base
