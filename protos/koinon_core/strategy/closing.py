"""Closing a round, the server's half: the aggregate, the strategy's step, the next model, tile by tile.

An aggregate is all that a strategy's server half may know: that of an open round is made of its contributions here,
that of a secure round of a sum of lanes (koinon_core.secure.total). Pure: what it reads comes through sources, what
it makes goes into sinks, and but for strategies that are not elementwise nothing larger than a tile is held,
however large the model is. The simulator and the coordinator call these same functions."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from koinon_core import exact
from koinon_core.canonical import canonical, digest_of, sha256
from koinon_core.codec import Reader
from koinon_core.errors import BadBlob
from koinon_core.fold import Moved, Staged, Sum
from koinon_core.round.terms import Terms
from koinon_core.schema import Schema
from koinon_core.strategy.buffered import age_factor
from koinon_core.strategy.lora import LoraSum, projects
from koinon_core.strategy.pieces import CHANGED, kept_room, step_by_pieces
from koinon_core.strategy.protocol import Agg, Need, Strategy
from koinon_core.strategy.robust_sum import RobustSum, judged_of, robust_parts
from koinon_core.strategy.shape import Shape, keeps_shape, put_all, state_tile
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import TILE, Held, Sink, Source, gather, spans
from koinon_core.update import Head, Layout, unpack_state

__all__ = [
    "Aggregate", "Closing", "Contribution", "Into", "close", "digest_of_tensors", "evaluate", "heads_of", "judge",
    "metrics_of", "numbers_of", "staged", "step",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Contribution:
    """One accepted update at the coordinator. `reader` is None in a round that only evaluates. `age` is how many models
    were made since its device was given its work, `base` the model that it was given, where a strategy needs that."""

    client: str
    head: Head
    reader: Reader | None
    age: int = 0
    base: Source | None = None


@dataclass(frozen=True, slots=True)
class Into:
    """Where a round's outcome goes: the next model, the strategy's next state, and its part for devices."""

    model: Sink
    state: Sink
    down: Sink


@dataclass(frozen=True, slots=True)
class Closing:
    """What a round made, beside what went into its sinks: the metrics of its participants, the digest of the sum (its
    integers, and the numbers that were joined beside it), and the digest of the next model's tensors. `evaluated`
    is how many of them evaluated the round's model, `tuning` what the next secure round is sized by."""

    metrics: Mapping[str, float]
    sum: str
    weights: str = ""
    evaluated: int = 0
    tuning: str = ""


class Aggregate(Protocol):
    """What the updates of a round come to. `count` is of devices, `totals` are the strategy's plain sums, `metrics` as
    `metrics_of` has them, and `floored` names buffers that what was rounded must not make negative."""

    @property
    def count(self) -> int: ...
    @property
    def weight(self) -> float: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def totals(self) -> Mapping[str, float]: ...
    @property
    def evaluated(self) -> int: ...
    @property
    def tuning(self) -> str: ...
    @property
    def floored(self) -> frozenset[str]: ...
    def values(self, name: str, offset: int) -> Array:
        """A tile of a section of the update: its mean, or what its rule joins it to."""
        ...

    def digest(self) -> str:
        """Of the sum; taken once all tiles were."""
        ...


class _Opened:
    """The aggregate of an open round."""

    tuning = ""
    floored: frozenset[str] = frozenset()

    def __init__(
        self,
        strategy: Strategy,
        layout: Layout,
        terms: Terms,
        contributions: Sequence[Contribution],
        w: Source,
    ):
        given = aged(strategy, contributions, w) if terms.buffered else staged(strategy, contributions)
        self.metrics = metrics_of(contributions)
        self.totals = _totals(strategy, contributions)
        self.count, self.weight = len(given), float(sum(s.weight for s in given))
        self.evaluated = sum(bool(c.head.evaluation) for c in contributions)
        rules = robust_parts(strategy)
        self.sum: Sum | RobustSum | LoraSum = Sum(given, layout.update, layout.how)
        if rules:
            # The order of equals is by name, not of arrival; and nobody weighs more than another.
            given = [Staged(1, c.reader) for c in sorted(contributions, key=lambda c: c.client) if c.reader]
            self.weight = float(len(given))
            self.sum = RobustSum(rules, given, layout.update, layout.how, judged_of(layout))
        self._numbers = numbers_of(strategy, terms, contributions)

    def values(self, name: str, offset: int) -> Array:
        return self.sum.values(name, offset)

    def digest(self) -> str:
        return self.sum.digest(self._numbers)

    def project(self, by: LoraSum) -> None:
        """Take what `by` makes of the sum instead of it."""
        self.sum = by


