"""The optimizer hook: the strategy's gradient term goes in, and what the steps were is recorded.

A hook before every optimizer step (`register_optimizer_step_pre_hook`) fires for all of torch's optimizers,
fused and foreach ones included, and sees the learning rate of that step. So the owner's loop stays untouched.

Traps it knows: an optimizer that calls a closure recomputes the gradient after the hook, which would lose the
term (refused); under a GradScaler a fused optimizer's gradients are still scaled here (the term is scaled too).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from koinon.models import Recorded
from koinon_core.errors import LocalProtocolError
from koinon_core.strategy.protocol import Keys, Pull
from koinon_core.tensors import Tensors

__all__ = ["TorchSteering"]


class TorchSteering:
    """Steers every optimizer that holds parameters of one model, while it is entered."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        pull: Pull,
        start: Tensors,
        *,
        measure: bool,
        train: Keys | None,
        keep_optimizer: bool = False,
    ):
        self.recorded = Recorded()
        self._parameters, self._pull, self._start, self._measure = parameters, pull, start, measure
        self._names = {id(p): n for n, p in parameters.items()}
        # Not those that the owner has frozen: they stay so.
        self._frozen = [
            p for n, p in parameters.items() if train is not None and n not in train and p.requires_grad
        ]
        self._velocity = 0.0
        self._optimizer: Optimizer | None = None
        self._sum: dict[str, torch.Tensor] = {}
        self._terms: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
        self._handle: Any = None
        self._begun: set[int] = set()
        self._keep = keep_optimizer

    def __enter__(self) -> "TorchSteering":
        for parameter in self._frozen:
            parameter.requires_grad_(False)
            parameter.grad = None  # or an optimizer would go on with that of the pass before
        self._handle = register_optimizer_step_pre_hook(self._before_step)
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def gradient(self) -> Tensors:
        """The mean gradient over the steps of a measuring pass; zero for what had none."""
        n = max(1, self.recorded.steps)
        out = {}
        for name, parameter in self._parameters.items():
            total = self._sum.get(name, torch.zeros_like(parameter))
            out[name] = (total.detach() / n).to("cpu").numpy().astype(self._start[name].dtype)
        return Tensors(out)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        groups = [g for g in optimizer.param_groups if any(id(p) in self._names for p in g["params"])]
        if not groups:
            return  # another model's optimizer in the same process
        # args is (self, closure): torch hands over the arguments of the wrapped step.
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        steered = self._measure or self._pull.mu or self._pull.shift is not None
        if closure is not None and steered:
            raise LocalProtocolError(
                f"{type(optimizer).__name__}.step(closure) recomputes the gradient after the strategy's term went "
                "in, which loses it; use an optimizer without a closure, or a strategy without a gradient term"
            )
        scale = getattr(optimizer, "grad_scale", None)
        self._forget(optimizer, groups)
        for group in groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter))
                if name is not None and parameter.grad is not None:
                    self._touch(name, parameter, scale)
        self._record(optimizer, groups)

    def _forget(self, optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
        """At its first step here, an optimizer has no memory of steps before: its momentum is about weights that the
        round, or another pass, has replaced, and the length of the steps is told as if there were none."""
        if self._keep or id(optimizer) in self._begun:
            return
        self._begun.add(id(optimizer))
        for group in groups:
            for parameter in group["params"]:
                if id(parameter) in self._names:
                    optimizer.state.pop(parameter, None)

    def _touch(self, name: str, parameter: torch.nn.Parameter, scale: torch.Tensor | None) -> None:
        assert parameter.grad is not None
        if self._measure:
            gradient = parameter.grad if scale is None else parameter.grad / scale
            self._sum[name] = self._sum[name] + gradient if name in self._sum else gradient.clone()
            parameter.grad = None  # the optimizer skips it: the weights stay as they are
            return
        anchor, shift = self._term(name, parameter)
        if anchor is None and shift is None:
            return
        term = torch.zeros_like(parameter.grad)
        if anchor is not None:
            term += self._pull.mu * (parameter - anchor)
        if shift is not None:
            term += shift
        parameter.grad += term if scale is None else term * scale

    def _term(
        self, name: str, parameter: torch.nn.Parameter
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if name not in self._terms:
            anchor = torch.tensor(self._start[name]).to(parameter) if self._pull.mu else None
            shifts = self._pull.shift
            shift = (
                torch.tensor(shifts[name]).to(parameter) if shifts is not None and name in shifts else None
            )
            self._terms[name] = (anchor, shift)
        return self._terms[name]

    def _record(self, optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
        """Follow a scalar under a gradient of constant 1 through the same SGD, momentum and all."""
        done, lr = self.recorded, float(groups[0]["lr"])
        done.steps += 1
        done.lr = done.lr or lr
        same = all(float(g["lr"]) == lr and g.get("momentum") == groups[0].get("momentum") for g in groups)
        self._optimizer = self._optimizer or optimizer
        if not isinstance(optimizer, torch.optim.SGD) or optimizer is not self._optimizer or not same:
            done.displacement = math.nan
            return
        momentum, dampening = float(groups[0]["momentum"]), float(groups[0]["dampening"])
        if momentum and self._keep:  # it goes on from steps that nobody recorded
            done.displacement = math.nan
            return
        gradient = 1 - self._pull.mu * done.displacement
        first = done.steps == 1
        self._velocity = gradient if first else momentum * self._velocity + (1 - dampening) * gradient
        moved = gradient + momentum * self._velocity if groups[0]["nesterov"] else self._velocity
        done.displacement += lr * (moved if momentum else gradient)
