"""What a run's [selection] says: by which rule the devices of a round are drawn, and which may be in one at all.

[selection]
rule = "uniform"             # those with the smallest ranks; the default
rule = "weighted"            # by `by`: a label ("weight", the default) or "examples" of earlier rounds (open runs)
rule = "poisson"             # every device by itself, with probability `q`
rule = "power-of-choice"     # of `d` devices drawn by `by` those whose loss is largest; `loss` = "asked" | "latest"
labels = {site = "ward-*"}   # only devices with these labels (shell patterns)
at_least = {memory_mb = 4096}   # only devices that say they have this much
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, Self

from koinon_core.errors import UsageError
from koinon_core.selection.traits import CAPABILITIES, LABEL, weight_of

__all__ = ["EXAMPLES", "RULES", "Selection"]

RULES = ("uniform", "weighted", "poisson", "power-of-choice")
EXAMPLES = "examples"
_OF = {
    "by": ("weighted", "power-of-choice"),
    "q": ("poisson",),
    "d": ("power-of-choice",),
    "loss": ("power-of-choice",),
}
_OPEN = (
    "take another rule, or set aggregation = 'open', on a network and a coordinator that you trust with it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A checked [selection]; see the module. `by` is "" where all devices weigh the same."""

    rule: str = "uniform"
    by: str = ""
    q: float = 0.0
    d: int = 0
    loss: str = "asked"
    labels: Mapping[str, str] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def make(cls, table: Any) -> Self:
        """What the table says. UsageError, naming the key, for what cannot be."""
        if not isinstance(table, Mapping):
            raise UsageError(f"selection = {table!r:.80} must be a table, for example rule = 'weighted'")
        allowed = [f.name for f in fields(cls)]
        for key in table:
            if key not in allowed:
                raise UsageError(f"the run's [selection] has no key {key!r}; {_near(str(key), allowed)}")
        rule = table.get("rule", "uniform")
        if rule not in RULES:
            raise UsageError(f"there is no rule {rule!r:.80} of selection; {_near(str(rule), list(RULES))}")
        for key, rules in _OF.items():
            if key in table and rule not in rules:
                raise UsageError(
                    f"{key} in the run's [selection] belongs to rule = {' or '.join(map(repr, rules))}"
                )
        values = {**table, "rule": rule, "labels": _labels(table), "at_least": _at_least(table)}
        if rule == "weighted":
            values.setdefault("by", "weight")
        made = cls(**values)
        made._check()
        return made

    def _check(self) -> None:
        if self.by and not (isinstance(self.by, str) and LABEL.fullmatch(self.by)):
            raise UsageError(
                f"by = {self.by!r:.80} in the run's [selection] must be the name of a label, or 'examples'"
            )
        if self.loss not in ("asked", "latest"):
            raise UsageError(
                f"loss = {self.loss!r:.80} in the run's [selection] must be 'asked' (of the round's model, before the "
                "work) or 'latest' (as it was last reported)"
            )
        if self.rule == "poisson" and not (_is_number(self.q) and 0 < self.q <= 1):
            raise UsageError(
                f"q = {self.q!r:.80} in the run's [selection] must be a probability above 0, up to 1"
            )
        if self.rule == "power-of-choice" and (
            isinstance(self.d, bool) or not isinstance(self.d, int) or self.d < 1
        ):
            raise UsageError(
                f"d = {self.d!r:.80} in the run's [selection] must be a number of devices: how many are drawn before "
                "those with the largest loss are taken"
            )

    def check(self, spec: Any) -> None:
        """UsageError for a run that this cannot serve."""
        if spec.secure:
            self._check_secure()
        if self.rule in ("weighted", "power-of-choice") and spec.clients is None:
            raise UsageError(f"rule = {self.rule!r} takes some of the devices; say how many: clients = ...")
        if self.rule == "power-of-choice" and self.d < spec.devices:
            raise UsageError(
                f"d = {self.d} in the run's [selection] is below the {spec.devices} devices of a round; the largest "
                "losses are taken of d"
            )
        if self.rule == "poisson":
            self._check_poisson(spec)

    def _check_secure(self) -> None:
        if self.rule == "power-of-choice":
            raise UsageError(
                "rule = 'power-of-choice' needs the loss of single devices, and of a secure run only sums are known; "
                + _OPEN
            )
        if self.by == EXAMPLES:
            raise UsageError(
                "by = 'examples' needs to know how many examples each device has, and of a secure run only sums are "
                "known; give the devices a label (koinon device label NAME weight=3), " + _OPEN
            )

    def _check_poisson(self, spec: Any) -> None:
        if spec.clients is not None or spec.over_selection != 1:
            raise UsageError(
                "rule = 'poisson' waits for all devices that it draws; leave clients and over_selection out"
            )
        if spec.population is None:
            raise UsageError(
                "rule = 'poisson' draws from all devices there are; set population in the run's config"
            )
        if spec.population > spec.max_clients:
            raise UsageError(
                f"rule = 'poisson' may draw all of population = {spec.population}, and max_clients is "
                f"{spec.max_clients}; raise max_clients"
            )
        if self.chance * spec.population < spec.quorum:
            raise UsageError(
                f"q = {self.q} of population = {spec.population} draws {self.q * spec.population:g} devices on "
                f"average, and a round needs {spec.quorum}; raise q or lower min_clients"
            )

    # -- what follows from it ---------------------------------------------------------------------------------

    @property
    def chance(self) -> Fraction:
        """q as it is written: 0.6 are three fifths, and not the binary fraction next to them."""
        return Fraction(str(self.q))

    @property
    def gathers(self) -> bool:
        """Whether a round is drawn from all devices that are here, and not of whoever comes first."""
        return self.rule != "uniform"

    @property
    def asks(self) -> bool:
        """Whether a round that only evaluates goes before every one that trains."""
        return self.rule == "power-of-choice" and self.loss == "asked"

    @property
    def learns(self) -> bool:
        """Whether anything of single updates decides who is in later rounds."""
        return self.rule == "power-of-choice" or self.by == EXAMPLES

    @property
    def label(self) -> str:
        """The label that has a device's weight; "" where there is none."""
        return "" if self.by == EXAMPLES else self.by

    @property
    def reads_labels(self) -> bool:
        """Whether what an operator wrote on devices matters."""
        return bool(self.labels or self.label)

    def misfit(self, labels: Mapping[str, str], able: Mapping[str, float], evaluates: bool = True) -> str:
        """Why a device may not be in a round; empty if it may."""
        for name, pattern in self.labels.items():
            if name not in labels:
                return f"it has no label {name}"
            if not fnmatchcase(labels[name], pattern):
                return f"its label {name} is {labels[name]!r}, not {pattern!r}"
        for name, least in self.at_least.items():
            if not able.get(name, 0) >= least:
                return f"it says that it has {name} = {able.get(name, 0):g}, and {least:g} is the least"
        if self.label in labels and not weight_of(labels[self.label]):
            return f"its label {self.label} is {labels[self.label]!r}, which is no weight above 0"
        if self.asks and not evaluates:
            return "it does not evaluate: session.tasks(model, evaluate=...)"
        return ""

    def weight(self, labels: Mapping[str, str]) -> Fraction:
        """The weight by a label: 1 where there is none."""
        return weight_of(labels.get(self.label, "1")) or Fraction(1)