def close(
    strategy: Strategy, layout: Layout, shape: Shape, terms: Terms, population: int, w: Source, state: Source,
    contributions: Sequence[Contribution], into: Into,
) -> Closing:  # fmt: skip
    """Sum the contributions and take the strategy's step. BadBlob if no finite model comes of it.

    The result depends on the set of contributions alone: not on their order, nor on threads.
    """
    under = layout.under(terms)
    total = _Opened(strategy, under, terms, contributions, w)
    if projects(strategy):
        total.project(LoraSum(total.sum, staged(strategy, contributions), under.params, under.how, w))
    made = step(strategy, layout, shape, terms, population, w, state, total, into)
    if not terms.buffered:
        return made
    ages = [c.age for c in contributions]
    about = {"updates": float(len(ages)), "staleness": sum(ages) / len(ages)}
    return replace(made, metrics={**made.metrics, **about})


def step(
    strategy: Strategy, layout: Layout, shape: Shape, terms: Terms, population: int, w: Source, state: Source,
    total: Aggregate, into: Into,
) -> Closing:  # fmt: skip
    """Take the strategy's step by the aggregate `total`. BadBlob if no finite model comes of it."""
    agg = _numbers(strategy, layout, total, population)
    if shape.tilewise:
        change: Source = _Tilewise(strategy, layout, shape, agg, total, state, into, _rng(terms))
    else:
        change = Held(_whole(strategy, layout, shape, agg, total, state, into, _rng(terms)))
    weights, squares = _write_model(layout, w, change, total, into.model)
    norm = math.sqrt(exact.join(squares))
    return Closing(
        {**total.metrics, "step.norm": norm}, total.digest(), weights, total.evaluated, total.tuning
    )


def evaluate(strategy: Strategy, terms: Terms, contributions: Sequence[Contribution]) -> Closing:
    """The same for a round that only evaluates."""
    evaluated = sum(bool(c.head.evaluation) for c in contributions)
    digest = sha256(numbers_of(strategy, terms, contributions))
    return Closing(metrics_of(contributions), digest, evaluated=evaluated)


def judge(total: Aggregate) -> Closing:
    """The same for the aggregate of a round that only evaluates."""
    return Closing(total.metrics, total.digest(), evaluated=total.evaluated)


def staged(strategy: Strategy, contributions: Sequence[Contribution]) -> list[Staged]:
    """The contributions with their integer weights."""
    by_examples = strategy.weight != "uniform"
    return [
        Staged(c.head.examples if by_examples else 1, c.reader) for c in contributions if c.reader is not None
    ]


def heads_of(contributions: Sequence[Contribution]) -> list[Head]:
    """What devices say beside their updates, without what they measured of older models than the newest."""
    return [replace(c.head, evaluation={}, evaluation_examples=0) if c.age else c.head for c in contributions]


def aged(strategy: Strategy, contributions: Sequence[Contribution], w: Source) -> list[Staged]:
    """The same in an asynchronous run, whose newest model is `w`: each counts as its age lets it, and where the
    strategy joins models, it is moved by how far the one that it began with is from the newest."""
    moves = Need.MODELS in strategy.needs

    def from_newest(base: Source) -> Moved:
        def moved(section: str, offset: int) -> Array | None:
            kind, _, name = section.partition("/")
            if kind != "delta":
                return None
            difference: Array = base.values(name, offset).astype(np.float64) - w.values(name, offset)
            return difference

        return moved

    shares = [age_factor(strategy, c.age) for c in contributions if c.reader is not None]
    bases = [c.base if moves else None for c in contributions if c.reader is not None]
    return [
        replace(one, share=share, moved=from_newest(base) if base is not None else None)
        for one, share, base in zip(staged(strategy, contributions), shares, bases, strict=True)
    ]


def numbers_of(strategy: Strategy, terms: Terms, contributions: Sequence[Contribution]) -> bytes:
    """The numbers that are joined beside the tensors, as the sum's digest covers them."""
    totals = _totals(strategy, contributions) if terms.kind == "train" else {}
    numbers = {"count": len(contributions), "metrics": metrics_of(contributions), "totals": totals}
    if terms.buffered:
        numbers["ages"] = [c.age for c in sorted(contributions, key=lambda c: c.client)]
    return canonical(numbers)


def _totals(strategy: Strategy, contributions: Sequence[Contribution]) -> dict[str, float]:
    return {n: math.fsum(c.head.totals[n] for c in contributions) for n in strategy.totals()}


def _numbers(strategy: Strategy, layout: Layout, total: Aggregate, population: int) -> Agg:
    """The aggregate without its tensors."""
    squares = math.nan
    if Need.SQ_NORM in strategy.needs:
        tiles = (total.values(f"delta/{f.name}", o) for f in layout.params for o, _ in spans(f))
        squares = exact.join(exact.dot(tile, tile) for tile in tiles)
    return Agg(
        mean=Tensors(), extra={}, totals=total.totals, count=total.count, weight=total.weight,
        population=population, sq_norm=squares,
    )  # fmt: skip


