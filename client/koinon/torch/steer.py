"""The optimizer hook of koinon.child, for what Koinon itself has in numpy: a strategy's `Pull`, and `Tensors`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from koinon.child.hook import Hook
from koinon_core.strategy.protocol import Keys, Pull
from koinon_core.tensors import Tensors

__all__ = ["TorchSteering"]


class TorchSteering(Hook):
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
        super().__init__(
            parameters,
            pull.mu,
            pull.shift,
            start,
            measure=measure,
            train=train,
            keep_optimizer=keep_optimizer,
        )
        self._dtypes: dict[str, Any] = {n: a.dtype for n, a in start.items()}

    def gradient(self) -> Tensors:
        """The mean gradient over the steps of a measuring pass; zero for what had none."""
        return Tensors({n: self._as_sent(n) for n in self._parameters})

    def _as_sent(self, name: str) -> Any:
        return self.mean(name).to("cpu", getattr(torch, str(self._dtypes[name]))).numpy()
