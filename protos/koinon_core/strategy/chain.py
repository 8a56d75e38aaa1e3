"""Chains: parts that compose. Read down on the way out (device), up on the way back (coordinator).

    chain(FedAdam(lr=0.01), Prox(mu=0.1), Clip(1.0))

`finish` runs from first to last, so what stands last touches the upload last; `server` from last to first.
Gradient terms add up. At most one part sets the weight, and at most one chooses what is trained.
"""

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from koinon_core.errors import UsageError
from koinon_core.schema import Schema
from koinon_core.strategy.protocol import (
    Agg,
    Base,
    Need,
    Plan,
    Pull,
    Rng,
    State,
    Strategy,
    Trait,
    Up,
    Weight,
    Work,
)  # fmt: skip
from koinon_core.strategy.robust import Robust
from koinon_core.tensors import Tensors

__all__ = ["Chain", "chain", "follows_what_was_sent"]


def chain(*parts: Strategy) -> Strategy:
    """Compose `parts`; chains within are flattened, and a chain of one is that one."""
    flat: list[Strategy] = []
    for part in parts:
        flat += part.parts if isinstance(part, Chain) else (part,)
    if not flat:
        raise UsageError("a chain needs at least one strategy")
    return flat[0] if len(flat) == 1 else Chain(tuple(flat))


def follows_what_was_sent(part: Strategy) -> bool:
    """Whether a part keeps a state on devices that what the coordinator counted goes into."""
    return type(part).commit is not Base.commit and Trait.PRIVATE not in part.traits


@dataclass(frozen=True)
class Chain(Base):
    """The composition of `parts`, which is a strategy itself. Make it with `chain`."""

    parts: tuple[Strategy, ...]

    def __post_init__(self) -> None:
        setters = [type(p).__name__ for p in self.parts if p.weight is not None]
        if len(setters) > 1:
            raise UsageError(f"{' and '.join(setters)} both set the weight of an update; keep one of them")
        stateful = [type(p).__name__ for p in self.parts if follows_what_was_sent(p)]
        rescaling = [type(p).__name__ for p in self.parts if Trait.RESCALES in p.traits]
        if stateful and rescaling:
            raise UsageError(
                f"{stateful[0]} keeps a state on devices that follows what was sent, and {rescaling[0]} sends it in "
                "other units; keep one of them"
            )
        _check_robust(self.parts)
        _check_passes(self.parts)
        _check_measures(self.parts)
        twice = [n for n, k in Counter(n for p in self.parts for n in p.totals()).items() if k > 1]
        if twice:
            raise UsageError(f"two parts of the chain sum a total called {twice[0]!r}; rename one")

    @property
    def weight(self) -> Weight | None:  # type: ignore[override]  # a chain's is its parts', not its class's
        return next((p.weight for p in self.parts if p.weight is not None), None)

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]  # of its parts
        return frozenset().union(*(p.needs for p in self.parts))

    @property
    def elementwise(self) -> bool:  # type: ignore[override]  # of its parts
        return all(p.elementwise for p in self.parts)

    @property
    def traits(self) -> frozenset[Trait]:  # type: ignore[override]  # of its parts
        return frozenset().union(*(p.traits for p in self.parts))

    def local(self, schema: Schema) -> frozenset[str]:
        return frozenset().union(*(p.local(schema) for p in self.parts))

    def extra(self, schema: Schema) -> Mapping[str, Schema]:
        return _join([p.extra(schema) for p in self.parts], "sends an extra")

    def totals(self) -> Mapping[str, float]:
        return _join([p.totals() for p in self.parts], "sums a total")

    def init(self, w: Tensors, population: int) -> State:
        return _pack([p.init(w, population) for p in self.parts])

    def down(self, s: State) -> State:
        return _pack([p.down(_part(s, i)) for i, p in enumerate(self.parts)])

    def begin(self, d: State, down: State, w: Tensors) -> Plan:
        plans = [p.begin(_part(d, i), _part(down, i), w) for i, p in enumerate(self.parts)]
        chosen = [p.train for p in plans if p.train is not None]
        if len(chosen) > 1:
            raise UsageError("two parts of the chain choose what is trained; keep one of them")
        pull = Pull()
        for plan in plans:
            pull += plan.pull
        passes = tuple(
            replace(one, name=f"{i}.{one.name}") for i, plan in enumerate(plans) for one in plan.passes
        )
        return Plan(pull, passes, chosen[0] if chosen else None)

    def finish(self, d: State, down: State, work: Work, up: Up) -> Up:
        return self._descend(d, down, work, up)[-1]

    def _descend(self, d: State, down: State, work: Work, up: Up) -> list[Up]:
        """What comes into each part, and last what leaves the chain."""
        ups = [up]
        for i, part in enumerate(self.parts):
            ups.append(part.finish(_part(d, i), _part(down, i), _share(work, i), ups[-1]))
        return ups

    def commit(self, d: State, down: State, work: Work, up: Up, sent: Up) -> State:
        ups = self._descend(d, down, work, up)
        return _pack(
            [
                p.commit(_part(d, i), _part(down, i), _share(work, i), ups[i], sent)
                for i, p in enumerate(self.parts)
            ]
        )

    def discount(self, staleness: int) -> float:
        factor = 1.0
        for part in self.parts:
            factor *= part.discount(staleness)
        return factor

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        states: list[State] = [{}] * len(self.parts)
        for i in reversed(range(len(self.parts))):
            agg, states[i] = self.parts[i].server(_part(s, i), agg, rng)
        return agg, _pack(states)


