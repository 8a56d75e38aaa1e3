"""What a secure round's terms say beside those of an open one: how keys are exchanged, and the ring of the sum.

It travels as `terms.secure`, so that whoever signs or hashes the terms has agreed to every bit of it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal, get_args

from koinon_core.canonical import canonical, sha256
from koinon_core.errors import BadBlob, UsageError
from koinon_core.flow.spread import histograms_of
from koinon_core.ring import Ring, Seeds
from koinon_core.round.terms import Terms
from koinon_core.secagg.config import MOST_DEVICES, Config, Lane
from koinon_core.secure.numbers import MOST, Asked

__all__ = ["ETA", "SIGMA", "Agreement", "Keys", "is_name", "seeds_of"]

Keys = Literal["ready", "early"]
"""When a round's keys are exchanged: among devices that have finished their training, or before it."""

SIGMA, ETA = 40, 30
"""What may go wrong: a single update seen with a probability of 2^-40, a sum that cannot be opened with 2^-30."""
_MOST_METRICS = 64
_LATER = {"partial": False, "histograms": {}, "apart": 0}
"""What older versions do not know, left out where it says nothing: the terms of their open rounds keep their digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """`attempts` is how often a sum is tried in one round, `gamma` the share of devices that may be corrupt, `delta`
    that which may drop out once keys are exchanged; `hardened` asks for the complete graph. `phase` is how many seconds
    the short collections last. `metrics` are the names that have lanes, `partial` says that there is one for devices
    that stopped their work early, `histograms` has the edges of the bins in which devices are counted, and `ring` is
    how all of it is encoded. `apart` is the fewest groups whose sums must be opened where a rule is taken between them
    (0: the sums of groups are added)."""

    keys: Keys
    attempts: int
    gamma: float
    delta: float
    sigma: int
    eta: int
    hardened: bool
    phase: float
    metrics: tuple[str, ...]
    ring: Ring
    partial: bool = False
    histograms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    apart: int = 0

    @property
    def numbers(self) -> Asked:
        """The numbers that are summed."""
        return Asked(self.metrics, self.partial, self.histograms)

    def to_json(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {"metrics": list(self.metrics), "ring": self.ring.to_json()}
        return {k: v for k, v in values.items() if k not in _LATER or v != _LATER[k]}

    @classmethod
    def of(cls, terms: Terms) -> "Agreement":
        """The agreement of a secure round. BadBlob for terms that hold none, or hold it in another way than the one to
        write it."""
        try:
            return _decoded(canonical(terms.secure))
        except (ValueError, TypeError, RecursionError) as error:
            raise BadBlob(f"the round's terms hold no plain values: {error}") from error

    def config(self, terms: Terms, attempt: int) -> Config:
        """What the sessions of an attempt are bound to."""
        lanes = tuple(
            Lane(section.group.bits if section.group else 64, section.lanes) for section in self.ring.sections
        )
        return Config(
            terms=terms.digest, attempt=attempt, groups=terms.groups, least=terms.quorum // terms.groups,
            gamma=self.gamma, delta=self.delta, sigma=self.sigma, eta=self.eta, hardened=self.hardened, lanes=lanes,
        )  # fmt: skip


def seeds_of(terms: Terms) -> Seeds:
    """All public randomness of a round's encoding. It follows from what is alike wherever the same run is run,
    simulated or deployed, with a crash or without: the run's seed, the round, and the model that it begins with.
    Who the run is and when a round was opened is in its terms too, and would make another model of the same
    updates."""
    alike = sha256(canonical(["koinon secure", terms.seed, terms.round, terms.weights]))
    return Seeds(bytes.fromhex(alike), str(terms.seed), terms.round)


def is_name(name: object) -> bool:
    """Whether a metric may be called that."""
    return isinstance(name, str) and 0 < len(name) <= 64 and name.isprintable()


@lru_cache(maxsize=64)
def _decoded(data: bytes) -> Agreement:
    value = json.loads(data)
    wanted = {f.name for f in fields(Agreement)}
    if not isinstance(value, dict) or value.keys() | _LATER.keys() != wanted or any(
        k in value and value[k] == v for k, v in _LATER.items()
    ):  # fmt: skip
        raise BadBlob(f"the terms of a secure round hold {', '.join(sorted(wanted))}, and these do not")
    ring = Ring.decode(canonical(value["ring"]))
    names = value["metrics"]
    if not isinstance(names, list) or len(names) > _MOST_METRICS or len(set(map(str, names))) < len(names):
        raise BadBlob(f"a secure round has up to {_MOST_METRICS} metrics, each once")
    right = {
        "keys": value["keys"] in get_args(Keys),
        "attempts": type(value["attempts"]) is int and 1 <= value["attempts"] <= 1 << 16,
        "gamma": _share(value["gamma"]),
        "delta": _share(value["delta"]),
        "sigma": type(value["sigma"]) is int and 1 <= value["sigma"] <= 128,
        "eta": type(value["eta"]) is int and 1 <= value["eta"] <= 128,
        "hardened": type(value["hardened"]) is bool,
        "phase": type(value["phase"]) is float and 0 < value["phase"] < math.inf,
        "metrics": all(map(is_name, names)),
        "partial": value.get("partial", True) is True,
        "apart": "apart" not in value
        or (type(value["apart"]) is int and 2 <= value["apart"] <= MOST_DEVICES),
    }
    for name, fine in right.items():
        if not fine:
            raise BadBlob(f"{name} = {value[name]!r:.80} is nothing that a secure round's terms can say")
    try:
        bins = histograms_of(value.get("histograms", {}), names, MOST)
    except UsageError as error:
        raise BadBlob(str(error)) from error
    return Agreement(**{**value, "metrics": tuple(names), "ring": ring, "histograms": bins})


def _share(value: Any) -> bool:
    return type(value) is float and 0 <= value < 1
