"""LoRA (Hu et al. 2021, arXiv:2106.09685): frozen layers with small trained adapters, and only those are federated.

    add_lora(model, targets=("*.q_proj", "*.v_proj"), rank=8, also=("head.*",))

A linear layer W x + b becomes W x + b + (alpha / rank) B A x, where A is (rank, in) and B is (out, rank). W never
leaves the device. B begins at zero, so the model computes at first what it did before. A is drawn from a seed and the
layer's name, by ChaCha20 and elementwise arithmetic: its bytes are the same on every machine and with every version of
torch, so devices have it in common without anybody sending it.
"""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from koinon_core.errors import UsageError
from koinon_core.ring.seeds import derive, keystream

__all__ = ["LoraLinear", "add_lora", "lora_layers", "merge_lora"]

_HALF = (torch.float16, torch.bfloat16)


class LoraLinear(nn.Linear):
    """A linear layer with an adapter. `weight` and `bias` are those of the layer that it took the place of, under the
    same names, so that checkpoints of the model without adapters still load (with strict=False)."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter

    def __init__(self, layer: nn.Linear, a: torch.Tensor, alpha: float, active: int, *, freeze_a: bool):
        # On "meta" it costs neither memory nor a draw of torch's random numbers.
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.rank, self.active, self.scale = len(a), active, alpha / len(a)
        # 16-bit adapters would lose small changes; the frozen weight may well have 16 bits.
        dtype = torch.float32 if layer.weight.dtype in _HALF else layer.weight.dtype
        self.lora_a = nn.Parameter(a.to(layer.weight.device, dtype), requires_grad=not freeze_a)
        self.lora_b = nn.Parameter(self.lora_a.new_zeros(layer.out_features, len(a)))
        self.train(layer.training)
        # torch's fused inference of a TransformerEncoderLayer takes `weight` and passes `forward` by; it does not where
        # a layer has a hook.
        self.register_forward_pre_hook(_nothing)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x is (..., in); what comes is (..., out), in the dtype of the layer without adapter."""
        plain = functional.linear(x, self.weight, self.bias)
        a: torch.Tensor = self.lora_a
        b: torch.Tensor = self.lora_b
        if self.active < self.rank:  # all of it is used, and the first `active` of it learn
            a = torch.cat([a[: self.active], a[self.active :].detach()])
            b = torch.cat([b[:, : self.active], b[:, self.active :].detach()], dim=1)
        added = functional.linear(functional.linear(x.to(a.dtype), a), b)
        return plain + (self.scale * added).to(plain.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, active={self.active}, scale={self.scale:g}"


def add_lora(
    module: nn.Module, targets: Sequence[str] = ("*",), rank: int = 8, alpha: float | None = None, *,
    freeze_a: bool = True, seed: int = 0, also: Sequence[str] = (), active: int | None = None,
) -> nn.Module:  # fmt: skip
    """Give the `nn.Linear` layers of `module` whose names match one of `targets` (shell patterns) an adapter of `rank`,
    in place, freeze all other parameters but those whose names match one of `also`, and return `module`.

    Do it on every device and where the run is made, with the same arguments, on the same first weights: what is frozen
    is sent by nobody and compared by nobody. `alpha` is `rank` where it is not said. Adapted are layers whose type is
    exactly nn.Linear: nn.MultiheadAttention's own projections are not, because it passes their `forward` by. The
    weights of adapted layers stay frozen whatever `also` says; buffers (BatchNorm's statistics) are federated as ever.

    With `freeze_a` (FFA-LoRA, Sun et al. 2024, arXiv:2403.12313) A stays as it was drawn and is not sent: the mean of
    the B, times A, is then the mean of the products, so every average is exact, that of a secure sum too, and A's bytes
    are saved. Without it A and B are averaged each by itself, which is near the mean of the products after short rounds
    only.

    `active` is for a device that should train less than the others: it trains the first `active` columns of B (and
    rows of A). The tensors keep their shapes, so the run's schema is the same everywhere, and the rest of them is used
    as the round has it and gets no gradient. That device's change is 0 there and is counted in the mean like any other,
    as if it had been padded with zeros (HetLoRA, Cho et al. 2024, arXiv:2401.06432): columns that few devices train
    move by their share only. Weight decay and Scaffold's term are no gradients of the loss, and move the rest too.

    UsageError for a rank below 1 or above what a layer has, an `active` above `rank`, an alpha that is no number above
    0, patterns that match nothing, a module that is itself a Linear, and one that has adapters already.
    """
    _check(module, rank, alpha, active)
    found = {
        name: layer
        for name, layer in module.named_modules(remove_duplicate=False)
        if type(layer) is nn.Linear and _matches(name, targets)
    }
    if not found:
        there = [name for name, layer in module.named_modules() if type(layer) is nn.Linear]
        raise UsageError(
            f"targets = {tuple(targets)} match none of the module's nn.Linear layers "
            f"({', '.join(there[:8]) or 'there are none'}); name the layers that should have adapters"
        )
    for name, layer in found.items():
        most = min(layer.in_features, layer.out_features)
        if rank > most:
            raise UsageError(
                f"rank = {rank} is more than the layer {name!r} of {layer.in_features} by {layer.out_features} can "
                f"have; use at most {most}, or leave it out of targets"
            )
    named = list(module.named_parameters(remove_duplicate=False))  # a tied one answers to each of its names
    unknown = [p for p in also if not any(fnmatchcase(n, p) for n, _ in named)]
    if unknown:
        raise UsageError(f"also = {unknown[0]!r} matches no parameter of the module; correct or drop it")
    trained = {id(parameter) for name, parameter in named if _matches(name, also)}
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    placed: dict[int, LoraLinear] = {}  # a layer that is used in two places keeps being one
    for name, layer in found.items():
        layer.weight.requires_grad_(False)
        if id(layer) not in placed:
            a = _draw(seed, name, rank, layer.in_features)
            placed[id(layer)] = LoraLinear(layer, a, alpha or rank, active or rank, freeze_a=freeze_a)
        _put(module, name, placed[id(layer)])
    return module


def lora_layers(module: nn.Module) -> dict[str, LoraLinear]:
    """The layers with adapters, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLinear)}


@torch.no_grad()
def merge_lora(module: nn.Module) -> nn.Module:
    """Fold the adapters of `module` into plain `nn.Linear` layers, in place, and return it.

    A merged layer has a weight of its own, W + (alpha / rank) B A rounded once to W's dtype; what W was tied to keeps
    what it had. What was frozen stays frozen. UsageError for a module without adapters.
    """
    if not lora_layers(module):
        raise UsageError("the module has no adapters to merge; it was merged before, or never had any")
    merged: dict[int, nn.Linear] = {}
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if isinstance(layer, LoraLinear):
            if id(layer) not in merged:
                merged[id(layer)] = _merged(layer)
            _put(module, name, merged[id(layer)])
    return module


def _merged(layer: LoraLinear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    added = layer.scale * (layer.lora_b.double() @ layer.lora_a.double())
    weight = (layer.weight.double() + added).to(layer.weight.dtype)
    plain.weight, plain.bias = nn.Parameter(weight, requires_grad=layer.weight.requires_grad), layer.bias
    return plain.train(layer.training)


def _check(module: nn.Module, rank: int, alpha: float | None, active: int | None) -> None:
    if isinstance(module, nn.Linear):
        raise UsageError(
            "the module is itself a Linear layer, which cannot be replaced in place; put it into an nn.Sequential"
        )
    if lora_layers(module):
        raise UsageError("the module has adapters already; call merge_lora first, or begin with a fresh one")
    if rank < 1:
        raise UsageError(f"rank = {rank} must be at least 1")
    if alpha is not None and not (alpha > 0 and math.isfinite(alpha)):
        raise UsageError(f"alpha = {alpha} must be a number above 0")
    if active is not None and not 1 <= active <= rank:
        raise UsageError(f"active = {active} must be between 1 and rank = {rank}")


def _draw(seed: int, name: str, rank: int, width: int) -> torch.Tensor:
    """A of (rank, width): uniform within 1 / sqrt(width), which is what nn.Linear draws (Kaiming uniform)."""
    # A power of two below 1 and one rounding each: no CPU makes another number of it.
    words = keystream(derive(b"lora", seed, name), 0, 4 * rank * width).view("<u4")
    unit = (words.astype(np.float64) + 0.5) * 2.0**-31 - 1
    drawn = (unit / math.sqrt(width)).astype(np.float32).reshape(rank, width)
    return torch.from_numpy(drawn)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)


def _nothing(layer: nn.Module, args: object) -> None:
    """A hook that is there to be seen."""
