"""Closing a round: the staged updates in, the next model out, durable before any row names it.

Runs in a worker thread; numpy and the codecs release the GIL for most of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from koinon_coordinator.store import ModelVersion, Store
from koinon_core import codec
from koinon_core.codec import Reader
from koinon_core.errors import BadBlob
from koinon_core.round.terms import Terms
from koinon_core.spec import RunSpec
from koinon_core.strategy.protocol import State, Strategy
from koinon_core.strategy.runner import Contribution, close
from koinon_core.tensors import Tensors
from koinon_core.update import Head, Layout, pack_state, state_schema, unpack_state

__all__ = ["Closed", "Plan", "close_round", "first_version", "open_update"]

_MODEL_CODEC = "lossless"
Contents = list[tuple[str, int, bytes | None]]


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
    """A round's outcome, and the contents that must be written with it."""

    version: ModelVersion
    metrics: dict[str, float]
    contents: Contents


def _state(store: Store, digest: str, like: State) -> State:
    """A strategy's state, checked against the one that it began with."""
    if not digest:
        return like
    return unpack_state(codec.decode(store.bytes(digest), state_schema(like), "the strategy's state"))


def _keep(store: Store, contents: Contents, state: State) -> str:
    if not state:
        return ""
    content = store.put(codec.encode(pack_state(state), state_schema(state), _MODEL_CODEC))
    contents.append(content)
    return content[0]


def first_version(store: Store, plan: Plan, model: Tensors) -> tuple[ModelVersion, Contents]:
    """The model that a run begins with, and its strategy's first state."""
    content = store.put(codec.encode(model, plan.spec.model, _MODEL_CODEC))
    contents: Contents = [content]
    state = plan.strategy.init(model.select(plan.layout.params.by_name), plan.population)
    down = _keep(store, contents, plan.strategy.down(state))
    return ModelVersion(0, content[0], _keep(store, contents, state), down), contents


def open_update(plan: Plan, store: Store, digest: str, size: int, data: bytes | None) -> Reader:
    """A reader over a staged update, wherever its bytes are."""
    if data is None:
        return Reader(store.blobs.window(digest), size, plan.layout.update, "the update")
    return Reader(lambda o, n: data[o : o + n], size, plan.layout.update, "the update")


def close_round(
    store: Store, plan: Plan, terms: Terms, version: ModelVersion,
    staged: Sequence[tuple[str, Head, str, int, bytes | None]],
) -> Closed:  # fmt: skip
    """Sum the `staged` (client, head, digest, size, bytes or None if a blob) and take the strategy's step.

    Raises BadBlob if no finite model comes of it.
    """
    w = codec.decode(store.bytes(version.digest), plan.spec.model, "the model")
    fresh = plan.strategy.init(w.select(plan.layout.params.by_name), plan.population)
    contributions = [
        Contribution(
            client,
            head,
            open_update(plan, store, digest, size, data) if terms.kind == "train" else None,
        )
        for client, head, digest, size, data in staged
    ]
    state = _state(store, version.state, fresh)
    made = close(plan.strategy, plan.layout, terms, w, state, plan.population, contributions)
    metrics = dict(made.metrics)
    if terms.kind == "evaluate":
        return Closed(version, metrics, [])
    if state_schema(made.state).digest != state_schema(fresh).digest:
        raise BadBlob(
            "the strategy's state changed its names, shapes or dtypes; its server half must keep them"
        )
    content = store.put(codec.encode(made.model, plan.spec.model, _MODEL_CODEC))
    contents: Contents = [content]
    down = _keep(store, contents, plan.strategy.down(made.state))
    state_digest = _keep(store, contents, made.state)
    return Closed(ModelVersion(terms.round, content[0], state_digest, down), metrics, contents)
