"""A device's place among the others: worked out and checked before it entrusts anybody with a share.

The coordinator says who takes part; a device takes its word for nothing that it can check. From all leaves it derives
groups, order and graph by itself (cohort); its own leaf must be there, once; the neighbours that this gives it must be
the ones whose advertisements came, each under an identity that it trusts, with no id and no key twice.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from koinon_core.errors import BadBlob, RemoteProtocolError, UsageError
from koinon_core.secagg import statements
from koinon_core.secagg.adverts import Peer, Trust, read_advert
from koinon_core.secagg.cohort import draw
from koinon_core.secagg.config import MOST_DEVICES, Config
from koinon_core.secagg.hazmat import graph
from koinon_core.secagg.messages import parse
from koinon_core.wire.v1 import secagg_pb2 as pb

__all__ = ["LEAF_BYTES", "Place", "find_place", "place_from", "place_to"]

LEAF_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a device stands in its session: in group `group` of `size` devices, at `position`, with `peers` by theirs.

    `degree` neighbours hold shares of its secrets and `threshold` of them give one back; in a complete graph it is its
    own neighbour, too (but not its own peer).
    """

    session: bytes
    group: int
    position: int
    size: int
    degree: int
    threshold: int
    peers: Mapping[int, Peer]

    @property
    def complete(self) -> bool:
        return self.degree == self.size

    @property
    def neighbours(self) -> tuple[int, ...]:
        """Positions, ascending; its own is among them in a complete graph."""
        return graph.neighbours(self.position, self.size, self.degree)


def find_place(config: Config, advert: bytes, data: bytes, trust: Trust) -> Place:
    """The place of the device with this `advert` in the roster `data`.

    Raises RemoteProtocolError (BadBlob for bytes that are no roster) if anything in it is not as it must be.
    """
    roster = parse(pb.Roster, data)
    if roster.config != config.digest:
        raise RemoteProtocolError(
            "the roster is of another config than this device agreed to; it takes no part"
        )
    leaves = _leaves(roster.leaves)
    mine = statements.advert_leaf(advert)
    at = bisect_left(leaves, mine)
    if at == len(leaves) or leaves[at] != mine:
        raise RemoteProtocolError(
            "this device's advertisement is not in the roster as it was sent; it takes no part"
        )
    root, groups = draw(leaves, config.groups)
    group, order = next((number, order) for number, order in enumerate(groups) if mine in order)
    try:
        found = config.graph(len(order))
    except UsageError as error:
        raise RemoteProtocolError(
            f"this device is asked into a group that keeps no secret: {error}"
        ) from error
    position = order.index(mine)
    neighbours = graph.neighbours(position, len(order), found.k)
    peers = _peers(config, [order[p] for p in neighbours], list(roster.adverts), trust)
    _distinct(peers if position in neighbours else [*peers, read_advert(config, advert, trust)])
    return Place(
        session=statements.session(config.digest, root, len(leaves), group),
        group=group, position=position, size=len(order), degree=found.k, threshold=found.t,
        peers={p: peer for p, peer in zip(neighbours, peers, strict=True) if p != position},
    )  # fmt: skip


def place_to(place: Place) -> pb.Place:
    """A place as a device remembers it."""
    return pb.Place(
        session=place.session, group=place.group, position=place.position, size=place.size, degree=place.degree,
        threshold=place.threshold,
        peers=[
            pb.Peer(position=p, id=peer.id, key=peer.key, sealing=peer.sealing, masking=peer.masking)
            for p, peer in place.peers.items()
        ],
    )  # fmt: skip


def place_from(place: pb.Place) -> Place:
    """The place that a device has remembered."""
    return Place(
        session=place.session, group=place.group, position=place.position, size=place.size, degree=place.degree,
        threshold=place.threshold,
        peers={p.position: Peer(p.id, p.key, p.sealing, p.masking) for p in place.peers},
    )  # fmt: skip


def _leaves(joined: bytes) -> list[bytes]:
    count, rest = divmod(len(joined), LEAF_BYTES)
    if rest or not 1 <= count <= MOST_DEVICES:
        raise BadBlob(
            f"a roster has 1 to {MOST_DEVICES} leaves of {LEAF_BYTES} bytes, not {len(joined)} bytes of them"
        )
    leaves = [joined[i : i + LEAF_BYTES] for i in range(0, len(joined), LEAF_BYTES)]
    if any(one >= other for one, other in pairwise(leaves)):
        raise BadBlob(
            "the leaves of a roster are not in ascending order, each once; the coordinator must sort them"
        )
    return leaves


def _peers(config: Config, leaves: list[bytes], adverts: list[bytes], trust: Trust) -> list[Peer]:
    if [statements.advert_leaf(advert) for advert in adverts] != leaves:
        raise RemoteProtocolError(
            "the advertisements in the roster are not those of this device's neighbours; it takes no part"
        )
    return [read_advert(config, advert, trust) for advert in adverts]


def _distinct(peers: list[Peer]) -> None:
    for what, values in (
        ("id", [peer.id for peer in peers]),
        ("signing key", [peer.key for peer in peers]),
        ("session key", [key for peer in peers for key in (peer.sealing, peer.masking)]),
    ):
        if len(set(values)) < len(values):
            raise RemoteProtocolError(
                f"two devices around this one, or it and another, have the same {what}; it takes no part"
            )
