"""Closing a round: the staged updates in, the next model out, durable before any row names it.

Runs in a worker thread; numpy and the codecs release the GIL for most of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from koinon_coordinator.store import ModelVersion, Store, UpdateRow
from koinon_core import codec
from koinon_core.codec import Reader
from koinon_core.errors import BadBlob
from koinon_core.round.terms import Terms
from koinon_core.spec import RunSpec
from koinon_core.strategy.protocol import State, Strategy
from koinon_core.strategy.runner import Contribution, close
from koinon_core.tensors import Tensors
from koinon_core.update import Layout, pack_state, state_schema, unpack_state

__all__ = ["Closed", "Plan", "close_round", "first_version", "open_update"]

_MODEL_CODEC = "lossless"
Contents = list[tuple[str, int, bytes | None]]
Keep = Callable[[bytes], tuple[str, int, bytes | None]]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Closed:
    """A round's outcome, the digest of its sum, and the contents that must be written with it."""

    version: ModelVersion
    metrics: dict[str, float]
    sum: str
    contents: Contents


def _state(store: Store, digest: str, like: State) -> State:
    """A strategy's state, checked against the one that it began with."""
    if not digest:
        return like
    return unpack_state(codec.decode(store.bytes(digest), state_schema(like), "the strategy's state"))


def _keep(keep: Keep, contents: Contents, state: State) -> str:
    if not state:
        return ""
    content = keep(codec.encode(pack_state(state), state_schema(state), _MODEL_CODEC))
    contents.append(content)
    return content[0]


def first_version(store: Store, plan: Plan, model: Tensors) -> tuple[ModelVersion, Contents]:
    """The model that a run begins with, and its strategy's first state."""
    content = store.put(codec.encode(model, plan.spec.model, _MODEL_CODEC))
    contents: Contents = [content]
    state = plan.strategy.init(model.select(plan.layout.params.by_name), plan.population)
    down = _keep(store.put, contents, plan.strategy.down(state))
    return ModelVersion(0, content[0], _keep(store.put, contents, state), down), contents


def open_update(store: Store, plan: Plan, run: str, update: UpdateRow) -> Reader:
    """A reader over an update, wherever its bytes are. BadBlob if they are not an update of this run."""
    return Reader(store.update_window(run, update), update.size, plan.layout.update, "the update")


def close_round(
    store: Store, plan: Plan, terms: Terms, version: ModelVersion, staged: Sequence[UpdateRow],
    keep: Keep | None = None,
) -> Closed:  # fmt: skip
    """Sum the `staged` updates and take the strategy's step. Raises BadBlob if no finite model comes of it. `keep`
    makes what comes of it durable (default: the store); `replay` only looks at it.
    """
    keep = keep or store.put
    w = codec.decode(store.bytes(version.digest), plan.spec.model, "the model")
    fresh = plan.strategy.init(w.select(plan.layout.params.by_name), plan.population)
    contributions = [
        Contribution(
            u.client, u.head, open_update(store, plan, terms.run, u) if terms.kind == "train" else None
        )
        for u in sorted(staged, key=lambda u: u.client)
    ]
    state = _state(store, version.state, fresh)
    made = close(plan.strategy, plan.layout, terms, w, state, plan.population, contributions)
    metrics = dict(made.metrics)
    if terms.kind == "evaluate":
        return Closed(version, metrics, made.sum, [])
    if state_schema(made.state).digest != state_schema(fresh).digest:
        raise BadBlob(
            "the strategy's state changed its names, shapes or dtypes; its server half must keep them"
        )
    content = keep(codec.encode(made.model, plan.spec.model, _MODEL_CODEC))
    contents: Contents = [content]
    down = _keep(keep, contents, plan.strategy.down(made.state))
    state_digest = _keep(keep, contents, made.state)
    return Closed(ModelVersion(terms.round, content[0], state_digest, down), metrics, made.sum, contents)
