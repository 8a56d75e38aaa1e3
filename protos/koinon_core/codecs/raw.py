"""`raw`: the elements as they are, little-endian. Nothing is lost and nothing is saved."""

import numpy as np

from koinon_core.errors import BadBlob
from koinon_core.tensors import Array

__all__ = ["Raw"]


class Raw:
    id = 1
    version = 1
    exact = True

    def encode(self, flat: Array) -> bytes:
        return flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()

    def decode(self, payload: memoryview, dtype: str, count: int) -> Array:
        kind = np.dtype(dtype)
        if len(payload) != count * kind.itemsize:
            raise BadBlob(
                f"{count} elements of {dtype} take {count * kind.itemsize} bytes, not {len(payload)}"
            )
        return np.frombuffer(payload, dtype=kind.newbyteorder("<")).astype(kind, copy=False)

    def limit(self, nbytes: int) -> int:
        return nbytes
