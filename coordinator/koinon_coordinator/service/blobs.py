"""Large contents in both directions: downloads of what a round's terms name, uploads of what a round awaits.

A stream costs a few MiB at most, whatever its size: a piece that is written or sent, the next one, and what gRPC holds
(`FLOW`). So many uploads are written at a time; who comes later waits for their turn, in order, and is told of it by
the call's initial metadata: before that a device sends nothing, and holds no memory here.
"""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from koinon_coordinator.allowance import Allowance
from koinon_coordinator.config import Limits
from koinon_coordinator.devices import Devices
from koinon_coordinator.federation import Federation
from koinon_coordinator.roster import Connection
from koinon_coordinator.service.calls import Context, Table
from koinon_coordinator.service.receiving import SYNC_EVERY, Receiving
from koinon_coordinator.store import Part
from koinon_core.blob import Window
from koinon_core.errors import BadBlob, NotFound, RemoteProtocolError, StoreError, Unavailable
from koinon_core.failpoints import hit
from koinon_core.wire.methods import BLOBS, TOKEN_KEY
from koinon_core.wire.pieces import FIRST, MOST, download_piece
from koinon_core.wire.v1 import blobs_pb2 as pb

__all__ = ["Blobs"]

_READERS = 4  # threads for downloads and syncs, beside those that write uploads
_STALL = 15.0  # seconds in which an upload brings nothing before somebody who waits gets its turn
_TELL_EVERY = 0.1  # seconds between an upload's signs of life; each is a turn of the run's machine
Pieces = AsyncIterator[pb.UploadStart | memoryview]


