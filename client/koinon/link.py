"""The link: one device's stream to the coordinator, kept alive on a thread of its own.

The owner's loop runs where it likes and never waits for the network. The link's thread runs an asyncio loop with
the stream in it: what comes in is handed to a `Receiver`, what goes out is queued. When the stream breaks, the
link connects again, with full jitter, for as long as it takes.

Beside `operator` this is the client's only module that speaks gRPC; it is imported when something is joined.
"""

import os

# With gRPC's fork handlers on (or unset), a DataLoader's worker processes crash beside a live stream. They must be
# off before gRPC is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # not every goodbye on the terminal

import asyncio
import concurrent.futures
import contextlib
import logging
import random
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import grpc

from koinon_core.canonical import sha256
from koinon_core.codec import TILE
from koinon_core.errors import BadBlob, KoinonError, StoreError, Unavailable, from_code
from koinon_core.wire import convert
from koinon_core.wire.methods import BLOBS, ERROR_KEY, FLEET, TOKEN_KEY, Method
from koinon_core.wire.v1 import blobs_pb2
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["CHANNEL_OPTIONS", "GrpcLink", "Link", "Receiver", "error_of", "stub"]

T = TypeVar("T")
_log = logging.getLogger("koinon")
_FIRST_PIECE, _LAST_PIECE = 64 * 1024, TILE
_BACKOFF_CAP = 2.0
_CLOSE_WAIT = 5.0
_DRAIN_WAIT = 30.0

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 2 * convert.MESSAGE_LIMIT),
    ("grpc.max_send_message_length", 2 * convert.MESSAGE_LIMIT),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The link waits between attempts itself.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class Receiver(Protocol):
    """Who the link works for. Its methods are called on the link's thread."""

    def connected(self) -> None:
        """A stream is there (again)."""

    def heard(self, message: pb.CoordinatorMessage) -> None:
        """The coordinator said something."""

    def failed(self, error: KoinonError) -> None:
        """The link gave up, for a reason that trying again would not mend."""

    def pulse(self) -> tuple[float, pb.DeviceMessage | None]:
        """(seconds until the next pulse, a sign of life to send)."""


class Link(Protocol):
    """What a session needs of the network; the simulator has one without any."""

    def start(self, receiver: Receiver) -> None: ...
    def send(self, message: pb.DeviceMessage) -> None: ...
    def answer(self, answer: pb.Answer, blob: bytes) -> None:
        """Send an update: inline if it is small, by an upload before it otherwise."""
        ...

    def fetch(self, content: pb.Content) -> bytes:
        """The bytes of a content, checked. Blocks."""
        ...

    def wait(self, take: Callable[[float], T]) -> T:
        """Block in `take(timeout)` until it gives something."""
        ...

    def drain(self, settled: Callable[[], bool]) -> None:
        """Wait until `settled`, as long as what was submitted gets on."""
        ...

    def close(self) -> None: ...


def stub(channel: grpc.aio.Channel, method: Method[Any, Any]) -> Any:
    """A callable for one row of the table."""
    make = getattr(channel, method.shape)
    return make(
        method.path,
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=method.response.FromString,
    )


def error_of(error: Any, address: str) -> KoinonError:
    """What a failed call (a grpc.RpcError, synchronous or not) means, in our terms."""
    # Not dict(...): older gRPC's metadata looks like a mapping, but yields pairs.
    metadata: dict[str, Any] = {key: value for key, value in error.trailing_metadata() or ()}  # noqa: C416 - see above
    if ERROR_KEY in metadata:
        return from_code(str(metadata[ERROR_KEY]), error.details() or "")
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Unavailable(
            f"no coordinator answers at {address} ({error.details() or error.code().name.lower()})"
        )
    return KoinonError(f"the coordinator at {address} failed: {error.details() or error.code().name}")