class _Tilewise:
    """The step of a strategy that treats every element alike, as a source: each tile is taken when it is asked for, and
    the state's tile goes on at the same time."""

    def __init__(
        self, strategy: Strategy, layout: Layout, shape: Shape, agg: Agg, total: Aggregate, state: Source, into: Into,
        rng: np.random.Generator,
    ):  # fmt: skip
        self._strategy, self._layout, self._shape, self._agg = strategy, layout, shape, agg
        self._total, self._state, self._into, self._rng = total, state, into, rng
        self._room = kept_room(min(TILE, max((f.size for f in layout.params), default=0)))

    def values(self, name: str, offset: int) -> Array:
        def part(prefix: str) -> Tensors:
            return Tensors({name: self._total.values(f"{prefix}/{name}", offset)})

        extra = {what: part(f"extra/{what}") for what, s in self._layout.extras.items() if name in s.by_name}
        agg = replace(self._agg, mean=part("delta"), extra=extra)
        before = state_tile(self._shape, self._state, name, offset)
        dtype = self._layout.params.by_name[name].dtype
        tile = step_by_pieces(self._strategy, name, before, agg, self._rng, dtype, self._room)
        for where, values in tile.kept.items():
            kind, _, what = where.partition("/")
            (self._into.state if kind == "state" else self._into.down).put(f"{what}/{name}", offset, values)
        return tile.step


def _whole(
    strategy: Strategy, layout: Layout, shape: Shape, agg: Agg, total: Aggregate, state: Source, into: Into,
    rng: np.random.Generator,
) -> Tensors:  # fmt: skip
    """The step of any other strategy, which gets the whole mean and its whole state at once."""
    mean = layout.split(gather(total, layout.update), agg.totals)
    agg = replace(agg, mean=mean.delta, extra=mean.extra, sq_norm=mean.delta.dot(mean.delta))
    after, next_state = strategy.server(unpack_state(gather(state, shape.state)), agg, rng)
    if not keeps_shape(next_state, shape):
        raise BadBlob(CHANGED)
    put_all(into.state, next_state)
    put_all(into.down, strategy.down(next_state))
    return after.mean


def _write_model(
    layout: Layout, w: Source, step: Source, total: Aggregate, model: Sink
) -> tuple[str, list[float]]:
    """Write the next model. Returns the digest of its tensors, and the step's squares, to be joined."""
    squares: list[float] = []
    digest = hashlib.sha256()
    for field in layout.model:
        name = field.name
        for offset, _ in spans(field):
            before = w.values(name, offset)
            if name in layout.params.by_name:
                change = step.values(name, offset)
                squares.append(exact.square(change))
                after = (before + change).astype(before.dtype, copy=False)
            elif name in layout.buffers.by_name:
                after = (before + total.values(f"delta/{name}", offset)).astype(before.dtype, copy=False)
                if name in total.floored:
                    after = np.maximum(after, 0)
            elif name in layout.counters.by_name:
                after = total.values(f"count/{name}", offset)
            else:  # each device's own: the model keeps what it began with
                after = before
            if after.dtype.kind == "f" and not np.all(np.isfinite(after)):
                raise BadBlob(f"the strategy's step made {name!r} NaN or Inf; lower its learning rate")
            model.put(name, offset, after)
            digest.update(_wire(after))
    return digest.hexdigest(), squares


def digest_of_tensors(source: Source, schema: Schema) -> str:
    """The SHA-256 over all tensors' elements, little-endian, in the schema's order: the same for the same model
    however it was encoded."""
    digest = hashlib.sha256()
    for field in schema:
        for offset, _ in spans(field):
            digest.update(_wire(source.values(field.name, offset)))
    return digest.hexdigest()


def _wire(values: Array) -> memoryview:
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data


def _rng(terms: Terms) -> np.random.Generator:
    key = int(digest_of(["server", terms.seed, terms.round])[:32], 16)
    return np.random.Generator(np.random.Philox(key=key))


def metrics_of(contributions: Sequence[Contribution]) -> dict[str, float]:
    """`train.NAME` and `eval.NAME`: means over the devices by their number of examples, rounded once. And
    `examples`, their sum; and where some of them stopped their work early, `partial`, the share of devices that did.
    What was measured of an older model is left out of those of this one."""
    sums: dict[str, tuple[list[float], list[int]]] = {}
    for c in contributions:
        for prefix, metrics, n in (
            ("train", c.head.training, c.head.examples),
            ("eval", c.head.evaluation, c.head.evaluation_examples),
        ):
            for name, value in metrics.items() if prefix == "train" or not c.age else ():
                values, weights = sums.setdefault(f"{prefix}.{name}", ([], []))
                values.append(value * n)
                weights.append(n)
    means = {name: math.fsum(v) / sum(n) for name, (v, n) in sorted(sums.items()) if sum(n)}
    examples = sum(c.head.examples for c in contributions)
    early = sum(c.head.partial for c in contributions)
    share = {"partial": early / len(contributions)} if early else {}
    return {"examples": float(examples), **share, **means} if examples else means
