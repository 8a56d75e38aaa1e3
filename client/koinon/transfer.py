"""Transfers: what is too large for the stream, in pieces beside it, going on where it stopped after any cut.

An upload asks how much is there, waits for its turn and sends the rest; a download says how much it has. Neither holds
more than two pieces of what it moves: one on its way, and the next, which a thread reads or writes meanwhile. How large
a piece is, is remembered for as long as it is the same link (`Pieces`).
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # see koinon.calls
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc

from koinon.arriving import Arriving, InFile, InMemory, whole_file
from koinon.calls import Pauses, error_of, passing, stub
from koinon.progress import Progress
from koinon_core.blob import Blob
from koinon_core.errors import BadBlob, Unavailable
from koinon_core.failpoints import hit
from koinon_core.wire.methods import BLOBS, ERROR_KEY, TOKEN_KEY
from koinon_core.wire.pieces import MOST, Pieces, data_of, upload_piece
from koinon_core.wire.v1 import blobs_pb2
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Line", "Transfers"]

_RESENDS = 3
_SYNC_EVERY = 0.1
_QUEUED = 1.0
_CUTS = (
    grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)  # fmt: skip
_WORKED = 60.0  # seconds, to Pauses: an attempt that brought something is not one that failed at once
Attempt = Callable[[grpc.aio.Channel], Coroutine[Any, Any, None]]


class Line(Protocol):
    """The connection that transfers go over; after a cut, there is another one."""

    address: str
    token: str

    async def channel(self) -> grpc.aio.Channel:
        """The one there is, once there is one."""
        ...

    def stands(self, channel: grpc.aio.Channel) -> bool:
        """Whether that is it still."""
        ...

    def moved(self) -> None:
        """Something got on."""
        ...

    def is_torn(self) -> bool:
        """Whether a cancelled call means that its connection was closed, and not that nobody wants it any more."""
        ...


class Transfers:
    """Uploads and downloads over `line`."""

    def __init__(self, line: Line, progress: Progress):
        self._line, self._progress = line, progress
        self._up, self._down = Pieces(), Pieces()
        self.most: float | None = None
        """Bytes a second that both directions together may take; None: as many as there are."""
        self._free = 0.0
        self.moved = 0
        """Bytes that are known to have arrived at either end."""

    async def _retrying(self, attempt: Attempt, pieces: Pieces) -> None:
        """Try until it works; after a cut, from where it stopped. A refusal is final, if the stream that it came
        beside still stands."""
        resends, pauses = 0, Pauses(asyncio.get_running_loop().time())
        while True:
            channel, before = await self._line.channel(), self.moved
            try:
                return await attempt(channel)
            except grpc.aio.AioRpcError as raised:
                error = error_of(raised, self._line.address)
                if isinstance(error, BadBlob) and resends < _RESENDS:
                    # What an older stream left on its way arrived in between, or was damaged: look again, and send it.
                    resends += 1
                elif not (_torn(raised) or passing(error)) and self._line.stands(channel):
                    raise error from raised
                if _torn(raised):
                    pieces.cut()
            except (Unavailable, grpc.aio.UsageError):
                pieces.cut()  # or the connection was closed between two calls: go on where it stopped
            except asyncio.CancelledError:
                if not self._line.is_torn():
                    raise
                pieces.cut()
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(pauses.next(now, _WORKED if self.moved > before else 0.0))

    # -- up ---------------------------------------------------------------------------------------------------

    async def upload(self, answer: pb.Answer | pb.Voice, blob: Blob) -> None:
        """Bring an update's bytes to the coordinator. Raises what it refuses them with."""
        there = 0

        async def rest(channel: grpc.aio.Channel) -> None:
            nonlocal there
            request = blobs_pb2.StatRequest(digest=blob.digest, run=answer.run, round=answer.round)
            held = await stub(channel, BLOBS.STAT)(request, metadata=self._metadata())
            self.moved += max(0, held.offset - there)
            there = held.offset
            response = await self._send(channel, answer, blob, held)
            if not response.complete:
                raise Unavailable("the upload was cut off")

        with self._ending("upload", blob.size):
            await self._retrying(rest, self._up)

    async def _send(
        self, channel: grpc.aio.Channel, answer: pb.Answer | pb.Voice, blob: Blob, held: Any
    ) -> Any:
        """What is not `held` yet, piece by piece; each is read while the one before it is on its way."""
        call = stub(channel, BLOBS.UPLOAD)(metadata=self._metadata())
        start = blobs_pb2.UploadStart(
            digest=blob.digest, size=blob.size, offset=held.offset, run=answer.run, round=answer.round
        )
        at, pieces, most = held.offset, self._up, held.most or MOST
        clock = asyncio.get_running_loop().time
        try:
            await call.write(blobs_pb2.UploadRequest(start=start))
            if held.turns:
                await self._turn(call)
            reading = _read(blob, at, min(pieces.size, most))
            while at < blob.size:
                message, length = await reading
                hit("link.upload", str(at))
                at += length
                reading, began = _read(blob, at, min(pieces.next, most)), clock()
                await call.write(message)
                pieces.arrived(clock() - began)
                await self._pace(length)
                self._line.moved()
                self._progress("upload", at, blob.size)
            await call.done_writing()
            return await call
        except asyncio.InvalidStateError:
            return await call  # it is over already, and says why
        finally:
            call.cancel()

    async def _turn(self, call: Any) -> None:
        """Wait for this upload's turn. A queue that one stands in gets on."""
        turn = asyncio.ensure_future(call.initial_metadata())
        while not (await asyncio.wait({turn}, timeout=_QUEUED))[0]:
            self._line.moved()
        await turn

    # -- down -------------------------------------------------------------------------------------------------

    async def download(self, content: pb.Content, into: Path | None = None) -> Blob:
        """A content's bytes, in memory or in the file `into`. BadBlob if they are not what its digest says."""
        if into is None:
            return await self._fetch(content, InMemory())
        whole = await asyncio.to_thread(whole_file, into, content.digest, content.size)
        if whole is not None:
            return whole
        part = await asyncio.to_thread(InFile, into, content.size)
        try:
            return await self._fetch(content, part)
        except BadBlob:
            if not part.inherited:
                raise
        # What an earlier process left was not of this content, or was damaged: it is gone now.
        return await self._fetch(content, await asyncio.to_thread(InFile, into, content.size))

    async def _fetch(self, content: pb.Content, arriving: Arriving) -> Blob:
        async def rest(channel: grpc.aio.Channel) -> None:
            if arriving.offset < content.size:
                await self._receive(channel, content, arriving)

        try:
            if content.inline:
                await asyncio.to_thread(arriving.write, memoryview(content.inline))
            elif content.size:
                with self._ending("download", content.size):
                    await self._retrying(rest, self._down)
            return await asyncio.to_thread(arriving.finish, content.digest)
        finally:
            await asyncio.to_thread(arriving.close)

    async def _receive(self, channel: grpc.aio.Channel, content: pb.Content, arriving: Arriving) -> None:
        """What is not here yet, piece by piece; each is written while the next one comes."""
        request = blobs_pb2.DownloadRequest(
            digest=content.digest, offset=arriving.offset, first=self._down.size, most=self._down.most
        )
        call = stub(channel, BLOBS.DOWNLOAD, read=bytes)(request, metadata=self._metadata())
        writing: asyncio.Future[None] | None = None
        at = arriving.offset
        try:
            while True:
                message = await self._next(call, arriving, writing)
                if writing is not None:
                    await writing
                    writing = None
                if message is grpc.aio.EOF:
                    return
                data = data_of(message)
                at += len(data)
                if at > content.size:
                    raise BadBlob("the coordinator sent more bytes than it declared")
                writing = asyncio.ensure_future(asyncio.to_thread(arriving.write, data))
                self.moved += len(data)
                await self._pace(len(data))
                self._down.arrived()
                self._line.moved()
                self._progress("download", at, content.size)
        finally:
            call.cancel()
            if writing is not None:
                await asyncio.wait({writing})  # the next attempt goes on behind it

    async def _next(self, call: Any, arriving: Arriving, writing: "asyncio.Future[None] | None") -> Any:
        """The next message; while none comes, what is here becomes durable."""
        reading = asyncio.ensure_future(call.read())
        try:
            while not (await asyncio.wait({reading}, timeout=_SYNC_EVERY))[0]:
                if writing is not None:
                    await asyncio.wait({writing})
                await asyncio.to_thread(arriving.sync)
            return await reading
        finally:
            reading.cancel()

    async def _pace(self, nbytes: int) -> None:
        """Wait until so many bytes may have gone, where the device's owner lets only so many a second."""
        if self.most is None:
            return
        now = asyncio.get_running_loop().time()
        self._free = max(self._free, now) + nbytes / self.most
        await asyncio.sleep(self._free - now)

    @contextmanager
    def _ending(self, direction: str, size: int) -> Iterator[None]:
        """Whoever shows how far it is must also hear that it failed."""
        try:
            yield
        except BaseException:
            self._progress(direction, size, size)
            raise

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return ((TOKEN_KEY, self._line.token),)


def _torn(raised: grpc.aio.AioRpcError) -> bool:
    """Whether a call failed with its connection, which may be noticed here before the stream beside it notices. What
    the coordinator refuses, it refuses by name."""
    named = any(key == ERROR_KEY for key, _ in raised.trailing_metadata() or ())
    return not named and raised.code() in _CUTS


def _read(blob: Blob, at: int, length: int) -> "asyncio.Future[tuple[bytes, int]]":
    """A message with the blob's bytes from `at` on, made in a thread, and how many they are."""
    length = min(length, blob.size - at)
    reading = asyncio.ensure_future(asyncio.to_thread(lambda: (upload_piece(blob.piece(at, length)), length)))
    # Where the call ends before it is wanted, nobody asks what became of it.
    reading.add_done_callback(lambda done: done.cancelled() or done.exception())
    return reading
