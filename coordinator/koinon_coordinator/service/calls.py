"""What all handlers have in common: a row of the table becomes a gRPC handler, an error of ours a status.

Whoever calls is let in by the guard (`peers`) first, and a handler gets to know who that is. Every error of ours
leaves with one sentence, and its code in the trailing metadata; anything else is a bug, is logged with its trace, and
tells the caller only that.
"""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from koinon_coordinator.service.peers import Guard, Peer, Visit
from koinon_core.errors import (
    Conflict,
    Denied,
    KoinonError,
    NotFound,
    RemoteProtocolError,
    RunEnded,
    StoreError,
    Unavailable,
    UsageError,
)  # fmt: skip
from koinon_core.wire.methods import BLOBS, ERROR_KEY, Method
from koinon_core.wire.pieces import upload_part

__all__ = ["Context", "Table", "handlers"]

Call = grpc.aio.ServicerContext[Any, Any]
Table = dict[Method[Any, Any], Callable[..., Any]]
_log = structlog.get_logger("koinon.service")

_STATUS: list[tuple[type[KoinonError], grpc.StatusCode]] = [
    (Denied, grpc.StatusCode.PERMISSION_DENIED),
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


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler knows of its call: who makes it, and what gRPC says of it."""

    peer: Peer
    call: Call

    def metadata(self, name: str) -> str:
        """What the caller sent under this key; "" if nothing."""
        for key, value in self.call.invocation_metadata() or ():
            if key == name:
                return str(value)
        return ""

    async def begin(self) -> None:
        """Tell the caller that it is its turn: by the call's initial metadata."""
        await self.call.send_initial_metadata(())


async def _fail(call: Call, error: Exception) -> None:
    if not isinstance(error, KoinonError):
        _log.exception("a call failed on an error of the coordinator")
        error = KoinonError("the coordinator failed on an error of its own; its log says which")
    if isinstance(error, Denied):
        _log.info("a call was denied", reason=str(error), peer=call.peer())
    call.set_trailing_metadata(((ERROR_KEY, error.code),))
    await call.abort(_status(error), str(error))


_FAILURES = (KoinonError, OSError, RuntimeError, ValueError, TypeError, KeyError)


def _handler(
    method: Method[Any, Any], function: Callable[..., Any], guard: Guard
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler for one row of the table, with our errors turned into statuses."""
    many = method.shape.endswith("_stream")

    async def one(request: Any, call: Call) -> Message:
        visit: Visit | None = None
        try:
            peer = await guard.admit(method, call)
            with guard.visit(peer) as visit:
                return await _typed(function)(request, Context(peer, call))
        except _FAILURES as error:
            await _fail(call, error)
        except asyncio.CancelledError:
            if visit is None or not visit.cut:
                raise
            await _fail(call, visit.denied)
        raise AssertionError("abort raises")

    async def stream(request: Any, call: Call) -> AsyncIterator[Message]:
        visit: Visit | None = None
        try:
            peer = await guard.admit(method, call)
            async with aclosing(function(request, Context(peer, call))) as messages:
                with guard.visit(peer) as visit:
                    async for message in messages:
                        # Cancelled while gRPC sends, a call would neither go on nor end.
                        visit.sending = True
                        yield message
                        visit.sending = False
                        visit.check()
        except _FAILURES as error:
            await _fail(call, error)
        except asyncio.CancelledError:
            if visit is None or not visit.cut:
                raise
            await _fail(call, visit.denied)

    make = getattr(grpc, f"{method.shape}_rpc_method_handler")
    handler: grpc.RpcMethodHandler[Any, Any] = make(
        stream if many else one,
        request_deserializer=upload_part if method is BLOBS.UPLOAD else method.request.FromString,
        # A handler may give bytes: the fleet's answers are encoded once and sent to many, pieces of blobs by hand.
        response_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
    )
    return handler


def _typed(function: Callable[..., Any]) -> Callable[..., Awaitable[Message]]:
    return function


def handlers(table: Table, guard: Guard) -> list[grpc.GenericRpcHandler]:
    """gRPC handlers for these rows, behind that guard."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for method, function in table.items():
        services.setdefault(method.service, {})[method.name] = _handler(method, function, guard)
    return [
        grpc.method_handlers_generic_handler(f"koinon.v1.{name}", rows) for name, rows in services.items()
    ]
