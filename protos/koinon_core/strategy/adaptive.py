"""Adaptive server steps: FedAdagrad, FedAdam, FedYogi (Reddi et al. 2021, "Adaptive Federated Optimization",
arXiv:2003.00295, Algorithm 2), and FedExP (Jhunjhunwala et al. 2023, arXiv:2301.09604)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from koinon_core.errors import UsageError
from koinon_core.strategy.protocol import Agg, Base, Need, Rng, State, Trait, Up, Weight, Work
from koinon_core.strategy.registry import register
from koinon_core.tensors import Array, Tensors

__all__ = ["FedAdagrad", "FedAdam", "FedExP", "FedYogi"]


def _check(name: str, tau: float, *betas: float) -> None:
    if not (tau > 0 and all(0 <= beta < 1 for beta in betas)):
        wanted = "its betas must be in [0, 1) and its tau" if betas else "its tau must be"
        raise UsageError(f"{name} cannot be made of these fields: {wanted} above 0")


def _first(w: Tensors, tau: float) -> Tensors:
    """v before the first round: at least tau^2, says the paper."""
    return w.map(lambda a: np.full_like(a, tau**2))


def _step(m: Tensors, v: Tensors, lr: float, tau: float) -> Tensors:
    """`m * lr / (v.sqrt() + tau)`, and the same bytes, in two arrays of each tensor instead of four."""

    def one(name: str) -> Array:
        root, step = np.sqrt(v[name]), m[name] * float(lr)
        if not (root.ndim and root.dtype == step.dtype):
            return step / (root + float(tau))
        root += float(tau)
        step /= root
        return step

    return Tensors.own({name: one(name) for name in m})


@register
@dataclass(frozen=True)
class FedAdagrad(Base):
    """v += D^2; w += lr D / (sqrt(v) + tau), with v starting at tau^2. State: v, as large as the model."""

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "examples"
    lr: float = 0.1
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check("FedAdagrad", self.tau)

    def init(self, w: Tensors, population: int) -> State:
        return {"v": _first(w, self.tau)}

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        v = s["v"] + agg.mean * agg.mean
        return replace(agg, mean=_step(agg.mean, v, self.lr, self.tau)), {"v": v}


@register
@dataclass(frozen=True)
class FedAdam(Base):
    """m = b1 m + (1-b1) D; v = b2 v + (1-b2) D^2; w += lr m / (sqrt(v) + tau), with v starting at tau^2 and no
    bias correction, as the paper has it. State: m and v, each as large as the model.

    With `bias_correction`, m and v are divided by 1 - b1^t and 1 - b2^t in step t, as in Adam (Kingma and Ba 2015,
    arXiv:1412.6980); the step's number is a state for the whole model, so the coordinator then takes the step in one
    piece, in memory.
    """

    weight: ClassVar[Weight | None] = "examples"
    later: ClassVar[Mapping[str, Any]] = {"bias_correction": False}
    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    bias_correction: bool = False

    def __post_init__(self) -> None:
        _check("FedAdam", self.tau, self.beta1, self.beta2)

    @property
    def elementwise(self) -> bool:  # type: ignore[override]  # depends on the correction
        return not self.bias_correction

    def init(self, w: Tensors, population: int) -> State:
        steps = {"t": Tensors({"steps": np.zeros(1)})} if self.bias_correction else {}
        return {"m": w.zeros(), "v": _first(w, self.tau), **steps}

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        d = agg.mean
        m = s["m"].blend(self.beta1, d, 1 - self.beta1)
        v = s["v"].blend(self.beta2, d * d, 1 - self.beta2)
        state: dict[str, Tensors] = {"m": m, "v": v}
        if self.bias_correction:
            state["t"] = s["t"] + 1
            t = int(state["t"]["steps"][0])
            m, v = m / (1 - self.beta1**t), v / (1 - self.beta2**t)
        return replace(agg, mean=_step(m, v, self.lr, self.tau)), state


@register
@dataclass(frozen=True)
class FedYogi(Base):
    """FedAdam whose v grows and shrinks by steps of the same size: v -= (1-b2) D^2 sign(v - D^2). State: m and v."""

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "examples"
    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check("FedYogi", self.tau, self.beta1, self.beta2)

    def init(self, w: Tensors, population: int) -> State:
        return {"m": w.zeros(), "v": _first(w, self.tau)}

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        d = agg.mean
        m = s["m"].blend(self.beta1, d, 1 - self.beta1)
        square = d * d
        v = s["v"] - square * (s["v"] - square).map(np.sign) * (1 - self.beta2)
        return replace(agg, mean=_step(m, v, self.lr, self.tau)), {"m": m, "v": v}


@register
@dataclass(frozen=True)
class FedExP(Base):
    """A step as long as the devices disagree: w += lr U(Delta), with U the uniform mean over M devices and
    lr = max(1, sum |Delta_i|^2 / (2 M (|U(Delta)|^2 + eps))).

    Every device adds its |Delta_i|^2 to a plain sum; `most` is the largest that may be, which a secure sum is sized
    for. The last models oscillate: the paper averages the last two.
    """

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "uniform"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SQ_NORM})
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.MEASURES})
    eps: float = 1e-3
    most: float = 1e6

    def __post_init__(self) -> None:
        if not (self.eps > 0 and self.most > 0):
            raise UsageError(f"FedExP's eps and most must be above 0, they are {self.eps} and {self.most}")

    def totals(self) -> dict[str, float]:
        return {"expsq": self.most}

    def finish(self, d: State, down: State, work: Work, up: Up) -> Up:
        square = min(up.delta.dot(up.delta), work.clip**2, self.most)
        return replace(up, totals={**up.totals, "expsq": square})

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        longer = agg.totals["expsq"] / (2 * agg.count * (agg.sq_norm + self.eps))
        return (replace(agg, mean=agg.mean * longer) if longer > 1 else agg), s
