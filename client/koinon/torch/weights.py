"""A torch module as a model: which of its tensors are federated, and how they come out and go in.

Parameters that require a gradient, and persistent buffers. Frozen parameters are never sent; tied ones are sent
once. 16-bit parameters travel as 32-bit, because a small change of a 16-bit weight rounds away.
"""

import warnings
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from koinon.torch.steer import TorchSteering
from koinon_core.errors import UsageError
from koinon_core.schema import Field, Schema
from koinon_core.strategy.protocol import Keys, Pull
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import TILE

__all__ = ["TorchModel"]

_DTYPES = {
    torch.float64: "float64", torch.float32: "float32", torch.float16: "float32", torch.bfloat16: "float32",
    torch.int64: "int64", torch.int32: "int32", torch.int16: "int16", torch.int8: "int8", torch.uint8: "uint8",
    torch.bool: "bool",
}  # fmt: skip


_AS_SENT = {kind: getattr(torch, name) for kind, name in _DTYPES.items()}


class TorchModel:
    """Federates `module`. Its tensors are read and written in place, on whatever device they are."""

    def __init__(self, module: nn.Module):
        self._module = module
        self.keep_optimizer = False
        first: dict[int, str] = {}
        names = module.named_parameters(remove_duplicate=False)
        self.tied = {n: first[id(p)] for n, p in names if first.setdefault(id(p), n) != n}
        """Other names of a tensor, and the one under which it is federated."""
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        kept = module.state_dict(keep_vars=True)
        # Names only: a forward pass or `module.to(...)` may put another tensor in a buffer's place.
        self._waiting: dict[str, Array] = {}
        self._buffers = [n for n, _ in module.named_buffers() if n in kept]
        if not self.parameters:
            raise UsageError("no parameter of the module requires a gradient: there is nothing to train")
        half = [n for n, p in self.parameters.items() if p.dtype in (torch.float16, torch.bfloat16)]
        if half:
            warnings.warn(
                f"{half[0]!r} and {len(half) - 1} more trained parameters have 16 bits: most of a small update "
                "rounds away in them. Keep them in float32 and train under torch.autocast instead.",
                stacklevel=3,
            )

    @property
    def unsent(self) -> frozenset[str]:
        """Names of its state_dict that are not federated: frozen parameters, and other names of a tied one."""
        return frozenset(self._module.state_dict()) - frozenset(self.schema.by_name)

    @cached_property
    def schema(self) -> Schema:
        fields = [self._field(n, p, "param") for n, p in self.parameters.items()]
        return Schema((*fields, *(self._field(n, b, "buffer") for n, b in self._live().items())))

    def _field(self, name: str, tensor: torch.Tensor, role: Any) -> Field:
        if tensor.dtype not in _DTYPES:
            raise UsageError(f"{name!r} is {tensor.dtype}, which cannot be federated")
        return Field(name, tuple(tensor.shape), _DTYPES[tensor.dtype], role)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**self.parameters, **self._live()}

    def _tensor(self, name: str) -> torch.Tensor:
        found = self.parameters.get(name)
        return self._module.get_buffer(name) if found is None else found

    def _live(self) -> dict[str, torch.Tensor]:
        """The buffers as they are in the module now."""
        return {n: self._module.get_buffer(n) for n in self._buffers}

    def read(self) -> Tensors:
        out: dict[str, Array] = {}
        for field in self.schema:
            tensor = self._tensor(field.name).detach().to("cpu", getattr(torch, field.dtype))
            # A copy: training goes on in the tensor's own memory, and nobody may see that through this.
            out[field.name] = np.array(tensor.numpy(), copy=True)
        return Tensors(out)

    def values(self, name: str, offset: int) -> Array:
        tensor = self._tensor(name).detach().reshape(-1)[offset : offset + TILE]
        return np.asarray(tensor.to("cpu", _AS_SENT[tensor.dtype]).numpy())

    @torch.no_grad()
    def put(self, name: str, offset: int, values: Array) -> None:
        tensor = self._tensor(name)
        if tensor.is_contiguous():
            tensor.view(-1)[offset : offset + values.size].copy_(torch.from_numpy(np.array(values)))
            return
        # Its elements lie in another order (channels last): only a whole one can be put there.
        whole = self._waiting.setdefault(name, np.empty(tensor.numel(), dtype=values.dtype))
        whole[offset : offset + values.size] = values
        if offset + values.size == tensor.numel():
            tensor.copy_(torch.from_numpy(self._waiting.pop(name)).reshape(tensor.shape))

    @property
    def rounds(self) -> bool:
        return any(t.dtype in (torch.float16, torch.bfloat16) for t in self._tensors().values())

    @torch.no_grad()
    def load(self, weights: Tensors) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.from_numpy(np.array(weights[name], copy=True)))

    def steer(self, pull: Pull, start: Tensors, *, measure: bool, train: Keys | None) -> TorchSteering:
        return TorchSteering(
            self.parameters, pull, start, measure=measure, train=train, keep_optimizer=self.keep_optimizer
        )

    def descend(self, gradients: Mapping[str, Array], lr: float, steering: Any) -> None:
        raise UsageError("task.descend is for numpy models; step your torch optimizer as usual")
