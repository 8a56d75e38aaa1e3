"""Asynchronous rules: what an update counts that was made from an older model.

Nobody waits for the slowest device: every `buffer` of updates makes a model, and devices go on from whichever was the
newest when they began. An update that is tau models old counts s(tau) of itself, and the divisor stays: K updates of
which half are stale move the model by less.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from koinon_core.errors import UsageError
from koinon_core.strategy.chain import Chain
from koinon_core.strategy.protocol import Agg, Base, Need, Rng, State, Strategy, Weight
from koinon_core.strategy.registry import register

__all__ = ["FedAsync", "FedBuff", "Staleness", "age_factor", "knows_age"]

_UNIT = 1 << 40
_NAMES = Literal["constant", "polynomial", "hinge"]


def age_factor(strategy: Strategy, staleness: int) -> float:
    """What of an update counts that is so many models old: a whole number of 2^-40, the same on every machine."""
    return round(strategy.discount(staleness) * _UNIT) / _UNIT


@register
@dataclass(frozen=True)
class Staleness(Base):
    """Updates count (1 + tau)^-exponent of themselves. For a chain with another rule: chain(FedAdam(), Staleness())."""

    elementwise: ClassVar[bool] = True
    exponent: float = 0.5

    def __post_init__(self) -> None:
        _check_exponent(self, self.exponent)

    def discount(self, staleness: int) -> float:
        return float((1 + staleness) ** -self.exponent)


@register
@dataclass(frozen=True)
class FedBuff(Base):
    """Nguyen et al. 2022 (arXiv:2106.06639): w += lr sum(s(tau_i) Delta_i) / K over a buffer of K updates, with
    s(tau) = (1 + tau)^-exponent. All devices count alike."""

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "uniform"
    lr: float = 1.0
    exponent: float = 0.5

    def __post_init__(self) -> None:
        _check_exponent(self, self.exponent)

    def discount(self, staleness: int) -> float:
        return float((1 + staleness) ** -self.exponent)

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        return (agg if self.lr == 1.0 else replace(agg, mean=agg.mean * self.lr)), s


@register
@dataclass(frozen=True)
class FedAsync(Base):
    """Xie et al. 2019 (arXiv:1903.03934): w <- (1 - a) w + a y with y the device's model and a = alpha s(tau). s is 1
    ("constant"), (tau + 1)^-a ("polynomial"), or 1 up to tau = b and 1 / (a (tau - b) + 1) beyond ("hinge"). With
    buffer = 1 this is the paper's; a larger buffer takes the mean of its models."""

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "uniform"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODELS})
    alpha: float = 0.6
    rule: _NAMES = "polynomial"
    a: float = 0.5
    b: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise UsageError(
                f"FedAsync mixes a share of a model: alpha must be above 0 and at most 1, not {self.alpha}"
            )
        if self.rule not in ("constant", "polynomial", "hinge"):
            raise UsageError(
                f"FedAsync has the rules 'constant', 'polynomial' and 'hinge', not {self.rule!r}"
            )
        if not 0 <= self.a < float("inf") or self.b < 0:
            raise UsageError(f"FedAsync's a and b must be 0 or more, not {self.a} and {self.b}")

    def discount(self, staleness: int) -> float:
        match self.rule:
            case "constant":
                return 1.0
            case "polynomial":
                return float((staleness + 1) ** -self.a)
            case _:
                return 1.0 if staleness <= self.b else 1 / (self.a * (staleness - self.b) + 1)

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        return replace(agg, mean=agg.mean * self.alpha), s


def _check_exponent(part: Strategy, exponent: float) -> None:
    if not 0 <= exponent < float("inf"):
        raise UsageError(
            f"{type(part).__name__}'s exponent must be 0 (an old update counts like a new one) or more, not {exponent}"
        )


def knows_age(strategy: Strategy) -> bool:
    """Whether a strategy weighs updates by their age, which they have in asynchronous runs alone."""
    parts = strategy.parts if isinstance(strategy, Chain) else (strategy,)
    return any(type(part).discount is not Base.discount for part in parts)
