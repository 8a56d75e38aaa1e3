"""The coordinator on the network: gRPC calls to and from the federation. Nothing else here speaks gRPC.

Handlers are made from the table in `koinon_core.wire.methods`. Every error of ours leaves as a status with one
sentence and its code in the trailing metadata; anything else is a bug, is logged with its trace, and tells the
caller only that.
"""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from koinon_coordinator.federation import Federation
from koinon_coordinator.roster import Connection
from koinon_coordinator.store import RoundRow, RunRow
from koinon_core import PROTOCOL, __version__
from koinon_core.errors import (
    BadBlob,
    Conflict,
    KoinonError,
    NotFound,
    RemoteProtocolError,
    RunEnded,
    StoreError,
    Unavailable,
    UsageError,
)  # fmt: skip
from koinon_core.spec import RunSpec
from koinon_core.strategy import recipe
from koinon_core.wire import convert
from koinon_core.wire.methods import BLOBS, ERROR_KEY, FLEET, RUNS, TOKEN_KEY, Method
from koinon_core.wire.v1 import blobs_pb2, fleet_pb2, runs_pb2

__all__ = ["Service", "serve"]

Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger("koinon.service")
_PIECE = 1 << 20
_WATCH_EVERY = 0.1
_MODEL_LIMIT = 64 << 30
_MOST_ROUNDS = (1 << 63) - 1  # what a database can hold

_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second listener
    ("grpc.max_receive_message_length", 2 * convert.MESSAGE_LIMIT),
    ("grpc.max_send_message_length", 2 * convert.MESSAGE_LIMIT),
    # Devices may ping this often; with the default (5 minutes) they would be cut off for "too many pings".
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # And the coordinator notices a link that died without a word.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
]

_STATUS: list[tuple[type[KoinonError], grpc.StatusCode]] = [
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Conflict, grpc.StatusCode.ALREADY_EXISTS),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (RunEnded, grpc.StatusCode.FAILED_PRECONDITION),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (StoreError, grpc.StatusCode.UNAVAILABLE),  # our disk's fault: trying again may help
    (RemoteProtocolError, grpc.StatusCode.FAILED_PRECONDITION),
]


