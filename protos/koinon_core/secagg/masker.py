"""The device's half of a session: what it says, what it refuses, and what it forgets.

    new         advertise()     two fresh keys
    advertised  share(roster)   its place among the others, checked; shares of its secrets, sealed for its neighbours
    shared      receive(inbox)  whose shares came: with those it has masks; `pads` makes them
    received    seal(size, ..)  the masked lanes are on disk: the secrets that made the masks are forgotten
    masked      consent(who)    its word that these survivors are in the sum, and that it will hear of no others
    consented   reveal(quorum)  of each neighbour one share of one secret; then everything is forgotten
    revealed

Every reply is made once and kept. The same bytes again get the same reply; other bytes for the same step are refused,
whatever they say: with two rosters a key would seal twice, with two inboxes a mask would hide two things, and with two
lists of survivors a coordinator could ask for both secrets of a device. So a device that was killed must go on from
what it knew: write `dump()` down before a reply leaves, and after a kill `load` it. It holds secrets in clear, and
belongs where power loss erases it. To forget means to drop the references: a process's memory is not scrubbed.

After Bonawitz et al. 2017 (https://eprint.iacr.org/2017/281, against active adversaries) and Bell et al. 2020. Where
this differs: a coordinator proves nothing, for a device gets all leaves, works out its place by itself (cohort), and
sees the full list of survivors; in a complete graph a device keeps a share of its own, and counts for itself; and a
neighbour whose share cannot be opened counts as one without a share, or a single bad device would end the session.
"""

from hashlib import sha256

from koinon_core.errors import BadBlob, LocalProtocolError, RemoteProtocolError
from koinon_core.secagg import statements
from koinon_core.secagg.adverts import Identity, Trust, write_advert
from koinon_core.secagg.config import Config
from koinon_core.secagg.hazmat import agree, shamir, sign
from koinon_core.secagg.hazmat.agree import Entropy
from koinon_core.secagg.messages import bitmap, parse, positions, records
from koinon_core.secagg.packing import PackedLayout
from koinon_core.secagg.pads import SEED_BYTES, Pads, own_seed, pair_seed, sign_of
from koinon_core.secagg.roster import Place, find_place, place_from, place_to
from koinon_core.secagg.sealing import SEALED_BYTES, half, open_share, point_of, seal_share
from koinon_core.wire.v1 import secagg_pb2 as pb

__all__ = ["PHASES", "Masker"]

PHASES = ("new", "advertised", "shared", "received", "masked", "consented", "revealed")

_VERSION = 1
_MOST_MEMORY = 64 << 20


