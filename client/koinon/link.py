"""The link: one device's stream to the coordinator, kept alive on a thread of its own.

The owner's loop runs where it likes and never waits for the network. The link's thread runs an asyncio loop with
the stream in it: what comes in is handed to a `Receiver`, what goes out is queued. When the stream breaks, the
link connects again, with full jitter, for as long as it takes.

A stream and the transfers beside it share one connection and its fate: whatever ends the stream ends them too, and
they go on over the next one from where they stopped. So no call outlives the token it was made with.

Beside `operator` this is the client's only module that speaks gRPC; it is imported when something is joined.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # see koinon.calls
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc

from koinon.arriving import inlined
from koinon.calls import CHANNEL_OPTIONS, Pauses, closed_at_once, error_of, mistrusted, passing, secured, stub
from koinon.identity.folder import Credentials
from koinon.identity.renewal import kept_fresh
from koinon.progress import Progress, reporter
from koinon.transfer import Transfers
from koinon_core.blob import Blob
from koinon_core.condition import Condition
from koinon_core.errors import KoinonError, Unavailable
from koinon_core.failpoints import hit
from koinon_core.wire import convert
from koinon_core.wire.methods import FLEET
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["CHANNEL_OPTIONS", "GrpcLink", "Link", "Pauses", "Receiver", "error_of", "stub"]

T = TypeVar("T")
_log = logging.getLogger("koinon")
_CLOSE_WAIT = 5.0
_DRAIN_WAIT = 30.0
_WORKED = 60.0  # seconds, to Pauses: a stream beside which bytes arrived is not one that broke at once
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
    def answer(self, answer: pb.Answer | pb.Voice, blob: Blob) -> None:
        """Send an update, masked or not: inline if it is small, by an upload before it otherwise. It is read piece by
        piece."""
        ...

    def fetch(self, content: pb.Content, into: Path | None = None) -> Blob:
        """The bytes of a content, checked: in memory, or in the file `into` (and in `into` + ".part" on their way, from
        where a later process goes on). Blocks."""
        ...

    def wait(self, take: Callable[[float], T]) -> T:
        """Block in `take(timeout)` until it gives something."""
        ...

    def drain(self, settled: Callable[[], bool]) -> None:
        """Wait until `settled`, as long as what was submitted gets on."""
        ...

    def close(self) -> None: ...


class GrpcLink:
    """A link over gRPC, for the device `client`; in plain text if it has no `credentials`. `progress` is told how far
    transfers are; if there is none, the process's own is (`koinon.progress`). `able` is what the device says of itself
    (`koinon.profile`), and `condition` is asked how it is whenever it greets: the fields of koinon_core.condition."""

    def __init__(
        self, address: str, client: str, instance: str = "", boot: int = 0, progress: Progress | None = None,
        credentials: Credentials | None = None, able: Mapping[str, int] | None = None,
        condition: Callable[[], Mapping[str, Any]] | None = None,
    ):  # fmt: skip
        self._able, self._condition, self._notes = able, condition, False
        self.address, self._client, self._credentials = address, client, credentials
        self._known = False  # whether whoever answers there was the coordinator before
        self.hint = ""
        """What may be wrong, where nobody answers."""
        self._instance, self._boot = instance or uuid.uuid4().hex, boot
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"koinon-link-{client}", daemon=True)
        self._outbox: asyncio.Queue[pb.DeviceMessage | None] = asyncio.Queue()
        self.token = ""
        self._online: asyncio.Event = asyncio.Event()
        self._closing: asyncio.Event = asyncio.Event()
        self._transfers = Transfers(self, progress or reporter(client))
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
        self._call(self._queue, message)

    def answer(self, answer: pb.Answer | pb.Voice, blob: Blob) -> None:
        self._call(self._begin_answer, answer, blob)

    def fetch(self, content: pb.Content, into: Path | None = None) -> Blob:
        if into is None and (content.inline or not content.size):
            return inlined(content.inline, content.digest)
        return self._await(self._transfers.download(content, into))

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

    def limit(self, rate: float) -> None:
        """Move at most so many bytes a second."""
        self._transfers.most = rate

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
            self._worked_from, moved = 0.0, self._transfers.moved
            try:
                await self._connect()
            except grpc.aio.AioRpcError as raised:
                error = error_of(raised, self.address)
                if not passing(error) and type(error) is not KoinonError:
                    raise error from raised
            except Unavailable:
                pass
            except asyncio.CancelledError:
                if not self.is_torn():
                    raise
            now = self._loop.time()
            worked = now - self._worked_from if self._worked_from else 0.0
            if worked and not self._closing.is_set():
                _log.warning("the stream to %s is gone; it is tried again", self.address)
            pause = pauses.next(now, worked if self._transfers.moved == moved else max(worked, _WORKED))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)

    async def _connect(self) -> None:
        """One attempt, and all that comes of it. A connection of its own each time: gRPC, left to itself, would go on
        connecting at its own pace, and an address would be looked up only once."""
        async with self._open() as channel, kept_fresh(self._credentials, channel):
            self._channel = channel
            try:
                await self._attend(channel)
            except grpc.aio.AioRpcError as error:
                details = error.details() or ""
                self.hint = closed_at_once(details)
                if self._known and mistrusted(details):
                    # A portal in between, say; whom we knew may be there again soon.
                    raise Unavailable(f"whoever answers at {self.address} {mistrusted(details)}") from error
                raise
            finally:
                self._known = self._known or bool(self._worked_from)
                self._online.clear()

    def _open(self) -> grpc.aio.Channel:
        options = [*CHANNEL_OPTIONS, _OWN_CONNECTION]
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        return grpc.aio.secure_channel(self.address, secured(self._credentials), options=options)

    async def _attend(self, channel: grpc.aio.Channel) -> None:
        """A stream, until it ends or fails."""
        assert self._receiver is not None
        hit("link.attend")
        call = stub(channel, FLEET.ATTEND)()
        hit("link.said", "hello")
        able, now = self._able, self._how_it_is()
        hello = pb.DeviceMessage(hello=convert.hello(self._client, self._instance, self._boot, able, now))
        await call.write(pb.AttendRequest(messages=[hello]))
        first = await call.read()
        if first is grpc.aio.EOF:
            await _raise(call)
            return
        hit("link.heard", "welcome")
        welcome = first.messages[0].welcome
        self.token, self._notes, self._worked_from = welcome.token, welcome.notes, self._loop.time()
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

    def _how_it_is(self) -> Condition | None:
        """What the device says of its condition; nothing where its sensors fail, which is no reason to stay away."""
        try:
            now = Condition.from_json(self._condition()) if self._condition is not None else None
            if now is not None:
                now.check()
        except Exception as error:
            _log.warning("the condition of %s is not known: %s", self._client, error)
            return None
        return now

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

    def _queue(self, message: pb.DeviceMessage) -> None:
        """Queue a message. A stream begins with its join: whatever stands before that, down to what the owner's thread
        said while the stream was found, was meant for the one that is gone."""
        if message.WhichOneof("says") in ("condition", "spent") and not self._notes:
            return  # an older coordinator, which would take it for a broken device's
        if message.HasField("join"):
            while not self._outbox.empty():
                self._outbox.get_nowait()
        self._outbox.put_nowait(message)

    async def _pulse(self) -> None:
        """Signs of life while work is under way: every third of the lease."""
        assert self._receiver is not None
        while True:
            pause, message = self._receiver.pulse()
            if message is not None:
                self._outbox.put_nowait(message)
            await asyncio.sleep(pause)

    # -- transfers (koinon.transfer.Line) ---------------------------------------------------------------------

    async def channel(self) -> grpc.aio.Channel:
        await self._online.wait()
        assert self._channel is not None
        return self._channel

    def stands(self, channel: grpc.aio.Channel) -> bool:
        return self._online.is_set() and channel is self._channel

    def moved(self) -> None:
        self._progress = time.monotonic()

    def is_torn(self) -> bool:
        task = asyncio.current_task()
        return not self._closing.is_set() and not (task is not None and task.cancelling())

    def _begin_answer(self, answer: pb.Answer | pb.Voice, blob: Blob) -> None:
        if blob.size <= convert.INLINE:
            answer.update.inline = blob.bytes()
            self._outbox.put_nowait(_as_message(answer))
            return
        key = (answer.round, answer.update.digest)
        if key in self._uploads:
            return  # on its way already; it goes on by itself after a cut
        task = self._loop.create_task(self._answer(answer, blob))
        self._uploads[key] = task
        task.add_done_callback(lambda _: self._uploads.pop(key, None))

    async def _answer(self, answer: pb.Answer | pb.Voice, blob: Blob) -> None:
        # If it is refused, the answer goes out all the same: the coordinator says by name what became of it.
        with contextlib.suppress(KoinonError):
            await self._transfers.upload(answer, blob)
        self._outbox.put_nowait(_as_message(answer))

    def _begin_close(self) -> None:
        self._closing.set()
        if not self._worked_from and self._channel is not None:
            # Connecting, or nobody there: nothing is on its way that could still be said.
            self._loop.create_task(self._channel.close())


def _as_message(answer: pb.Answer | pb.Voice) -> pb.DeviceMessage:
    if isinstance(answer, pb.Voice):
        return pb.DeviceMessage(voice=answer)
    return pb.DeviceMessage(answer=answer)


async def _raise(call: Any) -> None:
    """Raise the error that ended a call, if one did."""
    code = await call.code()
    if code != grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )
