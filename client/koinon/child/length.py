"""How long the steps of a pass were: a scalar under a gradient of constant 1, through the same SGD, momentum and all.

Divided by the first learning rate it is FedNova's |a|_1. Weight decay is part of what is minimised and not in it; a
proximal term is. What has no such length (an adaptive optimizer, groups that step differently) is NaN, and the record
says why.
"""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim.optimizer import Optimizer

from .recorded import Recorded

__all__ = ["Length"]

_SHAPES = ("lr", "momentum", "dampening", "nesterov")


class Length:
    """Follows the steps of one pass into `recorded`. `mu` is that of its gradient term; `kept` says that optimizers go
    on from steps that nobody recorded."""

    def __init__(self, recorded: Recorded, mu: float, kept: bool):
        self._recorded, self._mu, self._kept = recorded, mu, kept
        self._stepped: frozenset[str] | None = None
        self._velocity: WeakKeyDictionary[Optimizer, float] = WeakKeyDictionary()

    def follow(self, optimizer: Optimizer, groups: list[dict[str, Any]], stepped: frozenset[str]) -> None:
        """One step of `optimizer`, in whose `groups` the tensors `stepped` are."""
        done, first = self._recorded, groups[0]
        lr = float(first["lr"])
        done.steps += 1
        done.lr = done.lr or lr
        self._stepped = self._stepped or stepped
        why = self._missing(optimizer, groups, stepped)
        if why:
            done.displacement, done.why = math.nan, done.why or why
            return
        momentum = float(first["momentum"])
        moved = 1 - self._mu * done.displacement
        if momentum:
            before = self._velocity.get(optimizer)
            # As torch has it: the first gradient is the velocity, whole.
            velocity = (
                moved if before is None else momentum * before + (1 - float(first["dampening"])) * moved
            )
            self._velocity[optimizer] = velocity
            moved = moved + momentum * velocity if first["nesterov"] else velocity
        done.displacement += lr * moved

    def _missing(self, optimizer: Optimizer, groups: list[dict[str, Any]], stepped: frozenset[str]) -> str:
        """Why these steps have no length; nothing if they have one."""
        if not isinstance(optimizer, torch.optim.SGD):
            return f"{type(optimizer).__name__} is not SGD"
        for name in _SHAPES:
            if any(float(group[name]) != float(groups[0][name]) for group in groups):
                return f"the parameter groups of the optimizer differ in their {name}"
        if stepped != self._stepped:
            return "two optimizers step different parts of the model"
        if self._kept and float(groups[0]["momentum"]):
            return "with keep_optimizer its momentum goes on from steps that nobody recorded"
        return ""
