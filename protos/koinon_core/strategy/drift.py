"""Against client drift: FedProx (Li et al. 2020, arXiv:1812.06127), SCAFFOLD (Karimireddy et al. 2020,
arXiv:1910.06378), FedDyn (Acar et al. 2021, arXiv:2111.04263)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from koinon_core.errors import LocalProtocolError, UsageError
from koinon_core.schema import Schema
from koinon_core.strategy.average import FedAvg
from koinon_core.strategy.chain import chain
from koinon_core.strategy.protocol import (
    Agg,
    Base,
    Need,
    Pass,
    Plan,
    Pull,
    Rng,
    State,
    Strategy,
    Up,
    Weight,
    Work,
)  # fmt: skip
from koinon_core.strategy.registry import register
from koinon_core.tensors import Tensors

__all__ = ["FedDyn", "FedProx", "Prox", "Scaffold"]


@register
@dataclass(frozen=True)
class Prox(Base):
    """The local gradient is g + mu (y - w): training is held near the round's model w."""

    elementwise: ClassVar[bool] = True
    mu: float = 0.1

    def __post_init__(self) -> None:
        if self.mu < 0:
            raise UsageError(f"Prox's mu must not be negative, it is {self.mu}")

    def begin(self, d: State, down: State, w: Tensors) -> Plan:
        return Plan(Pull(mu=self.mu))


def FedProx(mu: float = 0.1, lr: float = 1.0) -> Strategy:
    """FedAvg with a proximal term: `chain(FedAvg(lr), Prox(mu))`."""
    return chain(FedAvg(lr), Prox(mu))


@register
@dataclass(frozen=True)
class Scaffold(Base):
    """Control variates: the local gradient is g - c_i + c, with c the mean of all devices' c_i.

    Option 2 (the default) takes c_i from the local steps: c_i - c + (w - y) / (lr |a|_1), where |a|_1 is K for
    K plain SGD steps and grows with momentum (dividing by K under momentum diverges). Option 1 takes the
    gradient at w, by one more pass over the data that changes no weights; it allows any local optimizer.

    Devices count the same (`uniform`). The server moves c by count/population times the mean change, so the run
    must say its population. Traffic is twice FedAvg's, both ways.
    """

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "uniform"
    lr: float = 1.0
    option: int = 2

    def __post_init__(self) -> None:
        if self.option not in (1, 2):
            raise UsageError(
                f"Scaffold's option is 1 (gradient at w) or 2 (from the steps), not {self.option}"
            )

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]  # depends on the option
        return frozenset({Need.POPULATION, Need.MEMORY} | ({Need.NORM} if self.option == 2 else set()))

    def extra(self, schema: Schema) -> Mapping[str, Schema]:
        return {"control": schema}

    def init(self, w: Tensors, population: int) -> State:
        return {"c": w.zeros()}

    def down(self, s: State) -> State:
        return {"c": s["c"]}

    def begin(self, d: State, down: State, w: Tensors) -> Plan:
        shift = down["c"] - d["c"] if d else down["c"]
        gradient = Pass(name="gradient", when="before", measure=True)
        return Plan(Pull(shift=shift), (gradient,) if self.option == 1 else ())

    def finish(self, d: State, down: State, work: Work, up: Up) -> Up:
        own = d["c"] if d else down["c"].zeros()
        if self.option == 1:
            new = work.results["gradient"].select(up.delta)
        else:
            length = work.lr * work.norm
            if not (math.isfinite(length) and length > 0):
                raise LocalProtocolError(
                    "SCAFFOLD's option 2 needs the length of the local steps, and "
                    f"{work.why or 'only SGD has one'}; train with one SGD, plain or with momentum, or make the run "
                    "with Scaffold(option=1)"
                )
            new = own - down["c"] - up.delta / length
        return Up(up.delta, {**up.extra, "control": new - own}, up.totals)

    def commit(self, d: State, down: State, work: Work, up: Up, sent: Up) -> State:
        own = d["c"] if d else down["c"].zeros()
        # What the server adds to c, not what was computed here: only so c stays the mean of the c_i.
        return {"c": own + sent.extra["control"]}

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        c = s["c"] + agg.extra["control"] * (agg.count / agg.population)
        return replace(agg, mean=agg.mean * self.lr), {"c": c}


@register
@dataclass(frozen=True)
class FedDyn(Base):
    """A dynamic regulariser: each device minimises f_i(y) - <g_i, y> + alpha/2 |y - w|^2, by local steps with the
    gradient g - g_i + alpha (y - w), and moves g_i by -alpha Delta_i. The server keeps h, moved by
    -alpha/N sum(Delta_i), and takes w += U(Delta) - h/alpha.

    Devices count the same (`uniform`; the authors' code weighs alpha by examples instead), and a device's g_i is part
    of the server's h, so the run must say its population, and a device that lost its memory is left out. Traffic is
    FedAvg's; state: h at the coordinator, g_i on each device.
    """

    elementwise: ClassVar[bool] = True
    weight: ClassVar[Weight | None] = "uniform"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.POPULATION, Need.MEMORY, Need.NORM})
    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise UsageError(f"FedDyn's alpha must be above 0, it is {self.alpha}")

    def init(self, w: Tensors, population: int) -> State:
        return {"h": w.zeros()}

    def begin(self, d: State, down: State, w: Tensors) -> Plan:
        return Plan(Pull(mu=self.alpha, shift=-d["g"] if d else None))

    def finish(self, d: State, down: State, work: Work, up: Up) -> Up:
        if not math.isfinite(work.norm):
            raise LocalProtocolError(
                "FedDyn's gradient term is part of what SGD minimises, and "
                f"{work.why or 'an adaptive optimizer rescales it'}; train with one SGD, plain or with momentum, or "
                "take another strategy"
            )
        return up

    def commit(self, d: State, down: State, work: Work, up: Up, sent: Up) -> State:
        own = d["g"] if d else up.delta.zeros()
        # What the server takes into h, not what was computed here.
        return {"g": own - sent.delta * self.alpha}

    def server(self, s: State, agg: Agg, rng: Rng) -> tuple[Agg, State]:
        h = s["h"] - agg.mean * (self.alpha * agg.count / agg.population)
        return replace(agg, mean=agg.mean - h / self.alpha), {"h": h}
