"""What can happen to a run: facts, in the past tense. `at` is in seconds since 1970.

They come from devices, operators and the clock; what they do to the open round becomes that round's events.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from koinon_core.selection.traits import Seen

__all__ = [
    "Ahead", "Answered", "Cancelled", "Fact", "Folded", "Gone", "Labelled", "Measured", "Offered", "Opening", "Paused",
    "Progressed", "Recovered", "Resigned", "Resumed", "Spoiled", "TakenUp", "Tick", "Unfoldable", "Voiced",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Offered:
    """A device is ready for the next round; `engaged` is the round that it still works on, or 0, and `held` the
    digest of the tensors of the model that it keeps (None: it never keeps any). `labels` are what an operator wrote on
    it, `able` is what it says of itself (koinon_core.selection.traits)."""

    at: float
    client: str
    evaluates: bool = False
    engaged: int = 0
    held: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    able: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Labelled:
    """An operator wrote other labels on an attached device."""

    at: float
    client: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Gone:
    """A device is no longer there for new rounds. A round that it is in waits for it until its lease runs out."""

    at: float
    client: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """A sign of life."""

    at: float
    client: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A device's update of `round` is here and verified."""

    at: float
    client: str
    round: int
    digest: str


@dataclass(frozen=True, slots=True)
class Voiced:
    """A device's answer in a collection of a secure round is here and verified. `missing` are the devices whose shares
    it could not read."""

    at: float
    client: str
    round: int
    attempt: int
    collection: str
    digest: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resigned:
    """A device leaves `round`, or its answer was refused."""

    at: float
    client: str
    round: int
    code: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Opening:
    """The answer to `Open`. `forgotten` are devices that have done what they go on with, and of which it is not known
    any more what they said."""

    at: float
    incarnation: str
    forgotten: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Folded:
    """The answer to `Fold`: the next model (and what of the strategy's state devices get) is durable. `state` and
    `sum` as in the round's event; `evaluated` of the summed updates evaluated the model that the round began with;
    `weights` is the digest of the model's tensors, `tuning` what the next secure round is sized by. `watched` is the
    metric by which the run's best model is known (koinon_core.flow.best): the round whose model it is about, and its
    value. `seen` is what the updates said of their devices, where the run's [selection] wants to know."""

    at: float
    round: int
    model: str
    down: str = ""
    state: str = ""
    sum: str = ""
    evaluated: int = 0
    weights: str = ""
    tuning: str = ""
    watched: tuple[int, float] | None = None
    seen: Mapping[str, Seen] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unfoldable:
    """The other answer to `Fold`. `forgotten` says that what devices said for a secure sum is lost."""

    at: float
    round: int
    reason: str
    forgotten: bool = False


@dataclass(frozen=True, slots=True)
class Spoiled:
    """The third answer to `Fold`, of a secure round: what devices revealed does not open the sum. `blamed` are those
    whose secrets cannot be put together."""

    at: float
    round: int
    reason: str
    blamed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """The run's owner measured the model that `round` made, and says the metric by which the best one is known."""

    at: float
    round: int
    value: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    at: float


@dataclass(frozen=True, slots=True)
class Paused:
    """The operator wants no further round opened; the one that is open goes on."""

    at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """The operator wants rounds again."""

    at: float


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The operator ends the run."""

    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A coordinator goes on with the run, `away` seconds after somebody last owned it."""

    at: float
    away: float


@dataclass(frozen=True, slots=True)
class Ahead:
    """A device has seen `round`, or another history of it: this database is older than what the device knows."""

    at: float
    client: str
    round: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """The operator lets the run go on from here, with round numbers that no device has seen: above `beyond`, too."""

    at: float
    beyond: int = 0


Fact = (
    Offered | Labelled | Gone | Progressed | Answered | Voiced | Resigned | Opening | Folded | Unfoldable | Spoiled
    | Measured | Tick | Paused | Resumed | Cancelled | TakenUp | Ahead | Recovered
)  # fmt: skip
