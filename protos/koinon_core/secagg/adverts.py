"""A device's advertisement: its two fresh public keys, signed with the key that its owner enrolled.

The sealing key opens what neighbours seal for the device, the masking key makes the masks that it shares with them.
Both are of one attempt. Who the device is follows from its roster entry alone, by the rules of a `Trust`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg import statements
from koinon_core.secagg.config import Config
from koinon_core.secagg.hazmat import agree, sign
from koinon_core.secagg.messages import check_id, fixed, parse
from koinon_core.wire.v1 import secagg_pb2 as pb

__all__ = ["MOST_ENTRY", "Identity", "Peer", "Trust", "read_advert", "write_advert"]

MOST_ENTRY = 4096
"""Bytes of a roster entry."""
_MOST_BYTES = MOST_ENTRY + 1024


class Identity(Protocol):
    """Who a device is, for longer than a session."""

    @property
    def id(self) -> str: ...
    @property
    def entry(self) -> bytes: ...
    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature, 64 bytes, under the key in the entry."""
        ...


Trust = Callable[[bytes], tuple[str, bytes]]
"""A roster entry to the id and the Ed25519 public key in it; raises BadBlob if it is not to be believed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A device as the others know it: its id and three public keys, for signatures, sealing and masks."""

    id: str
    key: bytes
    sealing: bytes
    masking: bytes


def write_advert(config: Config, me: Identity, sealing: bytes, masking: bytes) -> bytes:
    """The advertisement of a device's two public keys, signed. UsageError for an identity that others would refuse."""
    if len(me.entry) > MOST_ENTRY:
        raise UsageError(f"this device's roster entry has {len(me.entry)} bytes; it may have {MOST_ENTRY}")
    check_id(me.id)
    said = statements.advert(config.digest, me.id, me.entry, sealing, masking)
    return pb.Advert(
        id=me.id, entry=me.entry, sealing=sealing, masking=masking, signature=me.sign(said)
    ).SerializeToString()


def read_advert(config: Config, data: bytes, trust: Trust) -> Peer:
    """Who advertises, and what. Raises BadBlob for a bad signature, an entry that `trust` does not believe or that is
    another's, keys with which no secret can be shared, and any other config than this."""
    said = parse(pb.Advert, data, _MOST_BYTES)
    check_id(said.id)
    if len(said.entry) > MOST_ENTRY:
        raise BadBlob(
            f"the roster entry of {said.id!r} has {len(said.entry)} bytes; {MOST_ENTRY} are allowed"
        )
    name, key = trust(said.entry)
    if name != said.id:
        raise BadBlob(f"{said.id!r} advertises under the roster entry of {name!r}; it is refused")
    sealing = fixed(said.sealing, agree.KEY_BYTES, f"the sealing key of {name!r}")
    masking = fixed(said.masking, agree.KEY_BYTES, f"the masking key of {name!r}")
    sign.verify(key, said.signature, statements.advert(config.digest, name, said.entry, sealing, masking))
    if sealing == masking:
        raise BadBlob(f"{name!r} advertises one key for two purposes; it must draw two")
    for public in (sealing, masking):
        agree.check_public(public)
    return Peer(name, key, sealing, masking)
