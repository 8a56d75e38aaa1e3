"""What all handlers have in common: a row of the table becomes a gRPC handler, an error of ours a status.

Every error of ours leaves with one sentence, and its code in the trailing metadata; anything else is a bug, is logged
with its trace, and tells the caller only that.
"""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from koinon_core.errors import (
    Conflict,
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

Context = grpc.aio.ServicerContext[Any, Any]
Table = dict[Method[Any, Any], Callable[..., Any]]
_log = structlog.get_logger("koinon.service")

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
        request_deserializer=upload_part if method is BLOBS.UPLOAD else method.request.FromString,
        # A handler may give bytes: the fleet's answers are encoded once and sent to many, pieces of blobs by hand.
        response_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
    )
    return handler


def _typed(function: Callable[..., Any]) -> Callable[..., Awaitable[Message]]:
    return function


def handlers(table: Table) -> list[grpc.GenericRpcHandler]:
    """gRPC handlers for these rows."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for method, function in table.items():
        services.setdefault(method.service, {})[method.name] = _handler(method, function)
    return [
        grpc.method_handlers_generic_handler(f"koinon.v1.{name}", rows) for name, rows in services.items()
    ]
