"""Which groups of lanes a round has, by the run's layout and strategy: both ends know, before anything is sent.

    param       all trained parameters, end to end in the order of the update's schema: one rotation mixes all layers
    stat        float buffers (BatchNorm's statistics): exact, because a variance is no place for noise
    extra/WHAT  what the strategy averages beside the delta, with a step of its own
    total/NAME  a plain sum of the strategy's, exact
    numbers     examples, losses and metrics, exact

A round that only evaluates has `numbers` and nothing else. Integer buffers have no lanes: they stay on the device, or
are equal everywhere, which every device checks against the round's model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from koinon_core.errors import BadBlob
from koinon_core.ring import Ring
from koinon_core.ring.config import Rule
from koinon_core.round.terms import Kind
from koinon_core.schema import TILE, Field
from koinon_core.secure import numbers
from koinon_core.strategy.protocol import Strategy
from koinon_core.tensors import Array
from koinon_core.tiles import Source
from koinon_core.update import Layout

__all__ = ["Flat", "Part", "by_examples", "check_groups", "parts_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One group of lanes: `size` values of at most `bound`, joined by `rule`. `fields` are the sections of the update
    in it, end to end (none: they are numbers); `noisy` says that it may be rotated and rounded."""

    name: str
    size: int
    bound: float
    rule: Rule = "mean"
    fields: tuple[Field, ...] = ()
    noisy: bool = False


def by_examples(strategy: Strategy) -> bool:
    """Whether devices weigh by their number of examples."""
    return strategy.weight != "uniform"


def parts_of(
    strategy: Strategy, layout: Layout, kind: Kind, asked: numbers.Asked, max_examples: int
) -> tuple[Part, ...]:
    """The groups of a round, in their order."""
    found: list[Part] = []

    def add(name: str, prefix: str, names: Sequence[str], *, noisy: bool) -> None:
        sections = {f"{prefix}{n}" for n in names}
        fields = tuple(f for f in layout.update if f.name in sections and f.size)
        if fields:
            bound = max(layout.how[f.name].bound for f in fields)
            size = sum(f.size for f in fields)
            found.append(Part(name=name, size=size, bound=bound, fields=fields, noisy=noisy))

    if kind == "train":
        add("param", "delta/", layout.params.names(), noisy=True)
        add("stat", "delta/", layout.buffers.names(), noisy=False)
        for what, schema in layout.extras.items():
            add(f"extra/{what}", f"extra/{what}/", schema.names(), noisy=True)
        found += [
            Part(name=f"total/{name}", size=1, bound=float(bound), rule="sum")
            for name, bound in strategy.totals().items()
        ]
    labels = numbers.labels_of(kind, asked, examples=not by_examples(strategy))
    bound = numbers.MOST * max_examples
    found.append(Part(name="numbers", size=len(labels), bound=bound, rule="sum"))
    return tuple(found)


def check_groups(ring: Ring, parts: Sequence[Part], *, rotated: bool) -> None:
    """BadBlob unless a ring has these groups: a group that nobody agreed to would read what is nobody's business."""
    asked = [(g.name, g.size, g.rule, g.rotated) for g in ring.groups]
    wanted = [(p.name, p.size, p.rule, p.noisy and rotated) for p in parts]
    if asked != wanted:
        differing = next((a for a, w in zip(asked, wanted, strict=False) if a != w), ("their number",))
        raise BadBlob(
            f"the round's ring is not the one of this run's model, strategy and metrics (look at {differing[0]!r}); "
            "the coordinator must ask for what the run's config says"
        )


class Flat:
    """Sections of a source, read end to end as one vector. Keeps the tile that it read last."""

    def __init__(self, fields: Sequence[Field], source: Source, dtype: str):
        self._source, self._dtype = source, dtype
        self._names = [f.name for f in fields]
        self._starts = np.cumsum([0, *(f.size for f in fields)])
        self._last: tuple[str, int] | None = None
        self._tile: Array = np.empty(0)

    def __call__(self, start: int, stop: int) -> Array:
        out = np.empty(stop - start, self._dtype)
        at = start
        while at < stop:
            number = int(np.searchsorted(self._starts, at, side="right")) - 1
            element = at - int(self._starts[number])
            offset = element - element % TILE
            piece = self._values(self._names[number], offset)[element - offset : element - offset + stop - at]
            out[at - start : at - start + piece.size] = piece
            at += piece.size
        return out

    def _values(self, name: str, offset: int) -> Array:
        if self._last != (name, offset):
            self._tile, self._last = self._source.values(name, offset), (name, offset)
        return self._tile
