"""`q1`: a uniform quantiser with a step of so many times the root mean square, unbiased, then zstd.

    q = floor(x / step + u),  x^ = (q + 1/2 - u) step        subtractive dither: the error is step^2 / 12 whatever x is
    q = floor(x / step + u),  x^ = q step                    stochastic rounding: a zero stays zero
    q = rint(x / step),       x^ = q step                    nearest: biased, for use with error feedback

with u uniform in [0, 1). Subtractive dither (Roberts 1962, Schuchman 1964; Ziv 1985 bounds what its entropy code
takes above the rate-distortion limit) is the better on dense chunks; stochastic rounding (QSGD, Alistarh et al. 2017)
on those of which at least half is zeros, where its error is as small. u has 8 bits in the former, where the
receiver has to make it again, and 16 in the latter: so what averages give is x to within 1/512 or 1/131072 of a step.

A payload is u8 mode, then for `verbatim` the elements by `lossless`, which is what becomes of a chunk with too many
escapes; else

    u8 k | i8 e | u32 escapes    the step is k * 2^e
    plane                        which blocks of 64 elements are all zeros, and stay so; of mode `sparse` only
    symbols                      of the elements in other blocks (`symbols.py`)
    f32 ...                      the escapes: what symbols of -128 stand for, in order
"""

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from koinon_core.codecs import symbols as packing
from koinon_core.codecs.lossless import Lossless
from koinon_core.codecs.place import NOWHERE, Place, Step
from koinon_core.codecs.planes import QUICK, Packer, Unpacker
from koinon_core.codecs.quantised import ZEROS, Quantised
from koinon_core.codecs.tile import BLOCK, Tile, stretches
from koinon_core.dither import keystream
from koinon_core.errors import BadBlob, UsageError
from koinon_core.tensors import Array

__all__ = ["LEVELS", "Q1", "Step"]

_HEAD = struct.Struct("<BBbI")
_VERBATIM, _LATTICE, _DITHERED, _SPARSE = 0, 1, 2, 3
_ESCAPE = -128
_ESCAPES = 16  # of so many elements at most one
_LONGEST_HEAD = 64


@dataclass(frozen=True, slots=True)
class _Rounding:
    """q = floor((t + noise) / 2^bits) with t = x * 2^bits / step as an integer."""

    mode: int
    bits: int
    kind: DTypeLike
    noise: DTypeLike


_NEAREST = _Rounding(_LATTICE, 0, np.int8, np.uint8)
_DITHER = _Rounding(_DITHERED, 8, np.int16, np.uint8)
_STOCHASTIC = _Rounding(_LATTICE, 16, np.int32, np.dtype("<u2"))


@dataclass(frozen=True, slots=True)
class Q1:
    """One level: the step is `level` times the rms; `biased` rounds to the nearest."""

    level: float
    biased: bool = False
    id = 3
    version = 1
    exact = False

    def step_for(self, rms: float, grid: int, peak: float = math.inf, most: float = math.inf) -> Step:
        """The step for a section of this root mean square and largest |value| that is summed on a grid of 2^-grid:
        within 0.4 % of level * rms, but at most `most`, and never so fine that a decoded value is not on the grid. A
        biased level's is at most `peak`, so that something is always sent. Raises BadBlob for an rms that is not
        finite."""
        if not math.isfinite(rms):
            raise BadBlob("an update holds NaN or Inf; a value must be finite")
        wanted = min(self.level * abs(rms), most, peak if self.biased else math.inf)
        mantissa, exponent = math.frexp(wanted)
        k, e = round(mantissa * 256), exponent - 8
        if k == 256:
            k, e = 128, e + 1
        # A dithered value has eight places more than its step; where the grid has no room for them, rounding is
        # stochastic, and the step may be as fine as the grid.
        fine = not self.biased and wanted * 2.0**grid >= 256
        smallest = 8 - grid if fine else -grid
        if k == 0 or e < smallest:
            k, e = max(1, round(wanted * 2.0**-smallest)), smallest
        return Step(k, e, fine)

    def takes(self, dtype: str) -> bool:
        return dtype in ("float32", "float64")

    def limit(self, nbytes: int) -> int:
        return nbytes + _LONGEST_HEAD

    def encode(self, flat: Array, place: Place = NOWHERE) -> bytes:
        """Needs the place's step, and its key unless it rounds to the nearest; raises UsageError."""
        if place.step is None or not self.takes(flat.dtype.name):
            raise UsageError(f"q1 needs a step, and float32 or float64 values, not {flat.dtype.name}")
        rounding, zeros = (_NEAREST, None) if self.biased else _rounding_for(flat, place.step)
        symbols, where = _quantise(flat, place, place.step, rounding)
        if where.size * _ESCAPES > flat.size:
            return bytes((_VERBATIM,)) + Lossless().encode(flat)
        mode = rounding.mode if zeros is None else _SPARSE
        packer = Packer(QUICK)
        packer.put(_HEAD.pack(mode, place.step.k, place.step.e, where.size))
        if zeros is not None:
            packer.plane(np.packbits(zeros))
            symbols = symbols[_live(zeros, flat.size)]
        packing.add(symbols, packer)
        with np.errstate(over="ignore"):
            packer.put(flat[where].astype(np.dtype("<f4")).tobytes())
        return packer.bytes()

    def decode(self, payload: memoryview, dtype: str, count: int, place: Place = NOWHERE) -> Tile:
        if not self.takes(dtype):
            raise BadBlob(f"{dtype} cannot have been quantised; the sender must send it in full")
        if payload[:1] == bytes((_VERBATIM,)):
            return Lossless().decode(payload[1:], dtype, count)
        source = Unpacker(payload)
        mode, k, e, escapes = _HEAD.unpack(source.take(_HEAD.size))
        if mode not in (_LATTICE, _DITHERED, _SPARSE):
            raise BadBlob(f"a chunk is quantised in a way numbered {mode}, which is not known here")
        if escapes * _ESCAPES > count:
            raise BadBlob(f"{escapes} of {count} elements are escapes, which are too many")
        if mode != _LATTICE:
            keystream(place.key, place.section, place.offset)  # refuses a key that is none
        step = Step(k, e)
        zeros = _take_zeros(source, count) if mode == _SPARSE else None
        symbols = _take_symbols(source, count, zeros)
        beyond = np.frombuffer(source.take(4 * escapes), dtype=np.dtype("<f4")).astype(np.float32)
        source.end()
        symbols, where = _without_escapes(symbols, escapes)
        return Quantised(
            count=count, dtype=dtype, step=step, symbols=symbols, dither=None if mode == _LATTICE else place,
            zeros=zeros, escapes=beyond, where=where,
        )  # fmt: skip


