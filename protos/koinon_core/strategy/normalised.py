"""Updates in other units than weights: FedNova (Wang et al. 2020, arXiv:2007.07481), q-FedAvg (Li et al. 2020,
arXiv:1905.10497). Both end in a ratio of sums, so they need no device's update by itself."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from koinon_core.errors import LocalProtocolError, UsageError
from koinon_core.strategy.protocol import Agg, Base, Need, Rng, State, Trait, Up, Weight, Work
from koinon_core.strategy.registry import register

__all__ = ["FedNova", "QFedAvg"]

_LEAST, _MOST = 2.0**-10, 20  # of F^q, in units of the usual one; the latter as a power of two


@register
@dataclass(frozen=True)
class FedNova(Base):
    """Devices that took more steps pull no harder: each sends Delta_i / |a_i|, with |a_i| its local optimizer's length
    (K for K plain steps; more with momentum), and the server takes w += lr tau sum(p_i Delta_i / |a_i|), with
    tau = sum(p_i |a_i|); under a proximal term, sum(p_i K_i). The fixed point is that of the stated objective; at a
    finite learning rate it is not always nearer than FedAvg's.

    `steps` is a usual |a|: updates are sent in proportion to it, and where every device has that one, FedNova is FedAvg
    bit for bit. `most` is the largest examples * |a| of a device, which sums are sized for: a million examples in a
    million steps. A device beyond it says so, and is not in the sum.
    """

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "examples"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.NORM})
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.RESCALES})
    lr: float = 1.0
    steps: float = 1.0
    most: float = 1e12

    def __post_init__(self) -> None:
        if not (self.steps > 0 and self.most > 0):
            raise UsageError(
                f"FedNova's steps and most must be above 0, they are {self.steps} and {self.most}"
            )

    def totals(self) -> dict[str, float]:
        return {"tau": self.most}

    def finish(self, d: State, down: State, work: Work, up: Up) -> Up:
        if not (math.isfinite(work.norm) and work.norm > 0):
            raise LocalProtocolError(
                "FedNova needs the length of the local steps, which only SGD (plain or with momentum) has; train with "
                "SGD, or take another strategy"
            )
        length = float(work.steps) if work.mu else work.norm
        tau = work.examples * length
        if tau > self.most:
            enough = math.ceil(math.log10(tau))
            raise LocalProtocolError(
                f"{work.examples} examples in steps of the length {length:g} are beyond what "
                f"FedNova(most={self.most:g}) sums; make the run with most = 1e{enough}, or let devices take fewer "
                "steps"
            )
        delta = up.delta * (self.steps / work.norm)
        return replace(up, delta=delta, totals={**up.totals, "tau": tau})

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        tau = agg.totals["tau"] / agg.weight / self.steps
        factor = self.lr * tau
        return (agg if factor == 1.0 else replace(agg, mean=agg.mean * factor)), s


@register
@dataclass(frozen=True)
class QFedAvg(Base):
    """Devices with a larger loss count for more. With F_i the loss at the round's model over the device's own data
    (its `evaluate`'s "loss"), L = 1/(local learning rate) and G_i = -L Delta_i:
    w -= sum(F_i^q G_i) / sum(q F_i^(q-1) |G_i|^2 + L F_i^q). q = 0 is the uniform mean.

    Numerator and denominator are sent in units of L F^q at a usual loss F = `loss`, so that updates are about as large
    as the changes that they are made of; without it, a loss of 100 under q = 5 would be out of every bound. A device
    for whom F^q is less than 2^-10 of that counts as one for whom it is that much: less would be lost in rounding.
    `most` is the largest that a device adds to the sum below, which sums are sized for.
    """

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "uniform"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOSS_BEFORE})
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.RESCALES, Trait.MEASURES})
    q: float = 1.0
    loss: float = 1.0
    most: float = 1e9

    def __post_init__(self) -> None:
        if not (self.q >= 0 and self.loss > 0 and self.most > 0):
            raise UsageError(
                f"QFedAvg's q must not be negative, and its loss and most above 0; they are {self.q}, {self.loss} and "
                f"{self.most}"
            )

    def totals(self) -> dict[str, float]:
        return {"h": self.most}

    def finish(self, d: State, down: State, work: Work, up: Up) -> Up:
        if work.loss_before is None or not (math.isfinite(work.loss_before) and work.loss_before >= 0):
            raise LocalProtocolError(
                "QFedAvg weighs devices by their loss before training: give session.tasks an evaluate that returns "
                f"'loss', a number that is not negative (it was {work.loss_before})"
            )
        if not work.lr > 0:
            raise LocalProtocolError("QFedAvg needs the local learning rate, and no optimizer step was seen")
        least = _LEAST ** (1 / self.q) if self.q else 0.0
        loss = max(least, (work.loss_before + 1e-10) / self.loss)
        if self.q * math.log2(loss) > _MOST:
            raise LocalProtocolError(
                f"the loss {work.loss_before:.3g} is far above the usual one of QFedAvg(loss={self.loss:g}), and no "
                f"sum has room for its power {self.q:g}; make the run with a loss that is usual in its first rounds"
            )
        share = loss**self.q
        # |G|^2 / L = |Delta|^2 L, and one F of the power is that of the unit.
        h = self.q * loss ** (self.q - 1) * up.delta.dot(up.delta) / (work.lr * self.loss) + share
        if not h <= self.most:  # NaN is not
            raise LocalProtocolError(
                f"an update of the norm {up.delta.norm():.3g} at the rate {work.lr:g} adds {h:.3g} to what QFedAvg "
                f"divides by, beyond its most = {self.most:g}; train less, or make the run with a larger most"
            )
        return replace(up, delta=up.delta * share, totals={**up.totals, "h": h})

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        return replace(agg, mean=agg.mean * (agg.count / agg.totals["h"])), s
