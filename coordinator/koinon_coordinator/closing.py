"""Closing a round: the staged updates in, the next model out, durable before any row names it.

Model, state and updates are read and written tile by tile, so that a round costs the same memory however large its
model and however many its devices. Runs in a worker thread; numpy and the codecs release the GIL for most of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property

from koinon_coordinator.scratch import Room
from koinon_coordinator.store import EVALUATED, Content, Drafts, ModelVersion, Store, UpdateRow
from koinon_core.codec import Reader, Writer, as_they_are
from koinon_core.flow.spread import spread_of
from koinon_core.round.taken import Taken
from koinon_core.round.terms import Terms
from koinon_core.schema import Schema
from koinon_core.secure.aged import aged
from koinon_core.secure.apart import Sums, aggregate
from koinon_core.spec import RunSpec
from koinon_core.strategy.closing import (
    Aggregate,
    Closing,
    Contribution,
    Into,
    close,
    digest_of_tensors,
    evaluate,
    heads_of,
    judge,
    step,
)  # fmt: skip
from koinon_core.strategy.protocol import Need, Strategy
from koinon_core.strategy.shape import Shape, begin, shape_of
from koinon_core.tiles import Held, Last, Sink, Source, Tee, copy
from koinon_core.update import Layout
from koinon_core.wire.convert import INLINE

__all__ = [
    "Closed", "Plan", "close_round", "close_secure", "contributions_of", "first_version", "open_model", "open_update",
]  # fmt: skip

_NOTHING: Mapping[str, float] = {}
_NOBODY: Mapping[str, Taken] = {}
_WORTH = 0.9  # of a model's bytes: a difference that is larger is not worth a second content


@dataclass(frozen=True)
class Plan:
    """What a run's rounds have in common."""

    spec: RunSpec
    strategy: Strategy
    layout: Layout

    @classmethod
    def of(cls, spec: RunSpec) -> "Plan":
        return cls(spec, *spec.check())

    @property
    def population(self) -> int:
        return self.spec.population or 0

    @cached_property
    def shape(self) -> Shape:
        """What the strategy keeps."""
        return shape_of(self.strategy, self.layout, self.population)


@dataclass(frozen=True, slots=True)
class Closed:
    """A round's outcome, the digest of its sum, and the contents that must be written with it. `evaluated` is how many
    of its devices evaluated the model that it began with."""

    version: ModelVersion
    metrics: dict[str, float]
    sum: str
    contents: list[Content]
    evaluated: int = 0

    @property
    def tuning(self) -> str:
        """What the next secure round is sized by."""
        return self.version.tuning


class _Container:
    """A container on its way into a content of its own, which nobody wants if it has no tensors."""

    def __init__(
        self, drafts: Drafts, stack: ExitStack, schema: Schema, codec: str, base: Source | None = None,
        base_digest: str = "",
    ):  # fmt: skip
        self._draft = stack.enter_context(drafts())
        self._wanted = bool(schema)
        self.sink = Writer(self._draft.write, schema, as_they_are(codec), base=base, base_digest=base_digest)

    def finish(self) -> list[Content]:
        if not self._wanted:
            return []
        self.sink.close()
        return [self._draft.finish()]


def _finish(store: Store, containers: Iterable[_Container]) -> list[list[Content]]:
    """All of these as contents; none of them is held on to if one cannot be."""
    done: list[list[Content]] = []
    try:
        done.extend(one.finish() for one in containers)
    except BaseException:
        store.unpin(content for contents in done for content in contents)
        raise
    return done


def _name(contents: list[Content]) -> str:
    return contents[0][0] if contents else ""


def open_model(store: Store, plan: Plan, version: ModelVersion) -> Reader:
    """A reader over a model, wherever its bytes are. StoreError if they are not there."""
    return Reader(*store.window(version.digest), plan.spec.model, "the model")


def open_update(store: Store, plan: Plan, run: str, update: UpdateRow) -> Reader:
    """A reader over an update, wherever its bytes are. BadBlob if they are not an update of this run."""
    return Reader(store.update_window(run, update), update.size, plan.layout.update, "the update")


def first_version(store: Store, plan: Plan, model: Source) -> tuple[ModelVersion, list[Content]]:
    """The model that a run begins with, and its strategy's first state. BadBlob if the model holds NaN or Inf."""
    with ExitStack() as stack:
        written, state, down = _three(store.draft, stack, plan)
        copy(model, plan.spec.model, written.sink)
        begin(plan.strategy, plan.shape, plan.layout, plan.population, model, state.sink, down.sink)
        made, kept, given = _finish(store, (written, state, down))
    weights = digest_of_tensors(model, plan.spec.model)
    return ModelVersion(0, _name(made), _name(kept), _name(given), weights), [*made, *kept, *given]


def _three(drafts: Drafts, stack: ExitStack, plan: Plan) -> tuple[_Container, _Container, _Container]:
    """Where the next model, the strategy's state and its part for devices go."""
    codec = plan.spec.snapshots
    return (
        _Container(drafts, stack, plan.spec.model, codec),
        _Container(drafts, stack, plan.shape.state, codec),
        _Container(drafts, stack, plan.shape.down, codec),
    )


