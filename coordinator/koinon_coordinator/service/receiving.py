"""One upload's bytes on their way to the disk: each piece is written in a worker thread while the next one is received,
and what is written is made durable beside that, every 1 MiB or 100 ms, whichever comes first."""

from __future__ import annotations  # an asyncio.Future takes a parameter in its stub only

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from koinon_coordinator.store.incoming import Incoming
from koinon_core.errors import StoreError

__all__ = ["SYNC_EVERY", "Receiving"]

SYNC_EVERY = 0.1
_SYNC_BYTES = 1 << 20
Thread = Callable[..., Awaitable[Any]]


class Receiving:
    """Writes to `incoming` by `thread(function, *arguments)`. It holds one piece; whoever brings the next waits until
    that is taken. What goes wrong is raised by the call after it."""

    def __init__(self, incoming: Incoming, thread: Thread):
        self.incoming, self._thread = incoming, thread
        self._writing: asyncio.Future[Any] | None = None
        self._syncing: asyncio.Future[Any] | None = None
        self._synced_at = time.monotonic()
        incoming.durable = (
            incoming.offset
        )  # a process that ended left it, and hashing tells if the disk did not

    @property
    def unsynced(self) -> int:
        """Bytes that are written, and not durable."""
        return self.incoming.offset - self.incoming.durable

    async def take(self, data: memoryview) -> None:
        """Write a piece, once the one before it is written."""
        await self.written()
        self._writing = asyncio.ensure_future(self._thread(self.incoming.write, data))

    async def written(self) -> None:
        """All that was taken is written; and durable up to 2 MiB, if the disk is slower than the link."""
        if self._writing is not None:
            await self._writing
            self._writing = None
        if self._syncing is not None and (self._syncing.done() or self.unsynced >= 2 * _SYNC_BYTES):
            await self._syncing
            self._syncing = None
        due = self.unsynced >= _SYNC_BYTES or time.monotonic() - self._synced_at >= SYNC_EVERY
        if self._syncing is None and self.unsynced and due:
            self._synced_at = time.monotonic()
            self._syncing = asyncio.ensure_future(self._thread(self.incoming.sync))

    async def finish(self) -> None:
        """All of it is here: check it, and give it its name."""
        await self.written()
        await self._thread(self.incoming.finish)

    async def close(self) -> None:
        """Write nothing more, and keep what is here; another stream may go on."""
        left = [future for future in (self._writing, self._syncing) if future is not None]
        await asyncio.gather(*left, return_exceptions=True)
        with suppress(StoreError):  # said already, or to be said to the stream that goes on
            if self.unsynced:
                await self._thread(self.incoming.sync)
        await self._thread(self.incoming.supersede)
