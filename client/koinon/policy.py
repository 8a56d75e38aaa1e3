"""The owner's floors: what this device takes part in, whatever a coordinator asks for.

They are in `device.toml` beside the device's memory (or where KOINON_POLICY says), and everything has a default:

    allow_runs = ["ward-*"]     # runs that this device may join; default: those that its owner names in the call
    open = false                # never hand in an update that the coordinator can see alone; default: true
    min_cohort = 5              # the fewest devices whose sum may be opened; default: 3
    gamma = 0.05                # plan for at least this share of corrupt devices; default: 0.05
    sigma = 40                  # a single update is seen with a probability of at most 2^-sigma; default: 40
    hardened = true             # only the complete graph, in which nobody picks neighbours; default: false
    attempts = 3                # how often a round may try for a sum; default: 5
    clip = 100.0                # the largest norm of what is given; default: no limit
    max_examples = 100000       # the largest weight; default: no limit
    noise = 0.5                 # the least noise multiplier of differential privacy; default: 0, none asked for
    profile = false             # say nothing of this device's memory, cores and graphics processors; default: true
    clear = ["energy", "seconds", "bytes"]   # what a round's work has cost may be said in secure runs too, though
                                # seconds and joules tell how many examples there are; default: none of it

A run or a round below them is declined, with the reason.
"""

import math
import os
import tomllib
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from koinon_core.errors import UsageError
from koinon_core.ring import Group
from koinon_core.round.terms import Terms
from koinon_core.secure.agreement import Agreement
from koinon_core.spec import RunSpec

__all__ = ["Policy"]

_CLEAR = ("energy", "seconds", "bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the owner of a device allows; see the module."""

    allow_runs: tuple[str, ...] = ("*",)
    open: bool = True
    min_cohort: int = 3
    gamma: float = 0.05
    sigma: int = 40
    hardened: bool = False
    attempts: int = 5
    clip: float = math.inf
    max_examples: float = math.inf
    noise: float = 0.0
    profile: bool = True
    clear: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """The policy in `path`, or where KOINON_POLICY says; the defaults if there is no such file. UsageError for
        what cannot be read: a floor that was meant is never taken for none."""
        named = os.environ.get("KOINON_POLICY")
        file = Path(named) if named else path
        if file is None or (not named and not file.exists()):
            return cls()
        try:
            values = tomllib.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"the device's policy {file} cannot be read ({error}); mend it") from error
        return cls.of(values, str(file))

    @classmethod
    def of(cls, values: dict[str, Any], where: str) -> Self:
        """The policy that these values say."""
        known = {f.name: getattr(cls(), f.name) for f in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise UsageError(f"{where} has no setting {name!r}; there are {', '.join(sorted(known))}")
            usual = known[name]
            right = (
                isinstance(value, list) and all(isinstance(one, str) for one in value)
                if isinstance(usual, tuple)
                else isinstance(value, bool) if isinstance(usual, bool)
                else isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
            )  # fmt: skip
            if not right:
                raise UsageError(
                    f"{name} = {value!r} in {where} is no such setting: {usual!r} is its default"
                )
        for word in values.get("clear", ()):
            if word not in _CLEAR:
                raise UsageError(
                    f"clear in {where} names {word!r}; what a round's work has cost is {', '.join(_CLEAR)}"
                )
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**plain)

    def check_run(self, spec: RunSpec) -> None:
        """Raise UsageError for a run that this device does not join."""
        if not any(fnmatchcase(spec.name, pattern) for pattern in self.allow_runs):
            raise UsageError(
                f"run {spec.name!r} is not among those that this device may join (allow_runs in its policy)"
            )
        if spec.aggregation == "open" and not self.open:
            raise UsageError(
                "the run is open: the coordinator would see this device's update alone, which its policy does not allow"
            )

    def check_round(self, terms: Terms) -> None:
        """Raise UsageError for a round that is below the floors; BadBlob for terms that are none."""
        if terms.aggregation != "secure":
            if not self.open:
                raise UsageError("the round is open, which this device's policy does not allow")
            return
        asked = Agreement.of(terms)
        least = terms.quorum // terms.groups
        floors = (
            ("min_cohort", least, self.min_cohort, least >= self.min_cohort),
            ("gamma", asked.gamma, self.gamma, asked.gamma >= self.gamma),
            ("sigma", asked.sigma, self.sigma, asked.sigma >= self.sigma),
            ("hardened", asked.hardened, self.hardened, asked.hardened or not self.hardened),
            ("attempts", asked.attempts, self.attempts, asked.attempts <= self.attempts),
            (
                "max_examples",
                asked.ring.max_weight,
                self.max_examples,
                asked.ring.max_weight <= self.max_examples,
            ),
            ("noise", 0.0, self.noise, self.noise <= 0.0),
            *(
                (f"clip of {group.name}", longest, self.clip, longest <= self.clip)
                for group in asked.ring.groups
                if group.name == "param" or group.name.startswith("extra/")
                for longest in [_longest(group)]
            ),
        )
        for what, is_, wanted, fine in floors:
            if not fine:
                raise UsageError(
                    f"the round's {what} is {is_}, and this device's policy has {wanted}; the run must be submitted "
                    "with other settings, or the device's owner change that"
                )


def _longest(group: Group) -> float:
    """The largest Euclidean norm of what a device gives to a group: what is not rotated is not clipped, and only each
    of its values is bounded."""
    return group.bound if group.rotated else group.bound * math.sqrt(group.size)