class Masker:
    """One device in one session. Every method raises RemoteProtocolError (BadBlob for bytes that are no message) when
    the coordinator asks for what it may not ask, and then nothing has changed."""

    def __init__(self, config: Config, me: Identity, trust: Trust, entropy: Entropy):
        self.config = config
        self._me, self._trust, self._entropy = me, trust, entropy
        self._memory = pb.Memory(version=_VERSION, config=config.encoded, id=me.id, phase=PHASES[0])
        self._place: Place | None = None
        self._pads: Pads | None = None

    @property
    def phase(self) -> str:
        """The last step that was taken: one of PHASES."""
        return self._memory.phase

    @property
    def revealed(self) -> bool:
        """Whether this device has given back shares: then it may join no further attempt of the round."""
        return self.phase == "revealed"

    def dump(self) -> bytes:
        """All that it takes to go on after a kill, and nothing that was forgotten."""
        return self._memory.SerializeToString(deterministic=True)

    @classmethod
    def load(cls, data: bytes, me: Identity, trust: Trust, entropy: Entropy) -> "Masker":
        """The masker that `dump` wrote. BadBlob for a damaged one, LocalProtocolError for one of another device."""
        memory = parse(pb.Memory, data, _MOST_MEMORY)
        if memory.version != _VERSION or memory.phase not in PHASES:
            raise BadBlob(
                "this memory of a session is damaged or of another version of Koinon; the device drops out of it"
            )
        if memory.id != me.id:
            raise LocalProtocolError(
                f"this memory of a session is of device {memory.id!r}, not of {me.id!r}; each needs its own folder"
            )
        masker = cls(Config.decode(memory.config), me, trust, entropy)
        masker._memory = memory
        if memory.HasField("place"):
            masker._place = place_from(memory.place)
        return masker

    # -- the steps ------------------------------------------------------------------------------------------------

    def advertise(self) -> bytes:
        """The device's advertisement. Draws two private keys, for sealing and for masks."""
        again = self._again("advertised", b"")
        if again is not None:
            return again
        sealing_secret, sealing = agree.generate(self._entropy)
        masking_secret, masking = agree.generate(self._entropy)
        advert = write_advert(self.config, self._me, sealing, masking)
        self._memory.sealing_secret, self._memory.masking_secret = sealing_secret, masking_secret
        return self._done("advertised", b"", advert)

    def share(self, roster: bytes) -> bytes:
        """Sealed shares for the neighbours that the roster gives. Draws the seed of the device's own mask, then
        64 * (t - 1) bytes for the polynomials."""
        again = self._again("shared", roster)
        if again is not None:
            return again
        memory = self._memory
        place = find_place(self.config, memory.exchanges["advertised"].said, roster, self._trust)
        seed = agree.draw(self._entropy, SEED_BYTES)
        around = place.neighbours
        shares = dict(
            zip(
                around,
                shamir.split(
                    seed + memory.masking_secret,
                    place.threshold,
                    [point_of(p) for p in around],
                    self._entropy,
                ),
                strict=True,
            )
        )
        mine = agree.load(memory.sealing_secret)
        sealed = b"".join(
            seal_share(place.session, mine, self._me.id, peer, p, shares[p])
            for p, peer in place.peers.items()
        )
        committed = statements.commitment(place.session, self._me.id, seed)
        said = statements.dealt(place.session, self._me.id, statements.dealt_digest(sealed), committed)
        message = pb.Shares(
            session=place.session,
            id=self._me.id,
            sealed=sealed,
            commitment=committed,
            signature=self._me.sign(said),
        )
        memory.seed, memory.kept = seed, shares.get(place.position, b"")
        memory.place.CopyFrom(place_to(place))
        self._place = place
        return self._done("shared", roster, message.SerializeToString())

    def receive(self, inbox: bytes) -> tuple[str, ...]:
        """Take the shares that neighbours dealt. Returns the ids of those whose share is unreadable: their masks stay
        in, and they are reported; only if too few are left is the session refused."""
        if self._again("received", inbox) is None:
            self._receive(inbox)
        place = self._placed()
        return tuple(
            place.peers[p].id
            for p in sorted(positions(self._memory.unreadable, place.size, "unreadable dealers"))
        )

    @property
    def pads(self) -> Pads:
        """The masks; only between `receive` and `seal`, for they are used once."""
        memory = self._memory
        if self.phase != "received":
            raise LocalProtocolError(
                f"there are no masks in phase {self.phase!r}; they are made after `receive` and before `seal`"
            )
        if self._pads is None:
            place = self._placed()
            public = agree.public_of(memory.masking_secret)
            dealers = positions(memory.dealers, place.size, "dealers")
            mine = agree.load(memory.masking_secret)
            masks = [(own_seed(place.session, self._me.id, memory.seed), 1)]
            for p, peer in place.peers.items():
                if p in dealers:
                    seed = pair_seed(place.session, mine, public, peer.masking)
                    masks.append((seed, sign_of(public, peer.masking)))
            self._pads = Pads(self.config, masks)
        return self._pads

    def seal(self, size: int, sha256: bytes) -> bytes:
        """The masked lanes are complete on disk: `size` bytes with this SHA-256. What made the masks is forgotten.

        Raises LocalProtocolError for lanes of another size, or others than before: nothing is masked twice.
        """
        total = PackedLayout(self.config).total
        if size != total or len(sha256) != 32:
            raise LocalProtocolError(
                f"the masked lanes have {total} bytes and a SHA-256 of 32, not {size} and {len(sha256)}"
            )
        heard = size.to_bytes(8, "little") + sha256
        if "masked" in self._memory.exchanges and not self._same("masked", heard):
            raise LocalProtocolError(
                "other lanes were masked in this session already; send those, and mask none again"
            )
        again = self._again("masked", heard)
        if again is not None:
            return again
        memory, place = self._memory, self._placed()
        said = statements.masked(place.session, self._me.id, size, sha256, memory.unreadable)
        message = pb.Masked(
            session=place.session, id=self._me.id, size=size, sha256=sha256, unreadable=memory.unreadable,
            signature=self._me.sign(said),
        )  # fmt: skip
        for field in ("masking_secret", "seed"):
            memory.ClearField(field)
        self._pads = None
        return self._done("masked", heard, message.SerializeToString())

    def consent(self, survivors: bytes) -> bytes:
        """This device's word that these are in the sum, after which it hears of no others."""
        again = self._again("consented", survivors)
        if again is not None:
            return again
        place = self._placed()
        message = parse(pb.Survivors, survivors)
        self._check_session(message.session)
        who = positions(message.survivors, place.size, "survivors")
        if place.position not in who:
            raise RemoteProtocolError(
                "this device is not among the survivors, and says nothing about others' sum"
            )
        if len(who) < self.config.least:
            raise RemoteProtocolError(
                f"a sum of {len(who)} devices hides nobody; this device agreed to {self.config.least}"
            )
        if not who <= positions(self._memory.dealers, place.size, "dealers"):
            raise RemoteProtocolError(
                "there are survivors who never dealt shares to this device; it does not go on"
            )
        if len(who.intersection(place.neighbours)) < place.threshold:
            raise RemoteProtocolError(
                f"fewer than {place.threshold} neighbours of this device are among the survivors; it does not go on"
            )
        self._memory.survivors = message.survivors
        signature = self._me.sign(self._agreed(place))
        return self._done(
            "consented", survivors,
            pb.Consent(session=place.session, id=self._me.id, signature=signature).SerializeToString(),
        )  # fmt: skip

    def reveal(self, quorum: bytes) -> bytes:
        """Of each neighbour that survived the share of its own mask's seed, of each other dealer among them that of its
        masking key: one of the two, once. Then only this reply is kept."""
        again = self._again("revealed", quorum)
        if again is not None:
            return again
        place, memory = self._placed(), self._memory
        self._check_quorum(place, parse(pb.Quorum, quorum))
        survivors = positions(memory.survivors, place.size, "survivors")
        given = self._given(place, survivors)
        owners = bitmap(given, place.size)
        shares = b"".join(given[p] for p in sorted(given))
        agreed = statements.agreement(memory.survivors)
        said = statements.opened(place.session, self._me.id, agreed, statements.opened_digest(owners, shares))
        message = pb.Reveal(
            session=place.session, id=self._me.id, owners=owners, shares=shares, signature=self._me.sign(said)
        )
        self._memory = pb.Memory(version=_VERSION, config=memory.config, id=memory.id)
        self._place = None
        return self._done("revealed", quorum, message.SerializeToString())

    # -- once, and the same again ---------------------------------------------------------------------------------

    def _again(self, phase: str, heard: bytes) -> bytes | None:
        """The reply that was made to these very bytes; None if the step is due."""
        memory = self._memory
        if phase in memory.exchanges:
            if self._same(phase, heard):
                return memory.exchanges[phase].said
            raise RemoteProtocolError(
                f"this device is {phase} in this session already, and was told something else then; "
                "the coordinator must say what it said, or open another attempt"
            )
        if PHASES.index(phase) != PHASES.index(memory.phase) + 1:
            raise RemoteProtocolError(
                f"this device is {memory.phase} in this session and cannot be {phase} next; it was called out of order"
            )
        return None

    def _same(self, phase: str, heard: bytes) -> bool:
        return self._memory.exchanges[phase].heard == sha256(heard).digest()

    def _done(self, phase: str, heard: bytes, said: bytes) -> bytes:
        self._memory.exchanges[phase].CopyFrom(pb.Exchange(heard=sha256(heard).digest(), said=said))
        self._memory.phase = phase
        return said

    # -- parts of the steps ---------------------------------------------------------------------------------------

    def _placed(self) -> Place:
        assert self._place is not None, "from `share` to `reveal` there is a place"
        return self._place

    def _check_session(self, session: bytes) -> None:
        if session != self._placed().session:
            raise RemoteProtocolError(
                "this message is of another session than this device is in; it is refused"
            )

    def _receive(self, data: bytes) -> None:
        place, memory = self._placed(), self._memory
        inbox = parse(pb.Inbox, data)
        self._check_session(inbox.session)
        dealers = positions(inbox.dealers, place.size, "dealers")
        if place.position not in dealers:
            raise RemoteProtocolError(
                "this device dealt its shares and is not among the dealers; it takes no part"
            )
        if len(dealers) < self.config.least:
            raise RemoteProtocolError(
                f"{len(dealers)} devices dealt shares, and this one agreed to a sum of {self.config.least} or more"
            )
        near = [p for p in place.peers if p in dealers]
        rows = zip(
            near,
            records(inbox.sealed, SEALED_BYTES, len(near), "sealed shares"),
            records(inbox.dealt, 32, len(near), "digests of what was dealt"),
            records(inbox.commitments, 32, len(near), "commitments"),
            records(inbox.signatures, sign.SIGNATURE_BYTES, len(near), "signatures"),
            strict=True,
        )
        mine = agree.load(memory.sealing_secret)
        readable = {
            p: sealed for p, sealed, *signed in rows if self._readable(place, mine, p, sealed, *signed)
        }
        if len(readable) + place.complete < place.threshold:
            raise RemoteProtocolError(
                f"{len(readable)} neighbours' shares can be read, and {place.threshold} are needed; this device takes "
                "no part (if none can, the others were told of another config or model)"
            )
        memory.dealers = inbox.dealers
        memory.unreadable = bitmap(set(near) - readable.keys(), place.size)
        for peer in memory.place.peers:
            peer.sealed = readable.get(peer.position, b"")
        self._done("received", data, b"")

    def _readable(
        self, place: Place, mine: agree.Private, p: int, sealed: bytes, dealt: bytes, committed: bytes,
        signature: bytes,
    ) -> bool:  # fmt: skip
        peer = place.peers[p]
        try:
            sign.verify(peer.key, signature, statements.dealt(place.session, peer.id, dealt, committed))
            open_share(place.session, mine, peer, self._me.id, place.position, sealed)
        except BadBlob:
            return False
        return True

    def _agreed(self, place: Place) -> bytes:
        bits = self._memory.survivors
        return statements.consent(
            place.session, int.from_bytes(bits, "little").bit_count(), statements.agreement(bits)
        )

    def _check_quorum(self, place: Place, quorum: pb.Quorum) -> None:
        self._check_session(quorum.session)
        signers = sorted(positions(quorum.signers, place.size, "signers"))
        survivors = positions(self._memory.survivors, place.size, "survivors")
        if not all(p in place.peers and p in survivors for p in signers):
            raise RemoteProtocolError(
                "a quorum is of neighbours that survived, other than this device itself; this is none"
            )
        if len(signers) + place.complete < place.threshold:
            raise RemoteProtocolError(
                f"{len(signers)} neighbours agreed to the survivors, too few of {place.threshold}; nothing is revealed"
            )
        agreed = self._agreed(place)
        for p, signature in zip(
            signers, records(quorum.signatures, sign.SIGNATURE_BYTES, len(signers), "signatures"), strict=True
        ):
            sign.verify(place.peers[p].key, signature, agreed)

    def _given(self, place: Place, survivors: frozenset[int]) -> dict[int, bytes]:
        given, mine = {}, agree.load(self._memory.sealing_secret)
        for peer in self._memory.place.peers:
            if peer.sealed:
                p = peer.position
                share = open_share(
                    place.session, mine, place.peers[p], self._me.id, place.position, peer.sealed
                )
                given[p] = half(share, p in survivors)
        if place.complete:
            given[place.position] = half(self._memory.kept, True)
        return given
