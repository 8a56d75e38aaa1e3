"""Room for what does not fit into a few tiles: bytes written in any order and read again in any other."""

from typing import Protocol

import numpy as np

__all__ = ["MemoryScratch", "Scratch", "Scratches"]


class Scratch(Protocol):
    """So many bytes, zeros at first; gone with whoever made them."""

    def write(self, at: int, data: memoryview) -> None: ...
    def read(self, at: int, length: int) -> memoryview: ...


class Scratches(Protocol):
    """Whoever makes them."""

    def __call__(self, nbytes: int) -> Scratch: ...


class MemoryScratch:
    """A scratch in memory."""

    def __init__(self, nbytes: int):
        self._bytes = np.zeros(nbytes, np.uint8)

    def write(self, at: int, data: memoryview) -> None:
        self._bytes[at : at + data.nbytes] = np.frombuffer(data, np.uint8)

    def read(self, at: int, length: int) -> memoryview:
        return self._bytes[at : at + length].data
