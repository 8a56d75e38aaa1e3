"""What can happen to a round: facts, in the past tense. `at` is in seconds since 1970, and is a fact too.

These are what is stored: folding `machine.step` over them rebuilds the round.
"""

from dataclasses import asdict, dataclass
from typing import Any

from koinon_core.errors import StoreError
from koinon_core.round.taken import Taken
from koinon_core.round.terms import Terms

__all__ = [
    "OVERFLOWED", "Cancelled", "Carried", "Event", "Folded", "Heard", "Left", "Opened", "Spoiled", "TakenUp", "Tick",
    "Unfoldable", "Voiced", "dump", "load",
]  # fmt: skip


OVERFLOWED = "overflowed:"
"""Begins the sentence about a secure sum that is larger than its round was sized for."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The round began."""

    at: float
    terms: Terms


@dataclass(frozen=True, slots=True)
class Carried:
    """These devices still work on what earlier rounds gave them: a buffered round awaits their updates. `ready` has
    those of them, in a secure one, who have done their work and wait to be summed, with the digest of their keys."""

    at: float
    work: tuple[Taken, ...]
    ready: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """A device answered in a collection. `digest` names what it said; the bytes are elsewhere."""

    at: float
    client: str
    collection: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Voiced:
    """A device answered in a collection of a secure round. `missing` are the devices whose shares it could not read."""

    at: float
    client: str
    collection: str
    attempt: int
    digest: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Left:
    """A device will not answer: it declined or failed, its lease ran out, or its answer was refused."""

    at: float
    client: str
    code: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    at: float


@dataclass(frozen=True, slots=True)
class Folded:
    """The sum was taken and the new model is durable. `sum` is the digest of the sum as integers, with the weights
    and numbers beside it; `model` and `state` (the strategy's) name what came of it."""

    at: float
    model: str
    state: str = ""
    sum: str = ""


@dataclass(frozen=True, slots=True)
class Unfoldable:
    """The sum or the strategy's step made no model. `forgotten` says that what devices had said is lost: then of a
    buffered round those go on alone who had said nothing yet."""

    at: float
    reason: str
    forgotten: bool = False


@dataclass(frozen=True, slots=True)
class Spoiled:
    """What is here of a secure round's last collection does not open the sum: some of it is wrong."""

    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The operator ended it."""

    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A coordinator goes on with the round, `away` seconds after somebody last owned it. Deadlines count owned time,
    so they move by that much; it is negative where this machine's clock is behind the one before."""

    at: float
    away: float


Event = Opened | Carried | Heard | Voiced | Left | Tick | Folded | Unfoldable | Spoiled | Cancelled | TakenUp
_KINDS: dict[str, type[Any]] = {
    k.__name__: k
    for k in (Opened, Carried, Heard, Voiced, Left, Tick, Folded, Unfoldable, Spoiled, Cancelled, TakenUp)
}


def dump(event: Event) -> tuple[str, dict[str, Any]]:
    """(kind, values) as the store keeps them."""
    return type(event).__name__, asdict(event)


def load(kind: str, values: dict[str, Any]) -> Event:
    """The inverse of `dump`; raises StoreError for what it cannot read."""
    try:
        if kind == "Opened":
            return Opened(values["at"], Terms(**values["terms"]))
        if kind == "Carried":
            ready = tuple((client, digest) for client, digest in values.get("ready", ()))
            return Carried(values["at"], tuple(Taken(**work) for work in values["work"]), ready)
        if kind == "Voiced":
            values = {**values, "missing": tuple(values.get("missing", ()))}
        event: Event = _KINDS[kind](**values)
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"the run database holds an event {kind!r} that this version cannot read ({error}); "
            "use the version that wrote it, or a newer one"
        ) from error
    return event
