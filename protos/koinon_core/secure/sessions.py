"""The sessions of a secure round at the coordinator: what devices are asked in each collection, whether what they say
may become a fact, and what opens the sum. One session a group; everything in it follows from stored payloads, so a
restarted coordinator asks the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob
from koinon_core.identity import Entry
from koinon_core.round.state import Round
from koinon_core.round.terms import Terms
from koinon_core.secagg.adverts import Trust
from koinon_core.secagg.cohort import Cohort
from koinon_core.secagg.config import Config
from koinon_core.secagg.packing import PackedLayout
from koinon_core.secagg.recovery import Recovery
from koinon_core.secagg.unmasker import Masked, Session, check_advert
from koinon_core.secure.agreement import Agreement
from koinon_core.wire.v1 import secagg_pb2 as pb

__all__ = ["Heard", "Opened", "Said", "Sessions", "config_of", "masked_size", "public_keys"]

_WORD = 8192  # bytes of a word: signatures, and a roster entry of up to 4 KiB
_EACH = 256  # and of each share in it
Said = Mapping[tuple[str, str], bytes]
"""What was said in an attempt: by collection and device."""


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer that was checked: the digest that its event has, the devices whose shares its sender could not read,
    and in `masked` what it says of the masked update, in `keys` its public keys, which nobody else may have."""

    digest: str
    missing: tuple[str, ...] = ()
    masked: Masked | None = None
    keys: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """A group's session with what opens its sum, and the devices in it."""

    session: Session
    recovery: Recovery
    devices: tuple[str, ...]


@lru_cache(maxsize=64)
def _config(terms: str, encoded: bytes, attempt: int) -> Config:
    known = Terms.decode(encoded)
    return Agreement.of(known).config(known, attempt)


def public_keys(advert: bytes) -> tuple[bytes, ...]:
    """The keys of an advertisement that was checked."""
    peer = pb.Advert.FromString(advert)
    return bytes(peer.sealing), bytes(peer.masking)


def _short(payload: bytes, most: int) -> None:
    """Raise BadBlob for more than a device has to say: what it appends to its word would be kept with it."""
    if len(payload) > most:
        raise BadBlob(f"{len(payload)} bytes are more than a device has to say here, which is at most {most}")


def config_of(terms: Terms, attempt: int) -> Config:
    """What the devices of an attempt sign."""
    return _config(terms.digest, terms.encoded, attempt)


def masked_size(terms: Terms) -> int:
    """Bytes of one device's masked update."""
    return PackedLayout(config_of(terms, 0)).total


class Sessions:
    """What the open round of a run has to do with secrets, as its last turn left it."""

    def __init__(
        self, r: Round, said: Said, known: dict[int, Session], terms_of: Callable[[int], Terms] | None = None
    ):
        """`known` keeps the sessions of this attempt by group, from one turn to the next. `terms_of` gives those of an
        earlier round, whose work a buffered one goes on with."""
        self._r, self._said, self._known, self._terms_of = r, said, known, terms_of

    def terms(self, client: str) -> Terms:
        """Those that a device was given its work under."""
        number = self._r.round_of(client)
        return (
            self._r.terms
            if number == self._r.terms.round or self._terms_of is None
            else self._terms_of(number)
        )

    @cached_property
    def agreed(self) -> Terms:
        """Those that the devices of the session were given their work under, all of them."""
        cohort = min(self._r.cohort, default="")
        return self.terms(cohort)

    @cached_property
    def config(self) -> Config:
        return config_of(self.agreed, self._r.masking.attempt)

    # -- what is asked ----------------------------------------------------------------------------------------

    def call(self, client: str) -> bytes:
        """What a device is to be asked in the collection that is open."""
        r, m = self._r, self._r.masking
        if r.stage == "keys":
            return b""
        session, cohort = self._of(client)
        match r.stage:
            case "shares":
                return session.roster_for(client)
            case "masked":
                return session.inbox_for(client, self._heard("shares", m.shares.intersection(cohort.order)))
            case "consistent":
                return session.survivors(*self._sets(cohort))
            case _:
                return session.quorum_for(
                    client, self._heard("consistent", m.signed.intersection(cohort.order))
                )

    # -- what is said -----------------------------------------------------------------------------------------

    def check(self, client: str, payload: bytes, trust: Trust) -> Heard:
        """An answer in the collection that is open. BadBlob if it may not become a fact."""
        r = self._r
        digest = sha256(payload)
        waits = r.buffered and client not in r.cohort
        if r.stage == "keys" or waits:
            _short(payload, _WORD)
            config = config_of(self.terms(client), 0) if waits else self.config
            check_advert(config, client, payload, trust)
            return Heard(digest, keys=public_keys(payload))
        session, cohort = self._of(client)
        _short(payload, _WORD + (_EACH * cohort.k if r.stage in ("shares", "reveal") else len(cohort.order)))
        match r.stage:
            case "shares":
                session.check_shares(client, payload)
            case "masked":
                masked = session.check_masked(client, payload)
                if masked.size != masked_size(self.agreed):
                    raise BadBlob(
                        f"a masked update of {masked.size} bytes is refused: this round's have "
                        f"{masked_size(self.agreed)}"
                    )
                return Heard(masked.sha256, tuple(masked.unreadable), masked)
            case "consistent":
                session.check_consent(client, payload, self._sets(cohort)[1])
            case _:
                session.check_reveal(client, payload, *self._sets(cohort))
        return Heard(digest)

    # -- what opens the sum -----------------------------------------------------------------------------------

    def opened(self) -> list[Opened]:
        """What removes every mask that is left in the sum of those who are in it. Unrecoverable if the shares that were
        revealed are too few, or wrong."""
        found = []
        for cohort in self._r.masking.cohorts:
            session = self._session(cohort)
            u2, u3 = self._sets(cohort)
            recovery = session.recover(self._heard("shares", u2), u2, u3, self._heard("reveal", cohort.order))
            found.append(Opened(session, recovery, tuple(sorted(u3))))
        return found

    def sums(self, opened: Sequence[Opened]) -> list[tuple[list[Recovery], tuple[str, ...]]]:
        """What opens each sum that the round has, and who is in it: one of all groups, or, where a rule is taken
        between them, one of each."""
        if Agreement.of(self._r.terms).apart:
            return [([one.recovery], one.devices) for one in opened]
        return [([one.recovery for one in opened], self._r.accepted)]

    def _sets(self, cohort: Cohort) -> tuple[frozenset[str], frozenset[str]]:
        """Who shared their secrets, and who of them is in the sum."""
        members = frozenset(cohort.order)
        return self._r.masking.shares & members, members.intersection(self._r.update.heard)

    def _heard(self, collection: str, clients: Iterable[str]) -> dict[str, bytes]:
        return {c: self._said[collection, c] for c in clients if (collection, c) in self._said}

    def _of(self, client: str) -> tuple[Session, Cohort]:
        for cohort in self._r.masking.cohorts:
            if client in cohort:
                return self._session(cohort), cohort
        raise BadBlob(f"{client!r} is in no group of this round")

    def _session(self, cohort: Cohort) -> Session:
        if cohort.group not in self._known:
            adverts = self._heard("keys", cohort.order)
            leaves = list(self._r.masking.leaves.values())
            self._known[cohort.group] = Session(self.config, cohort, adverts, leaves, _believed)
        return self._known[cohort.group]


def _believed(entry: bytes) -> tuple[str, bytes]:
    """Who an entry says that it is: it was checked before the advertisement became a fact."""
    one = Entry.decode(entry)
    return one.id, one.key
