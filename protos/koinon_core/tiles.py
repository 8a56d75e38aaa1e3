"""Tensors a tile at a time: nobody holds a whole model who need not.

A tile is up to 1 Mi consecutive elements of one flattened tensor. Whatever has tiles is a `Source` (a container behind
a reader, tensors in memory, a live module); whatever takes them is a `Sink`.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Protocol

import numpy as np

from koinon_core.schema import TILE, Field, Schema
from koinon_core.tensors import Array, Tensors

__all__ = [
    "TILE",
    "Except",
    "Gather",
    "Held",
    "Last",
    "Made",
    "Sink",
    "Source",
    "Tee",
    "copy",
    "gather",
    "spans",
]


def spans(field: Field) -> Iterator[tuple[int, int]]:
    """(offset, count) of each tile of a field; an empty tensor has none."""
    for offset in range(0, field.size, TILE):
        yield offset, min(TILE, field.size - offset)


class Source(Protocol):
    """Something that has tensors."""

    def values(self, name: str, offset: int) -> Array:
        """The elements of the tile of `name` that begins at element `offset`: one-dimensional, not to be written to,
        and to be used before this source is asked for another."""
        ...


class Sink(Protocol):
    """Something that takes tensors."""

    def put(self, name: str, offset: int, values: Array) -> None:
        """The tile of `name` that begins at `offset`. Of one tensor, tiles come in order. `values` are the caller's,
        who may write over them as soon as this returns."""
        ...


class Held:
    """A source over tensors in memory."""

    def __init__(self, tensors: Mapping[str, Array]):
        self._tensors = tensors

    def values(self, name: str, offset: int) -> Array:
        return self._tensors[name].reshape(-1)[offset : offset + TILE]


class Made:
    """A source whose tiles are computed when they are asked for."""

    def __init__(self, make: Callable[[str, int], Array]):
        self.values = make


class Gather:
    """A sink that keeps everything, for whoever can hold it."""

    def __init__(self, schema: Schema):
        self._arrays = {f.name: np.empty(f.shape, dtype=f.dtype) for f in schema}

    def put(self, name: str, offset: int, values: Array) -> None:
        self._arrays[name].reshape(-1)[offset : offset + values.size] = values

    @property
    def tensors(self) -> Tensors:
        return Tensors(self._arrays)


class Last:
    """A source that still has the last tile that it was asked for: for several readers that go along together."""

    def __init__(self, source: Source):
        self._source = source
        self._where: tuple[str, int] | None = None
        self._tile: Array = np.empty(0)

    def values(self, name: str, offset: int) -> Array:
        if self._where != (name, offset):
            self._tile, self._where = self._source.values(name, offset), (name, offset)
        return self._tile


class Except:
    """A sink that passes on all but some tensors."""

    def __init__(self, sink: Sink, names: Container[str]):
        self._sink, self._names = sink, names

    def put(self, name: str, offset: int, values: Array) -> None:
        if name not in self._names:
            self._sink.put(name, offset, values)


class Tee:
    """Sinks that take the same."""

    def __init__(self, *sinks: Sink):
        self._sinks = sinks

    def put(self, name: str, offset: int, values: Array) -> None:
        for sink in self._sinks:
            sink.put(name, offset, values)


def copy(source: Source, schema: Schema, sink: Sink) -> None:
    """Put all of a source's tensors into a sink."""
    for field in schema:
        for offset, _ in spans(field):
            sink.put(field.name, offset, source.values(field.name, offset))


def gather(source: Source, schema: Schema) -> Tensors:
    """All of a source's tensors in memory."""
    into = Gather(schema)
    copy(source, schema, into)
    return into.tensors
