"""What the local steps of a task were, as numbers: how many, how large the first, and how far they went."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Recorded"]


@dataclass
class Recorded:
    """What local steps were. `displacement` is how far a gradient of constant 1 would have moved a weight, which
    divided by `lr` is FedNova's |a|_1; NaN where the optimizer has no such length, and then `why` says why."""

    steps: int = 0
    lr: float = 0.0
    displacement: float = 0.0
    why: str = ""

    @property
    def norm(self) -> float:
        return self.displacement / self.lr if self.lr else 0.0
