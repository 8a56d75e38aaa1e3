"""Models that differ from device to device: FedBN (Li et al. 2021, arXiv:2102.07623), FedPer (Arivazhagan et al. 2019,
arXiv:1912.00818), FedRep (Collins et al. 2021, arXiv:2102.07078), Ditto (Li et al. 2021, arXiv:2012.04221).

All of them go below whatever makes the common part: `chain(FedAdam(), FedRep(keys=("head.*",)))`.
"""

from dataclasses import dataclass
from typing import ClassVar

from koinon_core.errors import UsageError
from koinon_core.schema import Schema
from koinon_core.strategy.protocol import Base, Keys, Pass, Plan, Pull, State, Trait, Up, Work
from koinon_core.strategy.registry import register
from koinon_core.tensors import Tensors

__all__ = ["Ditto", "FedBN", "FedPer", "FedRep"]


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
        found = schema.batchnorm() | _matching("FedBN", schema, self.keys)
        if not found:
            raise UsageError(
                "FedBN found no normalisation layer with running statistics in the model; "
                "name the layers with keys=('*.norm*.*',), or use FedAvg"
            )
        return found


@register
@dataclass(frozen=True)
class FedPer(Base):
    """The head stays at home: tensors that match `keys` (shell patterns, for example "head.*") are each device's own
    and never leave it. Body and head are trained together, and the body is averaged."""

    elementwise: ClassVar[bool] = True
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_keys("FedPer", self.keys)

    def local(self, schema: Schema) -> frozenset[str]:
        return _head("FedPer", schema, self.keys)


@register
@dataclass(frozen=True)
class FedRep(Base):
    """FedPer in two phases: the head is trained for `head_epochs` with the body frozen, then the body with the head
    frozen, for as many epochs as the run says. The owner's loop runs twice a round: the first task (kind "personal") is
    the head's, and nothing of it is sent."""

    elementwise: ClassVar[bool] = True
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.CHOOSES})
    keys: tuple[str, ...] = ()
    head_epochs: int = 10

    def __post_init__(self) -> None:
        _check_keys("FedRep", self.keys)
        if self.head_epochs < 1:
            raise UsageError(f"FedRep's head_epochs must be at least 1, it is {self.head_epochs}")

    def local(self, schema: Schema) -> frozenset[str]:
        return _head("FedRep", schema, self.keys)

    def begin(self, d: State, down: State, w: Tensors) -> Plan:
        head = Pass(name="head", when="before", keep=True, train=Keys(self.keys), epochs=self.head_epochs)
        return Plan(passes=(head,), train=Keys(self.keys, others=True))


@register
@dataclass(frozen=True)
class Ditto(Base):
    """A model of its own for each device beside the common one: after the training, v steps by g(v) + lam (v - w), from
    where it stood, with w the round's model. The owner's loop runs once more a round, in a task of kind "personal", in
    which the model holds v; nothing of it is sent, and it changes nothing that is. State: v, on the device."""

    elementwise: ClassVar[bool] = True
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.PRIVATE})
    lam: float = 0.1

    def __post_init__(self) -> None:
        if not self.lam >= 0:
            raise UsageError(f"Ditto's lam must not be negative, it is {self.lam}")

    def begin(self, d: State, down: State, w: Tensors) -> Plan:
        start = d["personal"] if d else w
        return Plan(passes=(Pass(name="personal", start=start, pull=Pull(mu=self.lam)),))

    def commit(self, d: State, down: State, work: Work, up: Up, sent: Up) -> State:
        return {"personal": work.results["personal"]}


def _matching(name: str, schema: Schema, patterns: tuple[str, ...]) -> frozenset[str]:
    """What the patterns match. UsageError for one that matches nothing: what it was meant for would leave."""
    for pattern in patterns:
        if not any(tensor in Keys((pattern,)) for tensor in schema.by_name):
            raise UsageError(
                f"no tensor of the model matches {name}'s key {pattern!r}; it has {', '.join(list(schema.by_name)[:8])}"
            )
    return frozenset(tensor for tensor in schema.by_name if tensor in Keys(patterns))


def _check_keys(name: str, keys: tuple[str, ...]) -> None:
    if not keys:
        raise UsageError(
            f"{name} must be told which tensors stay at home: keys=('head.*',), as shell patterns"
        )


def _head(name: str, schema: Schema, keys: tuple[str, ...]) -> frozenset[str]:
    found = _matching(name, schema, keys)
    if len(found) == len(schema.by_name):
        raise UsageError(
            f"{name}'s keys {', '.join(keys)} match every tensor of the model: nothing is left to share"
        )
    return found
