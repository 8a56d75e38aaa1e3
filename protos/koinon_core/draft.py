"""Bytes on their way to becoming a blob: written piece by piece, named by their digest when they are complete."""

import hashlib
from typing import Protocol

from koinon_core.blob import Blob

__all__ = ["Draft", "MemoryDraft"]


class Draft(Protocol):
    """What a container is written into."""

    def write(self, data: bytes) -> object: ...
    def finish(self) -> Blob:
        """What was written, readable from now on."""
        ...


class MemoryDraft:
    """A draft in memory."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._parts.append(data)
        self._digest.update(data)

    def finish(self) -> Blob:
        data = b"".join(self._parts)
        return Blob(
            self._digest.hexdigest(), len(data), lambda offset, length: data[offset : offset + length]
        )