class GrpcLink:
    """A link over gRPC, for the device `client`."""

    def __init__(self, address: str, client: str):
        self.address, self._client, self._instance = address, client, uuid.uuid4().hex
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"koinon-link-{client}", daemon=True)
        self._outbox: asyncio.Queue[pb.DeviceMessage | None] = asyncio.Queue()
        self._token = ""
        self._online: asyncio.Event = asyncio.Event()
        self._closing: asyncio.Event = asyncio.Event()
        self._uploads: dict[str, asyncio.Task[None]] = {}
        self._progress = time.monotonic()
        self._failure: KoinonError | None = None
        self._online_before = False
        self._receiver: Receiver | None = None

    # -- called by the session --------------------------------------------------------------------------------

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._thread.start()

    def send(self, message: pb.DeviceMessage) -> None:
        self._call(self._outbox.put_nowait, message)

    def answer(self, answer: pb.Answer, blob: bytes) -> None:
        self._call(self._begin_answer, answer, blob)

    def fetch(self, content: pb.Content) -> bytes:
        if content.inline or not content.size:
            return _checked(content.inline, content.digest)
        return self._await(self._download(content))

    def wait(self, take: Callable[[float], T]) -> T:
        # A bounded wait, again and again, so that Ctrl-C comes through on every platform.
        while True:
            try:
                return take(1.0)
            except TimeoutError:
                if not self._thread.is_alive():
                    raise self._gone() from None

    def drain(self, settled: Callable[[], bool]) -> None:
        """Wait until what was submitted is safe at the coordinator, as long as it gets on."""
        while not settled() and self._thread.is_alive():
            patience = _DRAIN_WAIT if self._online.is_set() else _CLOSE_WAIT
            if time.monotonic() - self._progress > patience:
                return
            time.sleep(0.01)

    def close(self) -> None:
        if self._thread.is_alive():
            self._call(self._begin_close)
            self._thread.join(_CLOSE_WAIT)

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            return  # the loop is closed: there is nobody to tell any more

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
        except (concurrent.futures.CancelledError, RuntimeError):
            coroutine.close()
            raise self._gone() from None

    def _gone(self) -> KoinonError:
        return self._failure or Unavailable("the link to the coordinator is closed")

    # -- on the link's thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            # Whoever still waits for a transfer is told that there will be none.
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.close()

    async def _main(self) -> None:
        try:
            async with grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS) as channel:
                self._channel = channel
                await self._keep_attending()
        except (Exception, asyncio.CancelledError) as error:
            if self._closing.is_set():
                return  # hanging up tears calls apart
            self._failure = (
                error if isinstance(error, KoinonError) else KoinonError(f"the link failed: {error!r}")
            )
            assert self._receiver is not None
            self._receiver.failed(self._failure)

    async def _keep_attending(self) -> None:
        failures = 0
        while not self._closing.is_set():
            started = self._loop.time()
            try:
                await self._attend()
            except grpc.aio.AioRpcError as raised:
                error = error_of(raised, self.address)
                if not isinstance(error, Unavailable | StoreError) and type(error) is not KoinonError:
                    raise error from raised
            finally:
                self._online.clear()
            if self._online_before:
                _log.warning("the stream to %s is gone; it is tried again", self.address)
            self._online_before = False
            failures = 1 if self._loop.time() - started > _BACKOFF_CAP else failures + 1
            # Full jitter: a fleet that lost its coordinator must not come back in step.
            pause = random.uniform(0, min(_BACKOFF_CAP, 0.05 * 2**failures))  # noqa: S311 - jitter, no secret
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)

    async def _attend(self) -> None:
        assert self._receiver is not None
        call = stub(self._channel, FLEET.ATTEND)()
        hello = pb.DeviceMessage(hello=convert.hello(self._client, self._instance))
        await call.write(pb.AttendRequest(messages=[hello]))
        first = await call.read()
        if first is grpc.aio.EOF:
            await _raise(call)
            return
        self._token = first.messages[0].welcome.token
        while not self._outbox.empty():  # meant for the stream that is gone
            self._outbox.get_nowait()
        self._receiver.connected()
        writer = asyncio.create_task(self._write(call))
        pulse = asyncio.create_task(self._pulse())
        hang_up = asyncio.create_task(self._hang_up(writer, call))
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                self._progress = time.monotonic()
                for message in response.messages:
                    self._receiver.heard(message)
                    if message.HasField("joined"):
                        self._online_before = True
                        self._online.set()  # only now does the coordinator know what this device may move
        finally:
            for task in (writer, pulse, hang_up):
                task.cancel()
        if not self._closing.is_set():
            await _raise(call)

    async def _hang_up(self, writer: "asyncio.Task[None]", call: Any) -> None:
        """When the link closes: let what is queued leave, then end the stream."""
        await self._closing.wait()
        self._outbox.put_nowait(None)
        await asyncio.wait([writer], timeout=_CLOSE_WAIT / 2)
        await asyncio.sleep(0.02)
        call.cancel()

    async def _write(self, call: Any) -> None:
        while (message := await self._outbox.get()) is not None:
            request = pb.AttendRequest(messages=[message])
            # What waits leaves in one message: the update, and the offer for the next round behind it.
            while not self._outbox.empty() and request.ByteSize() < convert.INLINE:
                message = self._outbox.get_nowait()
                if message is None:
                    self._outbox.put_nowait(None)
                    break
                request.messages.append(message)
            await call.write(request)
        await call.done_writing()

    async def _pulse(self) -> None:
        """Signs of life while work is under way: every third of the lease."""
        assert self._receiver is not None
        while True:
            pause, message = self._receiver.pulse()
            if message is not None:
                self._outbox.put_nowait(message)
            await asyncio.sleep(pause)

    def _begin_answer(self, answer: pb.Answer, blob: bytes) -> None:
        if len(blob) <= convert.INLINE:
            answer.update.inline = blob
            self._outbox.put_nowait(pb.DeviceMessage(answer=answer))
            return
        if answer.update.digest in self._uploads:
            return  # on its way already; it goes on by itself after a cut
        task = self._loop.create_task(self._answer(answer, blob))
        self._uploads[answer.update.digest] = task
        task.add_done_callback(lambda _: self._uploads.pop(answer.update.digest, None))

    async def _answer(self, answer: pb.Answer, blob: bytes) -> None:
        # If it is refused, the answer goes out all the same: the coordinator says by name what became of it.
        with contextlib.suppress(KoinonError):
            await self._retrying(lambda: self._upload(answer, blob))
        self._outbox.put_nowait(pb.DeviceMessage(answer=answer))

    async def _upload(self, answer: pb.Answer, blob: bytes) -> None:
        metadata = ((TOKEN_KEY, self._token),)
        digest = answer.update.digest
        held = await stub(self._channel, BLOBS.STAT)(blobs_pb2.StatRequest(digest=digest), metadata=metadata)

        async def parts() -> AsyncIterator[blobs_pb2.UploadRequest]:
            at, piece = held.offset, _FIRST_PIECE
            yield blobs_pb2.UploadRequest(
                start=blobs_pb2.UploadStart(
                    digest=digest, size=len(blob), offset=at, run=answer.run, round=answer.round
                )
            )
            while at < len(blob):
                yield blobs_pb2.UploadRequest(data=blob[at : at + piece])
                at, piece = at + piece, min(_LAST_PIECE, piece * 2)
                self._progress = time.monotonic()

        response = await stub(self._channel, BLOBS.UPLOAD)(parts(), metadata=metadata)
        if not response.complete:
            raise Unavailable("the upload was cut off")

    async def _download(self, content: pb.Content) -> bytes:
        data = bytearray()

        async def rest() -> None:
            request = blobs_pb2.DownloadRequest(digest=content.digest, offset=len(data))
            call = stub(self._channel, BLOBS.DOWNLOAD)(request, metadata=((TOKEN_KEY, self._token),))
            async for part in call:
                data.extend(part.data)
                if len(data) > content.size:
                    raise BadBlob("the coordinator sent more bytes than it declared")

        await self._retrying(rest)
        return _checked(bytes(data), content.digest)

    async def _retrying(self, attempt: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Try until it works; after a cut, from where it stopped. A refusal is final."""
        while True:
            await self._online.wait()
            try:
                return await attempt()
            except grpc.aio.AioRpcError as raised:
                error = error_of(raised, self.address)
                if not isinstance(error, Unavailable | StoreError):
                    raise error from raised
            except Unavailable:
                pass  # cut off: go on where it stopped
            await asyncio.sleep(random.uniform(0, _BACKOFF_CAP / 4))  # noqa: S311 - jitter, no secret

    def _begin_close(self) -> None:
        self._closing.set()
        if not self._online.is_set():
            # Connecting, or nobody there: nothing is on its way that could still be said.
            self._loop.create_task(self._channel.close())


async def _raise(call: Any) -> None:
    """Raise the error that ended a call, if one did."""
    code = await call.code()
    if code != grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )


def _checked(data: bytes, digest: str) -> bytes:
    if sha256(data) != digest:
        raise BadBlob(
            "what the coordinator sent is not what its digest says; the link or its disk is damaged"
        )
    return data
