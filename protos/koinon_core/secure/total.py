"""The coordinator's half: a sum of lanes as what the strategy's step reads, and as what the next round is sized by.

Decoding rotates a block at a time and so writes all over a group; the means go to a scratch, and are read back a
tile at a time. In memory are the lanes of the sum, which are there anyway, and a few tiles."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from koinon_core import exact
from koinon_core.canonical import canonical
from koinon_core.errors import BadBlob
from koinon_core.ring import Group, Seeds, Sum, Write, decode
from koinon_core.ring.config import Section
from koinon_core.ring.lanes import centred
from koinon_core.round.events import OVERFLOWED
from koinon_core.round.terms import Terms
from koinon_core.schema import TILE
from koinon_core.secure import numbers
from koinon_core.secure.agreement import Agreement, seeds_of
from koinon_core.secure.parts import Part, by_examples, check_groups, parts_of
from koinon_core.secure.scratch import MemoryScratch, Scratches
from koinon_core.secure.sizing import Tuning, step_of
from koinon_core.strategy.protocol import Strategy
from koinon_core.tensors import Array
from koinon_core.tiles import Source
from koinon_core.update import Layout

__all__ = ["Means", "Total", "joined"]


class Means:
    """A decoded sum: a source of every section that has lanes, and its groups of numbers by name. BadBlob where the sum
    cannot be that of these devices."""

    def __init__(
        self, parts: Sequence[Part], total: Sum, seeds: Seeds, devices: Sequence[str],
        scratch: Scratches = MemoryScratch,
    ):  # fmt: skip
        self.ring = total.ring
        self._at: dict[str, tuple[int, str, int]] = {}
        self._groups: dict[str, tuple[int, str, int]] = {}
        self.numbers: dict[str, list[float]] = {}
        write: dict[str, Write] = {}
        end = 0
        for part in parts:
            if not part.fields:
                kept = self.numbers[part.name] = [0.0] * part.size
                write[part.name] = _into_list(kept)
                continue
            dtype = self._dtype(part)
            width = int(dtype[2:])
            self._groups[part.name] = (end, dtype, part.size)
            for field in part.fields:
                self._at[field.name] = (end, dtype, field.size)
                end += width * field.size
            end = -(-end // 8) * 8
        self._scratch = scratch(end)
        for name, (base, dtype, _) in self._groups.items():
            write[name] = self._into(base, dtype)
        self.report = decode(total, seeds, devices, write)

    def values(self, name: str, offset: int) -> Array:
        base, dtype, size = self._at[name]
        return self._read(base, dtype, offset, min(TILE, size - offset))

    def rms(self, group: Group) -> float:
        """The root mean square of a rotated coordinate of a group, the same on every CPU. One coordinate in p, times p,
        has p times the energy of all."""
        base, dtype, size = self._groups[group.name]
        squares = []
        for at in range(0, size, TILE):
            tile = self._read(base, dtype, at, min(TILE, size - at))
            squares.append(exact.dot(tile, tile))
        padded = next(s.lanes for s in self.ring.sections if s.group == group) * self.ring.subset
        return math.sqrt(exact.join(squares) / padded / self.ring.subset)

    def _dtype(self, part: Part) -> str:
        """Narrow where the model is and the values are rounded anyhow: half the room."""
        group = next(g for g in self.ring.groups if g.name == part.name)
        return "<f4" if group.rotated and all(f.dtype == "float32" for f in part.fields) else "<f8"

    def _into(self, base: int, dtype: str) -> Write:
        width = int(dtype[2:])

        def write(start: int, values: NDArray[np.float64]) -> None:
            self._scratch.write(base + width * start, values.astype(dtype).data.cast("B"))

        return write

    def _read(self, base: int, dtype: str, start: int, count: int) -> Array:
        width = int(dtype[2:])
        return np.frombuffer(self._scratch.read(base + width * start, width * count), dtype)


class Total:
    """What a secure round's strategy steps by: an aggregate (koinon_core.strategy.closing) of the sum of the lanes of
    `devices`. `model` is what the round began with.

    BadBlob where the sum is not one of these devices, and, beginning with "overflowed:", where more of it wrapped
    around than the terms allow: then nothing of it may be used, but (with `wrapped`) by who takes it for a lie."""

    def __init__(
        self, strategy: Strategy, layout: Layout, terms: Terms, total: Sum, devices: Sequence[str], model: Source,
        scratch: Scratches = MemoryScratch, *, wrapped: bool = False,
    ):  # fmt: skip
        agreed = Agreement.of(terms)
        parts = parts_of(strategy, layout, terms.kind, agreed.numbers, terms.max_examples)
        check_groups(agreed.ring, parts, rotated=any(g.rotated for g in agreed.ring.groups))
        self.kind, self._model = terms.kind, model
        self._sum: Sum | None = total
        self._digest = ""
        self._means = Means(parts, total, seeds_of(terms), devices, scratch)
        self.by_examples = by_examples(strategy)
        report = self._means.report
        self.overflow = report.overflow
        if report.overflow and not wrapped:
            raise BadBlob(
                f"{OVERFLOWED} the sum of {', '.join(map(repr, report.overflow))} is larger than the round was sized "
                "for; the next round is wide again"
            )
        self.count, self.weight = report.devices, float(report.weight)
        sums = strategy.totals() if terms.kind == "train" else {}
        self.totals = {name: self._means.numbers[f"total/{name}"][0] for name in sums}
        self.asked = agreed.numbers
        self.labels = numbers.labels_of(terms.kind, self.asked, examples=not self.by_examples)
        self.numbers = self._means.numbers["numbers"]
        self.clipped = report.clipped
        self.floored = frozenset(n for n in layout.buffers.by_name if n.rpartition(".")[2] == "running_var")

    def values(self, name: str, offset: int) -> Array:
        kind, _, tensor = name.partition("/")
        if kind == "count":  # equal on all devices, each of which has looked
            return self._model.values(tensor, offset)
        return self._means.values(name, offset)

    @property
    def evaluated(self) -> int:
        """How many devices evaluated the round's model, as they say."""
        said = numbers.measured(self.labels, self.numbers, self.asked).evaluated
        return min(max(said, 0), self.count)

    @cached_property
    def metrics(self) -> Mapping[str, float]:
        """As an open round has them (koinon_core.strategy.closing), and the share of devices that were clipped."""
        return joined([self])

    @cached_property
    def tuning(self) -> str:
        """What the next round is sized by."""
        rotated = [g for g in self._means.ring.groups if g.rotated]
        return Tuning(
            devices=self.count, weight=int(self.weight), rms={g.name: self._means.rms(g) for g in rotated},
            steps={g.name: step_of(g) for g in rotated if g.wraps > 0},
        ).encoded  # fmt: skip

    def digest(self) -> str:
        """The SHA-256 of the sum: the numbers that were joined, and every section's integers, centred, in the
        signed type of their lanes, little-endian. Equal for equal sums, whatever masks they came under."""
        if self._sum is not None:
            stated = {"count": self.count, "metrics": dict(self.metrics), "totals": self.totals}
            whole = hashlib.sha256(canonical(stated))
            for section in self._sum.ring.sections:
                _digest(section, self._sum.lanes(section), whole.update)
            self._digest = whole.hexdigest()
        return self._digest

    def settle(self) -> None:
        """Let go of the lanes: what is still to be read of them is in the scratch, and in the digest."""
        self.digest()
        self._sum = None


