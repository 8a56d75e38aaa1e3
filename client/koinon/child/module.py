"""A torch module as a model, without numpy: which of its tensors are federated, and how they come out and go in.

Parameters that require a gradient, and persistent buffers; what koinon.torch.weights says of them holds here. Large
tensors go piece by piece, so that no more than a piece is in memory a second time.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .errors import UsageError
from .files import CODES, Entry, Field, TensorFile, check_steering
from .hook import Hook

__all__ = ["Module"]

_HALF = (torch.float16, torch.bfloat16)
_SENT = {getattr(torch, name): name for name in CODES if name not in ("float16", "bfloat16")}
_KINDS = {code: getattr(torch, name) for name, code in CODES.items()}
_PIECE = 1 << 20  # elements


class Module:
    """Federates `module`. Its tensors are read and written in place, on whatever device they are."""

    def __init__(self, module: nn.Module):
        self._module = module
        first: dict[int, str] = {}
        names = module.named_parameters(remove_duplicate=False)
        self.tied = {n: first[id(p)] for n, p in names if first.setdefault(id(p), n) != n}
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        kept = module.state_dict(keep_vars=True)
        # Names only: a forward pass or `module.to(...)` may put another tensor in a buffer's place.
        self._buffers = [n for n, _ in module.named_buffers() if n in kept]
        if not self.parameters:
            raise UsageError("no parameter of the module requires a gradient: there is nothing to train")
        self.fields = [_field(n, p, "param") for n, p in self.parameters.items()]
        self.fields += [_field(n, module.get_buffer(n), "buffer") for n in self._buffers]
        self.rounds = any(self._tensor(f.name).dtype in _HALF for f in self.fields)
        half = [n for n, p in self.parameters.items() if p.dtype in _HALF]
        if half:
            warnings.warn(
                f"{half[0]!r} and {len(half) - 1} more trained parameters have 16 bits: most of a small update "
                "rounds away in them. Keep them in float32 and train under torch.autocast instead.",
                stacklevel=5,
            )

    def _tensor(self, name: str) -> torch.Tensor:
        found = self.parameters.get(name)
        return self._module.get_buffer(name) if found is None else found

    @torch.no_grad()
    def load(self, file: TensorFile) -> None:
        file.check(self.fields)
        for field in self.fields:
            tensor, entry = self._tensor(field.name), file.entries[field.name]
            if not tensor.is_contiguous():  # its elements lie in another order (channels last)
                tensor.copy_(_read(file, field.name))
                continue
            flat = tensor.view(-1)
            for at in range(0, field.size, _PIECE):
                part = flat[at : at + _PIECE]
                part.copy_(_elements(file, field.name, entry, at, part.numel()))

    def pieces(self, field: Field) -> Iterator[Any]:
        return _pieces(self._tensor(field.name), field)

    def steer(
        self, mu: float, anchor: TensorFile | None, shift: TensorFile | None, *, measure: bool,
        train: Container[str] | None, keep_optimizer: bool, stepped: Callable[[], None],
    ) -> Hook:  # fmt: skip
        check_steering(self.fields, anchor, shift)
        start: Mapping[str, Any] = {}
        if mu:
            params = self.parameters
            start = {n: p.detach().clone() for n, p in params.items()} if anchor is None else _Stored(anchor)
        return Hook(
            self.parameters, mu, None if shift is None else _Stored(shift), start, measure=measure, train=train,
            keep_optimizer=keep_optimizer, stepped=stepped,
        )  # fmt: skip

    def mean(self, field: Field, steering: Hook) -> Iterator[Any]:
        """The mean gradient of a measuring pass; zero for what had none."""
        return _pieces(steering.mean(field.name), field)

    def descend(self, gradients: Mapping[str, Any], lr: float, steering: Hook) -> None:
        raise UsageError("task.descend is for numpy models; step your torch optimizer as usual")


class _Stored(Mapping[str, torch.Tensor]):
    """The tensors of a file, each read when it is asked for."""

    def __init__(self, file: TensorFile):
        self._file = file

    def __getitem__(self, name: str) -> torch.Tensor:
        return _read(self._file, name)

    def __contains__(self, name: object) -> bool:
        return name in self._file.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.entries)

    def __len__(self) -> int:
        return len(self._file.entries)


def _field(name: str, tensor: torch.Tensor, role: str) -> Field:
    dtype = "float32" if tensor.dtype in _HALF else _SENT.get(tensor.dtype)
    if dtype is None:
        raise UsageError(f"{name!r} is {tensor.dtype}, which cannot be federated")
    return Field(name, tuple(tensor.shape), dtype, role)


def _elements(file: TensorFile, name: str, entry: Entry, at: int, count: int) -> torch.Tensor:
    kind = _KINDS[entry.code]
    if not count:
        return torch.empty(0, dtype=kind)
    width = entry.nbytes // _count(entry.shape)
    data = bytearray(count * width)
    file.read(name, at * width, memoryview(data))
    return torch.frombuffer(data, dtype=kind)


def _read(file: TensorFile, name: str) -> torch.Tensor:
    entry = file.entries[name]
    return _elements(file, name, entry, 0, _count(entry.shape)).reshape(entry.shape)


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _pieces(tensor: torch.Tensor, field: Field) -> Iterator[Any]:
    """The bytes of a tensor as it is sent; each piece is good until the next is asked for."""
    flat = tensor.detach().reshape(-1)
    for at in range(0, field.size, _PIECE):
        part = flat[at : at + _PIECE].to("cpu", getattr(torch, field.dtype)).contiguous()
        # What numpy() would give, where numpy may be missing: the elements as they lie in memory.
        yield memoryview(
            (ctypes.c_ubyte * (part.numel() * part.element_size())).from_address(part.data_ptr())
        )