class Blobs:
    """The handlers of blobs. Their disk is used from threads of their own: a commit never waits behind an upload."""

    def __init__(self, federation: Federation, devices: Devices, limits: Limits):
        self._federation, self._devices = federation, devices
        self._allowance = Allowance(limits.rate, limits.quota)
        self._turns, self._waiting = asyncio.Semaphore(limits.uploads), 0
        self._pool = ThreadPoolExecutor(limits.uploads + _READERS, thread_name_prefix="koinon-blobs")

    @property
    def table(self) -> Table:
        return {BLOBS.DOWNLOAD: self.download, BLOBS.UPLOAD: self.upload, BLOBS.STAT: self.stat}

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    async def _thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _connection(self, context: Context) -> Connection:
        metadata: dict[str, Any] = {key: value for key, value in context.invocation_metadata() or ()}  # noqa: C416 - older gRPC's is no mapping
        connection = self._federation.roster.by_token(str(metadata.get(TOKEN_KEY, "")))
        if connection is None:
            raise RemoteProtocolError("only an attached device may move blobs; attend first")
        return connection

    async def _slowly(self, connection: Connection, run: str, round_: int, nbytes: int) -> None:
        """Note bytes that were moved; wait until more may be."""
        pause = self._allowance.moved(connection.client, run, round_, nbytes, time.monotonic())
        if pause:
            await asyncio.sleep(pause)

    # -- down -------------------------------------------------------------------------------------------------

    async def download(self, request: pb.DownloadRequest, context: Context) -> AsyncIterator[bytes]:
        """A content that the terms of one of the device's open rounds name, from an offset on."""
        connection = self._connection(context)
        driver = self._devices.may_download(connection, request.digest)
        if driver is None:
            raise NotFound("no open round of this device names that content")
        run, number = driver.run.id, driver.run.number
        window, size = await self._federation.db(self._federation.store.window, request.digest)
        self._allowance.check(connection.client, run, number, max(0, size - request.offset))
        most = min(max(request.most or MOST, FIRST), MOST)
        length = min(max(request.first or most, FIRST), most)
        offset = request.offset
        # The next piece is read while one is on its way.
        reading = asyncio.ensure_future(self._thread(_read, window, offset, length, size))
        try:
            while offset < size:
                message, nbytes = await reading
                offset, length = offset + nbytes, min(2 * length, most)
                reading = asyncio.ensure_future(self._thread(_read, window, offset, length, size))
                hit("rpc.download", request.digest)
                driver.count_down(number, nbytes)
                yield message
                await self._slowly(connection, run, number, nbytes)
        finally:
            reading.cancel()

    # -- up ---------------------------------------------------------------------------------------------------

    async def stat(self, request: pb.StatRequest, context: Context) -> pb.StatResponse:
        connection, uploads = self._connection(context), self._federation.store.uploads
        self._devices.may_upload(connection, request.run, request.round, 0)
        part = Part(request.run, request.round, connection.client)
        return pb.StatResponse(offset=await self._thread(uploads.received, part, request.digest), turns=True)

    async def upload(self, requests: Pieces, context: Context) -> pb.UploadResponse:
        """An update's bytes, from the offset that `stat` gave on; what arrived stays when the link is cut."""
        connection = self._connection(context)
        start = await anext(requests, None)
        if not isinstance(start, pb.UploadStart):
            raise RemoteProtocolError("an upload begins with its start")
        self._devices.may_upload(connection, start.run, start.round, start.size)
        nbytes = max(0, start.size - start.offset)
        self._allowance.check(connection.client, start.run, start.round, nbytes)
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        part = Part(start.run, start.round, connection.client)
        try:
            # The round may have ended while it waited.
            self._devices.may_upload(connection, start.run, start.round, start.size)
            await context.send_initial_metadata(())
            return await self._receive(connection, part, start, requests)
        except StoreError as error:
            self._devices.no_room(connection, part, str(error))
            raise
        finally:
            self._turns.release()

    async def _receive(
        self, connection: Connection, part: Part, start: pb.UploadStart, requests: Pieces
    ) -> pb.UploadResponse:
        uploads = self._federation.store.uploads
        incoming = await self._thread(uploads.receive, part, start.digest, start.size)
        if incoming is None:
            return pb.UploadResponse(offset=start.size, complete=True)
        receiving = Receiving(incoming, self._thread)
        try:
            if start.offset != incoming.offset:
                # An older stream's last bytes may have come between the device's question and this.
                raise Unavailable(
                    f"the upload goes on at byte {start.offset}, but {incoming.offset} bytes are here; ask again"
                )
            told = 0.0
            async with aclosing(self._pieces(receiving, requests)) as pieces:
                async for data in pieces:
                    hit("rpc.upload", connection.client)
                    await receiving.take(data)
                    if time.monotonic() - told > _TELL_EVERY:
                        self._devices.progress(connection, start.run)
                        told = time.monotonic()
                    await self._slowly(connection, part.run, part.round, len(data))
            await receiving.written()
            if incoming.offset == start.size:
                await receiving.finish()
                return pb.UploadResponse(offset=start.size, complete=True)
            return pb.UploadResponse(offset=incoming.offset, complete=False)
        finally:
            await receiving.close()

    async def _pieces(self, receiving: Receiving, requests: Pieces) -> AsyncGenerator[memoryview, None]:
        """What the device sends. While it sends nothing, what is here becomes durable; and if that lasts and others
        wait, it loses its turn: Unavailable."""
        while True:
            reading = asyncio.ensure_future(anext(requests, None))
            try:
                silent = 0.0
                while not (await asyncio.wait({reading}, timeout=SYNC_EVERY))[0]:
                    await receiving.written()
                    silent += SYNC_EVERY
                    if silent >= _STALL and self._waiting:
                        raise Unavailable(
                            f"this upload brought nothing for {_STALL:g} s while {self._waiting} others wait; it goes "
                            "on where it stopped, when it is its turn again"
                        )
                data = await reading
            finally:
                reading.cancel()
            if data is None:
                return
            if isinstance(data, pb.UploadStart):
                raise RemoteProtocolError("an upload has one start")
            yield data


def _read(window: Window, offset: int, length: int, size: int) -> tuple[bytes, int]:
    """A message with the bytes from `offset` on, and how many they are."""
    if offset >= size:
        return b"", 0
    data = window(offset, min(length, size - offset))
    if not data:
        raise BadBlob("a blob ends before its size; it is damaged at the coordinator")
    return download_piece(data), len(data)
