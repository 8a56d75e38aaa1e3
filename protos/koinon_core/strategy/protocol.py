"""The shape of a strategy: a frozen dataclass whose fields are its recipe, with two halves in one object.

The device half plans the local work (`begin`), turns what was learned into what is sent (`finish`), and makes
its own state final once the update was counted (`commit`). The server half keeps its state (`init`), says what
of it devices get (`down`), and turns the *sum* of updates into a step (`server`). It never sees one device's
update, so it is honest under secure aggregation by its type.

Three states are kept apart: the server's, the part of it that devices get, and a device's own. And device state
follows what was *sent*, not what was computed: clipping and lossy codecs change the upload, and a state that
ignores this drifts (SCAFFOLD on a toy problem ends at 0.776 or 4.85 instead of 0.867).

A strategy sees the trained parameters only. BatchNorm statistics and counters go along by their own rules
(weighted mean, largest value): an adaptive step on a variance would make it negative.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from koinon_core.schema import Schema
from koinon_core.tensors import Tensors

__all__ = [
    "Agg", "Base", "Keys", "Need", "Pass", "Plan", "Pull", "Rng", "State", "Strategy", "Trait", "Up", "Weight", "Work",
]  # fmt: skip

State = Mapping[str, Tensors]
"""A strategy's state: named sets of tensors, so that it can be stored and sent like any model."""
Weight = Literal["examples", "uniform"]
Rng = np.random.Generator
_NOTHING: State = {}


class Need(Enum):
    """What a strategy cannot do without; checked when a run is submitted or a task begins."""

    POPULATION = "population"  # the number of all devices, not only those in a round
    NORM = "norm"  # |a|_1 of the local optimizer: plain or momentum SGD only
    MEMORY = "memory"  # a device's own state is part of the server's: one that lost it may not go on
    LOSS_BEFORE = "loss_before"  # the loss at the round's model, before training
    SINGLE = "single"  # each update by itself, which only open runs have
    WHOLE = "whole"  # all of a round's training: what was stopped early would be taken for something else
    SQ_NORM = "sq_norm"  # Agg.sq_norm, which costs an elementwise strategy a second reading of the updates
    MODELS = "models"  # Agg.mean is of devices' models less the newest one, however old the one is that they began with


