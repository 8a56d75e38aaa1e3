"""What the simulated coordinator has to do with secrets: the sessions of the open secure round, in memory.

The very same sessions, checks and sums as the deployed coordinator's; what that keeps in a database is in dicts here.
"""

from koinon_core.blob import Blob
from koinon_core.errors import BadBlob
from koinon_core.identity import Trust
from koinon_core.round.machine import Round
from koinon_core.round.terms import Terms
from koinon_core.secagg.unmasker import Session
from koinon_core.secure.apart import Sums
from koinon_core.secure.opening import summed
from koinon_core.secure.sessions import Heard, Sessions
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Secrets"]


class Secrets:
    """What devices said in the attempt at a sum that is under way; everything of an earlier one is forgotten."""

    def __init__(self) -> None:
        self._trust = Trust.loose()
        self._attempt = (0, 0)
        self._said: dict[tuple[str, str], bytes] = {}
        self._masked: dict[str, Blob] = {}
        self._known: dict[int, Session] = {}
        self._terms: dict[int, Terms] = {}

    def follow(self, r: Round | None) -> None:
        """The round as it is after a move."""
        attempt = (0, 0) if r is None or r.over else (r.terms.round, r.masking.attempt)
        if attempt != self._attempt:
            # Who waits for a session of a buffered round goes on into the next one.
            waiting = r.advertised if r is not None else ()
            kept = {k: word for k, word in self._said.items() if k[0] == "keys" and k[1] in waiting}
            self._attempt, self._said, self._masked, self._known = attempt, kept, {}, {}
        if r is not None and r.terms.round not in self._terms:
            given = {r.round_of(client) for client in r.taken}
            self._terms = {n: terms for n, terms in self._terms.items() if n in given}
            self._terms[r.terms.round] = r.terms

    def call(self, r: Round, client: str) -> bytes:
        """What a device is asked in the collection that is open."""
        return self._sessions(r).call(client)

    def hear(self, r: Round, client: str, voice: pb.Voice, blob: bytes) -> Heard:
        """What a device said, checked and kept. BadBlob if it may not become a fact."""
        heard = self._sessions(r).check(client, voice.payload, self._trust)
        if heard.masked is not None:
            masked = Blob.of(blob)
            if (masked.digest, masked.size) != (heard.masked.sha256, heard.masked.size):
                raise BadBlob("the masked update is not the one that its device signed")
            self._masked[client] = masked
        self._said[voice.collection, client] = voice.payload
        return heard

    def sums(self, r: Round) -> Sums:
        """The sums of a round, each with its devices. Unrecoverable if what they gave back does not open them."""
        sessions = self._sessions(r)
        for opens, devices in sessions.sums(sessions.opened()):
            updates = {client: self._masked[client] for client in devices}
            yield summed(sessions.agreed, r.masking.attempt, opens, updates), devices

    def terms(self, r: Round, client: str) -> Terms:
        """Those that a device was given its work under."""
        return self._terms[r.round_of(client)]

    def _sessions(self, r: Round) -> Sessions:
        return Sessions(r, self._said, self._known, self._terms.__getitem__)