LEVELS = {"fine": Q1(1 / 8), "balanced": Q1(1 / 4), "compact": Q1(2), "thin": Q1(6, biased=True)}


def _rounding_for(flat: Array, step: Step) -> tuple[_Rounding, NDArray[np.bool_] | None]:
    """How to round without bias, and which blocks are all zeros, if any are: dither leaves these alone."""
    if not step.fine:
        return _STOCHASTIC, None
    something = np.zeros(-(-flat.size // ZEROS) * ZEROS, dtype=np.bool_)
    np.not_equal(flat, 0, out=something[: flat.size])
    words = something.view(np.uint64).reshape(-1, ZEROS // 8)
    joined = words[:, 0].copy()
    for column in range(1, ZEROS // 8):
        np.bitwise_or(joined, words[:, column], out=joined)
    zeros = np.equal(joined, 0)
    live = (zeros.size - int(np.count_nonzero(zeros))) * ZEROS
    if zeros.size and not zeros[-1]:
        live -= something.size - flat.size  # the last block may be cut short
    if 2 * np.count_nonzero(something) <= live:
        return _STOCHASTIC, None
    return _DITHER, zeros if zeros.any() else None


def _live(zeros: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Which of `count` elements are in blocks that are not all zeros."""
    return np.repeat(~zeros, ZEROS)[:count]


def _quantise(
    flat: Array, place: Place, step: Step, rounding: _Rounding
) -> tuple[NDArray[np.int8], NDArray[np.intp]]:
    """The symbols of `flat`, and where the escapes are. NaN and Inf are escapes too."""
    symbols = np.empty(flat.size, dtype=np.int8)
    scale = np.float32(step.times(1, rounding.bits) ** -1)
    limit = 127.0 * 2**rounding.bits  # the noise then ends below 128
    size = min(BLOCK, flat.size)
    scaled, t = np.empty(size, np.float32), np.empty(size, rounding.kind)
    noise, wide = np.empty(size, rounding.noise), np.empty(size, rounding.kind)
    fill = keystream(place.key, place.section, place.offset, noise.itemsize) if rounding.bits else None
    escapes = [np.zeros(0, np.intp)]
    for part in stretches(flat.size):
        n = part.stop - part.start
        y, integer, b, w = scaled[:n], t[:n], noise[:n], wide[:n]
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(flat[part], scale, out=y, casting="same_kind")
        if not (float(y.min()) >= -limit and float(y.max()) <= limit):
            beyond = np.flatnonzero(~(np.abs(y) <= limit))
            y[beyond] = 0
            escapes.append(beyond + part.start)
        (np.floor if rounding is _DITHER else np.rint)(y, out=y)
        np.copyto(integer, y, casting="unsafe")
        if fill is not None:
            fill(b)
            np.copyto(w, b, casting="unsafe")
            np.add(integer, w, out=integer)
            np.right_shift(integer, rounding.bits, out=integer)
        np.copyto(symbols[part], integer, casting="unsafe")
    where = np.concatenate(escapes)
    symbols[where] = _ESCAPE
    return symbols, where


def _take_zeros(source: Unpacker, count: int) -> NDArray[np.bool_]:
    blocks = -(-count // ZEROS)
    return np.unpackbits(source.plane(-(-blocks // 8)), count=blocks).view(np.bool_)


def _take_symbols(source: Unpacker, count: int, zeros: NDArray[np.bool_] | None) -> NDArray[np.int8]:
    if zeros is None:
        return packing.take(source, count)
    live = _live(zeros, count)
    symbols = np.zeros(count, dtype=np.int8)
    symbols[live] = packing.take(source, int(np.count_nonzero(live)))
    return symbols


def _without_escapes(symbols: NDArray[np.int8], escapes: int) -> tuple[NDArray[np.int8], NDArray[np.intp]]:
    """The symbols with zeros for escapes, and where these are. Raises BadBlob for another number of them."""
    if escapes == 0 and int(symbols.min(initial=0)) > _ESCAPE:
        return symbols, np.zeros(0, np.intp)
    marked = symbols == _ESCAPE
    if (found := int(np.count_nonzero(marked))) != escapes:
        raise BadBlob(f"a chunk has {found} symbols for its {escapes} escapes")
    where, symbols = np.flatnonzero(marked), symbols.copy()
    symbols[where] = 0
    return symbols, where
