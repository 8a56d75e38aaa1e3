"""What operators call about people: tokens, devices, operators, and the roster."""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

from collections.abc import Callable
from typing import TypeVar

import structlog

from koinon_coordinator.federation import Federation
from koinon_coordinator.identity import Security, pki
from koinon_coordinator.identity.tokens import new_token
from koinon_coordinator.roster import Connection
from koinon_coordinator.service.calls import Context, Table
from koinon_coordinator.service.peers import Guard
from koinon_coordinator.store import DeviceRow, OperatorRow
from koinon_core.condition import Condition
from koinon_core.errors import BadBlob, UsageError
from koinon_core.identity import KEY, Entry, check_name, verify
from koinon_core.wire import convert
from koinon_core.wire.methods import DIRECTORY
from koinon_core.wire.v1 import enrolment_pb2 as pb

__all__ = ["Directory"]

T = TypeVar("T")
_log = structlog.get_logger("koinon.identity")
_ROLES = ("viewer", "operator", "admin")
_LABEL, _REASON = 200, 500


class Directory:
    """The handlers of the directory. `guard` cuts whoever is revoked here at once."""

    def __init__(self, federation: Federation, guard: Guard, security: Security | None):
        self._federation, self._guard, self._security_ = federation, guard, security
        self._people = federation.store.people

    @property
    def table(self) -> Table:
        return {
            DIRECTORY.CREATE_TOKEN: self.create_token, DIRECTORY.LIST_DEVICES: self.list_devices,
            DIRECTORY.REVOKE_DEVICE: self.revoke_device, DIRECTORY.LABEL_DEVICE: self.label_device,
            DIRECTORY.LIST_OPERATORS: self.list_operators, DIRECTORY.CREATE_OPERATOR: self.create_operator,
            DIRECTORY.REVOKE_OPERATOR: self.revoke_operator, DIRECTORY.EXPORT_ROSTER: self.export_roster,
            DIRECTORY.IMPORT_ROSTER: self.import_roster,
        }  # fmt: skip

    @property
    def _security(self) -> Security:
        if self._security_ is None:
            raise UsageError(
                "this coordinator serves in plain text, without identities; start one on a folder that "
                "`koinon-coordinator init` made"
            )
        return self._security_

    async def _db(self, function: Callable[..., T], *arguments: object) -> T:
        return await self._federation.db(function, *arguments)

    # -- devices ----------------------------------------------------------------------------------------------

    async def create_token(self, request: pb.CreateTokenRequest, context: Context) -> pb.CreateTokenResponse:
        row, secret = new_token(
            request.ttl,
            request.uses,
            _plain(request.label, _LABEL),
            context.peer.name,
            self._federation.clock(),
        )
        token = self._security.token(row.id, secret)
        await self._db(self._people.add_token, row)
        _log.info("a token was made", token=row.id, uses=row.uses, by=context.peer.name)
        return pb.CreateTokenResponse(token=token.text, expires_at=row.expires_at)

    async def list_devices(self, request: pb.ListDevicesRequest, context: Context) -> pb.ListDevicesResponse:
        return pb.ListDevicesResponse(
            devices=[self._device(row) for row in await self._db(self._people.devices)]
        )

    async def revoke_device(
        self, request: pb.RevokeDeviceRequest, context: Context
    ) -> pb.RevokeDeviceResponse:
        by, reason = context.peer.name, _plain(request.reason, _REASON)
        row = await self._db(
            self._people.revoke_device, request.id, self._named(by), reason, self._federation.clock()
        )
        _log.warning("a device was revoked", device=row.name, by=by, reason=reason)
        self._guard.cut("device", row.name)
        return pb.RevokeDeviceResponse(device=self._device(row))

    async def label_device(self, request: pb.LabelDeviceRequest, context: Context) -> pb.LabelDeviceResponse:
        row = await self._db(self._people.label_device, request.id, _plain(request.label, _LABEL))
        self._federation.labelled(row.name, row.label)
        return pb.LabelDeviceResponse(device=self._device(row))

    def _named(self, by: str) -> str:
        """Whoever revokes; UsageError where nobody has a name, and nobody can be told from anybody."""
        _ = self._security
        return by

    def _device(self, row: DeviceRow) -> pb.DeviceInfo:
        status = "revoked" if row.revoked_at is not None else "enrolled" if row.key else "seen"
        connection = self._federation.roster.get(row.name)
        condition, at = _condition(row, connection)
        return pb.DeviceInfo(
            id=row.name, label=row.label, status=status, attached=connection is not None,
            enrolled_at=row.enrolled_at or 0.0, last_seen=row.last_seen, expires_at=row.expires_at or 0.0,
            revoked_at=row.revoked_at or 0.0, revoked_by=row.revoked_by, reason=row.reason,
            key=bytes.fromhex(row.key or ""), version=row.entry_version, software=row.version,
            able=convert.able_to(connection.able) if connection is not None else None,
            condition=convert.condition_to(condition) if at else None, condition_at=at,
        )  # fmt: skip

    # -- operators --------------------------------------------------------------------------------------------

    async def list_operators(
        self, request: pb.ListOperatorsRequest, context: Context
    ) -> pb.ListOperatorsResponse:
        rows = await self._db(self._people.operators)
        return pb.ListOperatorsResponse(operators=[_operator(row) for row in rows])

    async def create_operator(
        self, request: pb.CreateOperatorRequest, context: Context
    ) -> pb.CreateOperatorResponse:
        """A new operator; with an outside CA, which issues the certificate itself, there is no CSR."""
        name, security = check_name(request.name), self._security
        if request.role not in _ROLES:
            raise UsageError(f"an operator's role is one of {', '.join(_ROLES)}, not {request.role[:20]!r}")
        issued = security.issue("operator", name, pki.request_key(request.csr)) if security.enrols else None
        row = OperatorRow(
            name=name, role=request.role, created_at=self._federation.clock(), created_by=context.peer.name,
            expires_at=issued.expires_at if issued else None,
        )  # fmt: skip
        made = await self._db(self._people.add_operator, row)
        _log.info("an operator was made", operator=name, role=row.role, by=context.peer.name)
        return pb.CreateOperatorResponse(
            operator=_operator(made), certificate=issued.pem if issued else b"", ca=security.ca
        )

    async def revoke_operator(
        self, request: pb.RevokeOperatorRequest, context: Context
    ) -> pb.RevokeOperatorResponse:
        by = self._named(context.peer.name)
        row = await self._db(self._people.revoke_operator, request.name, by, self._federation.clock())
        _log.warning("an operator was revoked", operator=row.name, by=by)
        self._guard.cut("operator", row.name)
        return pb.RevokeOperatorResponse(operator=_operator(row))

    # -- the roster -------------------------------------------------------------------------------------------

    async def export_roster(
        self, request: pb.ExportRosterRequest, context: Context
    ) -> pb.ExportRosterResponse:
        """The next version of the roster, for its owner to sign."""
        domain = self._security.domain
        _, version = await self._db(self._people.roster)
        entries = [
            Entry(
                id=row.name, key=bytes.fromhex(row.key), domain=domain, since=int(row.enrolled_at or 0),
                version=version + 1,
            ).encoded
            for row in await self._db(self._people.devices)
            if row.key and row.revoked_at is None
        ]  # fmt: skip
        return pb.ExportRosterResponse(entries=entries, version=version + 1)

    async def import_roster(
        self, request: pb.ImportRosterRequest, context: Context
    ) -> pb.ImportRosterResponse:
        """Entries that the owner signed, all of one version. The first import pins the owner's key here, so that it is
        not changed by mistake; devices have pinned it themselves, or do not believe it."""
        domain = self._security.domain
        if len(request.key) != KEY or not request.entries:
            raise UsageError(
                "a roster is imported with its owner's public key (32 bytes) and at least one entry"
            )
        entries = [Entry.decode(data) for data in request.entries]
        versions = {entry.version for entry in entries}
        if len(versions) != 1 or len({entry.id for entry in entries}) != len(entries):
            raise BadBlob("a roster has one version, and each device once; sign what was exported")
        for entry in entries:
            if entry.domain != domain:
                raise BadBlob(
                    f"the entry of {entry.id!r} is of domain {entry.domain!r}, and this is {domain!r}"
                )
            verify(request.key, entry.signature, entry.statement, f"the entry of {entry.id!r}")
        (version,) = versions
        signed = [(entry.id, entry.key.hex(), entry.encoded) for entry in entries]
        await self._db(self._people.set_roster, request.key.hex(), version, signed)
        _log.info("a signed roster was imported", entries=len(entries), version=version, by=context.peer.name)
        return pb.ImportRosterResponse(entries=len(entries), version=version)


def _condition(row: DeviceRow, connection: Connection | None) -> tuple[Condition, float]:
    """How a device is, and when it said so: what it said here last may be written only later."""
    if connection is not None and connection.condition is not None:
        return connection.condition
    return Condition.from_json(row.condition), row.condition_at or 0.0


def _operator(row: OperatorRow) -> pb.OperatorInfo:
    return pb.OperatorInfo(
        name=row.name, role=row.role, status="active" if row.revoked_at is None else "revoked",
        created_at=row.created_at, created_by=row.created_by, expires_at=row.expires_at or 0.0,
        revoked_at=row.revoked_at or 0.0, revoked_by=row.revoked_by,
    )  # fmt: skip


def _plain(text: str, most: int) -> str:
    """An operator's words without what could move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text[:most])
