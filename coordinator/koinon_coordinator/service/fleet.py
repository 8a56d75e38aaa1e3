"""What devices call: their stream. (Blobs in both directions are in `blobs`.)"""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog

from koinon_coordinator.admission import Answer, Voice
from koinon_coordinator.devices import Devices
from koinon_coordinator.federation import Federation
from koinon_coordinator.roster import Connection
from koinon_coordinator.service.calls import Context, Table
from koinon_core import PROTOCOL, __version__
from koinon_core.condition import Condition
from koinon_core.errors import Denied, KoinonError, RemoteProtocolError, StoreError, Unavailable
from koinon_core.failpoints import hit
from koinon_core.wire import convert
from koinon_core.wire.methods import FLEET
from koinon_core.wire.v1 import fleet_pb2

__all__ = ["Fleet"]

_log = structlog.get_logger("koinon.service")
_MOST_ROUNDS = (1 << 63) - 1  # what a database can hold


class Fleet:
    """The handler of devices' streams."""

    def __init__(self, federation: Federation):
        self._federation = federation
        self.devices = Devices(federation)

    @property
    def table(self) -> Table:
        return {FLEET.ATTEND: self.attend}

    async def attend(
        self, requests: AsyncIterator[fleet_pb2.AttendRequest], context: Context
    ) -> AsyncIterator[bytes]:
        """One device's stream: its messages are read in a task of their own, its outbox is written here."""
        first = await anext(aiter(requests), None)
        if first is None or len(first.messages) != 1 or not first.messages[0].HasField("hello"):
            raise RemoteProtocolError("a stream begins with a hello")
        hello = first.messages[0].hello
        convert.check_hello(hello)
        if context.peer.kind and context.peer.name != hello.client:
            raise Denied(
                f"the certificate of this connection is that of device {context.peer.name!r}, which cannot attend as "
                f"{hello.client[:64]!r}; a device has the name that it enrolled with"
            )
        connection = self._federation.roster.attach(hello.client, hello.instance, hello.boot)
        connection.able = convert.able_from(hello.able)
        reader = asyncio.create_task(self._read(connection, requests))
        try:
            await self.devices.see(connection, hello.version, _condition_of(hello))
            welcome = fleet_pb2.Welcome(
                protocol=PROTOCOL, version=__version__, token=connection.token, notes=True
            )
            yield convert.envelope(fleet_pb2.CoordinatorMessage(welcome=welcome))
            while message := await connection.next():
                yield message
        finally:
            reader.cancel()
            if self._federation.roster.detach(connection):
                self.devices.gone(connection)

    async def _read(self, connection: Connection, requests: AsyncIterator[fleet_pb2.AttendRequest]) -> None:
        """Until the device hangs up. What it says wrong is told to it, and costs nobody else."""
        try:
            async for request in requests:
                for message in request.messages:
                    if connection.barred:
                        return
                    await self._hear_one(connection, message)
        except Exception:
            _log.exception("reading a device's stream failed", client=connection.client)
        finally:
            connection.cut()

    async def _hear_one(self, connection: Connection, message: fleet_pb2.DeviceMessage) -> None:
        kind = message.WhichOneof("says") or ""
        hit("rpc.heard", kind)
        said = getattr(message, kind) if kind else None
        try:
            await self._hear(connection, kind, said)
        except (StoreError, Unavailable) as error:
            _log.error("a message could not be taken", client=connection.client, reason=str(error))
            connection.cut()  # it comes back and says it again
        except KoinonError as error:
            _log.info("a message was refused", client=connection.client, kind=kind, reason=str(error))
            connection.send(convert.envelope(convert.trouble(getattr(said, "run", ""), error)))

    async def _hear(self, connection: Connection, kind: str, m: Any) -> None:
        if getattr(m, "round", 0) > _MOST_ROUNDS:
            raise RemoteProtocolError(f"there is no round {m.round}")
        match kind:
            case "join":
                row = self.devices.join(connection, m.run, m.wait)
                if row is not None:
                    connection.send(convert.joined(row.id, row.spec))
                    self._tell_if_over(connection, row.id)
            case "recall":
                said = await self.devices.recall(connection, m.run, m.pinned, m.settled, m.owes)
                connection.send(convert.envelope(said))
            case "offer":
                held = m.held[:64] if m.HasField("held") else None
                await self.devices.offer(connection, m.run, m.evaluates, m.engaged, held)
                if m.visit and (told := self.devices.pace(connection, m.run)) is not None:
                    connection.send(convert.envelope(convert.pace(m.run, told)))
                self._tell_if_over(connection, m.run)  # it may have ended between the two
            case "answer":
                answer = Answer(
                    client=connection.client, round=m.round, terms=m.terms_digest, digest=m.update.digest,
                    size=m.update.size, data=m.update.inline, head=convert.head_from(m.head),
                    stats=convert.stats_from(m.stats),
                )  # fmt: skip
                verdict = await self.devices.answer(connection, m.run, answer)
                if verdict is not None:
                    connection.send(convert.envelope(convert.receipt(m.run, m.round, *verdict)))
            case "voice":
                voice = Voice(
                    client=connection.client, round=m.round, attempt=m.attempt, collection=m.collection,
                    terms=m.terms_digest, payload=m.payload, digest=m.update.digest, size=m.update.size,
                    data=m.update.inline,
                )  # fmt: skip
                verdict = await self.devices.voice(connection, m.run, voice)
                if verdict is not None:
                    connection.send(convert.envelope(convert.receipt(m.run, m.round, *verdict)))
            case "ahead":
                self.devices.ahead(connection, m.run, m.round, _plain(m.reason[:500]))
            case "leave":
                self.devices.leave(connection, m.run, m.round, _plain(m.code[:32]), _plain(m.detail[:2000]))
            case "progress":
                self.devices.progress(connection, m.run)
            case "condition" | "spent":
                await self._note(connection, kind, m)
            case _:
                raise RemoteProtocolError(f"a message of an unknown kind {kind!r} came from this device")

    async def _note(self, connection: Connection, kind: str, m: Any) -> None:
        """What is for the operator alone. Where it cannot be, or the database does not take it, that is no reason to
        trouble the device, which could do nothing about it but stop its work."""
        try:
            if kind == "condition":
                self.devices.condition(connection, convert.condition_from(m))
            else:
                await self.devices.spent(connection, m.run, m.round, convert.spent_from(m))
        except KoinonError as error:
            _log.warning(
                "a device's figures are not kept", client=connection.client, kind=kind, reason=str(error)
            )

    def _tell_if_over(self, connection: Connection, run: str) -> None:
        row = self._federation.ended(run)
        if row is not None:
            ended = fleet_pb2.Ended(run=row.id, status=row.status, reason=row.reason)
            connection.send(convert.envelope(fleet_pb2.CoordinatorMessage(ended=ended)))


def _condition_of(hello: fleet_pb2.Hello) -> Condition | None:
    """How a device that greets is; None where it does not say so, or says what cannot be."""
    try:
        return convert.condition_from(hello.condition) if hello.HasField("condition") else None
    except RemoteProtocolError as error:
        _log.warning("a device's figures are not kept", client=hello.client, kind="hello", reason=str(error))
        return None


def _plain(text: str) -> str:
    """A device's words without what could move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text)
