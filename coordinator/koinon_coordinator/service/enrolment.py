"""How devices come in, and how everybody who is in stays in: enrolment by token, and renewal.

A device proves three things at once: that it has the token, that it has the TLS key (the CSR is signed by it), and that
both belong to its Ed25519 key (the proof). What it is called afterwards is its name for ever.
"""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

import structlog

from koinon_coordinator.federation import Federation
from koinon_coordinator.identity import Security, pki
from koinon_coordinator.identity.tokens import hash_of
from koinon_coordinator.service.calls import Context, Table
from koinon_coordinator.service.peers import Peer
from koinon_core.errors import UsageError
from koinon_core.identity import check_name, proof_message, verify
from koinon_core.wire.methods import ENROLMENT, IDENTITY
from koinon_core.wire.v1 import enrolment_pb2 as pb

__all__ = ["Enrolment", "Renewal"]

_log = structlog.get_logger("koinon.identity")
_PROOF = "the proof that the TLS key and the Ed25519 key are one device's"


class Enrolment:
    """The handler of the enrolment listener."""

    def __init__(self, federation: Federation, security: Security):
        self._federation, self._security = federation, security

    @property
    def table(self) -> Table:
        return {ENROLMENT.ENROL: self.enrol}

    async def enrol(self, request: pb.EnrolRequest, context: Context) -> pb.EnrolResponse:
        security, people = self._security, self._federation.store.people
        name, key = check_name(request.id), pki.request_key(request.csr)
        message = proof_message(request.token_id[:64], pki.spki(key), name)
        verify(request.key, request.proof, message, _PROOF)
        issued = security.issue("device", name, key)
        row = await self._federation.db(
            people.enrol, request.token_id[:64], hash_of(request.secret), name, request.key.hex(),
            security.entry(name, request.key).encoded, self._federation.clock(), issued.expires_at,
        )  # fmt: skip
        _log.info("a device enrolled", device=name, token=request.token_id[:64])
        return pb.EnrolResponse(
            certificate=issued.pem, ca=security.ca, entry=row.entry or b"", address=security.address
        )


class Renewal:
    """The handler of everybody's calls about their own certificate."""

    def __init__(self, federation: Federation, security: Security | None):
        self._federation, self._security = federation, security

    @property
    def table(self) -> Table:
        return {IDENTITY.RENEW: self.renew}

    async def renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        """Another certificate for the same name and the same Ed25519 key, and a device's newest entry."""
        security, peer = self._security, context.peer
        if security is None:
            raise UsageError(
                "this coordinator serves in plain text, without identities; there is nothing to renew"
            )
        issued = None
        if request.csr:
            issued = security.issue(peer.kind, peer.name, pki.request_key(request.csr))
        expires_at = issued.expires_at if issued else None
        if peer.kind == "operator":
            if issued:
                await self._federation.db(self._federation.store.people.renew_operator, peer.name, expires_at)
            entry = b""
        else:
            entry = await self._device(request, peer, security, expires_at)
        if issued:
            _log.info("a certificate was renewed", kind=peer.kind, name=peer.name)
        return pb.RenewResponse(certificate=issued.pem if issued else b"", ca=security.ca, entry=entry)

    async def _device(
        self, request: pb.RenewRequest, peer: Peer, security: Security, expires_at: float | None
    ) -> bytes:
        """A device's newest entry, once it has proved its Ed25519 key; registered, if it is an outside CA's."""
        people, name = self._federation.store.people, peer.name
        tls_key = pki.spki(pki.request_key(request.csr)) if request.csr else pki.spki_of(peer.certificate)
        verify(request.key, request.proof, proof_message("", tls_key, name), _PROOF)
        key = request.key.hex()
        if security.enrols:
            row = await self._federation.db(people.renew, name, key, expires_at)
        else:
            entry = security.entry(name, request.key).encoded
            row = await self._federation.db(people.register, name, key, entry, self._federation.clock())
            if not peer.known:
                _log.info("a device registered its key", device=name)
        return row.entry or b""