def joined(totals: Sequence[Total]) -> dict[str, float]:
    """The metrics of one sum, or of several of a round together: numbers are added."""
    one = totals[0]
    summed = [math.fsum(lane) for lane in zip(*(t.numbers for t in totals), strict=True)]
    said = numbers.measured(one.labels, summed, one.asked)
    trained = math.fsum(t.weight for t in totals) if one.by_examples else said.examples
    known = {"examples": float(trained or 0)} if one.kind == "train" else {}
    clipped = [sum(t.clipped[name] for t in totals) for name in one.clipped]
    count = sum(t.count for t in totals)
    share = {"clipped": max(clipped) / count} if clipped else {}
    early = min(max(said.partial, 0), count)
    share |= {"partial": early / count} if early else {}
    return {**said.spread, **known, **share, **said.means}


def _digest(section: Section, lanes: Array, update: Callable[[memoryview], object]) -> None:
    bits = section.group.bits if section.group else 64
    for at in range(0, lanes.size, TILE):
        whole = centred(lanes[at : at + TILE].astype(np.int64), bits)
        update(whole.astype(section.dtype.replace("u", "i")).data.cast("B"))


def _into_list(kept: list[float]) -> Write:
    def write(start: int, values: NDArray[np.float64]) -> None:
        kept[start : start + len(values)] = values.tolist()

    return write
