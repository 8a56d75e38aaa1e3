"""Devices that say their words in a secure round, without a client: what the coordinator's half hears, word by word."""

import hashlib
from collections.abc import Callable

import numpy as np

from koinon_core.identity import Entry, Trust
from koinon_core.round.terms import Terms
from koinon_core.secagg import Masker, statements
from koinon_core.secagg.hazmat import agree, sign
from koinon_core.secagg.sealing import seal_share
from koinon_core.secure.sessions import config_of
from koinon_core.wire.v1 import secagg_pb2 as pb
from sessions import Stream

__all__ = ["WORDS", "Speaker"]

WORDS = ("keys", "shares", "masked", "consistent", "reveal")


class Speaker:
    """A device whose update is nothing but zeros. `lies` names the word that it says with wrong shares in it: what it
    "dealt" opens nothing, or what it says in "reveal" is not what it was dealt."""

    def __init__(self, name: str, lies: str = "", seed: object = ""):
        self.id, self.lies, self._seed = name, lies, seed
        self._private, _ = sign.generate(Stream(f"identity {name}"))
        self.entry = Entry.loose(name, self._private).encoded
        self._agreed = b""
        self.upload = b""

    def sign(self, message: bytes) -> bytes:
        return sign.sign(self._private, message)

    def say(self, terms: Terms, collection: str, asked: bytes, attempt: int = 0) -> bytes:
        """Its word in answer to what it is asked; in `masked`, `upload` has the bytes that go with it."""
        said = self._answers[collection](self, terms, asked, attempt)
        return self._lie(collection, said) if self.lies == collection else said

    def _keys(self, terms: Terms, _asked: bytes, attempt: int) -> bytes:
        entropy = Stream(f"entropy {self.id} {self._seed} {terms.digest} {attempt}")
        self.masker = Masker(config_of(terms, attempt), self, Trust.loose(), entropy)
        return self.masker.advertise()

    def _shares(self, _terms: Terms, asked: bytes, _attempt: int) -> bytes:
        return self.masker.share(asked)

    def _masked(self, _terms: Terms, asked: bytes, _attempt: int) -> bytes:
        self.masker.receive(asked)
        lanes = self.masker.config.lanes
        pads = self.masker.pads.masked(lambda section, a, b: np.zeros(b - a, lanes[section].dtype))
        self.upload = b"".join(map(bytes, pads))
        return self.masker.seal(len(self.upload), hashlib.sha256(self.upload).digest())

    def _consistent(self, _terms: Terms, asked: bytes, _attempt: int) -> bytes:
        self._agreed = statements.agreement(pb.Survivors.FromString(asked).survivors)
        return self.masker.consent(asked)

    def _reveal(self, _terms: Terms, asked: bytes, _attempt: int) -> bytes:
        return self.masker.reveal(asked)

    _answers: dict[str, Callable[["Speaker", Terms, bytes, int], bytes]] = {  # noqa: RUF012 - never written
        "keys": _keys, "shares": _shares, "masked": _masked, "consistent": _consistent, "reveal": _reveal,
    }  # fmt: skip

    def _lie(self, collection: str, word: bytes) -> bytes:
        """The same word with other shares, sealed and signed as they should be."""
        if collection == "shares":
            place, shares = self.masker._placed(), pb.Shares.FromString(word)
            secret, nothing = self.masker._memory.sealing_secret, Stream(f"lies {self.id}")
            shares.sealed = b"".join(
                seal_share(place.session, agree.load(secret), self.id, peer, position, nothing(64))
                for position, peer in place.peers.items()
            )
            digest = statements.dealt_digest(shares.sealed)
            shares.signature = self.sign(statements.dealt(shares.session, self.id, digest, shares.commitment))
            return shares.SerializeToString()
        reveal = pb.Reveal.FromString(word)
        reveal.shares = Stream(f"lies {self.id}")(len(reveal.shares))
        digest = statements.opened_digest(reveal.owners, reveal.shares)
        reveal.signature = self.sign(statements.opened(reveal.session, self.id, self._agreed, digest))
        return reveal.SerializeToString()
