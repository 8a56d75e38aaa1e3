"""The listeners: one for everything, one for enrolment, and one that says whether this coordinator is well.

Both of the first two show the same certificate, which is asked for at every handshake, so that a new one needs no new
listener. The first insists on a client's certificate; the second does not ask for any, and serves nothing but
enrolment. Health (grpc.health.v1) is in plain text, for probes on this machine or in its pod.
"""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import structlog

from koinon_coordinator.identity import Security
from koinon_core.errors import KoinonError, UsageError
from koinon_core.wire import convert
from koinon_core.wire.pieces import FLOW

__all__ = ["bind", "health", "server"]

_log = structlog.get_logger("koinon.service")

_OPTIONS = [
    *FLOW,
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second listener
    ("grpc.max_receive_message_length", 2 * convert.MESSAGE_LIMIT),
    ("grpc.max_send_message_length", 2 * convert.MESSAGE_LIMIT),
    # Devices may ping this often; with the default (5 minutes) they would be cut off for "too many pings".
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # And the coordinator notices a link that died without a word.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # without it a ping's answer is waited for a minute
    ("grpc.http2.max_pings_without_data", 0),
]
_STRANGERS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 64 * 1024),  # of somebody unknown, nothing larger is read
    ("grpc.max_connection_age_ms", 60_000),  # nor are they listened to for ever
]


def server(
    handlers: Sequence[grpc.GenericRpcHandler], *, strangers: bool = False, keepalive: float = 0.0
) -> grpc.aio.Server:
    """A server that is not started yet; one for `strangers` takes nothing large, and not for long. `keepalive` is in
    seconds (0: as usual): how often a connection is asked for a sign of life that says nothing by itself."""
    options = dict(_OPTIONS)  # of an option that is there twice, gRPC takes the first
    if keepalive:
        options["grpc.keepalive_time_ms"] = int(keepalive * 1000)
    made = grpc.aio.server(options=_STRANGERS if strangers else list(options.items()))
    made.add_generic_rpc_handlers(handlers)
    return made


def bind(to: grpc.aio.Server, listen: str, security: Security | None, *, mutual: bool) -> int:
    """Listen at HOST:PORT; the port. With `security` over TLS, and with `mutual` only to who shows a certificate.
    UsageError if it cannot be listened on there."""
    try:
        if security is None:
            port = to.add_insecure_port(listen)
        else:
            port = to.add_secure_port(listen, _credentials(security, mutual=mutual))
    except RuntimeError:
        port = 0
    if port == 0:
        raise UsageError(
            f"{listen} cannot be listened on: the port is in use, or the address is not this machine's"
        )
    return port


def _credentials(security: Security, *, mutual: bool) -> grpc.ServerCredentials:
    shown, root = security.pair(), security.ca if mutual else None

    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([shown], root)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC before a handshake, on a thread of its own; None: the one before still holds."""
        nonlocal shown
        try:
            now = security.pair()
        except KoinonError as error:
            _log.error("the server's new certificate cannot be used; the old one is", reason=str(error))
            return None
        if now is shown:
            return None
        shown = now
        return configuration()

    asked: Any = fetch  # the stubs do not know of None
    return grpc.dynamic_ssl_server_credentials(configuration(), asked, require_client_authentication=mutual)


@asynccontextmanager
async def health(listen: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Answer probes at HOST:PORT ("": nowhere): not serving, until what this gives is called, and again from the end
    on. UsageError if it cannot be listened on there."""
    if not listen:
        yield _nobody_asks
        return
    try:
        from grpc_health.v1 import health_pb2, health_pb2_grpc
        from grpc_health.v1._async import HealthServicer
    except ImportError:
        raise UsageError("--health-listen needs grpcio-health-checking; install it beside Koinon") from None
    servicer: Any = HealthServicer()
    made = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, made)
    bind(made, listen, None, mutual=False)
    await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    await made.start()
    try:
        yield partial(servicer.set, "", health_pb2.HealthCheckResponse.SERVING)
        await servicer.enter_graceful_shutdown()
    finally:
        await made.stop(grace=0)


async def _nobody_asks() -> None:
    pass