def _near(word: str, allowed: list[str]) -> str:
    near = get_close_matches(word, allowed, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(allowed)}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _labels(table: Mapping[str, Any]) -> dict[str, str]:
    labels = table.get("labels", {})
    if not isinstance(labels, Mapping):
        raise UsageError("labels in the run's [selection] must be a table, for example {site = 'ward-*'}")
    for name, pattern in labels.items():
        if not (isinstance(name, str) and LABEL.fullmatch(name) and isinstance(pattern, str)):
            raise UsageError(
                f"labels in the run's [selection] has {name!r:.80} = {pattern!r:.80}: it must be a name and text"
            )
    return dict(labels)


def _at_least(table: Mapping[str, Any]) -> dict[str, float]:
    least = table.get("at_least", {})
    if not isinstance(least, Mapping):
        raise UsageError("at_least in the run's [selection] must be a table, for example {memory_mb = 4096}")
    for name, value in least.items():
        if name not in CAPABILITIES:
            raise UsageError(f"devices say nothing of {name!r:.80}; {_near(str(name), list(CAPABILITIES))}")
        if not (_is_number(value) and value >= 0):
            raise UsageError(
                f"{name} = {value!r:.80} in the run's [selection.at_least] must be a number from 0 on"
            )
    return dict(least)
