"""What a strategy keeps for a model, without making it: the schemas of its state and of what devices get of it.

A strategy that promises to treat every element alike (`elementwise`) is asked with two elements a tensor, so that
nobody holds a whole state who only wants to know its shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from koinon_core.schema import Field, Schema
from koinon_core.strategy.protocol import State, Strategy
from koinon_core.tensors import Tensors
from koinon_core.tiles import Sink, Source, gather, spans
from koinon_core.update import Layout, pack_state, state_schema

__all__ = ["Shape", "begin", "shape_of", "state_tile"]


@dataclass(frozen=True)
class Shape:
    """The schemas of a strategy's state and of its part for devices, as `NAME/TENSOR`. `tilewise` says that the
    server half may be called tile by tile."""

    state: Schema
    down: Schema
    tilewise: bool

    @cached_property
    def of_tensor(self) -> Mapping[str, Mapping[str, str]]:
        """Of every parameter, the parts of the state that have it, with their dtypes."""
        parts: dict[str, dict[str, str]] = {}
        for f in self.state:
            what, _, name = f.name.partition("/")
            parts.setdefault(name, {})[what] = f.dtype
        return parts

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """All parts of the state."""
        return tuple(dict.fromkeys(f.name.partition("/")[0] for f in self.state))


def shape_of(strategy: Strategy, layout: Layout, population: int) -> Shape:
    """The shape of what `strategy` keeps for the parameters of `layout`."""
    if strategy.elementwise:
        two = Tensors({f.name: np.ones(2, dtype=f.dtype) for f in layout.params})
        state = strategy.init(two, population)
        if all(t.keys() <= two.keys() and all(a.shape == (2,) for a in t.values()) for t in state.values()):
            down = strategy.down(state)
            return Shape(_grown(state, layout.params), _grown(down, layout.params), tilewise=True)
    state = strategy.init(layout.params.zeros(), population)
    return Shape(state_schema(state), state_schema(strategy.down(state)), tilewise=False)


def _grown(state: State, params: Schema) -> Schema:
    """The schema of a state of two elements a tensor, for tensors of their full size."""
    return Schema(
        tuple(replace(f, shape=params.by_name[f.name.partition("/")[2]].shape) for f in state_schema(state))
    )


def begin(
    strategy: Strategy, shape: Shape, layout: Layout, population: int, w: Source, state: Sink, down: Sink
) -> None:
    """Write the strategy's first state, and its part for devices, for the weights `w`."""
    if not shape.tilewise:
        first = strategy.init(gather(w, layout.params), population)
        put_all(state, first)
        put_all(down, strategy.down(first))
        return
    for field in layout.params if shape.state else ():
        for offset, _ in spans(field):
            first = strategy.init(Tensors({field.name: w.values(field.name, offset)}), population)
            put_tile(state, first, offset)
            put_tile(down, strategy.down(first), offset)


def state_tile(shape: Shape, source: Source, name: str, offset: int) -> State:
    """The tile of one parameter in every part of a state."""
    mine = shape.of_tensor.get(name, {})
    return {
        what: Tensors({name: source.values(f"{what}/{name}", offset)} if what in mine else {})
        for what in shape.parts
    }


def put_tile(sink: Sink, state: State, offset: int) -> None:
    """Write a tile of every tensor of `state`."""
    for what, tensors in state.items():
        for name, values in tensors.items():
            sink.put(f"{what}/{name}", offset, values)


def put_all(sink: Sink, state: State) -> None:
    """Write a whole state."""
    tensors = pack_state(state)
    for field in state_schema(state):
        flat = tensors[field.name].reshape(-1)
        for offset, count in spans(field):
            sink.put(field.name, offset, flat[offset : offset + count])


def keeps_shape(state: State, shape: Shape) -> bool:
    """Whether a whole state is as the strategy's first one was."""
    fields: tuple[Field, ...] = state_schema(state).fields
    return Schema(fields).digest == shape.state.digest
