"""The spec of a run: what an operator asks for, checked once, when it is submitted.

Everything that could fail later for a reason that is known now is refused here, in one sentence with the fix.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Self

from koinon_core import codecs
from koinon_core.canonical import canonical, digest_of
from koinon_core.errors import UsageError
from koinon_core.fold import grid_for
from koinon_core.round.terms import Aggregation
from koinon_core.schema import Schema
from koinon_core.sections import Section
from koinon_core.strategy import recipe
from koinon_core.strategy.protocol import Need, Strategy
from koinon_core.update import Layout, layout_of

__all__ = ["RunSpec"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run. Times are in seconds.

    name            unique on its coordinator
    strategy        recipe, as koinon_core.strategy.dump gives it
    schema          the model's, as JSON
    rounds          rounds that make a model; abandoned ones do not count
    min_clients     the quorum: no sum over fewer devices
    clients         devices whose updates a round waits for; None: all that are attached when it opens, and in the
                    first round all that come within join_wait
    max_clients     the most devices a round may have where `clients` is not set (the exact sum is sized for it)
    over_selection  ask this many times `clients`, and take the first that answer
    join_wait       how long a round waits for `clients` once `min_clients` have joined
    deadline        how long it waits for updates
    lease           how long a device may be silent
    codec           how updates are encoded (koinon_core.codecs): "raw", "lossless", "fine", "balanced", "compact",
    "thin" sections        what differs for some tensors: tables of match (`stat/*`, `param/*.bias`), codec, rule and
    bound
                    (koinon_core.sections)
    downlink        "delta": a device that holds an older model gets the lossless difference where that is smaller;
                    "snapshot": always the whole model
    max_examples    the largest weight of one device
    bound           the largest |change| of a parameter
    population      all devices of the federation, for strategies that need it
    patience        abandoned rounds in a row after which the run fails
    evaluate        whether the last model is evaluated by the devices too
    retention       how long updates, and the states that are needed to sum them again, are kept after their round:
                    "keep", "none", or "N rounds" (evaluations and abandoned rounds are rounds too)
    models          the same for models; the newest is always kept
    config          the owner's own settings, handed to the devices as `task.config`
    """

    name: str
    strategy: Mapping[str, Any]
    schema: Any
    rounds: int
    min_clients: int = 2
    clients: int | None = None
    max_clients: int = 1024
    over_selection: float = 1.0
    join_wait: float = 2.0
    deadline: float = 600.0
    lease: float = 60.0
    aggregation: Aggregation = "open"
    groups: int = 1
    codec: str = "balanced"
    sections: tuple[Mapping[str, Any], ...] = ()
    downlink: str = "delta"
    max_examples: int = 1 << 20
    bound: float = 64.0
    population: int | None = None
    patience: int = 5
    evaluate: bool = True
    retention: str = "2 rounds"
    models: str = "keep"
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            value, wanted = getattr(self, each.name), _TYPES.get(str(each.type))
            if wanted and (not isinstance(value, wanted) or isinstance(value, bool) is not (bool in wanted)):
                kind = getattr(each.type, "__name__", each.type)
                raise UsageError(f"{each.name} = {value!r} in the run's config must be {kind}")
            if isinstance(value, int) and abs(value) >= 1 << 63:
                raise UsageError(f"{each.name} in the run's config has more than 63 bits")
        self._check_numbers()
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"a run cannot be called {self.name!r}: use letters, digits, '.', '_' and '-', at most 64 of them"
            )
        codecs.by_name(self.codec)
        if not isinstance(self.sections, tuple | list):
            raise UsageError("the run's sections must be tables: [[sections]] with match = '...' in each")
        # Not cached_property: what is wrong with them is said when the run is submitted.
        object.__setattr__(
            self, "sections", tuple(dict(s) if isinstance(s, Mapping) else s for s in self.sections)
        )
        _ = [Section.make(table) for table in self.sections]
        if self.downlink not in ("delta", "snapshot"):
            raise UsageError(f"downlink = {self.downlink!r} must be 'delta' or 'snapshot'")
        for name in ("retention", "models"):
            _rounds_kept(name, getattr(self, name))
        if self.aggregation != "open":
            raise UsageError(
                f"aggregation {self.aggregation!r} is not in this version; use 'open', on a network and a "
                "coordinator that you trust with single updates"
            )
        if self.groups != 1:
            raise UsageError("an open round has one group; groups belong to secure aggregation")
        if not isinstance(self.config, Mapping):
            raise UsageError(f"the run's [config] must be a table, not {type(self.config).__name__}")
        for name in ("strategy", "schema", "config"):
            try:
                canonical(getattr(self, name))
            except (TypeError, ValueError, RecursionError) as error:
                raise UsageError(f"the run's [{name}] must hold plain values: {error}") from error

    def _check_numbers(self) -> None:
        at_least = {
            "rounds": 1, "min_clients": 1, "max_clients": 1, "max_examples": 1, "patience": 1, "seed": 0,
            "over_selection": 1, "join_wait": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise UsageError(f"{name} must be at least {least}, it is {getattr(self, name)}")
        for name in ("over_selection", "join_wait"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"{name} must be a finite number, it is {getattr(self, name)}")
        for name in ("deadline", "lease", "bound"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} must be a number above 0, it is {value}")
        if self.clients is not None and self.clients < self.min_clients:
            raise UsageError(
                f"a round of clients = {self.clients} can never have min_clients = {self.min_clients}; raise "
                "clients or lower min_clients"
            )
        if self.clients is not None and not self.clients * self.over_selection < 1 << 63:
            raise UsageError(f"over_selection = {self.over_selection} of {self.clients} clients is no number")
        if self.population is not None and self.population < self.min_clients:
            raise UsageError(
                f"population = {self.population} is smaller than min_clients = {self.min_clients}: no round "
                "could ever close"
            )
        if self.devices < self.min_clients:
            raise UsageError(f"max_clients = {self.max_clients} is below min_clients = {self.min_clients}")

    @property
    def devices(self) -> int:
        """The most devices whose updates one round may sum."""
        if self.clients is None:
            return self.max_clients
        return math.ceil(self.clients * self.over_selection)

    @cached_property
    def updates_kept(self) -> float:
        """Rounds for which updates are kept after their own."""
        return _rounds_kept("retention", self.retention)

    @cached_property
    def models_kept(self) -> float:
        """Rounds for which models are kept beside the newest."""
        return _rounds_kept("models", self.models)

    @cached_property
    def model(self) -> Schema:
        return Schema.from_json(self.schema)

    @cached_property
    def recipe_digest(self) -> str:
        return digest_of(self.strategy)

    @property
    def snapshots(self) -> str:
        """The codec of whole models: lossless as the run's is, or packed."""
        return self.codec if codecs.by_name(self.codec).exact else "lossless"

    @cached_property
    def grid(self) -> int:
        """Binary places of the exact sum of parameters; UsageError if it cannot be proven not to overflow."""
        return self.grid_of(self.bound)

    def grid_of(self, bound: float) -> int:
        """The same for values up to `bound`."""
        most = 1 if self.load_strategy().weight == "uniform" else self.max_examples
        return grid_for(bound=bound, max_weight=most, devices=self.devices)

    def load_strategy(self) -> Strategy:
        """The strategy, from this side's registry."""
        return recipe.load(self.strategy)

    def check(self) -> tuple[Strategy, Layout]:
        """What `__post_init__` cannot check without the strategy: to be called where the run is submitted."""
        strategy = self.load_strategy()
        if Need.POPULATION in strategy.needs and self.population is None:
            raise UsageError(
                f"{recipe.show(self.strategy)} divides by the number of all devices: "
                "set population in the run's config"
            )
        if self.population is not None and self.population < self.devices and self.clients is not None:
            raise UsageError(
                f"population = {self.population} is smaller than a round's {self.devices} devices"
            )
        return strategy, layout_of(
            self.model, strategy, [Section.make(table) for table in self.sections], codec=self.codec,
            bound=self.bound, grid=self.grid_of,
        )  # fmt: skip

    @cached_property
    def encoded(self) -> bytes:
        """Canonical JSON. What older versions do not know is left out where it says nothing."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return canonical({k: v for k, v in values.items() if k not in _LATER or v != _LATER[k]})

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The spec that `data` holds; UsageError, naming the key, for anything else."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"not the spec of a run: {error}") from error
        if not isinstance(value, dict):
            raise UsageError("not the spec of a run")
        return cls.make(**value)

    @classmethod
    def make(cls, /, **values: Any) -> Self:
        """The spec with these values; an unknown key is a UsageError that names the nearest right one."""
        allowed = [f.name for f in fields(cls)]
        for key in values:
            if key not in allowed:
                near = get_close_matches(key, allowed, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(allowed)}"
                raise UsageError(f"the run's config has no key {key!r}; {hint} (your own go under [config])")
        for name in ("over_selection", "join_wait", "deadline", "lease", "bound"):
            value = values.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
                values[name] = float(value)
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"the run's config is incomplete: {error}") from error


_LATER = {"retention": "2 rounds", "models": "keep", "sections": (), "downlink": "delta"}


def _rounds_kept(name: str, policy: str) -> float:
    """How many rounds a policy keeps; UsageError for what is none."""
    match policy.split():
        case ["keep"]:
            return math.inf
        case ["none"]:
            return 0
        case [number, "round" | "rounds"] if number.isdecimal() and len(number) < 10:
            return int(number)
    raise UsageError(f"{name} = {policy!r} must be 'keep', 'none', or for example '10 rounds'")


_TYPES: dict[str, tuple[type, ...]] = {
    "<class 'int'>": (int,),
    "<class 'float'>": (float,),
    "<class 'bool'>": (bool,),
    "<class 'str'>": (str,),
    "int | None": (int, type(None)),
}
