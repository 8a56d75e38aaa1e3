"""Asynchronous rules: what an update counts that was made from an older model.

Nobody waits for the slowest device: every `buffer` of updates makes a model, and devices go on from whichever was the
newest when they began. An update that is tau models old counts s(tau) of itself, and the divisor stays: K updates of
which half are stale move the model by less.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from koinon_core.errors import UsageError
from koinon_core.strategy.chain import Chain, follows_what_was_sent
from koinon_core.strategy.lora import projects
from koinon_core.strategy.protocol import Agg, Base, Need, Rng, State, Strategy, Weight
from koinon_core.strategy.registry import register
from koinon_core.strategy.robust_sum import robust_parts

__all__ = ["FedAsync", "FedBuff", "Staleness", "age_factor", "check_buffered", "knows_age"]

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


def check_buffered(strategy: Strategy, buffer: int) -> None:
    """UsageError where a strategy and a run's `buffer` do not go together."""
    parts = strategy.parts if isinstance(strategy, Chain) else (strategy,)
    discounting = [type(p).__name__ for p in parts if type(p).discount is not Base.discount]
    if not buffer:
        if discounting:
            raise UsageError(
                f"{discounting[0]} weighs updates by their age, and in rounds that wait for their devices they have "
                "none; set buffer in the run's config (and aggregation = 'open')"
            )
        return
    for part in parts:
        _check_part(part)
    if projects(strategy):
        raise UsageError(
            "LoraProjection multiplies factors that all began with the same model; drop it, or drop buffer"
        )
    others = [type(p).__name__ for p in robust_parts(strategy)]
    if discounting and others:
        raise UsageError(
            f"{others[0]} looks at single updates and knows no age, and {discounting[0]} weighs them by it; keep one "
            "of them"
        )


def _check_part(part: Strategy) -> None:
    name = type(part).__name__
    if follows_what_was_sent(part):
        raise UsageError(
            f"{name} keeps a state on devices that must move with the coordinator's, and in an asynchronous run they "
            "are models behind; drop buffer, or choose another strategy (FedProx keeps no state)"
        )
    if part.totals():
        raise UsageError(
            f"{name} divides by sums over one round's devices, which all have the same model; drop buffer, or use "
            "FedBuff"
        )
