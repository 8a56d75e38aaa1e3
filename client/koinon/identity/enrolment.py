"""How a device comes to be one of a federation: it makes its keys, shows a token, and gets a certificate for them.

The keys never leave the machine. The key for life is written before anybody is asked, so that a device that was killed
on the way is the same one when it tries again. What the token pins is believed, and nothing that came over the network:
the CA that the enrolment listener must show, the federation's name, and the key that signs the roster.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from koinon.calls import CHANNEL_OPTIONS, error_of, secure
from koinon.identity import keys
from koinon.identity.folder import (
    CA,
    CERTIFICATE,
    ENTRY,
    IDENTITY,
    SIGNING_KEY,
    TLS_KEY,
    Credentials,
    Identity,
    private_folder,
    write,
)
from koinon.identity.renewal import TIMEOUT
from koinon_core.errors import BadBlob, Conflict, UsageError
from koinon_core.identity import Entry, Token, Trust, check_domain, check_name, prove
from koinon_core.wire.methods import ENROLMENT, Method
from koinon_core.wire.methods import IDENTITY as SERVICE
from koinon_core.wire.v1 import enrolment_pb2 as pb

__all__ = ["enrol", "register"]


def enrol(
    token: Token, name: str, folder: Path, *, again: bool = False, owner_key: bytes | None = None
) -> Credentials:
    """Become the device `name` of the token's federation; its credentials are in `folder` then.

    With `again` it enrols anew where it did before, and keeps its key for life and whom it has met. `owner_key` (32
    bytes) pins the roster: from then on this device believes what that key signed, and not the coordinator.

    Raises Conflict if there is an identity already, Denied if the token does not let it in, Unavailable if nobody
    answers, BadBlob if what came back is not for these keys.
    """
    check_name(name)
    before = _before(folder, name, again)
    private = _signing_key(folder)
    tls_key = keys.new_tls_key()
    csr, spki = keys.request(tls_key, name)
    ca = keys.pem_of(token.ca)
    request = pb.EnrolRequest(
        token_id=token.id, secret=token.secret, id=name, csr=csr, key=keys.public_signing_key(private),
        proof=prove(private, token.id, spki, name),
    )  # fmt: skip
    got: pb.EnrolResponse = _ask(token.address, secure(ca), ENROLMENT.ENROL, request)
    said = keys.certificate(got.certificate)
    if said.spki != spki or (said.domain, said.kind, said.id) != (token.domain, "device", name):
        raise BadBlob(
            "the coordinator answered with a certificate for somebody else; report it to its operator"
        )
    kept = before if before is not None and before.domain == token.domain else None
    pin = owner_key.hex() if owner_key else kept.roster_key if kept and kept.pinned else ""
    who = Identity(
        id=name, kind="device", domain=token.domain, address=got.address,
        roster_key=pin or token.roster_key.hex(), pinned=bool(pin), known=kept.known if kept else {},
    )  # fmt: skip
    _check_entry(got.entry, who, keys.public_signing_key(private))
    for file, content in (
        (TLS_KEY, tls_key), (CERTIFICATE, got.certificate), (CA, ca), (ENTRY, got.entry), (IDENTITY, who.encoded),
    ):  # fmt: skip
        write(folder / file, content)
    return Credentials(folder)


def register(
    address: str, domain: str, folder: Path, *, tls_key: Path, certificate: Path, ca: Path, roster_key: bytes,
    pinned: bool = False, again: bool = False,
) -> Credentials:  # fmt: skip
    """Become the device that an outside CA's `certificate` names, at the coordinator `address` of the federation
    `domain`: the key for life is made here and registered there. The three files stay where they are, and may be
    renewed there; `roster_key` (32 bytes) is the coordinator's or, if `pinned`, the owner's.

    Raises as `enrol` does.
    """
    chain, authority = _content(certificate), _content(ca)
    said = keys.certificate(chain)
    name = check_name(said.id)
    before = _before(folder, name, again)
    private = _signing_key(folder)
    public = keys.public_signing_key(private)
    who = Identity(
        id=name, kind="device", domain=check_domain(domain), address=address, roster_key=roster_key.hex(),
        pinned=pinned, outside=True, known=before.known if before else {},
    )  # fmt: skip
    request = pb.RenewRequest(key=public, proof=prove(private, "", said.spki, name))
    channel = secure(authority, _content(tls_key), chain)
    got: pb.RenewResponse = _ask(address, channel, SERVICE.RENEW, request)
    _check_entry(got.entry, who, public)
    for link, file in ((TLS_KEY, tls_key), (CERTIFICATE, certificate), (CA, ca)):
        (folder / link).unlink(missing_ok=True)
        (folder / link).symlink_to(file.absolute())
    write(folder / ENTRY, got.entry)
    write(folder / IDENTITY, who.encoded)
    return Credentials(folder)


def _before(folder: Path, name: str, again: bool) -> Identity | None:
    """Who enrolled in `folder` before, if anybody did and that is meant."""
    if not (folder / IDENTITY).exists():
        return None
    before = Credentials(folder).identity
    if not again:
        raise Conflict(
            f"{folder} has the identity of {before.id!r} already; to enrol it again, with the same key for life, use "
            "--again"
        )
    if before.id != name:
        raise Conflict(f"{folder} is the identity of {before.id!r}, not of {name!r}; name another folder")
    return before


def _signing_key(folder: Path) -> bytes:
    """The private key for life; made, and durable, before anybody hears of it."""
    private_folder(folder)
    path = folder / SIGNING_KEY
    if not path.exists():
        write(path, keys.new_signing_key())
    return keys.private_signing_key(path.read_bytes())


def _check_entry(data: bytes, who: Identity, public: bytes) -> None:
    """BadBlob if a roster entry is not this device's. Where the roster is pinned, its owner may not have signed yet."""
    entry = Entry.decode(data)
    if (entry.id, entry.domain, entry.key) != (who.id, who.domain, public):
        raise BadBlob(
            "the coordinator answered with the roster entry of somebody else; report it to its operator"
        )
    if not who.pinned:
        Trust(who.domain, bytes.fromhex(who.roster_key))(data)


def _ask(address: str, credentials: grpc.ChannelCredentials, method: Method[Any, Any], request: Any) -> Any:
    with grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS) as channel:
        call: Callable[..., Any] = channel.unary_unary(
            method.path,
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=method.response.FromString,
        )
        try:
            return call(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            raise error_of(error, address) from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