def _status(error: KoinonError) -> grpc.StatusCode:
    return next((s for kind, s in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


async def _fail(context: Context, error: Exception) -> None:
    if not isinstance(error, KoinonError):
        _log.exception("a call failed on an error of the coordinator")
        error = KoinonError("the coordinator failed on an error of its own; its log says which")
    context.set_trailing_metadata(((ERROR_KEY, error.code),))
    await context.abort(_status(error), str(error))


def _handler(method: Method[Any, Any], function: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler for one row of the table, with our errors turned into statuses."""
    many = method.shape.endswith("_stream")

    async def one(request: Any, context: Context) -> Message:
        try:
            return await _typed(function)(request, context)
        except (KoinonError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            await _fail(context, error)
            raise AssertionError("abort raises") from None

    async def stream(request: Any, context: Context) -> AsyncIterator[Message]:
        try:
            async for message in function(request, context):
                yield message
        except (KoinonError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            await _fail(context, error)

    make = getattr(grpc, f"{method.shape}_rpc_method_handler")
    handler: grpc.RpcMethodHandler[Any, Any] = make(
        stream if many else one,
        request_deserializer=method.request.FromString,
        # The fleet's answers are encoded once and sent to many, so a handler may give bytes.
        response_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
    )
    return handler


def _typed(function: Callable[..., Any]) -> Callable[..., Awaitable[Message]]:
    return function


class Service:
    """The handlers."""

    def __init__(self, federation: Federation):
        self._federation = federation

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        table: dict[Method[Any, Any], Callable[..., Any]] = {
            FLEET.ATTEND: self.attend,
            BLOBS.DOWNLOAD: self.download, BLOBS.UPLOAD: self.upload, BLOBS.STAT: self.stat,
            RUNS.CREATE: self.create, RUNS.LIST: self.list_runs, RUNS.GET: self.get, RUNS.WATCH: self.watch,
            RUNS.CONTROL: self.control, RUNS.EXPORT: self.export,
        }  # fmt: skip
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for method, function in table.items():
            services.setdefault(method.service, {})[method.name] = _handler(method, function)
        return [
            grpc.method_handlers_generic_handler(f"koinon.v1.{name}", handlers)
            for name, handlers in services.items()
        ]

    # -- devices ----------------------------------------------------------------------------------------------

    async def attend(
        self, requests: AsyncIterator[fleet_pb2.AttendRequest], context: Context
    ) -> AsyncIterator[bytes]:
        """One device's stream: its messages are read in a task of their own, its outbox is written here."""
        first = await anext(aiter(requests), None)
        if first is None or len(first.messages) != 1 or not first.messages[0].HasField("hello"):
            raise RemoteProtocolError("a stream begins with a hello")
        hello = first.messages[0].hello
        convert.check_hello(hello)
        connection = self._federation.roster.attach(hello.client, hello.instance)
        reader = asyncio.create_task(self._read(connection, requests))
        try:
            await self._federation.see(connection, hello.version)
            welcome = fleet_pb2.Welcome(protocol=PROTOCOL, version=__version__, token=connection.token)
            yield convert.envelope(fleet_pb2.CoordinatorMessage(welcome=welcome))
            while message := await connection.next():
                yield message
        finally:
            reader.cancel()
            if self._federation.roster.detach(connection):
                self._federation.gone(connection)

    async def _read(self, connection: Connection, requests: AsyncIterator[fleet_pb2.AttendRequest]) -> None:
        """Until the device hangs up. What it says wrong is told to it, and costs nobody else."""
        try:
            async for request in requests:
                for message in request.messages:
                    await self._hear_one(connection, message)
        except Exception:
            _log.exception("reading a device's stream failed", client=connection.client)
        finally:
            connection.cut()

    async def _hear_one(self, connection: Connection, message: fleet_pb2.DeviceMessage) -> None:
        kind = message.WhichOneof("says") or ""
        said = getattr(message, kind) if kind else None
        try:
            await self._hear(connection, kind, said)
        except StoreError as error:
            _log.error("a message could not be stored", client=connection.client, reason=str(error))
            connection.cut()  # it comes back and says it again
        except KoinonError as error:
            _log.info("a message was refused", client=connection.client, kind=kind, reason=str(error))
            connection.send(convert.envelope(convert.trouble(getattr(said, "run", ""), error)))

    async def _hear(self, connection: Connection, kind: str, m: Any) -> None:
        federation = self._federation
        if getattr(m, "round", 0) > _MOST_ROUNDS:
            raise RemoteProtocolError(f"there is no round {m.round}")
        match kind:
            case "join":
                row = federation.join(connection, m.run, m.wait)
                if row is not None:
                    connection.send(convert.joined(row.id, row.spec))
                    self._tell_if_over(connection, row.id)
            case "offer":
                federation.offer(connection, m.run, m.evaluates, m.engaged)
                self._tell_if_over(connection, m.run)  # it may have ended between the two
            case "answer":
                said = await federation.answer(
                    connection, m.run, m.round, m.terms_digest, m.update.digest, m.update.inline, m.update.size,
                    convert.head_from(m.head),
                )  # fmt: skip
                if said is not None:
                    connection.send(convert.envelope(convert.receipt(m.run, m.round, *said)))
            case "leave":
                federation.leave(connection, m.run, m.round, _plain(m.code[:32]), _plain(m.detail[:2000]))
            case "progress":
                federation.progress(connection, m.run)
            case _:
                raise RemoteProtocolError(f"a message of an unknown kind {kind!r} came from this device")

    def _tell_if_over(self, connection: Connection, run: str) -> None:
        row = self._federation.ended(run)
        if row is not None:
            ended = fleet_pb2.Ended(run=row.id, status=row.status, reason=row.reason)
            connection.send(convert.envelope(fleet_pb2.CoordinatorMessage(ended=ended)))

    def _connection(self, context: Context) -> Connection:
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        connection = self._federation.roster.by_token(str(metadata.get(TOKEN_KEY, "")))
        if connection is None:
            raise RemoteProtocolError("only an attached device may move blobs; attend first")
        return connection

    async def download(
        self, request: blobs_pb2.DownloadRequest, context: Context
    ) -> AsyncIterator[blobs_pb2.DownloadResponse]:
        """A content that the terms of one of the device's open rounds name, from an offset on."""
        driver = self._federation.may_download(self._connection(context), request.digest)
        if driver is None:
            raise NotFound("no open round of this device names that content")
        number = driver.run.number
        window, size = await self._federation.db(self._federation.store.window, request.digest)
        offset = request.offset
        while offset < size:
            data = await self._federation.db(window, offset, _PIECE)
            if not data:
                raise BadBlob("a blob ends before its size; it is damaged at the coordinator")
            offset += len(data)
            driver.count_down(number, len(data))
            yield blobs_pb2.DownloadResponse(data=bytes(data))

    async def upload(
        self, requests: AsyncIterator[blobs_pb2.UploadRequest], context: Context
    ) -> blobs_pb2.UploadResponse:
        """An update's bytes, from the offset that `stat` gave on; what arrived stays when the link is cut."""
        connection = self._connection(context)
        first = await anext(aiter(requests), None)
        if first is None or not first.HasField("start"):
            raise RemoteProtocolError("an upload begins with its start")
        start, federation = first.start, self._federation
        federation.may_upload(connection, start.run, start.round, start.size)
        blobs = federation.store.blobs
        incoming = await federation.db(blobs.receive, start.digest, start.size, connection.client)
        if incoming is None:
            return blobs_pb2.UploadResponse(offset=start.size, complete=True)
        try:
            if start.offset != incoming.offset:
                raise BadBlob(
                    f"the upload goes on at byte {start.offset}, but {incoming.offset} bytes are here"
                )
            async for request in requests:
                await federation.db(incoming.write, request.data)
                federation.progress(connection, start.run)
            if incoming.offset == start.size:
                await federation.db(incoming.finish)
                return blobs_pb2.UploadResponse(offset=start.size, complete=True)
            return blobs_pb2.UploadResponse(offset=incoming.offset, complete=False)
        finally:
            await federation.db(incoming.supersede)

    async def stat(self, request: blobs_pb2.StatRequest, context: Context) -> blobs_pb2.StatResponse:
        connection, blobs = self._connection(context), self._federation.store.blobs
        offset = await self._federation.db(blobs.received, request.digest, connection.client)
        return blobs_pb2.StatResponse(offset=offset)

    # -- operators --------------------------------------------------------------------------------------------

    async def create(
        self, requests: AsyncIterator[runs_pb2.CreateRequest], context: Context
    ) -> runs_pb2.CreateResponse:
        spec: RunSpec | None = None
        model = bytearray()
        async for request in requests:
            if request.HasField("spec"):
                spec = RunSpec.decode(request.spec)
            elif spec is None:
                raise UsageError("a run's spec comes before its model")
            else:
                model += request.model
                if len(model) > min(_MODEL_LIMIT, 2 * spec.model.nbytes + (1 << 20)):
                    raise UsageError("the first model is larger than its schema says")
        if spec is None:
            raise UsageError("a run needs a spec")
        run = await self._federation.create(spec, bytes(model))
        return runs_pb2.CreateResponse(run=self._info(self._federation.find(run.id)))

    async def list_runs(self, request: runs_pb2.ListRequest, context: Context) -> runs_pb2.ListResponse:
        rows = sorted(self._federation.rows.values(), key=lambda row: row.created_at)
        return runs_pb2.ListResponse(runs=[self._info(row) for row in rows])

    async def get(self, request: runs_pb2.GetRequest, context: Context) -> runs_pb2.GetResponse:
        federation = self._federation
        row = federation.find(request.run)
        rounds = await federation.rounds(row.id)
        incidents = await federation.db(federation.store.incidents, row.id)
        version = await federation.db(federation.store.latest_model, row.id)
        return runs_pb2.GetResponse(
            run=self._info(row), spec=row.spec, rounds=[_round(r) for r in rounds],
            incidents=[
                runs_pb2.Incident(at=i.at, client=i.client, round=i.round, code=i.code, message=i.message)
                for i in incidents
            ],
            attached=federation.attached(row.id), model_digest=version.digest,
        )  # fmt: skip

    async def watch(
        self, request: runs_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[runs_pb2.WatchResponse]:
        federation = self._federation
        row = federation.find(request.run)
        driver = federation.drivers.get(row.id)
        changed = driver.watch() if driver else asyncio.Event()
        try:
            since = 0
            while True:
                changed.clear()
                info = self._info(federation.find(row.id))
                rounds = await federation.rounds(row.id, since)
                yield runs_pb2.WatchResponse(run=info, rounds=[_round(r) for r in rounds])
                if not federation.lives(row.id):
                    return
                # An evaluation of the model before the open round may still come in.
                since = max(0, max((r.number for r in rounds), default=0) - 2)
                await changed.wait()
                await asyncio.sleep(_WATCH_EVERY)  # what changes together is told together
        finally:
            if driver:
                driver.unwatch(changed)

    async def control(self, request: runs_pb2.ControlRequest, context: Context) -> runs_pb2.ControlResponse:
        row = await self._federation.control(request.run, request.verb, request.reason)
        return runs_pb2.ControlResponse(run=self._info(row))

    async def export(
        self, request: runs_pb2.ExportRequest, context: Context
    ) -> AsyncIterator[runs_pb2.ExportResponse]:
        federation = self._federation
        row = federation.find(request.run)
        number = request.round if request.HasField("round") else None
        if number is not None and number > _MOST_ROUNDS:
            raise NotFound(f"there is no round {number}")
        version = await federation.db(federation.store.model_at, row.id, number)
        window, size = await federation.db(federation.store.window, version.digest)
        offset = 0
        while offset < size:
            data = bytes(await federation.db(window, offset, _PIECE))
            offset += len(data)
            yield runs_pb2.ExportResponse(data=data, round=version.round, size=size)

    def _info(self, row: RunRow) -> runs_pb2.RunInfo:
        row = self._federation.current(row)
        spec = RunSpec.decode(row.spec)
        return runs_pb2.RunInfo(
            id=row.id, name=row.name, status=row.status, reason=row.reason, rounds_closed=row.closed,
            rounds=spec.rounds, created_at=row.created_at, ended_at=row.ended_at or 0.0,
            strategy=recipe.show(spec.strategy), devices=len(self._federation.attached(row.id)),
            waiting_for=self._federation.waiting_for(row.id),
        )  # fmt: skip


def _plain(text: str) -> str:
    """A device's words without what could move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text)


def _round(r: RoundRow) -> runs_pb2.RoundInfo:
    return runs_pb2.RoundInfo(
        number=r.number, kind=r.kind, status=r.stage, reason=r.reason, opened_at=r.opened_at,
        asked_at=r.asked_at or 0.0, folding_at=r.folding_at or 0.0, closed_at=r.ended_at or 0.0,
        participants=[
            runs_pb2.ParticipantInfo(
                client=p.client, status=p.status, reason=p.reason, answered_at=p.answered_at or 0.0,
                bytes_up=p.size, examples=p.examples,
            )
            for p in r.participants
        ],
        metrics=r.metrics, bytes_up=r.bytes_up, bytes_down=r.bytes_down, model_digest=r.model,
    )  # fmt: skip


async def serve(
    federation: Federation, listen: str, stop: asyncio.Event, ready: Callable[[int], None]
) -> None:
    """Serve until `stop` is set. `ready` is called with the port once devices may come."""
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers(Service(federation).handlers())
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if port == 0:
        raise UsageError(
            f"{listen} cannot be listened on: the port is in use, or the address is not this machine's"
        )
    started = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(federation.run(started, stop))
        await started.wait()
        await server.start()
        ready(port)
        await stop.wait()
        federation.roster.cut_all()
        await server.stop(grace=2)
