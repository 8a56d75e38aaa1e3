"""The best model of a run, by one of its metrics, and when it is time to stop looking for a better one.

    [best]
    metric = "eval.loss"     # as rounds have it: eval.NAME of a model, train.NAME of a round, central.NAME
    mode = "min"             # or "max", which is the default for names that end in accuracy, auc, f1 or score
    patience = 5             # stop after so many measurements that were no better (0, the default: never)
    delta = 0.001            # better is better by more than this

Pure, and folded over the values in the order of rounds, so that a coordinator that takes a run up finds the same.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Self

from koinon_core.errors import UsageError
from koinon_core.flow.central import PREFIX
from koinon_core.flow.spread import plain

__all__ = ["Best", "Found", "mode_of"]

_LARGER = ("accuracy", "auc", "f1", "score")


def mode_of(metric: str) -> str:
    """Whether more of a metric is better, by its name."""
    return "max" if plain(metric).endswith(_LARGER) else "min"


@dataclass(frozen=True, slots=True)
class Found:
    """The best value so far and the round whose model has it, and how many measurements since were no better."""

    value: float
    round: int
    since: int = 0


@dataclass(frozen=True, slots=True)
class Best:
    """What a run's [best] asks for."""

    metric: str
    mode: str
    patience: int = 0
    delta: float = 0.0

    @classmethod
    def make(cls, table: Mapping[str, Any]) -> Self | None:
        """What the table says; None for an empty one. UsageError, naming the key, for what cannot be."""
        if not isinstance(table, Mapping):
            raise UsageError(f"best = {table!r:.80} must be a table with a metric, for example 'eval.loss'")
        if not table:
            return None
        allowed = [f.name for f in fields(cls)]
        for key in table:
            if key not in allowed:
                near = get_close_matches(str(key), allowed, n=1)
                raise UsageError(
                    f"the run's [best] has no key {key!r}; "
                    + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(allowed)}")
                )
        metric = table.get("metric")
        if not (isinstance(metric, str) and metric.startswith(("eval.", "train.", PREFIX))):
            raise UsageError(
                f"metric = {metric!r:.80} of the run's [best] must be one of the devices' evaluation or training, for "
                "example 'eval.loss', or of the owner's own, 'central.loss'"
            )
        mode = table.get("mode", mode_of(metric))
        patience, delta = table.get("patience", 0), table.get("delta", 0.0)
        if mode not in ("min", "max"):
            raise UsageError(f"mode = {mode!r} of the run's [best] must be 'min' or 'max'")
        if isinstance(patience, bool) or not (isinstance(patience, int) and 0 <= patience < 1 << 31):
            raise UsageError(f"patience = {patience!r} of the run's [best] must be a whole number from 0 on")
        if isinstance(delta, bool) or not (isinstance(delta, int | float) and 0 <= delta < math.inf):
            raise UsageError(f"delta = {delta!r} of the run's [best] must be a number from 0 on")
        return cls(metric, mode, patience, float(delta))

    def after(self, found: Found | None, round_: int, value: float) -> Found:
        """What is best once `value` was measured of the model of `round_`. NaN is never better."""
        if found is None:
            return Found(value, round_)
        gain = found.value - value if self.mode == "min" else value - found.value
        if gain > self.delta or (math.isnan(found.value) and not math.isnan(value)):
            return Found(value, round_)
        return Found(found.value, found.round, found.since + 1)

    def over(self, values: Iterable[tuple[int, float]]) -> Found | None:
        """The same over (round, value) in the order of rounds; None where there is none."""
        found = None
        for round_, value in values:
            found = self.after(found, round_, value)
        return found

    def ends(self, found: Found | None) -> bool:
        """Whether it is time to stop."""
        return bool(self.patience) and found is not None and found.since >= self.patience

    def sentence(self, found: Found) -> str:
        """How that is said."""
        best = f"{found.value:.6g} of round {found.round}"
        return f"{self.metric} was no better in {found.since} measurements than {best}"