class Trait(Enum):
    """What a part of a chain does that its neighbours must know of."""

    RESCALES = (
        "rescales"  # `finish` sends other units than weights: no part may keep a state that follows them
    )
    PRIVATE = "private"  # what `commit` keeps does not follow what was sent: it never looks at `sent`
    CHOOSES = "chooses"  # `begin` names what is trained
    MEASURES = "measures"  # a total depends on the update's norm
    SHORTENS = "shortens"  # `finish` may change that norm
    KERNELS = "kernels"  # what is not the same on every CPU is called elsewhere than in `server`


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of tensors, by shell patterns: those that match one, or with `others` those that match none."""

    patterns: tuple[str, ...]
    others: bool = False

    def __contains__(self, name: object) -> bool:
        return any(fnmatchcase(str(name), pattern) for pattern in self.patterns) is not self.others


@dataclass(frozen=True, slots=True)
class Pull:
    """A gradient term as data: the local optimizer uses g + mu (y - w) + shift, with w the round's model."""

    mu: float = 0.0
    shift: Tensors | None = None

    def __add__(self, other: "Pull") -> "Pull":
        shifts = [s for s in (self.shift, other.shift) if s is not None]
        return Pull(
            self.mu + other.mu, shifts[0] + shifts[1] if len(shifts) == 2 else next(iter(shifts), None)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One more run of the owner's loop whose result is never sent. `start` None goes on from the last weights;
    with `measure`, the weights stay as they are and the result is the mean gradient. With `keep`, what a pass before
    the training made of the weights stays in them. `train` and `epochs` (the task's) where they differ from the
    training's. `name` finds the result in `Work.results`."""

    name: str
    when: Literal["before", "after"] = "after"
    start: Tensors | None = None
    pull: Pull = Pull()
    measure: bool = False
    keep: bool = False
    train: Keys | None = None
    epochs: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What the device does in this round: its gradient term, further passes, and what is trained (None: all)."""

    pull: Pull = Pull()
    passes: tuple[Pass, ...] = ()
    train: Keys | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the local training was, as the optimizer hook recorded it. `norm` is FedNova's |a|_1 (NaN where the
    optimizer has none, and 0 where no step was seen; `why` says why), `lr` the first step's learning rate, `mu` that
    of the gradient term, `clip` the norm to which a secure run cuts what is sent, `results` what each pass gave, by its
    name."""

    examples: int
    steps: int = 0
    lr: float = 0.0
    norm: float = 0.0
    mu: float = 0.0
    clip: float = math.inf
    loss_before: float | None = None
    results: Mapping[str, Tensors] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Up:
    """What a device contributes; all of it is summed, nothing is seen alone. `delta` and `extra` are averaged
    by weight, `totals` are plain sums."""

    delta: Tensors
    extra: Mapping[str, Tensors] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agg:
    """What the server half gets. `mean` and `extra` are weighted means, `totals` sums, `count` the devices in
    them, `population` all there are (0: not known), `sq_norm` the squared norm of the whole mean (NaN for an
    elementwise strategy that does not need it)."""

    mean: Tensors
    extra: Mapping[str, Tensors]
    totals: Mapping[str, float]
    count: int
    weight: float
    population: int
    sq_norm: float


@runtime_checkable
class Strategy(Protocol):
    """What the runner calls. Derive from `Base`, which gives every method but the one you write a default."""

    @property
    def weight(self) -> Weight | None: ...
    @property
    def needs(self) -> frozenset[Need]: ...
    @property
    def elementwise(self) -> bool: ...
    @property
    def traits(self) -> frozenset[Trait]: ...
    def local(self, schema: Schema) -> frozenset[str]: ...
    def extra(self, schema: Schema) -> Mapping[str, Schema]: ...
    def totals(self) -> Mapping[str, float]: ...
    def init(self, w: Tensors, population: int) -> State: ...
    def down(self, s: State) -> State: ...
    def begin(self, d: State, down: State, w: Tensors) -> Plan: ...
    def finish(self, d: State, down: State, work: Work, up: Up) -> Up: ...
    def commit(self, d: State, down: State, work: Work, up: Up, sent: Up) -> State: ...
    def discount(self, staleness: int) -> float: ...
    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]: ...


@dataclass(frozen=True)
class Base:
    """Defaults for every method of `Strategy`: the plain weighted mean, with no state anywhere.

    Set `revision` up whenever the same fields begin to mean something else: a device with another revision
    declines. `weight` is None for parts that leave the weighting to another part of the chain. `elementwise`
    promises that `init`, `down` and `server` treat every element alike, so that they may be called with any part of a
    tensor, flattened: the coordinator then never holds more than a tile, however large the model is. Without that
    promise they get whole tensors, and all of them at once. `traits` says what other parts of a chain must know
    (`Trait`), `needs` what the strategy cannot do without (`Need`).
    """

    revision: ClassVar[int] = 1
    weight: ClassVar[Weight | None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()
    elementwise: ClassVar[bool] = False
    traits: ClassVar[frozenset[Trait]] = frozenset()

    def local(self, schema: Schema) -> frozenset[str]:
        """Names that never leave the device."""
        return frozenset()

    def extra(self, schema: Schema) -> Mapping[str, Schema]:
        """What is sent beside the delta, by name; `schema` holds the parameters that leave the device."""
        return {}

    def totals(self) -> Mapping[str, float]:
        """Names of the plain sums, each with the largest |value| one device may add."""
        return {}

    def init(self, w: Tensors, population: int) -> State:
        """The server's state before the first round."""
        return _NOTHING

    def down(self, s: State) -> State:
        """The part of the server's state that devices get with the model."""
        return _NOTHING

    def begin(self, d: State, down: State, w: Tensors) -> Plan:
        """What the device does. `d` is its own state, empty the first time."""
        return Plan()

    def finish(self, d: State, down: State, work: Work, up: Up) -> Up:
        """What is sent, made of what the parts above made of what was learned."""
        return up

    def commit(self, d: State, down: State, work: Work, up: Up, sent: Up) -> State:
        """The device's next state. `up` is what came into `finish` here, `sent` the whole update exactly as the
        coordinator decodes it. Kept pending, and made final when the update was counted."""
        return d

    def discount(self, staleness: int) -> float:
        """The factor for an update that is `staleness` versions old (asynchronous runs)."""
        return 1.0

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        """The step, as `agg.mean` of the returned Agg (the new model is w + mean), and the next state. `rng` is
        the run's own, seeded by its seed and the round: reproducible, so never for noise that must be secret."""
        return agg, s
