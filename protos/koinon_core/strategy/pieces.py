"""The step of an elementwise strategy, a piece of a tile at a time.

An expression over a whole tile makes an array of a million elements for every operator in it. The allocator takes
such arrays fresh from the system and gives them back, so that a processor mostly waits for pages to be cleared. Those
of a piece stay in the allocator's hands and in a processor's cache. The bytes are the same: a strategy that promises to
treat every element alike may be called with any part of a tensor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from koinon_core.errors import BadBlob
from koinon_core.strategy.protocol import Agg, Rng, State, Strategy
from koinon_core.tensors import Array, Tensors

__all__ = ["CHANGED", "PIECE", "Room", "Tile", "kept_room", "step_by_pieces"]

PIECE = (
    512 << 10
)  # bytes of an array: some of them fit into a cache, and what Python takes for each piece is little
_LEARNT = 8 << 20
CHANGED = "the strategy's state changed its names, shapes or dtypes; its server half must keep them"

Room = Callable[[str, np.dtype[Any], int], Array]
"""An array for so many elements of a result, by what that is: "step", "state/WHAT" or "down/WHAT"."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile in the arrays that a room gave: the step, and by "state/WHAT" and "down/WHAT" the next state and its part
    for devices."""

    step: Array
    kept: Mapping[str, Array]


def kept_room(most: int) -> Room:
    """Room for up to `most` elements that is kept: what one tile left there is gone with the next."""
    arrays: dict[tuple[str, np.dtype[Any]], Array] = {}

    def room(what: str, dtype: np.dtype[Any], count: int) -> Array:
        if (what, dtype) not in arrays:
            arrays[what, dtype] = np.empty(most, dtype)
        return arrays[what, dtype][:count]

    return room


def step_by_pieces(
    strategy: Strategy, name: str, state: State, agg: Agg, rng: Rng, dtype: str, room: Room, piece: int = PIECE
) -> Tile:  # fmt: skip
    """The step for a tile of `name`, which `state` and `agg` hold; means are rounded to `dtype`, the model's. BadBlob
    where the next state has other parts or dtypes than `state`. Whoever draws gets the tile in one piece, because the
    order of what is drawn is part of the result."""
    _keep_pages()
    size = agg.mean[name].size
    widest = max(np.dtype(dtype).itemsize, *(a.itemsize for t in state.values() for a in t.values()), 1)
    before = rng.bit_generator.state
    tile = _in_pieces(strategy, name, state, agg, rng, dtype, room, max(1, piece // widest))
    if size * widest > piece and _differ(before, rng.bit_generator.state):
        rng.bit_generator.state = before
        tile = _in_pieces(strategy, name, state, agg, rng, dtype, room, size)
    return tile


def _in_pieces(
    strategy: Strategy, name: str, state: State, agg: Agg, rng: Rng, dtype: str, room: Room, count: int
) -> Tile:  # fmt: skip
    size, kinds = agg.mean[name].size, _kinds(state, name)
    into: dict[str, Array] = {}

    def cut(tensors: Tensors, part: slice) -> Tensors:
        return Tensors.own({n: a[part] for n, a in tensors.items()})

    def mean(tensors: Tensors, part: slice) -> Tensors:
        return Tensors.own({name: tensors[name][part].astype(dtype, copy=False)})

    def put(what: str, part: slice, values: Array) -> None:
        if what not in into:
            into[what] = room(what, values.dtype, size)
        into[what][part] = values

    for at in range(0, size, count):
        part = slice(at, at + count)
        piece = Agg(
            mean=mean(agg.mean, part), extra={what: mean(t, part) for what, t in agg.extra.items()}, totals=agg.totals,
            count=agg.count, weight=agg.weight, population=agg.population, sq_norm=agg.sq_norm,
        )  # fmt: skip
        after, following = strategy.server({what: cut(t, part) for what, t in state.items()}, piece, rng)
        if _kinds(following, name) != kinds:
            raise BadBlob(CHANGED)
        put("step", part, after.mean[name])
        for what, tensors in following.items():
            if tensors:
                put(f"state/{what}", part, tensors[name])
        for what, tensors in strategy.down(following).items():
            if tensors:
                put(f"down/{what}", part, tensors[name])
    return Tile(into.pop("step"), into)


def _keep_pages() -> None:
    """glibc gives blocks of 128 KiB and more back to the system at once, until it has seen a larger one come and go;
    from then on it keeps what is smaller. This one is never touched, and costs a few microseconds."""
    np.empty(_LEARNT, np.uint8)


def _kinds(state: State, name: str) -> dict[str, object]:
    """The dtype of `name` in the parts of a state that have it; other names are told as strangers."""
    return {what: a.dtype if n == name else n for what, t in state.items() for n, a in t.items()}


def _differ(a: object, b: object) -> bool:
    """Of the states of a generator: dicts of numbers and arrays."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() != b.keys() or any(_differ(a[key], b[key]) for key in a)
    return not np.array_equal(np.asarray(a), np.asarray(b))
