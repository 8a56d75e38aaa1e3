"""Shares of a device's two secrets, sealed for one neighbour each.

The secrets are the seed of its own mask and its masking key. They are shared together, and given back apart: the first
half of a share is of the one, the second of the other, and each half alone is a whole share of its secret.

A key seals once (hazmat.seal): it is of one session, one dealer and one reader, and a dealer keeps what it has sealed.
"""

from koinon_core.secagg import statements
from koinon_core.secagg.adverts import Peer
from koinon_core.secagg.hazmat import agree, derive, seal
from koinon_core.secagg.messages import fixed

__all__ = ["HALF_BYTES", "SEALED_BYTES", "SHARE_BYTES", "half", "open_share", "point_of", "seal_share"]

HALF_BYTES = 32
SHARE_BYTES = 2 * HALF_BYTES
SEALED_BYTES = SHARE_BYTES + seal.TAG_BYTES


def point_of(position: int) -> int:
    """Where the shares of the device at `position` lie on the polynomials: never at 0, which is the secret."""
    return position + 1


def half(share: bytes, survivor: bool) -> bytes:
    """What is given back of a share: of a survivor the seed's half, of a device that dropped out the key's."""
    return share[:HALF_BYTES] if survivor else share[HALF_BYTES:]


def seal_share(
    sid: bytes, private: agree.Private, dealer: str, reader: Peer, position: int, share: bytes
) -> bytes:
    """`share` for the `reader` at `position`, under the dealer's `private` sealing key: 80 bytes."""
    key = derive.hkdf(
        agree.exchange(private, reader.sealing), salt=sid, info=statements.sealing_key(dealer, reader.id)
    )
    return seal.seal(key, share, statements.sealed_share(sid, dealer, reader.id, point_of(position)))


def open_share(
    sid: bytes, private: agree.Private, dealer: Peer, reader: str, position: int, sealed: bytes
) -> bytes:
    """The share that `dealer` sealed for this device, which stands at `position`; BadBlob if it did not."""
    key = derive.hkdf(
        agree.exchange(private, dealer.sealing), salt=sid, info=statements.sealing_key(dealer.id, reader)
    )
    aad = statements.sealed_share(sid, dealer.id, reader, point_of(position))
    return fixed(seal.unseal(key, sealed, aad), SHARE_BYTES, f"the share of {dealer.id!r}")
