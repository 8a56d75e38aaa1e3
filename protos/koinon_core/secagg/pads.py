"""Masks as one device adds them: its own, and one for each pair with a neighbour, which cancels in the sum.

    y = e + PRG(own) + sum over v of PRG(pair) * (+1 if v's masking key is above mine, else -1)      modulo 2^bits

A mask is a seed. Each section of lanes has a seed of its own, expanded from it, and each tile of a section a key of its
own (hazmat.stream), so that tiles are masked in any order, by any number of threads.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from koinon_core.errors import UsageError
from koinon_core.secagg import statements
from koinon_core.secagg.config import Config
from koinon_core.secagg.hazmat import agree, derive, stream
from koinon_core.secagg.packing import PackedLayout, pack

__all__ = ["SEED_BYTES", "Pads", "Signed", "add_masks", "own_seed", "pair_seed", "sign_of"]

Lanes = NDArray[Any]
Signed = tuple[bytes, int]
"""A mask's seed, and +1 or -1."""

SEED_BYTES = 32


class Pads:
    """The masks of one device. It is made by a Masker and by nothing else; let go of it once the lanes are masked."""

    def __init__(self, config: Config, masks: Sequence[Signed]):
        self.config = config
        self._masks = tuple(masks)

    def apply(self, section: int, tile: int, lanes: Lanes) -> None:
        """Mask one tile's lanes in place, and reduce them to their bits. `lanes` is a contiguous vector with all lanes
        of the tile, of the section's dtype. Safe in several threads, on different tiles."""
        add_masks(self.config, section, tile, self._masks, lanes)

    def masked(self, read: Callable[[int, int, int], Lanes]) -> Iterator[memoryview]:
        """The masked bytes, tile by tile. `read(section, start, stop)` gives lanes, which are not changed."""
        for section, tile in PackedLayout(self.config).tiles():
            lane = self.config.lanes[section]
            lanes = np.array(read(section, *lane.span(tile)), lane.dtype)
            self.apply(section, tile, lanes)
            yield pack(lanes, lane.bits).data


def add_masks(config: Config, section: int, tile: int, masks: Sequence[Signed], lanes: Lanes) -> None:
    """Add masks to one tile's lanes in place, modulo 2^bits; UsageError for lanes that are not the tile's."""
    lane = config.lanes[section]
    start, stop = lane.span(tile)
    if lanes.dtype != np.dtype(lane.dtype) or lanes.shape != (stop - start,):
        raise UsageError(
            f"tile {tile} of section {section} has {stop - start} lanes of {lane.dtype}, "
            f"not {lanes.dtype} of shape {lanes.shape}; pass it whole"
        )
    info = statements.lane(section)
    stream.accumulate(lanes, tile, [(derive.expand(seed, info), sign) for seed, sign in masks])
    if lane.bits < 8 * lane.width:
        lanes &= lanes.dtype.type((1 << lane.bits) - 1)


def own_seed(sid: bytes, client: str, seed: bytes) -> bytes:
    """The seed of a device's own mask, from the seed whose shares its neighbours hold."""
    return derive.hkdf(seed, salt=sid, info=statements.own_mask(client))


def pair_seed(sid: bytes, private: bytes | agree.Private, public: bytes, other: bytes) -> bytes:
    """The seed of the mask of two devices, from the masking keys of one (both halves) and of the `other` (public)."""
    return derive.hkdf(agree.exchange(private, other), salt=sid, info=statements.pair_mask(public, other))


def sign_of(mine: bytes, other: bytes) -> int:
    """The sign with which the device of masking key `mine` adds the mask that it has with the `other`."""
    return 1 if other > mine else -1
