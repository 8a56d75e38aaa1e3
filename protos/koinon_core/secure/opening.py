"""The sum of a secure round's masked updates, and the masks off it: tile by tile.

Masked updates are added as they lie wherever they are kept, and what is taken off is taken off the sum: no tile of a
single device's update is ever without its masks here. In memory are the lanes of the sum, and a tile of one update for
every tile that is at work.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np

from koinon_core.blob import Blob
from koinon_core.errors import BadBlob
from koinon_core.ring import Sum
from koinon_core.round.terms import Terms
from koinon_core.secagg.config import Config
from koinon_core.secagg.packing import PackedLayout, unpack
from koinon_core.secure.agreement import Agreement
from koinon_core.tensors import Array

__all__ = ["Opens", "summed"]

Tile = tuple[int, int]
"""A section, and a tile in it."""


class Opens(Protocol):
    """What takes the masks of a session off its sum (koinon_core.secagg's Recovery)."""

    def unmask(self, section: int, tile: int, lanes: Array) -> None:
        """Of one tile, in place; from any thread."""
        ...


class Each(Protocol):
    """`map`, or what does the same on several threads: every tile is a job of its own."""

    def __call__(self, job: Callable[[Tile], None], tiles: Iterable[Tile], /) -> Iterable[None]: ...


def summed(
    terms: Terms, attempt: int, opens: Iterable[Opens], updates: Mapping[str, Blob], each: Each = map
) -> Sum:  # fmt: skip
    """The sum of the masked `updates` (by device), which are those of all whose masks `opens` take off. BadBlob for an
    update of another size than the round's lanes take, or which is damaged."""
    agreement = Agreement.of(terms)
    config = agreement.config(terms, attempt)
    layout, removed = PackedLayout(config), tuple(opens)
    for client, update in updates.items():
        if update.size != layout.total:
            raise BadBlob(
                f"the masked update of {client} has {update.size} bytes, and the round's lanes take {layout.total}"
            )
    total = Sum(agreement.ring)
    lanes = [total.lanes(section) for section in agreement.ring.sections]

    def one(where: Tile) -> None:
        section, tile = where
        start, stop = config.lanes[section].span(tile)
        part = lanes[section][start:stop]
        _add(config, layout, where, updates.values(), part)
        for opened in removed:
            opened.unmask(section, tile, part)

    for _ in each(one, layout.tiles()):
        pass
    return total


def _add(
    config: Config, layout: PackedLayout, where: Tile, updates: Iterable[Blob], lanes: Array
) -> None:  # fmt: skip
    """Add a tile of every update to its place in the sum."""
    first, last = layout.range(*where)
    for update in updates:
        np.add(lanes, unpack(config, *where, update.window(first, last - first)), out=lanes)
