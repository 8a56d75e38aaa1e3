"""The coordinator on the network: gRPC calls to and from the federation. Nothing else here speaks gRPC.

`fleet` is for devices' streams and `blobs` for their large contents, `runs` for operators; `calls` makes gRPC handlers
of all, from the table in `koinon_core.wire.methods`.
"""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

import asyncio
from collections.abc import Callable

import grpc

from koinon_coordinator.config import Limits
from koinon_coordinator.federation import Federation
from koinon_coordinator.service.blobs import Blobs
from koinon_coordinator.service.calls import handlers
from koinon_coordinator.service.fleet import Fleet
from koinon_coordinator.service.runs import Runs
from koinon_core.errors import UsageError
from koinon_core.wire import convert
from koinon_core.wire.pieces import FLOW

__all__ = ["serve"]

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


async def serve(
    federation: Federation, listen: str, stop: asyncio.Event, ready: Callable[[int], None],
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
) -> None:  # fmt: skip
    """Serve until `stop` is set. `ready` is called with the port once devices may come."""
    server = grpc.aio.server(options=_OPTIONS)
    fleet = Fleet(federation)
    blobs = Blobs(federation, fleet.devices, limits)
    server.add_generic_rpc_handlers(handlers({**fleet.table, **blobs.table, **Runs(federation).table}))
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
    blobs.close()
