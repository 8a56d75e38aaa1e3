"""Who calls a strategy, when, and with what: the device half (`LocalHalf`) and the server half (`close`).

Both are pure. The session, the simulator and the coordinator call the same functions, so a strategy that works
in one works in all.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from koinon_core import codec, codecs
from koinon_core.canonical import canonical, digest_of, sha256
from koinon_core.codec import Reader
from koinon_core.errors import BadBlob, BadUpdate
from koinon_core.fold import Staged, fold, snap
from koinon_core.round.terms import Terms
from koinon_core.strategy.protocol import Agg, Plan, State, Strategy, Up, Work
from koinon_core.tensors import Tensors
from koinon_core.update import Head, Layout

__all__ = ["Closing", "Contribution", "LocalHalf", "Prepared", "close", "metrics_of"]

_OWN = "own"  # the key under which a device keeps the tensors that never leave it


@dataclass(frozen=True, slots=True)
class Prepared:
    """An update ready to send, and the device state that becomes final when it is counted."""

    blob: bytes
    digest: str
    head: Head
    pending: State
    norm: float


@dataclass(frozen=True, slots=True)
class LocalHalf:
    """The device half of one run's strategy."""

    strategy: Strategy
    layout: Layout

    def weights(self, w: Tensors, state: State) -> Tensors:
        """What the device trains from: the round's model, with its own tensors where it has some."""
        own = state.get(_OWN, Tensors())
        return Tensors({n: own.get(n, a) for n, a in w.items()})

    def begin(self, state: State, down: State, w: Tensors) -> Plan:
        return self.strategy.begin(_without_own(state), down, w.select(self.layout.params.by_name))

    def prepare(
        self, *, state: State, down: State, work: Work, start: Tensors, end: Tensors, terms: Terms, head: Head
    ) -> Prepared:
        """The update from weights `start` to `end`. BadUpdate, in one sentence, if it may not be sent."""
        layout, mine = self.layout, _without_own(state)
        delta = end.select(layout.params.by_name) - start.select(layout.params.by_name)
        learned = Up(delta)
        up = self.strategy.finish(mine, down, work, learned)
        buffers = end.select(layout.buffers.by_name) - start.select(layout.buffers.by_name)
        sections = layout.join(up, buffers, end.select(layout.counters.by_name))
        head = replace(head, totals=dict(up.totals))
        try:
            head.check(trained=True, max_examples=terms.max_examples, totals=self.strategy.totals())
            blob = codec.encode(sections, layout.update, terms.codec)
            exact = codecs.by_name(terms.codec).exact
            arrives = sections if exact else codec.decode(blob, layout.update)
            sent = layout.split(snap(arrives, terms.grid, terms.bound), head.totals)
        except BadBlob as error:
            raise BadUpdate(f"this update is not sent: {error}") from error
        committed = dict(self.strategy.commit(mine, down, work, learned, sent))
        if layout.local:
            committed[_OWN] = Tensors(end.select(layout.local), copy=True)
        return Prepared(blob, sha256(blob), head, committed, delta.norm())


def _without_own(state: State) -> State:
    return {n: t for n, t in state.items() if n != _OWN}


@dataclass(frozen=True, slots=True)
class Contribution:
    """One accepted update at the coordinator. `reader` is None in a round that only evaluates."""

    client: str
    head: Head
    reader: Reader | None


@dataclass(frozen=True, slots=True)
class Closing:
    """What a round made: the next model and the strategy's next state, the metrics of its participants, and the
    digest of the sum: its integers, and the numbers that were joined beside it."""

    model: Tensors
    state: State
    metrics: Mapping[str, float]
    sum: str


