"""`raw`: the elements as they are, little-endian. Nothing is lost and nothing is saved."""

import numpy as np

from koinon_core.codecs.place import NOWHERE, Place
from koinon_core.codecs.tile import Plain
from koinon_core.errors import BadBlob
from koinon_core.tensors import Array

__all__ = ["Raw"]


class Raw:
    id = 1
    version = 1
    exact = True

    def encode(self, flat: Array, place: Place = NOWHERE) -> bytes:
        return flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()

    def decode(self, payload: memoryview, dtype: str, count: int, place: Place = NOWHERE) -> Plain:
        kind = np.dtype(dtype)
        if len(payload) != count * kind.itemsize:
            raise BadBlob(
                f"{count} elements of {dtype} take {count * kind.itemsize} bytes, not {len(payload)}"
            )
        return Plain(np.frombuffer(payload, dtype=kind.newbyteorder("<")).astype(kind, copy=False))

    def limit(self, nbytes: int) -> int:
        return nbytes

    def takes(self, dtype: str) -> bool:
        return True
