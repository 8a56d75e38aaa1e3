"""The link: one device's stream to the coordinator, kept alive on a thread of its own.

The owner's loop runs where it likes and never waits for the network. The link's thread runs an asyncio loop with
the stream in it: what comes in is handed to a `Receiver`, what goes out is queued. When the stream breaks, the
link connects again, with full jitter, for as long as it takes.

A stream and the transfers beside it share one connection and its fate: whatever ends the stream ends them too, and
they go on over the next one from where they stopped. So no call outlives the token it was made with.

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
from koinon_core.failpoints import hit
from koinon_core.wire import convert
from koinon_core.wire.methods import BLOBS, ERROR_KEY, FLEET, TOKEN_KEY, Method
from koinon_core.wire.v1 import blobs_pb2
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["CHANNEL_OPTIONS", "GrpcLink", "Link", "Pauses", "Receiver", "error_of", "stub"]

T = TypeVar("T")
_log = logging.getLogger("koinon")
_FIRST_PIECE, _LAST_PIECE = 64 * 1024, TILE
_FIRST_PAUSE = 0.1
_PROMPT, _PROMPT_CAP, _PATIENT_CAP = 120.0, 2.0, 60.0
_RESENDS = 3
_CLOSE_WAIT = 5.0
_DRAIN_WAIT = 30.0

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 2 * convert.MESSAGE_LIMIT),
    ("grpc.max_send_message_length", 2 * convert.MESSAGE_LIMIT),
    # A peer that vanished without a word is noticed within 50 s, before the coordinator gives the device up (a lease
    # is 60 s, if the run says nothing else). Not sooner: on a slow link a ping waits behind the upload that fills it.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 30_000),
    ("grpc.http2.ping_timeout_ms", 30_000),  # what counts: a minute if not set, whatever the line above says
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # how long one attempt to connect may take
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
_OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)  # not one shared by all devices of this process


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


class Pauses:
    """How long to wait before the next attempt, at most: 0.1 s, twice that, ..., 2 s; and 60 s once the outage has
    lasted for two minutes, when nobody waits for this device any more and the coordinator may be busy coming back.

    Drawn from all of that (full jitter): a fleet that lost its coordinator must not come back in step. An outage is
    over when a stream works; one that breaks at once, again and again, does not start again from 0.1 s.
    """

    def __init__(self, now: float, dice: Callable[[float, float], float] = random.uniform):
        self._since, self._failures, self._dice = now, 0, dice

    def next(self, now: float, worked: float) -> float:
        """The pause, at `now`, after a stream that worked for `worked` seconds; 0 if there was none."""
        if worked:
            self._since = now
        self._failures = 1 if worked > _PROMPT_CAP else self._failures + 1
        cap = _PROMPT_CAP if now - self._since < _PROMPT else _PATIENT_CAP
        return self._dice(0.0, min(cap, _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 16)))


class GrpcLink:
    """A link over gRPC, for the device `client`."""

    def __init__(self, address: str, client: str, instance: str = "", boot: int = 0):
        self.address, self._client = address, client
        self._instance, self._boot = instance or uuid.uuid4().hex, boot
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"koinon-link-{client}", daemon=True)
        self._outbox: asyncio.Queue[pb.DeviceMessage | None] = asyncio.Queue()
        self._token = ""
        self._online: asyncio.Event = asyncio.Event()
        self._closing: asyncio.Event = asyncio.Event()
        self._uploads: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._progress = time.monotonic()
        self._failure: KoinonError | None = None
        self._channel: grpc.aio.Channel | None = None
        self._worked_from = 0.0  # on the loop's clock; 0: this attempt has had no welcome yet
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
        pauses = Pauses(self._loop.time())
        while not self._closing.is_set():
            self._worked_from = 0.0
            try:
                await self._connect()
            except grpc.aio.AioRpcError as raised:
                error = error_of(raised, self.address)
                if not _passing(error) and type(error) is not KoinonError:
                    raise error from raised
            except Unavailable:
                pass
            except asyncio.CancelledError:
                if self._closing.is_set() or _is_cancelled():
                    raise
            now = self._loop.time()
            worked = now - self._worked_from if self._worked_from else 0.0
            if worked and not self._closing.is_set():
                _log.warning("the stream to %s is gone; it is tried again", self.address)
            pause = pauses.next(now, worked)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)

    async def _connect(self) -> None:
        """One attempt, and all that comes of it. A connection of its own each time: gRPC, left to itself, would go on
        connecting at its own pace, and an address would be looked up only once."""
        options = [*CHANNEL_OPTIONS, _OWN_CONNECTION]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            self._channel = channel
            try:
                await self._attend(channel)
            finally:
                self._online.clear()

    async def _attend(self, channel: grpc.aio.Channel) -> None:
        """A stream, until it ends or fails."""
        assert self._receiver is not None
        hit("link.attend")
        call = stub(channel, FLEET.ATTEND)()
        hit("link.said", "hello")
        hello = pb.DeviceMessage(hello=convert.hello(self._client, self._instance, self._boot))
        await call.write(pb.AttendRequest(messages=[hello]))
        first = await call.read()
        if first is grpc.aio.EOF:
            await _raise(call)
            return
        hit("link.heard", "welcome")
        self._token, self._worked_from = first.messages[0].welcome.token, self._loop.time()
        while not self._outbox.empty():  # meant for the stream that is gone
            self._outbox.get_nowait()
        self._receiver.connected()
        parts = (self._read(call), self._write(call), self._pulse(), self._hang_up())
        tasks = [self._loop.create_task(part) for part in parts]
        try:
            # Whichever ends first ends the stream; a writer that failed must not leave a reader behind that waits.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()

    async def _read(self, call: Any) -> None:
        assert self._receiver is not None
        while (response := await call.read()) is not grpc.aio.EOF:
            self._progress = time.monotonic()
            for message in response.messages:
                kind = message.WhichOneof("says") or ""
                hit("link.heard", kind)
                self._receiver.heard(message)
                if kind == "standing":
                    self._online.set()  # only now does the coordinator know what this device may move
        if not self._closing.is_set():
            await _raise(call)

    async def _hang_up(self) -> None:
        """When the link closes: let what is queued leave, and the coordinator end the stream; but not for ever."""
        await self._closing.wait()
        self._outbox.put_nowait(None)
        await asyncio.sleep(_CLOSE_WAIT / 2)

    async def _write(self, call: Any) -> None:
        try:
            while (message := await self._outbox.get()) is not None:
                request = pb.AttendRequest()
                self._put(request, message)
                # What waits leaves in one message: the update, and the offer for the next round behind it.
                while not self._outbox.empty() and request.ByteSize() < convert.INLINE:
                    message = self._outbox.get_nowait()
                    if message is None:
                        self._outbox.put_nowait(None)
                        break
                    self._put(request, message)
                await call.write(request)
            await call.done_writing()
        except asyncio.InvalidStateError:
            pass  # the stream is over already
        await asyncio.Event().wait()  # reading says how it ends

    def _put(self, request: pb.AttendRequest, message: pb.DeviceMessage) -> None:
        hit("link.said", message.WhichOneof("says") or "")
        request.messages.append(message)

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
        key = (answer.round, answer.update.digest)
        if key in self._uploads:
            return  # on its way already; it goes on by itself after a cut
        task = self._loop.create_task(self._answer(answer, blob))
        self._uploads[key] = task
        task.add_done_callback(lambda _: self._uploads.pop(key, None))

    async def _answer(self, answer: pb.Answer, blob: bytes) -> None:
        # If it is refused, the answer goes out all the same: the coordinator says by name what became of it.
        with contextlib.suppress(KoinonError):
            await self._retrying(lambda channel: self._upload(channel, answer, blob))
        self._outbox.put_nowait(pb.DeviceMessage(answer=answer))

    async def _upload(self, channel: grpc.aio.Channel, answer: pb.Answer, blob: bytes) -> None:
        metadata = ((TOKEN_KEY, self._token),)
        digest = answer.update.digest
        held = await stub(channel, BLOBS.STAT)(
            blobs_pb2.StatRequest(digest=digest, run=answer.run, round=answer.round), metadata=metadata
        )

        async def parts() -> AsyncIterator[blobs_pb2.UploadRequest]:
            at, piece = held.offset, _FIRST_PIECE
            yield blobs_pb2.UploadRequest(
                start=blobs_pb2.UploadStart(
                    digest=digest, size=len(blob), offset=at, run=answer.run, round=answer.round
                )
            )
            while at < len(blob):
                hit("link.upload", str(at))
                yield blobs_pb2.UploadRequest(data=blob[at : at + piece])
                at, piece = at + piece, min(_LAST_PIECE, piece * 2)
                self._progress = time.monotonic()

        response = await stub(channel, BLOBS.UPLOAD)(parts(), metadata=metadata)
        if not response.complete:
            raise Unavailable("the upload was cut off")

    async def _download(self, content: pb.Content) -> bytes:
        data = bytearray()

        async def rest(channel: grpc.aio.Channel) -> None:
            request = blobs_pb2.DownloadRequest(digest=content.digest, offset=len(data))
            call = stub(channel, BLOBS.DOWNLOAD)(request, metadata=((TOKEN_KEY, self._token),))
            async for part in call:
                data.extend(part.data)
                self._progress = time.monotonic()
                if len(data) > content.size:
                    raise BadBlob("the coordinator sent more bytes than it declared")

        await self._retrying(rest)
        return _checked(bytes(data), content.digest)

    async def _retrying(self, attempt: Callable[[grpc.aio.Channel], Coroutine[Any, Any, None]]) -> None:
        """Try until it works; after a cut, from where it stopped. A refusal is final, if the stream that it came
        beside still stands."""
        resends, pauses = 0, Pauses(self._loop.time())
        while True:
            await self._online.wait()
            channel = self._channel
            assert channel is not None
            try:
                return await attempt(channel)
            except grpc.aio.AioRpcError as raised:
                error = error_of(raised, self.address)
                if isinstance(error, BadBlob) and resends < _RESENDS:
                    # What an older stream left on its way arrived in between, or was damaged: look again, and send it.
                    resends += 1
                elif not _passing(error) and self._online.is_set() and channel is self._channel:
                    raise error from raised
            except (Unavailable, grpc.aio.UsageError):
                pass  # cut off, or the connection was closed between two calls: go on where it stopped
            except asyncio.CancelledError:
                if self._closing.is_set() or _is_cancelled():
                    raise
            await asyncio.sleep(pauses.next(self._loop.time(), 0.0))

    def _begin_close(self) -> None:
        self._closing.set()
        if not self._worked_from and self._channel is not None:
            # Connecting, or nobody there: nothing is on its way that could still be said.
            self._loop.create_task(self._channel.close())


def _passing(error: KoinonError) -> bool:
    """Whether trying again may help."""
    return isinstance(error, Unavailable | StoreError)


def _is_cancelled() -> bool:
    """Whether this task was cancelled, and not only a call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


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
