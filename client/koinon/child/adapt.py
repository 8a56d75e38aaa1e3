"""From what the owner has to a model: torch modules, or dicts of numpy arrays."""

from __future__ import annotations

import sys
from typing import Any

from .errors import UsageError

__all__ = ["adapt"]


def adapt(owned: Any) -> Any:
    """What session.tasks needs of a model, made of a torch module or a dict of numpy arrays."""
    torch, numpy = (
        sys.modules.get("torch"),
        sys.modules.get("numpy"),
    )  # a model of theirs exists only with them
    if torch is not None and isinstance(owned, torch.nn.Module):
        try:
            from .module import Module
        except ImportError as error:
            raise UsageError(f"torch {torch.__version__} is too old: use 2.0 or newer ({error})") from error
        return Module(owned)
    if (
        numpy is not None
        and isinstance(owned, dict)
        and all(isinstance(a, numpy.ndarray) for a in owned.values())
    ):
        from .arrays import Arrays

        return Arrays(owned)
    raise UsageError(
        f"a {type(owned).__name__} cannot be federated; pass a torch.nn.Module or a dict of numpy arrays"
    )
