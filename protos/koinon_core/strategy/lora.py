"""The mean of LoRA's products (Hu et al. 2021, arXiv:2106.09685) where both factors are trained.

A device's change of a layer is B_i A_i. The mean of the B times the mean of the A is not the mean of that. Sums cannot
give it: it takes the products themselves, which are as large as the layer, or each device's factors, which only an open
run sees. In a secure run freeze A (FFA-LoRA), and the mean of B is exact.

From factors it costs a QR of the stacked factors and an SVD of what is left, O((out + in) (rank devices)^2), and never
a matrix as large as the layer. What has more than `rank` directions is cut to the best of that rank (Eckart and Young).
QR and SVD are numpy's: they make the same bytes on machines of one kind only.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from koinon_core.errors import BadBlob, UsageError
from koinon_core.fold import Staged, Ways, counted
from koinon_core.schema import Schema
from koinon_core.strategy.chain import Chain
from koinon_core.strategy.protocol import Base, Need, Strategy, Trait
from koinon_core.strategy.registry import register
from koinon_core.tensors import Array
from koinon_core.tiles import TILE, Source, spans

__all__ = ["LoraProjection", "LoraSum", "pairs", "project", "projects"]

F64 = NDArray[np.float64]
_A, _B = "lora_a", "lora_b"


def project(factors: Sequence[tuple[F64, F64]], weights: Sequence[float], rank: int) -> tuple[F64, F64]:
    """(B, A) whose product is the weighted mean of the products of `factors`, or the nearest to it of `rank`.

    Each factor is (B, A) of (out, r) and (r, in), all alike; `weights` are above 0, and need not add up to 1. What
    comes is (out, rank) and (rank, in). Of all pairs with that product it is one whose A has orthogonal rows of the
    mean A's size, turned as near to it as can be: no row of A is 0, so that every direction can still be learned, and
    nothing turns from one round to the next without cause.

    UsageError for no factors, shapes that differ, weights that do not fit, and a rank that the factors do not have.
    """
    _check(factors, weights, rank)
    share = np.asarray(weights, np.float64) / np.sum(weights)
    b = np.hstack([p * np.asarray(one[0], np.float64) for p, one in zip(share, factors, strict=True)])
    a = np.vstack([np.asarray(one[1], np.float64) for one in factors])
    left, core_left = np.linalg.qr(b)
    right, core_right = np.linalg.qr(a.T)
    u, sizes, v = np.linalg.svd(core_left @ core_right.T)
    new_b = left @ (u[:, :rank] * sizes[:rank])
    new_a = v[:rank] @ right.T
    mean = np.tensordot(share, [np.asarray(one[1], np.float64)[:rank] for one in factors], axes=1)
    size = float(np.linalg.norm(mean)) / rank**0.5 or 1.0
    x, _, y = np.linalg.svd(mean @ new_a.T)  # the turn that brings A nearest to the mean (Schönemann 1966)
    turn = x @ y
    return new_b @ turn.T / size, size * (turn @ new_a)


def _check(factors: Sequence[tuple[F64, F64]], weights: Sequence[float], rank: int) -> None:
    if not factors:
        raise UsageError("there are no factors to project; give those of at least one device")
    if len({(b.shape, a.shape) for b, a in factors}) > 1:
        raise UsageError("the devices' factors differ in their shapes; give all of them the same rank")
    b, a = factors[0]
    if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
        raise UsageError(f"B of {b.shape} and A of {a.shape} have no product; give (out, r) and (r, in)")
    if len(weights) != len(factors) or not all(0 < w < np.inf for w in weights):
        raise UsageError("the weights must be numbers above 0, one for each pair of factors")
    most = min(a.shape[0], a.shape[1], b.shape[0])
    if not 1 <= rank <= most:
        raise UsageError(f"rank = {rank} must be between 1 and {most}, which is what the factors have")


def pairs(params: Schema) -> dict[str, str]:
    """The names of A, each with that of its B: `LAYER.lora_a` and `LAYER.lora_b`, both matrices of one rank."""
    found = {}
    for field in params:
        layer, dot, last = field.name.rpartition(".")
        other = params.by_name.get(f"{layer}{dot}{_B}")
        if last != _A or other is None or len(field.shape) != 2 or len(other.shape) != 2:
            continue
        if other.shape[1] == field.shape[0]:
            found[field.name] = other.name
    return found


@register
@dataclass(frozen=True)
class LoraProjection(Base):
    """The exact mean of the products B A of LoRA's layers, cut to their rank, in the place of the means of A and of B:
    for open runs in which both are trained, `chain(FedAvg(), LoraProjection())`.

    The rule above it must be an average with lr = 1: half of a step of B and half of one of A are not half of a step of
    the product, and a momentum of factors that turn adds up what does not belong together. Devices weigh what it says.
    Everything else in the update is averaged as ever. The coordinator holds all devices' factors of one layer at a
    time, and one set of adapters.
    """

    elementwise: ClassVar[bool] = True
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.KERNELS})
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SINGLE})

    def local(self, schema: Schema) -> frozenset[str]:
        if not pairs(schema):
            raise UsageError(
                "LoraProjection found no layer with both lora_a and lora_b among what is trained; use "
                "add_lora(..., freeze_a=False), or drop it: with a frozen A the mean is exact without it"
            )
        return frozenset()


def projects(strategy: Strategy) -> bool:
    """Whether a strategy asks for the mean of the products."""
    parts = strategy.parts if isinstance(strategy, Chain) else (strategy,)
    return any(isinstance(part, LoraProjection) for part in parts)


class _Digested(Source, Protocol):
    """The plain sum (koinon_core.fold.Sum)."""

    def digest(self, numbers: bytes) -> str: ...


class LoraSum:
    """A source of every section, as `koinon_core.fold.Sum` is: pairs of factors are projected, and the rest comes from
    `plain`. `w` has the round's model, to which the changes in `staged` are added before they are multiplied; `params`
    is the schema of what is trained. BadBlob where a product is too large for a number."""

    def __init__(self, plain: _Digested, staged: Sequence[Staged], params: Schema, how: Ways, w: Source):
        self._plain, self._staged, self._params, self._how, self._w = plain, staged, params, how, w
        self._pairs = pairs(params)
        self._layer = {f"delta/{n}": a for a, b in self._pairs.items() for n in (a, b)}
        self._made: dict[str, Mapping[str, F64]] = {}

    def values(self, name: str, offset: int) -> Array:
        mean = self._plain.values(name, offset)  # of every tile, because the plain sum's digest is over all
        a = self._layer.get(name)
        if a is None:
            return mean
        if a not in self._made:
            self._made[a] = self._projected(a, self._pairs[a])
        return self._made[a][name].reshape(-1)[offset : offset + TILE]

    def digest(self, numbers: bytes) -> str:
        """The SHA-256 over the plain sum's digest and the bytes of every pair, A and B, in the schema's order."""
        whole = hashlib.sha256(self._plain.digest(numbers).encode())
        for a, b in self._pairs.items():
            self.values(f"delta/{a}", 0)
            for name in (a, b):
                whole.update(np.ascontiguousarray(self._made[a][f"delta/{name}"], "<f8").data)
        return whole.hexdigest()

    def _projected(self, a: str, b: str) -> Mapping[str, F64]:
        """The changes of both factors from the round's model."""
        before_a, before_b = self._before(a), self._before(b)
        factors = [(before_b + self._change(b, one), before_a + self._change(a, one)) for one in self._staged]
        try:
            new_b, new_a = project(factors, [one.weight for one in self._staged], len(before_a))
        except np.linalg.LinAlgError as error:
            raise BadBlob(
                f"the mean of the products of {b!r} and {a!r} cannot be taken ({error}); lower the devices' learning "
                "rate"
            ) from error
        return {f"delta/{a}": new_a - before_a, f"delta/{b}": new_b - before_b}

    def _before(self, name: str) -> F64:
        field = self._params.by_name[name]
        tiles = [np.asarray(self._w.values(name, o), np.float64) for o, _ in spans(field)]
        return np.concatenate(tiles).reshape(field.shape)

    def _change(self, name: str, one: Staged) -> F64:
        field, section = self._params.by_name[name], f"delta/{name}"
        tiles = [counted(one.reader.tile(section, o), self._how[section], section) for o, _ in spans(field)]
        return np.concatenate(tiles).reshape(field.shape)
