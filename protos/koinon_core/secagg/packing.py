"""Lanes in as many bits as they have: how masked bytes travel.

Masked bytes are all tiles in order, section by section; a tile is up to 2^20 bytes of lanes. Of b-bit lanes a tile's
bytes are planes: b is written as a sum of distinct powers of two (12 = 8 + 4, 20 = 16 + 4, 13 = 8 + 4 + 1), and the
widest plane has the lowest bits of all lanes, the next one the bits above, and so on. Planes of 8 bits and more are
little-endian integers. In a plane of w < 8 bits, which has h bytes, byte j has lane j in its lowest w bits, lane
j + h in the next w, and so on; lanes that are not there are zeros. So lanes that lie side by side stay so, which a
CPU's vectors like, and no bit is wasted but at a plane's end.

Masked lanes are uniform: no compression would make them shorter.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg.config import Config, Lane

__all__ = ["PackedLayout", "pack", "packed_size", "unpack"]

Lanes = NDArray[Any]

_BLOCK = (
    1 << 16
)  # lanes at work at a time, so that what lies between lanes and planes stays in a core's cache


def packed_size(bits: int, count: int) -> int:
    """The bytes of `count` lanes of a tile."""
    return sum(-(-count * width // 8) for width in _planes(bits))


def pack(lanes: Lanes, bits: int) -> NDArray[np.uint8]:
    """The planes of a tile; what lanes have above their `bits` is left out. `lanes` is a vector of unsigned integers
    that hold them."""
    out = np.empty(packed_size(bits, lanes.size), np.uint8)
    at = shift = 0
    for width in _planes(bits):
        size = -(-lanes.size * width // 8)
        plane = out[at : at + size]
        if width >= 8:
            _take_whole(lanes, shift, plane.view(f"<u{width // 8}"))
        else:
            _take_part(lanes, shift, width, plane)
        at, shift = at + size, shift + width
    return out


def unpack(config: Config, section: int, tile: int, data: bytes | memoryview) -> Lanes:
    """The lanes of a tile, to be added; perhaps a view of `data`, not to be written to.

    Raises BadBlob if `data` has another size than the tile's or bits set where there are no lanes.
    """
    lane = config.lanes[section]
    start, stop = lane.span(tile)
    count = stop - start
    size = packed_size(lane.bits, count)
    if len(data) != size:
        raise BadBlob(
            f"tile {tile} of section {section} has {size} masked bytes, not {len(data)}; its sender must send it again"
        )
    raw = np.frombuffer(data, np.uint8)
    if lane.bits == 8 * lane.width:
        return raw.view(lane.dtype)
    out = np.empty(count, lane.dtype)
    at = shift = 0
    for width in _planes(lane.bits):
        size = -(-count * width // 8)
        plane = raw[at : at + size]
        if width >= 8:
            _put_whole(out, shift, plane.view(f"<u{width // 8}"))
        else:
            _put_part(out, shift, width, plane)
        at, shift = at + size, shift + width
    return out


@dataclass(frozen=True)
class PackedLayout:
    """Where every tile lies in the masked bytes of a config: known before a byte of them is there."""

    config: Config

    @property
    def total(self) -> int:
        """The bytes of one device's masked lanes."""
        return self._starts[-1]

    def tiles(self) -> Iterator[tuple[int, int]]:
        """(section, tile) of all tiles, in the order of their bytes."""
        for section, lane in enumerate(self.config.lanes):
            for tile in range(lane.tiles):
                yield section, tile

    def range(self, section: int, tile: int) -> tuple[int, int]:
        """The bytes of a tile: the first, and the one after its last."""
        lane = self.config.lanes[section]
        first, last = lane.span(tile)
        start = self._starts[section] + tile * packed_size(lane.bits, lane.per_tile)
        return start, start + packed_size(lane.bits, last - first)

    def at(self, offset: int) -> tuple[int, int]:
        """The tile (section, tile) that byte `offset` lies in; UsageError beyond the last."""
        if not 0 <= offset < self.total:
            raise UsageError(f"there is no byte {offset} in {self.total} masked bytes")
        section = bisect_right(self._starts, offset) - 1
        lane = self.config.lanes[section]
        return section, (offset - self._starts[section]) // packed_size(lane.bits, lane.per_tile)

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return tuple(accumulate((_section_size(lane) for lane in self.config.lanes), initial=0))


def _section_size(lane: Lane) -> int:
    whole, rest = divmod(lane.count, lane.per_tile)
    return whole * packed_size(lane.bits, lane.per_tile) + packed_size(lane.bits, rest)


def _planes(bits: int) -> tuple[int, ...]:
    return tuple(width for width in (64, 32, 16, 8, 4, 2, 1) if bits & width)


def _take_whole(lanes: Lanes, shift: int, plane: Lanes) -> None:
    for start in range(0, lanes.size, _BLOCK):
        part = lanes[start : start + _BLOCK]
        np.copyto(plane[start : start + _BLOCK], part >> shift if shift else part, casting="unsafe")


def _take_part(lanes: Lanes, shift: int, width: int, plane: NDArray[np.uint8]) -> None:
    low = np.uint8((1 << width) - 1)
    plane[:] = 0
    for piece in range(8 // width):
        mine = lanes[piece * plane.size : (piece + 1) * plane.size]
        for start in range(0, mine.size, _BLOCK):
            part = mine[start : start + _BLOCK]
            bits = (part >> shift if shift else part).astype(np.uint8)
            bits &= low
            bits <<= piece * width
            plane[start : start + part.size] |= bits


def _put_whole(out: Lanes, shift: int, plane: Lanes) -> None:
    if not shift:
        out[:] = plane
        return
    for start in range(0, out.size, _BLOCK):
        part = plane[start : start + _BLOCK].astype(out.dtype)
        part <<= shift
        out[start : start + _BLOCK] |= part


def _put_part(out: Lanes, shift: int, width: int, plane: NDArray[np.uint8]) -> None:
    low = np.uint8((1 << width) - 1)
    for piece in range(8 // width):
        first = piece * plane.size
        mine = out[first : first + plane.size]
        for start in range(0, plane.size, _BLOCK):
            bits = plane[start : start + _BLOCK] >> (piece * width)
            bits &= low
            into = mine[start : start + bits.size]
            if bits[into.size :].any():
                raise BadBlob(
                    "masked bytes have bits set after the last lane; their sender must pack zeros there"
                )
            lanes = bits[: into.size].astype(out.dtype)
            lanes <<= shift
            if shift:
                into |= lanes
            else:
                into[:] = lanes
