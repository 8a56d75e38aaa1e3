"""The codecs, by name and by number: a file a codec.

The number and version stand in every chunk, so that bytes say how they were made; the name stands in the run's
terms, where both ends agree on it.
"""

from typing import Protocol

from koinon_core.codecs.lossless import Lossless
from koinon_core.codecs.raw import Raw
from koinon_core.errors import BadBlob, UsageError
from koinon_core.tensors import Array

__all__ = ["Codec", "by_id", "by_name"]


class Codec(Protocol):
    """One way to write a flat run of elements. `decode(encode(x))` is what the coordinator folds."""

    @property
    def id(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def exact(self) -> bool:
        """Whether decoding gives back the very same bytes."""
        ...

    def encode(self, flat: Array) -> bytes:
        """`flat` is one-dimensional and contiguous; at most a container's chunk long."""
        ...

    def decode(self, payload: memoryview, dtype: str, count: int) -> Array:
        """Exactly `count` elements of `dtype`; raises BadBlob, and allocates for no more than that."""
        ...

    def limit(self, nbytes: int) -> int:
        """The longest payload that an honest encoder makes of `nbytes` bytes of elements."""
        ...


_CODECS: dict[str, Codec] = {"raw": Raw(), "lossless": Lossless()}
_BY_ID = {(c.id, c.version): c for c in _CODECS.values()}


def by_name(name: str) -> Codec:
    """The codec called `name`, or a UsageError that lists them."""
    if name not in _CODECS:
        raise UsageError(f"there is no codec {name!r}; this version has {', '.join(sorted(_CODECS))}")
    return _CODECS[name]


def by_id(number: int, version: int) -> Codec:
    """The codec that a chunk names, or a BadBlob."""
    codec = _BY_ID.get((number, version))
    if codec is None:
        raise BadBlob(
            f"codec {number} version {version} is not known here; the sender must use one of the run's"
        )
    return codec
