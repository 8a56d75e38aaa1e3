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
from typing import Any, Self, cast, get_args

from koinon_core import codecs, settings
from koinon_core.canonical import canonical, digest_of
from koinon_core.errors import UsageError
from koinon_core.flow.best import Best
from koinon_core.flow.central import is_central
from koinon_core.flow.schedule import check_schedules
from koinon_core.flow.spread import histograms_of, plain, read_from
from koinon_core.fold import grid_for
from koinon_core.round.terms import Aggregation, Kind
from koinon_core.schema import Schema
from koinon_core.sections import Section
from koinon_core.secure import rules
from koinon_core.secure.agreement import ETA, SIGMA, Agreement, Keys
from koinon_core.secure.apart import sums_needed
from koinon_core.secure.levels import level_of
from koinon_core.secure.numbers import MOST, Asked
from koinon_core.secure.parts import by_examples, parts_of
from koinon_core.secure.sizing import Tuning, ring_of
from koinon_core.selection import Selection
from koinon_core.strategy import recipe
from koinon_core.strategy.asynchronous import check_buffered
from koinon_core.strategy.chain import Chain
from koinon_core.strategy.protocol import Need, Strategy, Trait
from koinon_core.strategy.robust_sum import robust_parts
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
    min_clients     the quorum: no sum over fewer devices. Secure: 3 where nothing is said
    clients         devices whose updates a round waits for; None: all that are attached when it opens, and in the
                    first round all that come within join_wait
    max_clients     the most devices a round may have where `clients` is not set (the exact sum is sized for it)
    over_selection  ask this many times `clients`, and take the first that answer
    join_wait       how long a round waits for `clients` once `min_clients` have joined
    deadline        how long it waits for updates
    lease           how long a device may be silent
    aggregation     "secure": the coordinator sees only the sum of updates (koinon_core.secagg); "open": every one
    groups          secure: how many sums a round has, of at least `min_clients` each; they are added, or a robust rule
                    is taken between them
    codec           how updates are encoded (koinon_core.codecs): "raw", "lossless", "fine", "balanced", "compact",
                    "thin"; secure (koinon_core.secure.levels): "balanced", "fine", "compact", "exact"
    sections        what differs for some tensors: tables of match (`stat/*`, `param/*.bias`), codec, rule and bound
                    (koinon_core.sections)
    downlink        "delta": a device that holds an older model gets the lossless difference where that is smaller;
                    "snapshot": always the whole model
    max_examples    the largest weight of one device; secure: more examples count as so many, and 65536 where nothing is
                    said
    bound           the largest |change| of a parameter
    population      all devices of the federation, for strategies that need it
    patience        abandoned rounds in a row after which the run fails
    evaluate        whether the last model is evaluated by the devices too
    evaluate_every  devices evaluate the model that a round begins with in every such round, the first included
    distribution    open: metrics are kept as a distribution over devices too (koinon_core.flow.spread); where devices
                    have models of their own they always are
    histograms      secure: the bins by whose counts such a distribution is known, as edges by metric
    partial         whether a device may hand in what it has so far, where the strategy allows that
    best            by which metric the best model is known, and when to stop early (koinon_core.flow.best)
    retention       how long updates, and the states that are needed to sum them again, are kept after their round:
                    "keep", "none", or "N rounds" (evaluations and abandoned rounds are rounds too). Secure: "none"
    models          the same for models; the newest is always kept
    config          the owner's own settings, handed to the devices as `task.config`; a table with a `schedule` is a
                    number that changes from round to round (koinon_core.flow.schedule)
    keys            secure: exchanged by devices that have finished ("ready"), or before they train ("early")
    attempts        secure: how often a sum is tried in one round
    gamma, delta    secure: the share of devices that may be corrupt, and that may drop out after keys are exchanged
    hardened        secure: every device shares its secrets with every other
    phase           secure: how long each of the short collections lasts
    clip            secure: the largest Euclidean norm of a device's change; a longer one is scaled down to it
    metrics         secure: the names of the metrics that are summed; others stay on the device
    buffer          asynchronous: updates that make a model, whichever rounds their devices began in (0: rounds wait for
                    their devices). A device has one in a model at most
    concurrency     asynchronous: devices at work at a time; 0: all that are ready, up to `max_clients`
    staleness       asynchronous: how many models may have been made since a device was given its work
    selection       which devices are in a round (koinon_core.selection.rule)
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
    aggregation: Aggregation = "secure"
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
    keys: str = "ready"
    attempts: int = 3
    gamma: float = 0.05
    delta: float = 0.10
    hardened: bool = False
    phase: float = 30.0
    clip: float = 16.0
    metrics: tuple[str, ...] = ("loss", "accuracy")
    evaluate_every: int = 1
    best: Mapping[str, Any] = field(default_factory=dict)
    buffer: int = 0
    concurrency: int = 0
    staleness: int = 10
    partial: bool = True
    distribution: bool = False
    histograms: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            value, wanted = getattr(self, each.name), _TYPES.get(str(each.type))
            if wanted and (not isinstance(value, wanted) or isinstance(value, bool) is not (bool in wanted)):
                kind = getattr(each.type, "__name__", each.type)
                raise UsageError(f"{each.name} = {value!r} in the run's config must be {kind}")
            if isinstance(value, int) and abs(value) >= 1 << 63:
                raise UsageError(f"{each.name} in the run's config has more than 63 bits")
        if self.secure:
            rules.check_fewest(self)
        settings.check_numbers(self)
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"a run cannot be called {self.name!r}: use letters, digits, '.', '_' and '-', at most 64 of them"
            )
        if self.aggregation not in get_args(Aggregation):
            raise UsageError(
                f"aggregation = {self.aggregation!r} must be {' or '.join(get_args(Aggregation))}"
            )
        if not self.secure:
            codecs.by_name(self.codec)
        if not isinstance(self.sections, tuple | list):
            raise UsageError("the run's sections must be tables: [[sections]] with match = '...' in each")
        # Not cached_property: what is wrong with them is said when the run is submitted.
        object.__setattr__(
            self, "sections", tuple(dict(s) if isinstance(s, Mapping) else s for s in self.sections)
        )
        if not isinstance(self.metrics, tuple | list):
            raise UsageError("the run's metrics must be a list of names")
        object.__setattr__(self, "metrics", tuple(self.metrics))
        sections = [Section.make(table) for table in self.sections]
        if self.downlink not in ("delta", "snapshot"):
            raise UsageError(f"downlink = {self.downlink!r} must be 'delta' or 'snapshot'")
        for name in ("retention", "models"):
            settings.rounds_kept(name, getattr(self, name))
        if self.secure:
            if self.retention == _LATER["retention"]:  # nothing was said
                object.__setattr__(self, "retention", "none")
            rules.check_settings(self, sections)
            object.__setattr__(self, "histograms", histograms_of(self.histograms, self.metrics, MOST))
            if self.distribution:
                raise UsageError(
                    "distribution = true needs what single devices measured, which a secure sum does not show; name "
                    "bins instead: [histograms] with accuracy = [0, 0.5, 0.8, 0.9, 1]"
                )
        elif self.histograms != {}:
            raise UsageError(
                "[histograms] are for secure runs; of an open one the distribution is known as it is: leave them out, "
                "and set distribution = true where devices have no models of their own"
            )
        elif self.groups != 1:
            raise UsageError("an open round has one group; groups belong to secure aggregation")
        if not isinstance(self.config, Mapping):
            raise UsageError(f"the run's [config] must be a table, not {type(self.config).__name__}")
        check_schedules(self.config)
        object.__setattr__(self, "best", dict(self.best) if isinstance(self.best, Mapping) else self.best)
        if self.watch is not None and self.secure and not is_central(self.watch.metric):
            name = self.watch.metric.partition(".")[2]
            if name not in self.metrics and read_from(name) not in self.histograms:
                if plain(name) != name:
                    raise UsageError(
                        f"the best model is to be known by {self.watch.metric!r}, and a secure run knows p10, median "
                        f"and p90 of metrics that have bins; add [histograms] with {plain(name)} = [...]"
                    )
                raise UsageError(
                    f"the best model is to be known by {self.watch.metric!r}, and a secure run sums only the metrics "
                    f"that it names; add {name!r} to metrics"
                )
        if isinstance(self.selection, Mapping):
            object.__setattr__(self, "selection", dict(self.selection))
        self.selecting.check(self)
        for name in ("strategy", "schema", "config", "best", "histograms", "selection"):
            try:
                canonical(getattr(self, name))
            except (TypeError, ValueError, RecursionError) as error:
                raise UsageError(f"the run's [{name}] must hold plain values: {error}") from error

    @property
    def secure(self) -> bool:
        """Whether only sums of updates are seen."""
        return self.aggregation == "secure"

    @property
    def quorum(self) -> int:
        """The fewest devices with which a round goes on: min_clients in every group."""
        return self.min_clients * self.groups

    @property
    def devices(self) -> int:
        """The most devices whose updates one round may sum."""
        if self.buffer:  # a secure one leaves no fewer behind than could hide one another (round/cohorts.py)
            return self.buffer + (self.min_clients - 1 if self.secure else 0)
        if self.clients is None:
            return self.max_clients
        return math.ceil(self.clients * self.over_selection)

    @cached_property
    def watch(self) -> Best | None:
        """By what the best model is known, if that is asked for."""
        return Best.make(self.best)

    def watched(self, metrics: Mapping[str, float], round_: int, model: int) -> tuple[int, float] | None:
        """What is watched of the metrics of `round_`, which began with the model of round `model`: the round whose
        model it is about, and its value. None where nothing is, or it was not measured."""
        value = metrics.get(self.watch.metric, math.nan) if self.watch is not None else math.nan
        if not math.isfinite(value):
            return None
        return (model if self.watch is not None and self.watch.metric.startswith("eval.") else round_), value

    @cached_property
    def selecting(self) -> Selection:
        """Which devices are in a round."""
        return Selection.make(self.selection)

    @cached_property
    def whole(self) -> str:
        """Why a device may not hand in work that it stopped early; empty if it may."""
        if not self.partial:
            return "this run takes whole work only (partial = false in its config)"
        strategy = self.load_strategy()
        for part in strategy.parts if isinstance(strategy, Chain) else (strategy,):
            if Need.WHOLE in part.needs:
                return f"{type(part).__name__} takes whole work only (docs/strategies.md says why)"
        return ""

    @cached_property
    def spreads(self) -> bool:
        """Whether metrics of an open run are kept as a distribution over devices too."""
        strategy, layout = self._checked
        parts = strategy.parts if isinstance(strategy, Chain) else (strategy,)
        own = layout.local or any(Trait.PRIVATE in part.traits for part in parts)
        return not self.secure and (self.distribution or bool(own))

    def evaluates_in(self, round_: int) -> bool:
        """Whether devices evaluate the model that a round which trains begins with."""
        if self.selecting.asks:
            return False  # the candidates have, in the round before
        return (round_ - 1) % self.evaluate_every == 0

    @property
    def reach(self) -> int:
        """How many models before a round's own its updates may have begun with."""
        return self.staleness if self.buffer else 0

    @cached_property
    def updates_kept(self) -> float:
        """Rounds for which updates are kept after their own."""
        return settings.rounds_kept("retention", self.retention)

    @cached_property
    def models_kept(self) -> float:
        """Rounds for which models are kept beside the newest."""
        return settings.rounds_kept("models", self.models)

    @cached_property
    def model(self) -> Schema:
        return Schema.from_json(self.schema)

    @cached_property
    def recipe_digest(self) -> str:
        return digest_of(self.strategy)

    @property
    def snapshots(self) -> str:
        """The codec of whole models: lossless as the run's is, or packed."""
        return "lossless" if self.secure or not codecs.by_name(self.codec).exact else self.codec

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
        for rule in () if self.secure else robust_parts(strategy):
            if self.min_clients < rule.fewest:
                raise UsageError(
                    f"{type(rule).__name__} needs {rule.fewest} updates, and a round may close with min_clients = "
                    f"{self.min_clients}; raise min_clients, or let the rule stand fewer"
                )
        check_buffered(strategy, self.buffer)
        layout = layout_of(
            self.model, strategy, [Section.make(table) for table in self.sections],
            codec="raw" if self.secure else self.codec, bound=self.bound, grid=self.grid_of, secure=self.secure,
        )  # fmt: skip
        if self.secure:
            rules.check_strategy(strategy, self.codec, self.groups)
            for kind in get_args(Kind):
                self._agreement(strategy, layout, kind, None, self.devices)
        return strategy, layout

    def secure_terms(self, kind: Kind, tuning: str = "", invited: int | None = None) -> dict[str, Any]:
        """What a secure round's terms say beside those of an open one (koinon_core.secure.agreement). `tuning` is what
        the closing of the last round gave ("": this one is wide), `invited` how many devices its sum may have
        (None: the most that any round of this run has)."""
        strategy, layout = self._checked
        made = self._agreement(strategy, layout, kind, Tuning.decode(tuning), invited or self.devices)
        return made.to_json()

    @cached_property
    def _checked(self) -> tuple[Strategy, Layout]:
        return self.check()

    def _agreement(
        self, strategy: Strategy, layout: Layout, kind: Kind, tuning: Tuning | None, devices: int
    ) -> Agreement:
        early = not self.whole
        parts = parts_of(
            strategy, layout, kind, Asked(self.metrics, early, self.histograms), self.max_examples
        )
        weighs = kind == "train" and by_examples(strategy)
        apart = sums_needed(strategy) if kind == "train" else 0
        if apart:  # the groups' sums are not added, and groups differ by one device at most
            devices = -(-devices // self.groups)
        ring = ring_of(
            parts, level_of(self.codec), devices=devices, max_weight=self.max_examples if weighs else 1,
            clip=self.clip, tuning=tuning,
        )  # fmt: skip
        return Agreement(
            keys=cast(Keys, self.keys), attempts=self.attempts, gamma=self.gamma, delta=self.delta, sigma=SIGMA,
            eta=ETA, hardened=self.hardened, phase=self.phase, metrics=self.metrics, partial=early, ring=ring,
            histograms=self.histograms, apart=apart,
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
        # A run that does not say so was made when there was nothing else.
        return cls.make(**{"aggregation": "open", **value})

    @classmethod
    def make(cls, /, **values: Any) -> Self:
        """The spec with these values; an unknown key is a UsageError that names the nearest right one."""
        allowed = [f.name for f in fields(cls)]
        for key in values:
            if key not in allowed:
                near = get_close_matches(key, allowed, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(allowed)}"
                raise UsageError(f"the run's config has no key {key!r}; {hint} (your own go under [config])")
        if values.get("aggregation", "secure") == "secure":
            values = {"min_clients": rules.FEWEST, "max_examples": rules.LARGEST_WEIGHT, **values}
        elif values.get("buffer"):
            values = {"min_clients": 1, **values}
        for name in ("over_selection", "join_wait", "deadline", "lease", "bound", *_SHARES):
            value = values.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
                values[name] = float(value)
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"the run's config is incomplete: {error}") from error


_SHARES = ("gamma", "delta", "phase", "clip")
_LATER = {
    "retention": "2 rounds", "models": "keep", "sections": (), "downlink": "delta", "keys": "ready", "attempts": 3,
    "gamma": 0.05, "delta": 0.10, "hardened": False, "phase": 30.0, "clip": 16.0, "metrics": ("loss", "accuracy"),
    "evaluate_every": 1, "best": {}, "buffer": 0, "concurrency": 0, "staleness": 10, "partial": True,
    "distribution": False, "histograms": {}, "selection": {},
}  # fmt: skip


_TYPES: dict[str, tuple[type, ...]] = {
    "<class 'int'>": (int,),
    "<class 'float'>": (float,),
    "<class 'bool'>": (bool,),
    "<class 'str'>": (str,),
    "int | None": (int, type(None)),
}
