"""The coordinator's half: the sum of lanes to means, a tile at a time, and what is wrong with it if anything is.

Integers throughout, so the result is the same bytes on every CPU and for every order in which updates came: the
sum and the dithers are added in UNITs of 2^-9 step, rotated back by additions, and turned into float64 by one
conversion and one division.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from koinon_core.errors import BadBlob, UsageError
from koinon_core.ring.checks import CHECKS, Wraps, allowed, checks, wrapped
from koinon_core.ring.config import GAIN, SLACK, Group
from koinon_core.ring.dither import UNIT, remainder
from koinon_core.ring.lanes import Sum, centred
from koinon_core.ring.rotation import ROOT, Write
from koinon_core.ring.seeds import Seeds
from koinon_core.tensors import Array

__all__ = ["Report", "decode"]

_WINDOW = 1 << 20


@dataclass(frozen=True, slots=True)
class Report:
    """A decoded sum: how many devices, their total weight, and by rotated group how many of them were clipped and what
    wrapped around. Where `overflow` names a group, nothing that was written may be used: the round has no model."""

    devices: int
    weight: int
    clipped: Mapping[str, int]
    wraps: Mapping[str, Wraps]

    @property
    def overflow(self) -> tuple[str, ...]:
        return tuple(name for name, wraps in self.wraps.items() if wraps.overflow)


def decode(total: Sum, seeds: Seeds, devices: Sequence[str], write: Mapping[str, Write]) -> Report:
    """Write the mean (or sum) of every group, in float64, and report. `devices` are the names of those in the sum;
    their order does not matter. BadBlob where the accounts are not those of so many devices."""
    ring = total.ring
    if not 1 <= len(devices) <= ring.devices or len(set(devices)) < len(devices):
        raise UsageError(f"a sum of {len(devices)} devices is to name 1 to {ring.devices}, each once")
    if differ := {g.name for g in ring.groups} ^ set(write):
        raise UsageError(f"the ring's groups and those to be written differ in {', '.join(sorted(differ))}")
    return _Decoder(total, seeds, devices).report(write)


class _Decoder:
    def __init__(self, total: Sum, seeds: Seeds, devices: Sequence[str]):
        self.total, self.ring, self.seeds = total, total.ring, seeds
        # Who rounded privately told nobody how, and nothing is subtracted.
        self.dithered = devices if total.ring.rounding == "public" else ()
        self.devices = len(devices)
        self.accounts = total.lanes(total.ring.sections[-1])
        self.weight = int(self.accounts[0])
        if not self.devices <= self.weight <= self.devices * self.ring.max_weight:
            raise BadBlob(
                f"the weights of {self.devices} devices add up to {self.weight}; one of them is broken"
            )

    def report(self, write: Mapping[str, Write]) -> Report:
        clipped: dict[str, int] = {}
        wraps: dict[str, Wraps] = {}
        at = 1
        for section in self.ring.sections:
            group, lanes = section.group, self.total.lanes(section)
            if group is None:
                continue
            if not group.rotated:
                self.plain(group, lanes, write[group.name])
                continue
            clipped[group.name] = int(self.accounts[at])
            if clipped[group.name] > self.devices:
                raise BadBlob(
                    f"more devices than there are say that they clipped {group.name!r}; one is broken"
                )
            wraps[group.name] = self.rotated(group, lanes, self.accounts[at + 1 :], write[group.name])
            at += 1 + len(wraps[group.name].signed)
        return Report(self.devices, self.weight, clipped, wraps)

    def rotated(self, group: Group, lanes: Array, stated: Array, write: Write) -> Wraps:
        rotation = self.ring.rotation(group, self.seeds)
        check = self.seeds.shared("check", group.name)
        keys = [self.seeds.dither(device, group.name) for device in self.dithered]
        # Values are counted in UNITs of steps of 8 / gain * 2^-grid, 64 times as large as orthonormal, and weighted.
        # The divisor is a whole number below 2^53 times a power of two, hence exact.
        places = group.grid + UNIT + ROOT - self.ring.weight_places(group)
        divisor = math.ldexp(group.gain * self.divisor(group) / GAIN, places)
        signed: list[int] = []
        at = 0
        for tile in range(rotation.tiles):
            shape = rotation.shape(tile)
            here = lanes[at : at + shape[0] * shape[1]].reshape(shape)
            at += here.size
            rest = remainder(keys, tile, shape)
            value = here.astype(np.int64)
            value <<= UNIT
            value += rest
            centred(value, group.bits + UNIT)
            # What is left without the dithers is the sum of the integers, if it did not wrap.
            np.subtract(value, rest, out=rest)
            rest >>= UNIT
            said = stated[CHECKS * tile : CHECKS * (tile + 1)]
            signed += wrapped(checks(rest, check, tile), said, group.bits, group.name)
            rotation.backward(value, tile, write, divisor)
        return Wraps(tuple(signed), allowed(group.wraps, lanes.size))

    def plain(self, group: Group, lanes: Array, write: Write) -> None:
        for start in range(0, group.size, _WINDOW):
            whole = centred(lanes[start : start + _WINDOW].astype(np.int64), group.bits)
            values = whole * 2.0**-group.grid / self.divisor(group)
            # What honest devices give cannot exceed it, the grid's half step aside.
            most = group.bound * (1 if group.rule == "mean" else self.devices)
            if np.any(np.abs(values) > most * SLACK + 2.0**-group.grid * self.devices):
                raise BadBlob(
                    f"the sum of group {group.name!r} is beyond what {self.devices} devices can give; one is broken"
                )
            write(start, values)

    def divisor(self, group: Group) -> int:
        return self.weight if group.rule == "mean" else 1