def close(
    strategy: Strategy, layout: Layout, terms: Terms, w: Tensors, state: State, population: int,
    contributions: Sequence[Contribution],
) -> Closing:  # fmt: skip
    """Sum the contributions and take the strategy's step. BadBlob if no finite model comes of it.

    The result depends on the set of contributions alone: not on their order, nor on threads.
    """
    metrics = metrics_of(contributions)
    trained = terms.kind == "train"
    totals = {n: math.fsum(c.head.totals[n] for c in contributions) for n in strategy.totals() if trained}
    numbers = canonical({"count": len(contributions), "metrics": metrics, "totals": totals})
    if not trained:
        return Closing(w, state, metrics, sha256(numbers))
    by_examples = strategy.weight != "uniform"
    staged = [
        Staged(c.head.examples if by_examples else 1, c.reader) for c in contributions if c.reader is not None
    ]
    digest = hashlib.sha256(numbers)
    mean = Tensors(fold(staged, layout.update, terms.grid, terms.bound, digest.update))
    agg = _aggregate(layout, mean, totals, len(staged), sum(s.weight for s in staged), population)
    step, next_state = _server(strategy, state, agg, _rng(terms))
    model = _apply(layout, w, step, mean)
    metrics["step.norm"] = step.norm()
    return Closing(model, next_state, metrics, digest.hexdigest())


def _aggregate(
    layout: Layout, mean: Tensors, totals: Mapping[str, float], count: int, weight: int, population: int
) -> Agg:
    up = layout.split(mean, totals)
    return Agg(
        mean=up.delta, extra=up.extra, totals=totals, count=count, weight=float(weight),
        population=population, sq_norm=up.delta.dot(up.delta),
    )  # fmt: skip


def _server(strategy: Strategy, state: State, agg: Agg, rng: np.random.Generator) -> tuple[Tensors, State]:
    """The strategy's step: tensor by tensor where it allows it, so that its temporaries stay small."""
    if not strategy.elementwise:
        after, next_state = strategy.server(state, agg, rng)
        return after.mean, next_state
    steps: dict[str, np.ndarray] = {}
    states: dict[str, dict[str, np.ndarray]] = {what: {} for what in state}
    for name in agg.mean:
        share = replace(
            agg,
            mean=agg.mean.select([name]),
            extra={what: t.select([name]) for what, t in agg.extra.items()},
        )
        after, part = strategy.server({what: t.select([name]) for what, t in state.items()}, share, rng)
        steps[name] = after.mean[name]
        for what, tensors in part.items():
            states[what][name] = tensors[name]
    return Tensors(steps), {what: Tensors(arrays) for what, arrays in states.items()}


def _apply(layout: Layout, w: Tensors, step: Tensors, mean: Tensors) -> Tensors:
    model = dict(w)
    for name in layout.params.by_name:
        model[name] = (w[name] + step[name]).astype(w[name].dtype, copy=False)
    for name in layout.buffers.by_name:
        model[name] = (w[name] + mean[f"delta/{name}"]).astype(w[name].dtype, copy=False)
    for name in layout.counters.by_name:
        model[name] = mean[f"count/{name}"]
    for name, array in model.items():
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise BadBlob(f"the strategy's step made {name!r} NaN or Inf; lower its learning rate")
    return Tensors(model)


def _rng(terms: Terms) -> np.random.Generator:
    key = int(digest_of(["server", terms.seed, terms.round])[:32], 16)
    return np.random.Generator(np.random.Philox(key=key))


def metrics_of(contributions: Sequence[Contribution]) -> dict[str, float]:
    """`train.NAME` and `eval.NAME`: means over the devices by their number of examples, rounded once. And
    `examples`, their sum."""
    sums: dict[str, tuple[list[float], list[int]]] = {}
    for c in contributions:
        for prefix, metrics, n in (
            ("train", c.head.training, c.head.examples),
            ("eval", c.head.evaluation, c.head.evaluation_examples),
        ):
            for name, value in metrics.items():
                values, weights = sums.setdefault(f"{prefix}.{name}", ([], []))
                values.append(value * n)
                weights.append(n)
    means = {name: math.fsum(v) / sum(n) for name, (v, n) in sorted(sums.items()) if sum(n)}
    examples = sum(c.head.examples for c in contributions)
    return {"examples": float(examples), **means} if examples else means
