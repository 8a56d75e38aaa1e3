"""The optimizer hook: the strategy's gradient term goes in, and what the steps were is recorded.

A hook before every optimizer step (`register_optimizer_step_pre_hook`) fires for all of torch's optimizers,
fused and foreach ones included, and sees the learning rate of that step. So the owner's loop stays untouched.

Traps it knows: an optimizer that calls a closure recomputes the gradient after the hook, which would lose the
term (refused); under a GradScaler a fused optimizer's gradients are still scaled here (the term is scaled too), and one
whose gradients have overflown is called and does nothing (no step); one that goes uphill adds what it gets (the term
is turned round).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from .errors import LocalProtocolError
from .length import Length
from .recorded import Recorded

__all__ = ["Hook"]


class _Entered:
    """The hooks that are told of every step. To torch there is one, and it stays: torch looks through its own while
    other threads step, and does not stand it that they change."""

    def __init__(self) -> None:
        self._now: tuple[Hook, ...] = ()
        self._lock = threading.Lock()
        self._known = False

    def add(self, hook: Hook) -> None:
        with self._lock:
            if not self._known:
                register_optimizer_step_pre_hook(self._before_step)
                self._known = True
            self._now = (*self._now, hook)

    def remove(self, hook: Hook) -> None:
        with self._lock:
            self._now = tuple(one for one in self._now if one is not hook)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for hook in self._now:
            hook.before_step(optimizer, args, kwargs)


_entered = _Entered()


class Hook:
    """Steers every optimizer that holds parameters of one model, while it is entered: it uses g + mu (y - w) + shift,
    with w the tensors in `start`. `train` names what is trained (None: all), `stepped` is called after every step's
    hook. What `start` and `shift` give is anything that torch.tensor takes, asked for when it is first needed."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        mu: float,
        shift: Mapping[str, Any] | None,
        start: Mapping[str, Any],
        *,
        measure: bool,
        train: Container[str] | None,
        keep_optimizer: bool = False,
        stepped: Callable[[], None] = lambda: None,
    ):
        self.recorded = Recorded()
        self._parameters, self._start, self._measure = parameters, start, measure
        self._mu, self._shift, self._stepped = mu, shift, stepped
        self._names = {id(p): n for n, p in parameters.items()}
        # Not those that the owner has frozen: they stay so.
        self._frozen = [
            p for n, p in parameters.items() if train is not None and n not in train and p.requires_grad
        ]
        self._length = Length(self.recorded, mu, keep_optimizer)
        self._sum: dict[str, torch.Tensor] = {}
        self._terms: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
        self._begun: WeakSet[Optimizer] = WeakSet()
        self._keep = keep_optimizer

    def __enter__(self) -> Any:
        for parameter in self._frozen:
            parameter.requires_grad_(False)
            parameter.grad = None  # or an optimizer would go on with that of the pass before
        _entered.add(self)
        return self

    def __exit__(self, *exc: object) -> None:
        _entered.remove(self)
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def mean(self, name: str) -> torch.Tensor:
        """The mean gradient of a parameter over the steps of a measuring pass; zero for what had none."""
        total = self._sum.get(name)
        if total is None:
            total = torch.zeros_like(self._parameters[name])
        return total.detach() / max(1, self.recorded.steps)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer is about to step."""
        ours = [
            [p for p in g["params"] if id(p) in self._names and p.requires_grad]
            for g in optimizer.param_groups
        ]
        groups = [group for group, them in zip(optimizer.param_groups, ours) if them]
        if not groups:
            return  # another model's optimizer in the same process
        # args is (self, closure): torch hands over the arguments of the wrapped step.
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        steered = self._measure or self._mu or self._shift is not None
        if closure is not None and steered:
            raise LocalProtocolError(
                f"{type(optimizer).__name__}.step(closure) recomputes the gradient after the strategy's term went "
                "in, which loses it; use an optimizer without a closure, or a strategy without a gradient term"
            )
        parameters = {self._names[id(p)]: p for them in ours for p in them}
        self._forget(optimizer, parameters)
        skipped = getattr(optimizer, "found_inf", None)
        if skipped is not None and skipped:  # the GradScaler's: a fused optimizer leaves everything as it is
            return
        scale = getattr(optimizer, "grad_scale", None)
        for group, them in zip(optimizer.param_groups, ours):
            sign = -1.0 if group.get("maximize") else 1.0
            for parameter in them:
                self._touch(self._names[id(parameter)], parameter, sign if scale is None else sign * scale)
        self._length.follow(optimizer, groups, frozenset(parameters))
        self._stepped()

    def _forget(self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        """At its first step here, an optimizer has no memory of steps before: its momentum is about weights that the
        round, or another pass, has replaced, and the length of the steps is told as if there were none."""
        if self._keep or optimizer in self._begun:
            return
        self._begun.add(optimizer)
        for parameter in parameters.values():
            optimizer.state.pop(parameter, None)

    def _touch(self, name: str, parameter: nn.Parameter, scale: torch.Tensor | float) -> None:
        """Put the term into the gradient, `scale` times; or take the gradient out, where it is measured."""
        if self._measure:
            if parameter.grad is not None:
                gradient = parameter.grad.to_dense() / scale
                self._sum[name] = self._sum[name] + gradient if name in self._sum else gradient
                parameter.grad = None  # the optimizer skips it: the weights stay as they are
            return
        anchor, shift = self._term(name, parameter)
        if shift is None and (anchor is None or parameter.grad is None):
            return
        if parameter.grad is None:
            # It is zero, and a variate that was not stepped by would count as if it had been. A proximal term alone
            # has no such account: what the owner leaves out of a step stays out.
            parameter.grad = torch.zeros_like(parameter)
        elif parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()
        term = torch.zeros_like(parameter.grad)
        if anchor is not None:
            term += self._mu * (parameter - anchor)
        if shift is not None:
            term += shift
        if isinstance(scale, torch.Tensor) or scale != 1.0:
            term *= scale
        parameter.grad += term

    def _term(self, name: str, parameter: nn.Parameter) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if name not in self._terms:
            anchor = _like(self._start[name], parameter) if self._mu else None
            shifts = self._shift
            shift = _like(shifts[name], parameter) if shifts is not None and name in shifts else None
            self._terms[name] = (anchor, shift)
        return self._terms[name]


def _like(values: Any, parameter: nn.Parameter) -> torch.Tensor:
    return (values if isinstance(values, torch.Tensor) else torch.tensor(values)).to(parameter)
