"""A blob: bytes under their SHA-256, read through a window, so that nobody need hold all of them.

Where the bytes are (in memory, in a file, in a file that something else is in too) is the business of whoever made
the window; this side of it only offsets and lengths are known.
"""

import builtins
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob

__all__ = ["NO_BYTES", "Blob", "Window"]

Window = Callable[[int, int], bytes | memoryview]
"""`window(offset, length)`: that many bytes of a blob from there on, fewer only at its end."""


@dataclass(frozen=True, slots=True)
class Blob:
    """`size` bytes whose SHA-256 is `digest` (hex). The window may be called from any thread, at any time."""

    digest: str
    size: int
    window: Window = field(compare=False, repr=False)

    @classmethod
    def of(cls, data: builtins.bytes) -> "Blob":
        """A blob that is held in memory."""
        view = memoryview(data)
        return cls(sha256(data), len(data), lambda offset, length: view[offset : offset + length])

    def piece(self, offset: int, length: int) -> builtins.bytes | memoryview:
        """The `length` bytes from `offset` on; BadBlob if the blob ends before."""
        data = self.window(offset, length)
        if len(data) != length:
            raise BadBlob(f"a blob of {self.size} bytes ends after {offset + len(data)}; it was damaged here")
        return data

    def pieces(self, length: int) -> Iterator[builtins.bytes | memoryview]:
        """All of it, `length` bytes at a time; BadBlob if it ends too early."""
        for offset in range(0, self.size, length):
            yield self.piece(offset, min(length, self.size - offset))

    def bytes(self) -> builtins.bytes:
        """The whole of it, in memory; BadBlob if it ends too early. For what is known to be small."""
        return builtins.bytes(self.piece(0, self.size))


NO_BYTES = Blob("", 0, lambda offset, length: b"")
"""What a device hands in that has numbers only."""
