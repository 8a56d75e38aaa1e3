"""The coordinator on the network: gRPC calls to and from the federation. Nothing else here speaks gRPC.

`fleet` is for devices' streams and `blobs` for their large contents, `runs` and `directory` for operators, `enrolment`
for newcomers and for certificates. `calls` makes gRPC handlers of all, from the table in `koinon_core.wire.methods`;
`peers` says who may make each call, and `listening` where.
"""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

import asyncio
from collections.abc import Callable

from koinon_coordinator.config import Limits
from koinon_coordinator.federation import Federation
from koinon_coordinator.identity import Security
from koinon_coordinator.identity.belief import Belief
from koinon_coordinator.service import listening
from koinon_coordinator.service.blobs import Blobs
from koinon_coordinator.service.calls import handlers
from koinon_coordinator.service.directory import Directory
from koinon_coordinator.service.enrolment import Enrolment, Renewal
from koinon_coordinator.service.fleet import Fleet
from koinon_coordinator.service.peers import Guard
from koinon_coordinator.service.runs import Runs
from koinon_coordinator.store import OperatorRow

__all__ = ["serve"]

_GRACE = 2.0


async def serve(
    federation: Federation, listen: str, stop: asyncio.Event, ready: Callable[[int], None],
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
    security: Security | None = None,
    health_listen: str = "",
    keepalive: float = 0.0,
) -> None:  # fmt: skip
    """Serve until `stop` is set. `ready` is called with the port once devices may come, and `security` knows then how
    they do. Without `security` everything is in plain text and open to everybody who reaches it."""
    guard = Guard(federation.store.people, security, federation.roster.bar)
    fleet = Fleet(federation)
    blobs = Blobs(federation, fleet.devices, limits)
    table = {
        **fleet.table, **blobs.table, **Runs(federation).table, **Renewal(federation, security).table,
        **Directory(federation, guard, security).table,
    }  # fmt: skip
    server = listening.server(handlers(table, guard), keepalive=keepalive)
    port = listening.bind(server, listen, security, mutual=True)
    servers = [server]
    if security is not None:
        federation.trust = Belief(federation.store.people, security.domain, security.roster_key)
        await _admin(federation, security)
        enrol_port = 0
        if security.enrol_listen:
            enrolling = listening.server(
                handlers(Enrolment(federation, security).table, guard), strangers=True
            )
            enrol_port = listening.bind(enrolling, security.enrol_listen, security, mutual=False)
            servers.append(enrolling)
        security.found(port, enrol_port)
    started = asyncio.Event()
    async with asyncio.TaskGroup() as tasks, listening.health(health_listen) as well:
        tasks.create_task(federation.run(started, stop))
        await started.wait()
        beat = tasks.create_task(guard.beat())
        for each in servers:
            await each.start()
        await well()
        ready(port)
        await stop.wait()
        federation.roster.cut_all()
        await asyncio.gather(*(each.stop(grace=_GRACE) for each in servers))
        beat.cancel()
    guard.close()
    blobs.close()


async def _admin(federation: Federation, security: Security) -> None:
    """The first admin, whose credentials `koinon-coordinator init` made, is known from the first start on."""
    row = OperatorRow(
        name=security.admin, role="admin", created_at=federation.clock(), created_by="koinon-coordinator init"
    )
    await federation.db(lambda: federation.store.people.add_operator(row, again=True))
