"""The coordinator's half of a session: what it tells each device, and whether what a device says is sound.

A Session is a value: who is in it, and their advertisements. It keeps no state of the protocol, which the round's
machine has; every method is a function of the messages that it is given, and whoever asks again gets the same bytes.
What a device sends is checked before it becomes a fact: a message that passes here makes no honest device refuse, so a
bad device costs nobody but itself.

The coordinator learns of each device either the seed of its own mask or its masking key, never both: it asks for one
list of survivors, and of each device it takes the one that this list calls for (recovery).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from koinon_core.errors import BadBlob, RemoteProtocolError, UsageError
from koinon_core.secagg import statements
from koinon_core.secagg.adverts import Peer, Trust, read_advert
from koinon_core.secagg.cohort import Cohort, draw
from koinon_core.secagg.config import Config
from koinon_core.secagg.hazmat import sign
from koinon_core.secagg.messages import bitmap, fixed, parse, positions, records
from koinon_core.secagg.packing import PackedLayout
from koinon_core.secagg.recovery import Dealt, Given, Recovery, recover
from koinon_core.secagg.sealing import HALF_BYTES, SEALED_BYTES
from koinon_core.wire.v1 import secagg_pb2 as pb

__all__ = ["Masked", "Session", "check_advert"]


def check_advert(config: Config, client: str, advert: bytes, trust: Trust) -> None:
    """Raise BadBlob unless `client` itself advertises, in this attempt, under an identity that `trust` believes."""
    found = read_advert(config, advert, trust)
    if found.id != client:
        raise BadBlob(f"{client!r} sent the advertisement of {found.id!r}; it is refused")


@dataclass(frozen=True, slots=True)
class Masked:
    """What a device says of its masked lanes: their SHA-256 in hex, their size, and whose shares it could not read."""

    sha256: str
    size: int
    unreadable: tuple[str, ...]


class Session:
    """The session of one group. `adverts` are those of its devices at least, `leaves` the digests in hex of all
    advertisements of the round. UsageError if these do not make this group."""

    def __init__(
        self,
        config: Config,
        cohort: Cohort,
        adverts: Mapping[str, bytes],
        leaves: Sequence[str],
        trust: Trust,
    ):
        self.config, self.cohort = config, cohort
        self._adverts = {client: adverts[client] for client in cohort.order}
        self._leaves = sorted(bytes.fromhex(leaf) for leaf in leaves)
        self._trust = trust
        root, groups = draw(self._leaves, config.groups)
        order = tuple(statements.advert_leaf(advert) for advert in self._adverts.values())
        if cohort.group >= len(groups) or groups[cohort.group] != order:
            raise UsageError(
                "these advertisements do not make this group; pass what the group was formed from"
            )
        self.sid = statements.session(config.digest, root, len(self._leaves), cohort.group)
        self._peers: dict[str, Peer] = {}
        self._opened: dict[str, tuple[bytes, pb.Shares]] = {}

    # -- what devices are told ------------------------------------------------------------------------------------

    def roster_for(self, client: str) -> bytes:
        """Who takes part, and the neighbours' advertisements; in a complete graph the same bytes for all."""
        return self._whole_roster if self.cohort.complete else self._roster(self._near(client))

    def inbox_for(self, client: str, shares: Mapping[str, bytes]) -> bytes:
        """What this device's neighbours among the dealers (the keys of `shares`) have sealed for it."""
        dealers = [peer for peer in self._near(client) if peer in shares and peer != client]
        messages = [self._open(peer, shares[peer]) for peer in dealers]
        places = [self._slots[peer][client] * SEALED_BYTES for peer in dealers]
        return pb.Inbox(
            session=self.sid,
            dealers=self._bitmap(shares),
            sealed=b"".join(m.sealed[at : at + SEALED_BYTES] for m, at in zip(messages, places, strict=True)),
            dealt=b"".join(statements.dealt_digest(m.sealed) for m in messages),
            commitments=b"".join(m.commitment for m in messages),
            signatures=b"".join(m.signature for m in messages),
        ).SerializeToString()

    def survivors(self, u2: Collection[str], u3: Collection[str]) -> bytes:
        """Who is in the sum, `u3`: those of the dealers `u2` whose masked lanes came whole. For all of `u3`."""
        if not set(u3) <= set(u2):
            raise UsageError("a device that dealt no shares cannot be in the sum; leave it out of u3")
        return pb.Survivors(session=self.sid, survivors=self._bitmap(u3)).SerializeToString()

    def quorum_for(self, client: str, consents: Mapping[str, bytes]) -> bytes:
        """The signatures of as many neighbours as the device asks for, the first by position; it counts itself in a
        complete graph. UsageError if too few have consented."""
        need = self.cohort.t - self.cohort.complete
        signers = [peer for peer in self._near(client) if peer in consents and peer != client][:need]
        if len(signers) < need:
            raise UsageError(
                f"{len(signers)} neighbours of {client!r} have consented, and {need} are needed; wait for more"
            )
        signatures = [parse(pb.Consent, consents[peer]).signature for peer in signers]
        return pb.Quorum(
            session=self.sid, signers=self._bitmap(signers), signatures=b"".join(signatures)
        ).SerializeToString()

    # -- what devices say -----------------------------------------------------------------------------------------

    def check_shares(self, client: str, message: bytes) -> None:
        """Raise BadBlob unless these are this device's sealed shares, one for each neighbour. What is in them only the
        neighbours see."""
        said = parse(pb.Shares, message)
        self._check_sender(client, said.session, said.id)
        fixed(said.sealed, SEALED_BYTES * len(self._slots[client]), f"what {client!r} sealed")
        fixed(said.commitment, 32, f"the commitment of {client!r}")
        digest = statements.dealt_digest(said.sealed)
        self._verify(client, said.signature, statements.dealt(self.sid, client, digest, said.commitment))

    def check_masked(self, client: str, message: bytes) -> Masked:
        """What a device says of its masked lanes; BadBlob if it may not say so. The lanes are still to be held
        against it."""
        said = parse(pb.Masked, message)
        self._check_sender(client, said.session, said.id)
        total = PackedLayout(self.config).total
        if said.size != total:
            raise BadBlob(
                f"the masked lanes of {client!r} have {said.size} bytes and must have {total}; they are refused"
            )
        fixed(said.sha256, 32, f"the digest of the masked lanes of {client!r}")
        unreadable = self._members(said.unreadable, f"what {client!r} could not read")
        if not unreadable <= self._slots[client].keys():
            raise BadBlob(
                f"{client!r} could not read the shares of devices that dealt it none; it is refused"
            )
        self._verify(
            client,
            said.signature,
            statements.masked(self.sid, client, said.size, said.sha256, said.unreadable),
        )
        return Masked(said.sha256.hex(), said.size, tuple(sorted(unreadable)))

    def check_consent(self, client: str, message: bytes, u3: Collection[str]) -> None:
        """Raise BadBlob unless this device agrees to these survivors."""
        said = parse(pb.Consent, message)
        self._check_sender(client, said.session, said.id)
        agreed = statements.consent(self.sid, len(u3), statements.agreement(self._bitmap(u3)))
        self._verify(client, said.signature, agreed)

    def check_reveal(self, client: str, message: bytes, u2: Collection[str], u3: Collection[str]) -> None:
        """Raise BadBlob unless this device gives back what it holds of its neighbours among the dealers, with these
        survivors. Whether the shares are right is seen when they are put together."""
        self._given(client, message, u2, u3)

    # -- what comes of it -----------------------------------------------------------------------------------------

    def recover(
        self,
        shares: Mapping[str, bytes],
        u2: Collection[str],
        u3: Collection[str],
        reveals: Mapping[str, bytes],
    ) -> Recovery:
        """The masks that are left in the sum of `u3`, from the dealers' messages and those that give shares back.

        Raises Unrecoverable, which names the devices whose secret cannot be put together.
        """
        given = {client: self._given(client, message, u2, u3) for client, message in reveals.items()}
        dealt = {
            client: Dealt(self._peer(client).masking, self._open(client, shares[client]).commitment)
            for client in u2
        }
        return recover(self.config, self.cohort, self.sid, dealt, frozenset(u3), given)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _near(self, client: str) -> list[str]:
        """The neighbours by position."""
        return sorted(self.cohort.neighbours(client), key=self.cohort.positions.__getitem__)

    @cached_property
    def _slots(self) -> Mapping[str, Mapping[str, int]]:
        """Of each dealer, which of the shares that it sealed is whose."""
        return {
            dealer: {reader: slot for slot, reader in enumerate(p for p in self._near(dealer) if p != dealer)}
            for dealer in self.cohort.order
        }

    @cached_property
    def _whole_roster(self) -> bytes:
        return self._roster(self.cohort.order)

    def _roster(self, clients: Sequence[str]) -> bytes:
        return pb.Roster(
            config=self.config.digest,
            leaves=b"".join(self._leaves),
            adverts=[self._adverts[client] for client in clients],
        ).SerializeToString()

    def _peer(self, client: str) -> Peer:
        if client not in self._peers:
            self._peers[client] = read_advert(self.config, self._adverts[client], self._trust)
        return self._peers[client]

    def _open(self, client: str, message: bytes) -> pb.Shares:
        """A dealer's message; read once, for all of its neighbours want a piece of it."""
        kept = self._opened.get(client)
        if kept is None or kept[0] != message:
            self.check_shares(client, message)
            kept = self._opened[client] = message, parse(pb.Shares, message)
        return kept[1]

    def _bitmap(self, clients: Collection[str]) -> bytes:
        strangers = [client for client in clients if client not in self.cohort]
        if strangers:
            raise UsageError(
                f"{strangers[0]!r} is not in this group; pass the devices of the session's own group"
            )
        return bitmap((self.cohort.positions[client] for client in clients), len(self.cohort.order))

    def _members(self, bits: bytes, what: str) -> frozenset[str]:
        return frozenset(self.cohort.order[p] for p in positions(bits, len(self.cohort.order), what))

    def _check_sender(self, client: str, session: bytes, name: str) -> None:
        if client not in self.cohort:
            raise RemoteProtocolError(f"{client!r} is not in this group; what it says is dropped")
        if session != self.sid:
            raise BadBlob(f"{client!r} speaks of another session than this one; what it says is dropped")
        if name != client:
            raise BadBlob(f"{client!r} speaks for {name[:128]!r}; what it says is dropped")

    def _verify(self, client: str, signature: bytes, statement: bytes) -> None:
        sign.verify(self._peer(client).key, signature, statement)

    def _given(self, client: str, message: bytes, u2: Collection[str], u3: Collection[str]) -> Given:
        said = parse(pb.Reveal, message)
        self._check_sender(client, said.session, said.id)
        owners = self._members(said.owners, f"whose shares {client!r} gives back")
        if client not in u3 or not owners <= self.cohort.neighbours(client) or not owners <= set(u2):
            raise BadBlob(f"{client!r} gives back shares that it cannot hold; what it says is dropped")
        by_position = sorted(owners, key=self.cohort.positions.__getitem__)
        shares = records(said.shares, HALF_BYTES, len(owners), f"the shares that {client!r} gives back")
        agreed = statements.agreement(self._bitmap(u3))
        digest = statements.opened_digest(said.owners, said.shares)
        self._verify(client, said.signature, statements.opened(self.sid, client, agreed, digest))
        return dict(zip(by_position, shares, strict=True))
