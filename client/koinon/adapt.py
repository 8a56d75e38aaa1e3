"""From what an owner has to a `Model`: torch modules, dicts of numpy arrays, or a Model of their own."""

import sys
from typing import Any

import numpy as np

from koinon.models import ArrayModel, Model
from koinon_core.errors import UsageError
from koinon_core.tensors import Tensors

__all__ = ["adapt", "load_weights"]


def adapt(model: Any) -> Model:
    """A Model for a torch module, a dict of numpy arrays, or something that is one already."""
    torch = sys.modules.get("torch")  # a torch module can only exist where torch was imported
    if torch is not None and isinstance(model, torch.nn.Module):
        from koinon.torch.weights import TorchModel

        return TorchModel(model)
    if isinstance(model, dict) and all(isinstance(a, np.ndarray) for a in model.values()):
        return ArrayModel(model)
    if hasattr(model, "steer") and hasattr(model, "schema"):
        adapted: Model = model
        return adapted
    raise UsageError(
        f"a {type(model).__name__} cannot be federated; pass a torch.nn.Module or a dict of numpy arrays"
    )


def load_weights(model: Any, weights: Tensors) -> None:
    """Put a run's model (`RunHandle.model()`, `Simulated.model`) into a torch module or a dict of arrays, in place."""
    adapted = adapt(model)
    adapted.schema.check(weights, "what is loaded")
    adapted.load(weights)
