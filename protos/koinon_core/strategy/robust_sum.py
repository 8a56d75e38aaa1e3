"""What a round's updates come to by robust rules: the aggregate of an open round whose strategy has some, and what is
judged between the sums of groups of a secure one (koinon_core.secure.apart).

First the inner products of all updates are taken, tile by tile, and the factors by which they are mixed follow from
them; then every tile is mixed and joined when it is asked for. Resident: one tile of each update, in float64.

What is mixed is what updates are judged by: the changes of parameters, and what a strategy sends beside them. Buffers
and counters are not, and a liar could say anything there behind an honest change: they are joined by their medians.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from functools import cached_property

import numpy as np

from koinon_core import exact
from koinon_core.errors import BadBlob
from koinon_core.fold import Staged, Sum, Ways, counted
from koinon_core.schema import Schema
from koinon_core.strategy.chain import Chain
from koinon_core.strategy.protocol import Strategy
from koinon_core.strategy.robust import F64, CoordinateMedian, Robust
from koinon_core.tensors import Array
from koinon_core.tiles import TILE, spans
from koinon_core.update import Layout

__all__ = ["Judged", "RobustSum", "judged_of", "robust_parts"]

_STRIP = 1 << 16  # columns


def robust_parts(strategy: Strategy) -> list[Robust]:
    """The robust rules of a strategy, in the order in which they are taken."""
    parts = strategy.parts if isinstance(strategy, Chain) else (strategy,)
    return [part for part in reversed(parts) if isinstance(part, Robust)]


def judged_of(layout: Layout) -> list[str]:
    """The sections that devices are judged by."""
    extras = [f.name for f in layout.update if f.name.startswith("extra/")]
    return [*(f"delta/{f.name}" for f in layout.params), *extras]


Fill = Callable[[str, int, F64], None]
"""Writes a tile of a section of all that are judged, one below the other, into (count, columns)."""


class Judged:
    """What a rule makes of `count` updates, or sums of groups, that `fill` reads: a source of every section that is
    joined by value. `judged` are the sections that they are judged by."""

    def __init__(
        self, rules: Sequence[Robust], count: int, fill: Fill, schema: Schema, judged: Collection[str], whose: str
    ):  # fmt: skip
        hungry = max(rules, key=lambda rule: rule.fewest)
        if count < hungry.fewest:
            raise BadBlob(f"{type(hungry).__name__} needs {hungry.fewest} {whose}, and there are {count}")
        self._rules, self._count, self._fill, self._schema = rules, count, fill, schema
        self._judged = frozenset(judged)
        self._buffers = rules[-1] if rules[-1].coordinates else CoordinateMedian()

    def values(self, name: str, offset: int) -> Array:
        # All tiles may be read for it, and there is room for one at a time.
        join = self._mixed_and_joined() if name in self._judged else self._buffers.combine
        return _by_strips(self._tile(name, offset), join)

    def _tile(self, name: str, offset: int) -> F64:
        rows = self._rows[:, : min(TILE, self._schema.by_name[name].size - offset)]
        self._fill(name, offset, rows)
        return rows

    @cached_property
    def _rows(self) -> F64:
        """Room for a tile of each, which takes as long to get from the system as to fill."""
        return np.empty((self._count, min(TILE, max(f.size for f in self._schema))))

    def _mixed_and_joined(self) -> Callable[[F64], Array]:
        factors, last = self._factors

        def join(tile: F64) -> Array:
            mixed = tile if factors is None else exact.mixed(factors, tile)
            if last is not None:
                return last.combine(mixed)
            total = np.zeros(mixed.shape[1])
            for row in mixed:
                total += row
            return total / len(mixed)

        return join

    @cached_property
    def _factors(self) -> tuple[F64 | None, Robust | None]:
        """By what they are mixed (None: not at all), and the rule that then joins coordinates."""
        last = self._rules[-1] if self._rules[-1].coordinates else None
        mixing = [rule for rule in self._rules if not rule.coordinates]
        if not mixing:
            return None, last
        products = exact.Gram(self._count)
        for field in self._schema:
            for offset, _ in spans(field) if field.name in self._judged else ():
                products.add(self._tile(field.name, offset))
        gram, factors = products.value, np.eye(self._count)
        for rule in mixing:
            rows = rule.mix(gram)
            factors = exact.mixed(rows, factors)
            gram = exact.mixed(rows, np.ascontiguousarray(exact.mixed(rows, gram).T))
        return factors, last


class RobustSum:
    """A source of every section, as `koinon_core.fold.Sum` is. `judged` are the sections that devices are judged by."""

    def __init__(
        self, rules: Sequence[Robust], staged: Sequence[Staged], schema: Schema, how: Ways, judged: Collection[str]
    ):  # fmt: skip
        self._staged, self._schema, self._how = staged, schema, how
        self._judged = Judged(rules, len(staged), self._fill, schema, judged, "updates")
        self._plain = Sum(staged, schema, how)
        self._digests: dict[tuple[str, int], bytes] = {}

    def values(self, name: str, offset: int) -> Array:
        if self._how[name].rule == "equal":
            joined: Array = self._plain.values(name, offset)
        elif self._how[name].rule == "max":
            joined = self._middle(name, offset)
        else:
            joined = self._judged.values(name, offset)
        if (name, offset) not in self._digests:
            little = joined.astype(joined.dtype.newbyteorder("<"), copy=False)
            self._digests[name, offset] = hashlib.sha256(np.ascontiguousarray(little).data).digest()
        return joined

    def digest(self, numbers: bytes) -> str:
        """The SHA-256 over `numbers` and the SHA-256 of every tile of what came of it, in the order of the update's
        schema."""
        whole = hashlib.sha256(numbers)
        for field in self._schema:
            for offset, _ in spans(field):
                if (field.name, offset) not in self._digests:
                    self.values(field.name, offset)
                whole.update(self._digests[field.name, offset])
        return whole.hexdigest()

    def _fill(self, name: str, offset: int, rows: F64) -> None:
        for row, one in zip(rows, self._staged, strict=True):
            counted(one.reader.tile(name, offset), self._how[name], name, out=row)

    def _middle(self, name: str, offset: int) -> Array:
        """Of counters, which are whole numbers, the one in the middle, and of two the larger."""
        rows = np.stack([one.reader.values(name, offset) for one in self._staged])
        rows.sort(axis=0)
        middle: Array = rows[len(rows) // 2]
        return middle


def _by_strips(rows: F64, join: Callable[[F64], Array]) -> Array:
    """What is made on the way is as large as a strip, however large the tile is."""
    out = np.empty(rows.shape[1])
    for at in range(0, len(out), _STRIP):
        out[at : at + _STRIP] = join(np.ascontiguousarray(rows[:, at : at + _STRIP]))
    return out