def contributions_of(
    store: Store, plan: Plan, terms: Terms, staged: Sequence[UpdateRow], taken: Mapping[str, Taken] = _NOBODY
) -> list[Contribution]:
    """The accepted updates, by client, each behind a reader. `taken` says what those of a buffered round worked on."""
    trained = terms.kind == "train"
    moves = Need.MODELS in plan.strategy.needs
    made: list[Contribution] = []
    for u in sorted(staged, key=lambda u: u.client):
        one = Contribution(u.client, u.head, open_update(store, plan, terms.run, u) if trained else None)
        if u.client in taken:
            work = taken[u.client]
            base = _given(store, plan, work) if moves else None
            one = replace(one, age=terms.version - work.version, base=base)
        made.append(one)
    return made


def _given(store: Store, plan: Plan, work: Taken) -> Source:
    """The model that a device of a buffered round was given."""
    return Reader(*store.window(work.model), plan.spec.model, "an older model")


def close_round(
    store: Store, plan: Plan, terms: Terms, version: ModelVersion, staged: Sequence[UpdateRow],
    drafts: Drafts | None = None, *, delta: bool = False, taken: Mapping[str, Taken] = _NOBODY,
) -> Closed:  # fmt: skip
    """Sum the `staged` updates and take the strategy's step. Raises BadBlob if no finite model comes of it. `drafts`
    takes what comes of it (default: the store's own); `replay` only looks at it. With `delta`, the difference to the
    model before is made too, for devices that hold that, if it is smaller than the model."""
    contributions = contributions_of(store, plan, terms, staged, taken)
    spread = spread_of(heads_of(contributions)) if plan.spec.spreads else {}
    if terms.kind == "evaluate":
        return _judged(version, evaluate(plan.strategy, terms, contributions), spread)

    def take(w: Source, state: Source, into: Into) -> Closing:
        return close(
            plan.strategy, plan.layout, plan.shape, terms, plan.population, w, state, contributions, into
        )

    closed = _stepped(store, plan, terms, version, drafts or store.draft, delta, take)
    if terms.buffered:  # the rows of updates do not say in which buffer an evaluation came
        spread = {**spread, EVALUATED: float(closed.evaluated)}
    return replace(closed, metrics={**spread, **closed.metrics})


def close_secure(
    store: Store, plan: Plan, terms: Terms, version: ModelVersion, sums: Sums, drafts: Drafts | None = None, *,
    delta: bool = False, work: Taken | None = None, agreed: Terms | None = None,
) -> Closed:  # fmt: skip
    """The same for sums of lanes that no mask is on any more, each with its devices: one, or where a rule is taken
    between groups one of each. BadBlob too where they are larger than the round was sized for: its sentence then begins
    with "overflowed:". In a buffered round `work` is what the devices were given, all of them, and `agreed` the terms
    that it was given under."""

    def of(w: Source, room: Room) -> Aggregate:
        total = aggregate(plan.strategy, plan.layout, agreed or terms, sums, w, room)
        if work is None:
            return total
        base = _given(store, plan, work) if Need.MODELS in plan.strategy.needs else None
        return aged(plan.strategy, total, terms, work.version, w, base, version.tuning)

    with Room(store.folder) as room:
        if terms.kind == "evaluate":
            return _judged(version, judge(of(Held({}), room)))

        def take(w: Source, state: Source, into: Into) -> Closing:
            return step(
                plan.strategy, plan.layout, plan.shape, terms, plan.population, w, state, of(w, room), into
            )

        return _stepped(store, plan, terms, version, drafts or store.draft, delta, take)


def _judged(version: ModelVersion, made: Closing, spread: Mapping[str, float] = _NOTHING) -> Closed:
    return Closed(version, {**spread, **made.metrics}, made.sum, [], made.evaluated)


def _stepped(
    store: Store, plan: Plan, terms: Terms, version: ModelVersion, drafts: Drafts, delta: bool,
    take: Callable[[Source, Source, Into], Closing],
) -> Closed:  # fmt: skip
    """What comes of a step that `take` makes from the model and the state, as contents."""
    w: Source = Last(open_model(store, plan, version))
    state: Source = Held({})
    if version.state:
        state = Reader(*store.window(version.state), plan.shape.state, "the strategy's state")
    with ExitStack() as stack:
        model, kept, given = _three(drafts, stack, plan)
        sinks: list[Sink] = [model.sink]
        change = None
        if delta and version.weights and plan.spec.model.nbytes > INLINE:
            change = _Container(drafts, stack, plan.spec.model, plan.spec.snapshots, w, version.weights)
            sinks.append(change.sink)
        into = Into(Tee(*sinks), kept.sink, given.sink)
        made = take(w, state, into)
        wanted = [model, kept, given]
        if change is not None and change.sink.size < _WORTH * model.sink.size:
            wanted.append(change)
        written = _finish(store, wanted)
    digest, kept_as, given_as, delta_as = *map(_name, written), *[""] * (4 - len(written))
    base = version.weights if delta_as else ""
    after = ModelVersion(terms.round, digest, kept_as, given_as, made.weights, delta_as, base, made.tuning)
    contents = [content for one in written for content in one]
    return Closed(after, dict(made.metrics), made.sum, contents, made.evaluated)
