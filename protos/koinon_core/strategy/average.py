"""Plain averages: FedAvg (McMahan et al. 2017, arXiv:1602.05629), FedAvgM (Hsu et al. 2019, arXiv:1909.06335)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from koinon_core.errors import UsageError
from koinon_core.strategy.protocol import Agg, Base, Rng, State, Weight
from koinon_core.strategy.registry import register
from koinon_core.tensors import Tensors

__all__ = ["FedAvg", "FedAvgM", "FedAvgUniform"]


@register
@dataclass(frozen=True)
class FedAvg(Base):
    """w += lr * sum(p_i delta_i), with p_i the share of examples. `lr` 1 is the paper's average of models."""

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "examples"
    lr: float = 1.0

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        return (agg if self.lr == 1.0 else replace(agg, mean=agg.mean * self.lr)), s


@register
@dataclass(frozen=True)
class FedAvgUniform(FedAvg):
    """FedAvg in which every device counts the same, whatever its number of examples."""

    weight: ClassVar[Weight | None] = "uniform"


@register
@dataclass(frozen=True)
class FedAvgM(Base):
    """Server momentum: m = beta m + mean; w += lr m."""

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "examples"
    lr: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise UsageError(f"FedAvgM's beta must be in [0, 1), not {self.beta}")

    def init(self, w: Tensors, population: int) -> State:
        return {"m": w.zeros()}

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        m = s["m"] * self.beta + agg.mean
        return replace(agg, mean=m * self.lr), {"m": m}
