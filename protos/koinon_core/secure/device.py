"""The device's half: an update as lanes, written tile by tile, and what the coordinator will decode of it.

A pure function of the update, the round's terms and the device's name: the dither follows from them, so that an update
has one encoding however often it is made, and all attempts at a sum mask the same bytes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from koinon_core.blob import Blob, Window
from koinon_core.draft import Draft
from koinon_core.errors import LocalProtocolError
from koinon_core.ring import Device, Ring, Sum, encode
from koinon_core.ring.encode import Piece
from koinon_core.ring.lanes import to_lanes
from koinon_core.ring.rotation import COLUMNS, ROWS, Read
from koinon_core.round.terms import Terms
from koinon_core.schema import Schema
from koinon_core.secure import numbers
from koinon_core.secure.agreement import Agreement, seeds_of
from koinon_core.secure.parts import Flat, Part, by_examples, check_groups, parts_of
from koinon_core.secure.scratch import MemoryScratch, Scratches
from koinon_core.secure.total import Means
from koinon_core.strategy.protocol import Strategy
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import Source, gather
from koinon_core.update import Head, Layout

__all__ = ["Lanes", "capped", "lanes_at"]

_BLOCK = ROWS * COLUMNS  # values of which a rotation reads every one once, in order
_WIDE = 32  # bits of which no single device's integer goes beyond


def capped(head: Head, max_examples: int) -> Head:
    """A head whose examples count for no more than a device may weigh."""
    return replace(
        head, examples=min(head.examples, max_examples),
        evaluation_examples=min(head.evaluation_examples, max_examples),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lanes:
    """The encoding of one device's updates in one round."""

    terms: Terms
    strategy: Strategy
    layout: Layout
    client: str

    def write(
        self, source: Source, head: Head, draft: Draft, *, keep: bool = False, scratch: Scratches = MemoryScratch
    ) -> tuple[Blob, Tensors | None]:  # fmt: skip
        """The lanes of the update that `source` has, and with `keep` the sections that the coordinator would decode if
        no other device were in the sum. `scratch` makes room for a copy of what does not fit into one tile of a
        rotation.

        BadBlob for terms whose ring is not of this run, BadUpdate for values that may not be sent.
        """
        agreed = Agreement.of(self.terms)
        parts = self._parts(agreed)
        check_groups(agreed.ring, parts, rotated=any(g.rotated for g in agreed.ring.groups))
        weight = head.examples if by_examples(self.strategy) and self.terms.kind == "train" else 1
        device = Device(name=self.client, weight=weight)
        values = {p.name: self._reader(p, agreed, source, head, scratch) for p in parts}
        seeds = seeds_of(self.terms)
        if not keep:
            pieces: Iterable[Piece] = encode(agreed.ring, seeds, device, values)
            return _written(agreed.ring, (lanes for _, lanes in pieces), draft), None
        # Its integers as they are, not modulo what the sum fits in: one device may reach beyond that, and all is well.
        alone = _alone(agreed.ring)
        total = Sum(alone)
        blob = _written(
            agreed.ring, _narrowed(alone, agreed.ring, encode(alone, seeds, device, values), total), draft
        )
        means = Means(parts, total, seeds, [self.client])
        return blob, gather(means, Schema(tuple(f for p in parts for f in p.fields)))

    def _parts(self, agreed: Agreement) -> tuple[Part, ...]:
        terms = self.terms
        return parts_of(self.strategy, self.layout, terms.kind, agreed.numbers, terms.max_examples)

    def _reader(
        self, part: Part, agreed: Agreement, source: Source, head: Head, scratch: Scratches
    ) -> Read:  # fmt: skip
        if part.name == "numbers":
            labels = numbers.labels_of(
                self.terms.kind, agreed.numbers, examples=not by_examples(self.strategy)
            )
            return _held(np.array(numbers.values_of(labels, head, agreed.numbers)))
        if not part.fields:
            return _held(np.array([head.totals[part.name.removeprefix("total/")]], np.float64))
        rotated = next(g.rotated for g in agreed.ring.groups if g.name == part.name)
        flat = Flat(part.fields, source, "<f4" if rotated else "<f8")
        return _staged(flat, part.size, scratch) if rotated and part.size > _BLOCK else flat


def lanes_at(ring: Ring, window: Window, section: int, start: int, stop: int) -> Array:
    """Lanes of a section of an update that is behind `window`, for whoever masks them."""
    found = ring.sections[section]
    width = int(found.dtype[2:])
    data = window(found.offset + start * width, (stop - start) * width)
    if len(data) != (stop - start) * width:
        raise LocalProtocolError("an encoded update ends too early; it was damaged here")
    return np.frombuffer(data, found.dtype)


def _held(values: Array) -> Read:
    return lambda start, stop: values[start:stop]


def _staged(flat: Flat, size: int, scratch: Scratches) -> Read:
    """A copy of a group in its flat order: a rotation reads it in runs from all over, again for every tile."""
    room = scratch(4 * size)
    for at in range(0, size, 1 << 20):
        room.write(4 * at, flat(at, min(at + (1 << 20), size)).data.cast("B"))
    return lambda start, stop: np.frombuffer(room.read(4 * start, 4 * (stop - start)), "<f4")


def _written(ring: Ring, lanes: Iterable[Array], draft: Draft) -> Blob:
    """Everything in its place, with zeros between sections."""
    ends = {s.offset + s.nbytes: s.offset + -(-s.nbytes // 8) * 8 for s in ring.sections[:-1]}
    at = 0
    for piece in lanes:
        draft.write(piece.tobytes())
        at += piece.nbytes
        if at in ends and ends[at] > at:
            draft.write(bytes(ends[at] - at))
            at = ends[at]
    if at != ring.nbytes:
        raise LocalProtocolError(f"{at} of {ring.nbytes} bytes of lanes were made")
    return draft.finish()


def _alone(ring: Ring) -> Ring:
    groups = (replace(g, bits=_WIDE, wraps=0.5) if g.rotated else g for g in ring.groups)
    return replace(ring, groups=tuple(groups))


def _narrowed(alone: Ring, ring: Ring, pieces: Iterator[Piece], total: Sum) -> Iterator[Array]:
    """The lanes of the round's own ring, and beside it the wide ones to `total`."""
    for wide, section in zip(alone.sections, ring.sections, strict=True):
        left = wide.lanes
        while left:
            at, lanes = next(pieces)
            total.add(lanes.data.cast("B"), at)
            left -= lanes.size
            yield to_lanes(lanes, section.group.bits, section.dtype) if section.group else lanes
