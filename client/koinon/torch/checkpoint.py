"""A torch checkpoint as tensors. Only tensors: what else a file holds is refused by torch, and never run."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from koinon_core.errors import UsageError
from koinon_core.tensors import Array

__all__ = ["read_checkpoint"]

_WITHIN = ("state_dict", "model_state_dict", "model")
"""Where a checkpoint that holds more than the weights has them."""
_ITS_OWN = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
            torch.uint8, torch.bool)  # fmt: skip


def read_checkpoint(path: Path) -> dict[str, Array]:
    """The tensors of a state_dict, or of one that is in a checkpoint under a usual name."""
    found = _load(path)
    if isinstance(found, Mapping) and not _is_state(found):
        all_of_them = [str(key) for key, value in found.items() if _is_state(value)]
        within = [key for key in _WITHIN if key in all_of_them]
        if len(within) == 1:
            found = found[within[0]]
        elif all_of_them:
            one = all_of_them[0]
            raise UsageError(
                f"{path} holds state_dicts as {', '.join(all_of_them[:5])}, and nothing says which one is meant; save "
                f"that alone: torch.save(torch.load(path, weights_only=True)[{one!r}], other)"
            )
    if not _is_state(found):
        raise UsageError(
            f"{path} holds no state_dict (a mapping of names to tensors, by itself or as {', '.join(_WITHIN)}); save "
            "one with torch.save(module.state_dict(), path)"
        )
    return {name: _array(path, name, tensor) for name, tensor in found.items()}


def _load(path: Path) -> Any:
    try:
        try:
            # Mapped: a tensor that nobody takes is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format of old versions, which cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} holds something else than tensors, which could run when it is read: save the module's state_dict, "
            "or a safetensors file"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} is not a torch checkpoint: {str(error).strip()[:200]}") from error


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping) and bool(value)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )  # fmt: skip


def _array(path: Path, name: str, tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    if tensor.dtype not in _ITS_OWN or tensor.layout != torch.strided:
        raise UsageError(
            f"{path} holds {name!r} as {tensor.dtype}, {tensor.layout}, which numpy does not have; save it as float32"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UsageError(
            f"{path} holds {name!r} as a view that is larger than what it shows; save a copy of it"
        )
    array: Array = tensor.detach().numpy().copy()
    return array
