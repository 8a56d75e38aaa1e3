"""From what an owner has to a `Model`: torch modules, dicts of numpy arrays, or a Model of their own."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from koinon.models import ArrayModel, Model
from koinon_core.errors import UsageError
from koinon_core.schema import Schema
from koinon_core.strategy.protocol import Strategy
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import TILE, Gather

__all__ = ["adapt", "check_tied", "load_weights"]


def adapt(model: Any) -> Model:
    """A Model for a torch module, a dict of numpy arrays, or something that is one already."""
    torch = sys.modules.get("torch")  # a torch module can only exist where torch was imported
    if torch is not None and isinstance(model, torch.nn.Module):
        from koinon.torch.weights import TorchModel

        return TorchModel(model)
    if isinstance(model, dict) and all(isinstance(a, np.ndarray) for a in model.values()):
        return ArrayModel(model)
    if hasattr(model, "steer") and hasattr(model, "schema"):
        if not hasattr(model, "put"):
            return Whole(model)
        adapted: Model = model
        return adapted
    raise UsageError(
        f"a {type(model).__name__} cannot be federated; pass a torch.nn.Module or a dict of numpy arrays"
    )


def check_tied(model: Any, strategy: Strategy) -> None:
    """UsageError for a tensor that a strategy keeps at home by one of its names, and that is sent by another."""
    tied: Mapping[str, str] = getattr(model, "tied", {})
    schema: Schema = model.schema
    local = strategy.local(schema)
    for alias, name in tied.items():
        if name not in schema.by_name or name in local:
            continue
        renamed = Schema(tuple(replace(f, name=alias) if f.name == name else f for f in schema))
        try:
            hidden = alias in strategy.local(renamed)
        except UsageError:  # by this name the strategy would not do at all
            continue
        if hidden:
            raise UsageError(
                f"{alias!r} is to stay on the device, and it is the same tensor as {name!r}, which is sent: untie "
                f"them, or keep {name!r} at home too"
            )


def load_weights(model: Any, weights: Tensors) -> None:
    """Put a run's model (`RunHandle.model()`, `Simulated.model`) into a torch module or a dict of arrays, in place."""
    adapted = adapt(model)
    adapted.schema.check(weights, "what is loaded")
    adapted.load(weights)


class Whole:
    """A model of the owner's own that can only be read and loaded as a whole."""

    def __init__(self, model: Any):
        self._model, self.schema = model, model.schema
        self._into: Gather | None = None
        self._missing = 0
        self._seen: set[tuple[str, int]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def rounds(self) -> bool:
        return True  # nobody knows: what it begins with is read out again

    def values(self, name: str, offset: int) -> Array:
        flat: Array = self._model.read()[name].reshape(-1)
        return flat[offset : offset + TILE]

    def put(self, name: str, offset: int, values: Array) -> None:
        if self._into is None or (name, offset) in self._seen:  # what was cut short begins anew
            self._into, self._missing, self._seen = Gather(self.schema), self.schema.size, set()
        self._seen.add((name, offset))
        self._into.put(name, offset, values)
        self._missing -= values.size
        if not self._missing:
            self._model.load(self._into.tensors)
            self._into = None
