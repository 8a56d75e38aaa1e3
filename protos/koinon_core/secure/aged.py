"""What an asynchronous run's strategy steps by where only sums are seen.

The devices of a sum had the same model, so that one age is all of theirs, and the coordinator knows it: what the sum
counts is weighed here, after it was opened, and devices need not know how old their work has become. The same rule as
for single updates (koinon_core.strategy.closing), taken once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from koinon_core.canonical import digest_of
from koinon_core.round.terms import Terms
from koinon_core.secure.sizing import Tuning
from koinon_core.strategy.buffered import age_factor
from koinon_core.strategy.closing import Aggregate
from koinon_core.strategy.protocol import Strategy
from koinon_core.tensors import Array
from koinon_core.tiles import Source

__all__ = ["Aged", "aged"]


@dataclass(frozen=True, slots=True)
class Aged:
    """An aggregate (koinon_core.strategy.closing) of updates that are `age` models old: `share` is what of it counts,
    and with `base`, the model that its devices had, what comes of it is moved by how far that is from the newest.
    `version` is the number of that model, and `known` what the next round was to be sized by before this sum."""

    total: Aggregate
    age: int
    share: float
    newest: Source
    base: Source | None
    version: int
    known: str

    @property
    def count(self) -> int:
        return self.total.count

    @property
    def weight(self) -> float:
        return self.total.weight

    @property
    def totals(self) -> Mapping[str, float]:
        return self.total.totals

    @property
    def evaluated(self) -> int:
        """What they evaluated is not the newest model."""
        return 0 if self.age else self.total.evaluated

    @property
    def metrics(self) -> Mapping[str, float]:
        """As the sum has them, without what was measured of an older model."""
        kept = {n: v for n, v in self.total.metrics.items() if not (self.age and n.startswith("eval."))}
        return {**kept, "updates": float(self.count), "staleness": float(self.age)}

    @property
    def tuning(self) -> str:
        """Of the newest model of which there was a sum: changes shrink, and rings follow them."""
        made, known = Tuning.decode(self.total.tuning), Tuning.decode(self.known)
        if made is None or (known is not None and known.model > self.version):
            return self.known
        return replace(made, model=self.version).encoded

    @property
    def floored(self) -> frozenset[str]:
        return self.total.floored

    def values(self, name: str, offset: int) -> Array:
        values = self.total.values(name, offset)
        kind, _, tensor = name.partition("/")
        if kind == "count" or (self.share == 1.0 and self.base is None):
            return values
        values = values.astype(np.float64)
        if kind == "delta" and self.base is not None:
            values += self.base.values(tensor, offset).astype(np.float64) - self.newest.values(tensor, offset)
        values *= self.share
        return values

    def digest(self) -> str:
        """Of the sum, and of how old it is."""
        return digest_of([self.total.digest(), self.age])


def aged(
    strategy: Strategy, total: Aggregate, terms: Terms, version: int, newest: Source, base: Source | None,
    known: str = "",
) -> Aged:  # fmt: skip
    """The aggregate of a sum in a round with these `terms`, whose devices had the model number `version`: `base`, where
    the strategy joins models. `known` is what the next round was to be sized by before this sum."""
    age = terms.version - version
    return Aged(total, age, age_factor(strategy, age), newest, base, version, known)
