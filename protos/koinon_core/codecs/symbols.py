"""Symbols: small integers, written in whichever of four ways suits how many of them are zero.

    bytes      a byte a symbol
    nibbles    two neighbours a byte, where nearly all are within -7..7; -8 marks those that are not, which follow
    mask       a bit a symbol, whether it is zero; then what the others are
    listed     for each 256 symbols how many are not zero, then where these are, then what they are

zstd does the rest: it gives frequent bytes short codes, but none shorter than a bit. So where a zero says less than a
bit, single bytes will not do. Symbols are u8 way, then byte planes (`planes.py`).
"""

import numpy as np
from numpy.typing import NDArray

from koinon_core.codecs.planes import Packer, Unpacker
from koinon_core.errors import BadBlob

__all__ = ["add", "take"]

_BYTES, _NIBBLES, _MASK, _LISTED = 0, 1, 2, 3
# Of so many symbols, at most one stands by itself: is not zero, or does not fit in a nibble.
_FEWEST = {_LISTED: 64, _MASK: 2, _NIBBLES: 64}
_MASK_BEATS_NIBBLES = 4
_RUN = 256

Symbols = NDArray[np.int8]
Places = NDArray[np.intp]


def add(symbols: Symbols, packer: Packer) -> None:
    """Write `symbols`, one-dimensional and contiguous."""
    something = np.not_equal(symbols, 0)
    way = _way(symbols, int(np.count_nonzero(something)))
    packer.put(bytes((way,)))
    if way == _BYTES:
        packer.plane(symbols)
    elif way == _NIBBLES:
        _add_nibbles(symbols, packer)
    else:
        where = np.flatnonzero(something)
        if way == _MASK:
            packer.plane(np.packbits(something))
        else:
            runs = -(-symbols.size // _RUN)
            packer.plane(np.bincount(where // _RUN, minlength=runs).astype(np.uint8))
            packer.plane((where % _RUN).astype(np.uint8))
        packer.plane(symbols[where])


def take(source: Unpacker, count: int) -> Symbols:
    """`count` symbols; not to be written to. Raises BadBlob."""
    (way,) = source.take(1)
    if way == _BYTES:
        return source.plane(count).view(np.int8)
    if way == _NIBBLES:
        symbols = _take_nibbles(source, count)
        where = _places(symbols == -8, way)
    elif way == _MASK:
        symbols = np.zeros(count, dtype=np.int8)
        where = _places(np.unpackbits(source.plane(-(-count // 8)), count=count).view(np.bool_), way)
    elif way == _LISTED:
        symbols = np.zeros(count, dtype=np.int8)
        where = _listed(source, count)
    else:
        raise BadBlob(f"symbols are written in a way numbered {way}, which is not known here")
    symbols[where] = source.plane(where.size).view(np.int8)
    return symbols


def _way(symbols: Symbols, not_zero: int) -> int:
    def fits(part: Symbols) -> bool:
        return int(np.count_nonzero(_beyond_a_nibble(part))) * _FEWEST[_NIBBLES] <= part.size

    if not_zero * _FEWEST[_LISTED] <= symbols.size:
        return _LISTED
    # A quick look at a part comes first: most chunks are far from fitting.
    if not_zero * _MASK_BEATS_NIBBLES > symbols.size and fits(symbols[:4096]) and fits(symbols):
        return _NIBBLES
    return _MASK if not_zero * _FEWEST[_MASK] <= symbols.size else _BYTES


def _beyond_a_nibble(symbols: Symbols) -> NDArray[np.bool_]:
    # As unsigned bytes, -7..7 become 0..14, and all others are above that.
    beyond: NDArray[np.bool_] = symbols.view(np.uint8) + np.uint8(7) > 14
    return beyond


def _add_nibbles(symbols: Symbols, packer: Packer) -> None:
    where = np.flatnonzero(_beyond_a_nibble(symbols))
    narrow = np.zeros(symbols.size + symbols.size % 2, dtype=np.int8)
    np.copyto(narrow[: symbols.size], symbols)
    narrow[where] = -8
    pairs = narrow.view(np.dtype("<u2"))
    packer.plane(((pairs & 0x0F) | ((pairs >> 4) & 0xF0)).astype(np.uint8))
    packer.plane(symbols[where])


def _take_nibbles(source: Unpacker, count: int) -> Symbols:
    pairs = source.plane(-(-count // 2)).astype(np.dtype("<u2"))
    pairs |= pairs << 4
    pairs &= 0x0F0F
    symbols = pairs.view(np.int8)[:count]
    symbols ^= 8  # the fourth bit is the sign
    symbols -= 8
    return symbols


def _places(mask: NDArray[np.bool_], way: int) -> Places:
    _few(int(np.count_nonzero(mask)), mask.size, way)
    return np.flatnonzero(mask)


def _few(those: int, count: int, way: int) -> None:
    """Places take eight bytes each, so they are counted first."""
    if those * _FEWEST[way] > count:
        raise BadBlob(f"{those} of {count} symbols stand by themselves, which are too many")


def _listed(source: Unpacker, count: int) -> Places:
    held = source.plane(-(-count // _RUN))
    total = int(held.sum(dtype=np.int64))
    _few(total, count, _LISTED)
    where = np.repeat(np.arange(held.size, dtype=np.intp) * _RUN, held) + source.plane(total)
    if np.any(np.diff(where) <= 0) or (total and where[-1] >= count):
        raise BadBlob("the places of symbols are not in order")
    return where
