"""Adaptive server steps: FedAdam (Reddi et al. 2021, "Adaptive Federated Optimization", arXiv:2003.00295)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from koinon_core.errors import UsageError
from koinon_core.strategy.protocol import Agg, Base, Rng, State, Weight
from koinon_core.strategy.registry import register
from koinon_core.tensors import Tensors

__all__ = ["FedAdam"]


@register
@dataclass(frozen=True)
class FedAdam(Base):
    """m = b1 m + (1-b1) D; v = b2 v + (1-b2) D^2; w += lr m / (sqrt(v) + tau), with v starting at tau^2 and no
    bias correction: Algorithm 2 of the paper."""

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "examples"
    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.tau > 0):
            raise UsageError("FedAdam's betas must be in [0, 1) and its tau above 0")

    def init(self, w: Tensors, population: int) -> State:
        return {"m": w.zeros(), "v": w.map(lambda a: np.full_like(a, self.tau**2))}

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        d = agg.mean
        m = s["m"] * self.beta1 + d * (1 - self.beta1)
        v = s["v"] * self.beta2 + d * d * (1 - self.beta2)
        return replace(agg, mean=m * self.lr / (v.sqrt() + self.tau)), {"m": m, "v": v}
