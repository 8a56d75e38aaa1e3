"""Large contents in both directions: downloads of what a round's terms name, uploads of what a round awaits.

A stream costs three pieces, whatever its size: one that is written or sent, the next one, and what gRPC holds (`FLOW`).
The more streams there are, the smaller are their pieces, so that all of them together hold about as much. So many
uploads are written at a time; who comes later waits for their turn, in order, and is told of it by the call's initial
metadata: before that a device sends nothing, and holds no memory here. While others wait a turn lasts some seconds. A
device has one upload; a newer one ends the older.
"""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

import asyncio
import time
from collections import Counter
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
_TURN = 10.0  # seconds for which an upload may go on while others wait
_DOWNLOADS = 2  # of one device at a time: a model, and the strategy's state
_TOGETHER = 4 * MOST  # bytes of all pieces of one direction
_TELL_EVERY = 0.1  # seconds between an upload's signs of life; each is a turn of the run's machine
_ELSEWHERE = "this upload goes on in another stream"
Pieces = AsyncIterator[pb.UploadStart | memoryview]


class Blobs:
    """The handlers of blobs. Their disk is used from threads of their own: a commit never waits behind an upload."""

    def __init__(self, federation: Federation, devices: Devices, limits: Limits):
        self._federation, self._devices = federation, devices
        self._allowance = Allowance(limits.rate, limits.quota)
        self._turns, self._waiting = asyncio.Semaphore(limits.uploads), 0
        self._uploading: dict[str, asyncio.Event] = {}  # by device: set when a newer upload takes over
        self._downloading: Counter[Connection] = Counter()
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
        connection = self._federation.roster.by_token(context.metadata(TOKEN_KEY))
        if connection is None or (context.peer.kind and context.peer.name != connection.client):
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
        if self._downloading[connection] >= _DOWNLOADS:
            raise Unavailable(
                f"this device has {_DOWNLOADS} downloads already; it goes on when one of them is over"
            )
        self._downloading[connection] += 1
        most = min(max(request.most or MOST, FIRST), MOST)
        length = min(max(request.first or most, FIRST), most, _share(self._downloading.total()))
        offset = request.offset
        # The next piece is read while one is on its way.
        reading = asyncio.ensure_future(self._thread(_read, window, offset, length, size))
        try:
            while offset < size:
                message, nbytes = await reading
                offset += nbytes
                length = min(2 * length, most, _share(self._downloading.total()))
                reading = asyncio.ensure_future(self._thread(_read, window, offset, length, size))
                hit("rpc.download", request.digest)
                driver.count_down(number, nbytes)
                yield message
                await self._slowly(connection, run, number, nbytes)
        finally:
            reading.cancel()
            self._downloading[connection] -= 1
            self._downloading += Counter()  # forget those that have none

    # -- up ---------------------------------------------------------------------------------------------------

    async def stat(self, request: pb.StatRequest, context: Context) -> pb.StatResponse:
        connection, uploads = self._connection(context), self._federation.store.uploads
        self._devices.may_upload(connection, request.run, request.round, 0)
        part = Part(request.run, request.round, connection.client)
        offset = await self._thread(uploads.received, part, request.digest)
        return pb.StatResponse(offset=offset, turns=True, most=_share(len(self._uploading) + 1))

    async def upload(self, requests: Pieces, context: Context) -> pb.UploadResponse:
        """An update's bytes, from the offset that `stat` gave on; what arrived stays when the link is cut."""
        connection = self._connection(context)
        start = await anext(requests, None)
        if not isinstance(start, pb.UploadStart):
            raise RemoteProtocolError("an upload begins with its start")
        self._devices.may_upload(connection, start.run, start.round, start.size)
        nbytes = max(0, start.size - start.offset)
        self._allowance.check(connection.client, start.run, start.round, nbytes)
        client = connection.client
        if older := self._uploading.get(client):
            older.set()
        over = self._uploading[client] = asyncio.Event()
        part = Part(start.run, start.round, client)
        try:
            await self._turn(over)
            try:
                # The round may have ended while it waited.
                self._devices.may_upload(connection, start.run, start.round, start.size)
                await context.begin()
                return await self._receive(connection, part, start, requests, over)
            finally:
                self._turns.release()
        except StoreError as error:
            self._devices.no_room(connection, part, str(error))
            raise
        finally:
            if self._uploading.get(client) is over:
                del self._uploading[client]

    async def _turn(self, over: asyncio.Event) -> None:
        """Wait for a turn, unless a newer upload of the same device takes over."""
        turn, end = asyncio.ensure_future(self._turns.acquire()), asyncio.ensure_future(over.wait())
        self._waiting += 1
        try:
            await asyncio.wait({turn, end}, return_when=asyncio.FIRST_COMPLETED)
            if over.is_set():
                raise Unavailable(_ELSEWHERE)
        except BaseException:
            if not turn.cancel() and turn.done() and not turn.cancelled():
                self._turns.release()
            raise
        finally:
            self._waiting -= 1
            end.cancel()

    async def _receive(
        self, connection: Connection, part: Part, start: pb.UploadStart, requests: Pieces, over: asyncio.Event
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
            async with aclosing(self._pieces(receiving, requests, over)) as pieces:
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

    async def _pieces(
        self, receiving: Receiving, requests: Pieces, over: asyncio.Event
    ) -> AsyncGenerator[memoryview, None]:
        """What the device sends. While it sends nothing, what is here becomes durable. Unavailable once a newer
        upload of the device takes over, or others have waited and its turn is up: it goes on where it stopped."""
        began = time.monotonic()
        while True:
            reading = asyncio.ensure_future(anext(requests, None))
            try:
                while not (await asyncio.wait({reading}, timeout=SYNC_EVERY))[0]:
                    await receiving.written()
                    self._check_turn(over, began)
                data = await reading
            finally:
                reading.cancel()
            if data is None:
                return
            if isinstance(data, pb.UploadStart):
                raise RemoteProtocolError("an upload has one start")
            yield data
            self._check_turn(over, began)

    def _check_turn(self, over: asyncio.Event, began: float) -> None:
        if over.is_set():
            raise Unavailable(_ELSEWHERE)
        if self._waiting and time.monotonic() - began > _TURN:
            raise Unavailable(
                f"{self._waiting} others wait to upload, and this one had {_TURN:g} s; it goes on where it stopped, "
                "when it is its turn again"
            )


def _share(streams: int) -> int:
    """The largest piece where so many streams go the same way."""
    return max(FIRST, min(MOST, _TOGETHER // max(1, streams)))


def _read(window: Window, offset: int, length: int, size: int) -> tuple[bytes, int]:
    """A message with the bytes from `offset` on, and how many they are."""
    if offset >= size:
        return b"", 0
    data = window(offset, min(length, size - offset))
    if not data:
        raise BadBlob("a blob ends before its size; it is damaged at the coordinator")
    return download_piece(data), len(data)
