"""Rules that stand a share of liars. They look at each update by itself, which open runs have; in secure runs at the
sum of each group (koinon_core.secure.apart), and then "update" below is the mean of a group.

    chain(FedAvg(), Krum(f=2))        chain(FedAvgM(), TrimmedMean(f=2), NNM(f=2))

A rule either mixes updates, by numbers that it finds from their inner products (`mix`), or joins the values of one
coordinate (`combine`). On the way back they are read from last to first: above, nearest neighbours are mixed first, and
their coordinates trimmed. What is left of several at the end is their plain mean. Examples are ignored on purpose: a
liar would state many.

Inner products are of changes, not of weights, in float64: for weights, and in float32, the wrong device is picked where
updates are small. They and all sums are taken by elementwise operations in a fixed order, so that a rule picks the same
updates, and makes the same bytes, on every CPU (koinon_core.exact).

`f` is the number of liars that a rule stands; of sources, see each.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from koinon_core import exact
from koinon_core.errors import UsageError
from koinon_core.strategy.protocol import Base, Need
from koinon_core.strategy.registry import register

__all__ = [
    "NNM", "CenteredClipping", "CoordinateMedian", "GeometricMedian", "Krum", "Liars", "MultiKrum", "NormBound",
    "Robust", "TrimmedMean",
]  # fmt: skip

F64 = NDArray[np.float64]
_WHOLE = frozenset({Need.SINGLE, Need.WHOLE})
"""Of rules that judge updates by their distance: those that stopped early are short, lie near each other whatever they
were trained on, and would be picked for it."""


@dataclass(frozen=True)
class Robust(Base):
    """What a robust rule derives from: one of `mix` and `combine`."""

    elementwise: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SINGLE})
    coordinates: ClassVar[bool] = False
    """Whether it is `combine` that it has."""
    leaves_one: ClassVar[bool] = True
    """Whether what goes on is one update, so that no rule may stand above it."""

    @property
    def fewest(self) -> int:
        """The fewest updates that it can be taken over."""
        return 1

    def mix(self, gram: F64) -> F64:
        """What goes on, as rows of factors of what came: (n, n) inner products to (m, n)."""
        return np.eye(len(gram))

    def combine(self, tile: F64) -> F64:
        """One value for each coordinate: (n, columns) to (columns,). `tile` may be overwritten."""
        raise NotImplementedError


@dataclass(frozen=True)
class Liars(Robust):
    """A rule that is made for a number of liars."""

    f: int = 1

    def __post_init__(self) -> None:
        if self.f < 0:
            raise UsageError(f"{type(self).__name__}'s f must not be negative, it is {self.f}")


@register
@dataclass(frozen=True)
class CoordinateMedian(Robust):
    """The median of every coordinate (Yin et al. 2018, arXiv:1803.01498); of an even number, the mean of the two in the
    middle."""

    coordinates: ClassVar[bool] = True

    def combine(self, tile: F64) -> F64:
        half = len(tile) // 2
        tile.sort(axis=0)
        middle: F64 = tile[half] if len(tile) % 2 else (tile[half - 1] + tile[half]) / 2
        return middle


@register
@dataclass(frozen=True)
class TrimmedMean(Liars):
    """The mean of every coordinate without its `f` largest and `f` smallest values (Yin et al. 2018)."""

    coordinates: ClassVar[bool] = True

    @property
    def fewest(self) -> int:
        return 2 * self.f + 1

    def combine(self, tile: F64) -> F64:
        tile.sort(axis=0)
        kept = tile[self.f : len(tile) - self.f]
        total = np.zeros(tile.shape[1])
        for row in kept:
            total += row
        return total / len(kept)


@register
@dataclass(frozen=True)
class Krum(Liars):
    """The one update that is nearest to its n - f - 2 nearest others (Blanchard et al. 2017, arXiv:1703.02757)."""

    needs: ClassVar[frozenset[Need]] = _WHOLE

    @property
    def fewest(self) -> int:
        return 2 * self.f + 3

    def mix(self, gram: F64) -> F64:
        return _rows_of(gram, [_lowest(_krum_scores(gram, self.f))[0]])


@register
@dataclass(frozen=True)
class MultiKrum(Liars):
    """The mean of the `m` updates with the lowest Krum scores, of at least m + f (0: of all but f)."""

    needs: ClassVar[frozenset[Need]] = _WHOLE
    m: int = 0

    def __post_init__(self) -> None:
        Liars.__post_init__(self)
        if self.m < 0:
            raise UsageError(f"MultiKrum's m must not be negative, it is {self.m}")

    @property
    def fewest(self) -> int:
        return max(2 * self.f + 3, self.m + self.f)

    def mix(self, gram: F64) -> F64:
        chosen = _lowest(_krum_scores(gram, self.f))[: self.m or len(gram) - self.f]
        return _rows_of(gram, chosen)


@register
@dataclass(frozen=True)
class GeometricMedian(Robust):
    """The point with the smallest sum of distances to all updates, by Weiszfeld's iteration, smoothed by `nu` (Pillutla
    et al. 2022, arXiv:1912.13445), until no factor moves by more than 1e-12, or 1,000 times."""

    nu: float = 1e-9

    def __post_init__(self) -> None:
        if not self.nu > 0:
            raise UsageError(f"GeometricMedian's nu must be above 0, it is {self.nu}")

    def mix(self, gram: F64) -> F64:
        n = len(gram)
        factors = np.full(n, 1 / n)
        longest = math.sqrt(max(0.0, float(gram.diagonal().max())))
        if longest == 0.0:
            return factors[None, :]  # nothing moved: all of them are the median
        least = max(1e-300, self.nu * longest)
        for _ in range(1000):
            nearness = 1 / np.maximum(_distances(gram, factors), least)
            new = nearness / exact.sum(nearness)
            moved = float(np.abs(new - factors).max())
            factors = new
            if moved <= 1e-12:
                break
        return factors[None, :]


@register
@dataclass(frozen=True)
class CenteredClipping(Robust):
    """From the round's model, `steps` times towards the mean of what each update says beyond it, cut to length `tau`
    (Karimireddy et al. 2021, arXiv:2012.10333)."""

    tau: float = 10.0
    steps: int = 3

    def __post_init__(self) -> None:
        if not (self.tau > 0 and self.steps >= 1):
            raise UsageError(
                f"CenteredClipping's tau must be above 0 and its steps at least 1, they are {self.tau} and {self.steps}"
            )

    def mix(self, gram: F64) -> F64:
        n = len(gram)
        factors = np.zeros(n)
        for _ in range(self.steps):
            away = _distances(gram, factors)
            cut = np.minimum(1.0, self.tau / np.maximum(away, 1e-300))
            factors = factors * (1 - exact.sum(cut) / n) + cut / n
        return factors[None, :]


@register
@dataclass(frozen=True)
class NNM(Liars):
    """Nearest-neighbour mixing, before another rule: every update becomes the mean of its n - f nearest, itself among
    them (Allouah et al. 2023, arXiv:2302.01772)."""

    needs: ClassVar[frozenset[Need]] = _WHOLE
    leaves_one: ClassVar[bool] = False

    @property
    def fewest(self) -> int:
        return 2 * self.f + 1

    def mix(self, gram: F64) -> F64:
        n = len(gram)
        near = n - self.f
        rows = np.zeros((n, n))
        for i, squares in enumerate(_squares(gram)):
            squares[i] = -1.0  # itself, whoever lies on it
            rows[i, _lowest(squares)[:near]] = 1 / near
        return rows


@register
@dataclass(frozen=True)
class NormBound(Robust):
    """No update is longer than `norm`: longer ones are cut (Sun et al. 2019, arXiv:1911.07963). `Clip` does the same on
    the device, where one must trust it to."""

    leaves_one: ClassVar[bool] = False

    norm: float = 1.0

    def __post_init__(self) -> None:
        if not self.norm > 0:
            raise UsageError(f"NormBound's norm must be above 0, it is {self.norm}")

    def mix(self, gram: F64) -> F64:
        lengths = np.sqrt(np.maximum(gram.diagonal(), 0.0))
        return np.diag(np.minimum(1.0, self.norm / np.maximum(lengths, 1e-300)))


def _squares(gram: F64) -> F64:
    """Squared distances of all pairs."""
    own = gram.diagonal()
    squares: F64 = np.maximum(own[:, None] + own[None, :] - 2 * gram, 0.0)
    return squares


def _distances(gram: F64, factors: F64) -> F64:
    """Of every update to the mixture by `factors`."""
    along = np.array([exact.dot(row, factors) for row in gram])
    own = exact.dot(along, factors)
    away: F64 = np.sqrt(np.maximum(gram.diagonal() - 2 * along + own, 0.0))
    return away


def _krum_scores(gram: F64, f: int) -> F64:
    near = max(1, len(gram) - f - 2)
    squares = _squares(gram)
    np.fill_diagonal(squares, np.inf)
    squares.sort(axis=1)
    return np.array([exact.sum(row[:near]) for row in squares])


def _lowest(scores: F64) -> list[int]:
    """Positions by score; of equal ones the first."""
    return [int(i) for i in np.argsort(scores, kind="stable")]


def _rows_of(gram: F64, chosen: list[int]) -> F64:
    """The mean of the chosen."""
    factors = np.zeros((1, len(gram)))
    factors[0, chosen] = 1 / len(chosen)
    return factors
