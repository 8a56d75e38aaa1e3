"""The exact sum: updates to int64 on a fixed grid, tile by tile, in any order with the same result.

Floats do not add up the same way twice (1,000 updates in 20 orders gave 20 different byte strings); integers
do. So every value is rounded to a grid of 2^-grid, multiplied by its integer weight and added in int64. That
nothing can overflow is proven when the run is submitted: bound * 2^grid * max weight * devices < 2^63.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from koinon_core import codecs
from koinon_core.codec import Reader
from koinon_core.codecs.tile import Plain, Tile
from koinon_core.errors import BadBlob, LocalProtocolError, UsageError
from koinon_core.schema import Schema
from koinon_core.sections import How
from koinon_core.tensors import Array
from koinon_core.tiles import TILE, Source, spans

__all__ = ["Moved", "Staged", "Sum", "check_codecs", "counted", "grid_for", "sum_in_one_piece", "verify"]

Ways = Mapping[str, How]
Moved = Callable[[str, int], Array | None]
"""A tile of what is added to a section, by name and offset; None for a section that stays as it is."""
_FINEST, _COARSEST = 40, 16


def grid_for(*, bound: float, max_weight: int, devices: int) -> int:
    """The finest grid (binary places, at most 40) on which the sum provably fits in 63 bits; UsageError if even
    2^-16 does not."""
    room = 62
    for factor in (bound, max_weight, devices):
        room -= max(0, math.ceil(math.log2(factor)))
    if room < _COARSEST:
        raise UsageError(
            f"the sum of {devices} updates of up to {max_weight} examples with values up to {bound} does not fit "
            "in 63 bits: lower max_examples, bound or the number of devices in a round"
        )
    return min(_FINEST, room)


def counted(
    tile: Tile, how: How, name: str, out: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:  # fmt: skip
    """A tile as the coordinator will count it: every value on the grid."""
    units = np.zeros(tile.count, dtype=np.int64)
    tile.add_to(units, 1, how.grid, how.bound, name)
    return np.multiply(units, 2.0**-how.grid, out=out, dtype=np.float64)


def check_codecs(reader: Reader, how: Ways) -> None:
    """Raise BadBlob for a chunk in another codec than the one that the run has for its section."""
    agreed = {name: codecs.by_name(way.codec) for name, way in how.items()}
    for name, number, version in reader.used():
        if (number, version) != (agreed[name].id, agreed[name].version):
            raise BadBlob(
                f"{name!r} came in codec {number} version {version}, and this run has {how[name].codec!r} for it"
            )


def verify(reader: Reader, schema: Schema, how: Ways, model: Source) -> None:
    """Read every tile of an update once and raise BadBlob for whatever may not enter a sum. `model` is what the round
    began with."""
    for field in schema:
        way = how[field.name]
        for offset, _ in spans(field):
            if way.rule == "mean":
                reader.tile(field.name, offset).check(way.grid, way.bound, field.name)
                continue
            values = reader.values(field.name, offset)
            if way.rule == "equal" and not _same(
                values, model.values(field.name.removeprefix("count/"), offset)
            ):
                raise BadBlob(
                    f"{field.name!r} is not what the model has, and in this run it must be equal on all devices"
                )
            if values.dtype.kind == "f" and not np.all(np.isfinite(values)):
                raise BadBlob(f"{field.name!r} holds NaN or Inf; a value must be finite")


def _same(a: Array, b: Array) -> bool:
    return a.tobytes() == b.astype(a.dtype, copy=False).tobytes()


@dataclass(frozen=True, slots=True)
class Staged:
    """One verified update: its integer weight, and its tensors behind a reader. `share` is what of it counts, and
    `moved`, which has some of the update's sections, is added to it before that: an asynchronous run's updates are
    from older models."""

    weight: int
    reader: Reader
    share: float = 1.0
    moved: Moved | None = None

    def add_to(self, acc: NDArray[np.int64], name: str, offset: int, way: How) -> None:
        """Add a tile of a section to an exact sum."""
        tile: Tile = self.reader.tile(name, offset)
        if self.share != 1.0 or self.moved is not None:
            values = tile.values().astype(np.float64)
            if self.moved is not None and (by := self.moved(name, offset)) is not None:
                values += by
            # What was within the bound by itself may be beyond it now: that must not cost the others their sum.
            tile = Plain(np.clip(values * self.share, -way.bound, way.bound))
        tile.add_to(acc, self.weight, way.grid, way.bound, name)


class Sum:
    """What the updates of a round come to: a source of the weighted mean (float64) of every section, or of its largest
    values. Resident at any time: one tile of the sum, and one of one update."""

    def __init__(self, staged: Sequence[Staged], schema: Schema, how: Ways):
        self._staged, self._schema, self._how = staged, schema, how
        self._total = sum(s.weight for s in staged)
        if self._total <= 0:
            raise BadBlob("the weights of the updates add up to nothing")
        self._digests: dict[tuple[str, int], bytes] = {}

    def values(self, name: str, offset: int) -> Array:
        exact = self.exact(name, offset)
        if self._how[name].rule != "mean":
            return exact
        mean: NDArray[np.float64] = exact * 2.0 ** -self._how[name].grid
        mean /= self._total
        return mean

    def exact(self, name: str, offset: int) -> Array:
        """The sum itself, as integers on the section's grid; or the largest values."""
        way = self._how[name]
        if way.rule == "mean":
            size = self._schema.by_name[name].size
            exact: Array = np.zeros(min(TILE, size - offset), dtype=np.int64)
            for s in self._staged:
                s.add_to(exact, name, offset, way)
        else:
            exact = reduce(np.maximum, (s.reader.values(name, offset) for s in self._staged))
        if (name, offset) not in self._digests:
            self._digests[name, offset] = hashlib.sha256(_wire(exact)).digest()
        return exact

    def digest(self, numbers: bytes) -> str:
        """The SHA-256 over `numbers` and the SHA-256 of every tile's integers (int64, or the section's own dtype;
        little- endian), in the order of the update's schema. All of them must have been taken."""
        whole = hashlib.sha256(numbers)
        for field in self._schema:
            for offset, _ in spans(field):
                if (field.name, offset) not in self._digests:
                    raise LocalProtocolError(f"the sum of {field.name!r} was never taken")
                whole.update(self._digests[field.name, offset])
        return whole.hexdigest()


def sum_in_one_piece(staged: Sequence[Staged], schema: Schema, how: Ways, numbers: bytes) -> str:
    """The digest as Koinon 0.2 made it: over `numbers` and all the integers."""
    total, whole = Sum(staged, schema, how), hashlib.sha256(numbers)
    for field in schema:
        for offset, _ in spans(field):
            whole.update(_wire(total.exact(field.name, offset)))
    return whole.hexdigest()


def _wire(values: Array) -> memoryview:
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data
