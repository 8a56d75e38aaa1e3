"""The device's half: flat values to lanes, a tile at a time.

Two passes over the values: one for the norm, by which they are clipped, one that encodes. What is in memory is one
tile's buffers, however large the model is.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from koinon_core import exact
from koinon_core.errors import BadUpdate, UsageError
from koinon_core.ring.checks import checks
from koinon_core.ring.config import GAIN, Group, Ring, Section
from koinon_core.ring.dither import DITHER, quantise
from koinon_core.ring.lanes import to_lanes
from koinon_core.ring.rotation import ROOT, Read, window
from koinon_core.ring.seeds import Seeds, keystream
from koinon_core.tensors import Array

__all__ = ["Device", "Piece", "encode"]

Piece = tuple[int, Array]
"""Lanes, and the byte of the update at which they start."""
_WINDOW = 1 << 20
_EXPLODED = 2.0**100  # 64 times as much is still a float32
_NARROW = 2.0**22  # steps of which 2^-8 parts, and sums of 256, fit in 31 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Whose update it is: its name; its weight (examples), which others see in sums alone; and, in a ring of private
    rounding, its secret of 32 random bytes, which is kept with the update and never leaves the device."""

    name: str
    weight: int = 1
    secret: bytes | None = None

    def key(self, seeds: Seeds, group: str) -> bytes:
        """Of its dither in this round, public or private."""
        if self.secret is None:
            return seeds.dither(self.name, group)
        return seeds.rounding(self.secret, group)


def encode(ring: Ring, seeds: Seeds, device: Device, values: Mapping[str, Read]) -> Iterator[Piece]:
    """The update of a device, in pieces that lie one after the other (between groups up to 7 bytes are zero).

    `values` reads each group. A pure function of its arguments: the same bytes whenever and wherever it is called.
    BadUpdate for NaN, Inf, and exact values beyond their bound.
    """
    if not 1 <= device.weight <= ring.max_weight:
        raise BadUpdate(
            f"a weight of {device.weight} is outside of 1 to {ring.max_weight}; check the examples"
        )
    if (device.secret is not None) != (ring.rounding == "private"):
        given = "no secret" if device.secret is None else "a secret"
        raise UsageError(f"a ring of {ring.rounding} rounding was given {given}; private rounding needs one")
    if differ := {g.name for g in ring.groups} ^ set(values):
        raise UsageError(f"the ring's groups and the values given differ in {', '.join(sorted(differ))}")
    return _Encoder(ring, seeds, device).pieces(values)


class _Encoder:
    def __init__(self, ring: Ring, seeds: Seeds, device: Device):
        self.ring, self.seeds, self.device = ring, seeds, device
        self.accounts: list[Array] = [np.array([device.weight], "<u8")]

    def pieces(self, values: Mapping[str, Read]) -> Iterator[Piece]:
        for section in self.ring.sections:
            group = section.group
            if group is None:
                yield section.offset, np.concatenate(self.accounts)
            elif group.rotated:
                yield from self.rotated(section, group, values[group.name])
            else:
                yield from self.plain(section, group, values[group.name])

    def rotated(self, section: Section, group: Group, read: Read) -> Iterator[Piece]:
        rotation = self.ring.rotation(group, self.seeds)
        check, dither = self.seeds.shared("check", group.name), self.device.key(self.seeds, group.name)
        clip = _clip(group, read)
        self.accounts.append(np.array([clip < 1], "<u8"))
        weight = self.device.weight if group.rule == "mean" else 1
        factor = clip * weight * group.gain / GAIN
        scale = math.ldexp(factor, group.grid + DITHER - ROOT - self.ring.weight_places(group))
        dtype = np.int32 if group.most < _NARROW else np.int64
        at = section.offset
        for tile in range(rotation.tiles):
            block = rotation.forward(read, tile)
            q = quantise(block, scale, keystream(dither, tile, block.size), dtype)
            self.accounts.append(checks(q, check, tile).astype("<u8"))
            lanes = to_lanes(q, group.bits, group.dtype).reshape(-1)
            yield at, lanes
            at += lanes.nbytes

    def plain(self, section: Section, group: Group, read: Read) -> Iterator[Piece]:
        weight = self.device.weight if group.rule == "mean" else 1
        for start in range(0, group.size, _WINDOW):
            values = np.asarray(window(read, start, min(start + _WINDOW, group.size)), np.float64)
            if not np.all(np.abs(values) <= group.bound):  # NaN is not
                raise BadUpdate(
                    f"group {group.name!r} holds a value that is not finite or beyond {group.bound:g}, the ring's "
                    "bound; look at what is measured, or raise the bound"
                )
            whole = np.rint(values * 2.0**group.grid).astype(np.int64) * weight
            lanes = to_lanes(whole, group.bits, group.dtype)
            yield section.offset + start * lanes.itemsize, lanes


def _clip(group: Group, read: Read) -> float:
    """What makes the norm at most the bound: 1, or less. The same on every CPU."""
    squares: list[float] = []
    for start in range(0, group.size, _WINDOW):
        values = window(read, start, min(start + _WINDOW, group.size))
        squares.append(exact.dot(values, values))
    norm = math.sqrt(exact.join(squares))
    if not norm < _EXPLODED:  # NaN is not
        raise BadUpdate(
            f"group {group.name!r} holds NaN or Inf, or has a norm of 2^100 and more; "
            "train again, perhaps with a lower learning rate"
        )
    return 1.0 if norm <= group.bound else group.bound / norm