_ONCE = {Trait.CHOOSES: "choose what is trained", Trait.PRIVATE: "keep a model of the device's own"}


def _check_passes(parts: tuple[Strategy, ...]) -> None:
    """UsageError for two parts that each have one way of training of their own."""
    for trait, what in _ONCE.items():
        twice = [type(part).__name__ for part in parts if trait in part.traits]
        if len(twice) > 1:
            raise UsageError(f"{' and '.join(twice)} both {what}; keep one of them")


def _check_measures(parts: tuple[Strategy, ...]) -> None:
    """UsageError where a norm goes into a sum, and the update is cut after that."""
    measured = ""
    for part in parts:
        if Trait.SHORTENS in part.traits and measured:
            name = type(part).__name__
            raise UsageError(
                f"{measured} adds up how long updates are before {name} cuts them; put {name} above {measured}"
            )
        if Trait.MEASURES in part.traits:
            measured = type(part).__name__


def _check_robust(parts: tuple[Strategy, ...]) -> None:
    """UsageError for what does not go together with rules that look at each update by itself."""
    rules = [part for part in parts if isinstance(part, Robust)]
    for above, below in itertools.pairwise(rules):
        if below.leaves_one:
            raise UsageError(
                f"{type(below).__name__} leaves one update, and {type(above).__name__} above it would have none to "
                "compare; keep one of them, or change their order"
            )
    if not rules:
        return
    others = [type(p).__name__ for p in parts if Need.SINGLE in p.needs and not isinstance(p, Robust)]
    if others:
        raise UsageError(
            f"{others[0]} and {type(rules[0]).__name__} both make one update of many; keep one of them"
        )
    name = type(rules[0]).__name__
    for part in parts:
        if part.totals():
            raise UsageError(
                f"{type(part).__name__} needs plain sums, which one liar can move as far as it likes, beside {name}; "
                "keep one of them"
            )
        if follows_what_was_sent(part):
            raise UsageError(
                f"{type(part).__name__} keeps a state on devices that follows what was counted, and {name} may leave "
                "an update out; keep one of them"
            )


def _pack(states: list[State]) -> State:
    return {f"{i}.{name}": tensors for i, s in enumerate(states) for name, tensors in s.items()}


def _part(s: State, i: int) -> State:
    mark = f"{i}."
    return {name.removeprefix(mark): tensors for name, tensors in s.items() if name.startswith(mark)}


def _share(work: Work, i: int) -> Work:
    """The part's own results of its passes."""
    return replace(work, results=_part(work.results, i))


def _join(maps: list[Mapping[str, Any]], does: str) -> Mapping[str, Any]:
    joined: dict[str, Any] = {}
    for one in maps:
        for name, value in one.items():
            if name in joined:
                raise UsageError(f"two parts of the chain each {does} called {name!r}; keep one of them")
            joined[name] = value
    return joined
