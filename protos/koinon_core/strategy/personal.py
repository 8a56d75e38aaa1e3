"""Models that differ from device to device: FedBN (Li et al. 2021, arXiv:2102.07623)."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from koinon_core.errors import UsageError
from koinon_core.schema import Schema
from koinon_core.strategy.protocol import Base
from koinon_core.strategy.registry import register

__all__ = ["FedBN"]


@register
@dataclass(frozen=True)
class FedBN(Base):
    """Normalisation layers stay at home: their weights, biases, statistics and counters are each device's own
    and never leave it. The rest is averaged, or goes to whatever the chain puts above: `chain(FedAdam(), FedBN())`.

    Layers with running statistics are found by themselves; `keys` (shell patterns, for example "*.norm*.*")
    names others. A model without any is refused.
    """

    elementwise: ClassVar[bool] = True
    keys: tuple[str, ...] = ()

    def local(self, schema: Schema) -> frozenset[str]:
        named = {n for n in schema.by_name for pattern in self.keys if fnmatchcase(n, pattern)}
        found = schema.batchnorm() | named
        if not found:
            raise UsageError(
                "FedBN found no normalisation layer with running statistics in the model; "
                "name the layers with keys=('*.norm*.*',), or use FedAvg"
            )
        return found
