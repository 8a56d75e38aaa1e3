"""The codecs, by name and by number: a file a codec.

    raw        as it is                                        lossless   byte planes by zstd
    fine       a quantiser with a step of 1/8 of the rms       balanced   ... of 1/4
    compact    ... of 2                                        thin       ... of 6, rounding to the nearest
    ordinal    the lossless difference to a base (downlink)

The number and version stand in every chunk, so that bytes say how they were made; the name stands in the run's
terms, where both ends agree on it. The four levels of the quantiser (`q1.py`) have one number: a chunk says its step.
"""

from typing import Protocol

from koinon_core.codecs.lossless import Lossless
from koinon_core.codecs.ordinal import ORDINAL
from koinon_core.codecs.place import NOWHERE, Place, Step
from koinon_core.codecs.q1 import LEVELS
from koinon_core.codecs.raw import Raw
from koinon_core.codecs.tile import Tile
from koinon_core.errors import BadBlob, UsageError
from koinon_core.tensors import Array

__all__ = ["NOWHERE", "Codec", "Place", "Quantiser", "Step", "Tile", "by_id", "by_name", "names", "quantiser"]


class Codec(Protocol):
    """One way to write a flat run of elements. What `decode(encode(x))` gives is what the coordinator folds."""

    @property
    def id(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def exact(self) -> bool:
        """Whether decoding gives back the very same bytes."""
        ...

    def encode(self, flat: Array, place: Place = NOWHERE) -> bytes:
        """`flat` is one-dimensional and contiguous; at most a tile long."""
        ...

    def decode(self, payload: memoryview, dtype: str, count: int, place: Place = NOWHERE) -> Tile:
        """Exactly `count` elements of `dtype`; raises BadBlob, and allocates for no more than that."""
        ...

    def limit(self, nbytes: int) -> int:
        """The longest payload that an honest encoder makes of `nbytes` bytes of elements."""
        ...

    def takes(self, dtype: str) -> bool:
        """Whether elements of `dtype` can be encoded."""
        ...


class Quantiser(Codec, Protocol):
    """A codec that loses something, by a step."""

    @property
    def biased(self) -> bool:
        """Whether what is lost must be kept, and sent later: error feedback."""
        ...

    def step_for(self, rms: float, grid: int, peak: float, most: float) -> Step:
        """The step, at most `most`, for values of this rms and largest |value|; BadBlob if they are not finite."""
        ...


_CODECS: dict[str, Codec] = {"raw": Raw(), "lossless": Lossless(), **LEVELS}
_BY_ID: dict[tuple[int, int], Codec] = {(c.id, c.version): c for c in (*_CODECS.values(), ORDINAL)}


def names() -> tuple[str, ...]:
    """What a run may ask for."""
    return tuple(_CODECS)


def by_name(name: str) -> Codec:
    """The codec called `name`, or a UsageError that lists them."""
    if name not in _CODECS:
        raise UsageError(f"there is no codec {name!r}; this version has {', '.join(sorted(_CODECS))}")
    return _CODECS[name]


def quantiser(name: str) -> Quantiser | None:
    """The codec called `name` if it is one that loses something, by a step."""
    return LEVELS.get(name)


def by_id(number: int, version: int) -> Codec:
    """The codec that a chunk names, or a BadBlob."""
    codec = _BY_ID.get((number, version))
    if codec is None:
        raise BadBlob(
            f"codec {number} version {version} is not known here; the sender must use one of the run's"
        )
    return codec
