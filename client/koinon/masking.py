"""A device's part in secure rounds: from the encoded update to the words that open the sum, and what survives a kill.

`koinon_core.secagg.Masker` says what may be said; here is what of it is kept, and when. Before a word leaves, the
journal has it with all that the device knows of the session, so that after a kill the same word is said again. What the
journal has lost (the power went) cannot be made again: the device then says so, and answers nothing of that round.

An update is encoded once a round. Another attempt at the same sum masks the same encoded update under fresh keys; but
whoever has said what opens a sum joins no further attempt, for two sums over nearly the same devices show a difference.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from koinon.outbox.journal import Entry, Journal
from koinon_core.blob import NO_BYTES, Blob
from koinon_core.errors import LocalProtocolError, RemoteProtocolError
from koinon_core.round.terms import Terms
from koinon_core.secagg.adverts import Identity, Trust
from koinon_core.secagg.config import Config
from koinon_core.secagg.masker import Masker
from koinon_core.secure.agreement import Agreement
from koinon_core.tensors import Array

__all__ = ["Masking", "Word"]

_log = logging.getLogger("koinon")
_LOST = "the secrets of this round were lost when this device lost its power: it drops out of the sum"


@dataclass(frozen=True, slots=True)
class Word:
    """What a device says in a collection; in `masked` with the masked update."""

    attempt: int
    collection: str
    payload: bytes
    blob: Blob = NO_BYTES


@dataclass(slots=True)
class _Round:
    terms: Terms
    update: Blob | None
    masker: Masker | None = None
    word: Word | None = None
    inbox: bytes | None = None
    """What the update is to be masked for, where that was asked before there was one."""
    lost: bool = False


class Masking:
    """One device in one run. `entropy` draws secrets (os.urandom; vectors have their own)."""

    def __init__(
        self,
        run: str,
        me: Identity,
        trust: Trust,
        journal: Journal,
        entropy: Callable[[int], bytes] = os.urandom,
    ):
        self._run, self._me, self._trust = run, me, trust
        self._journal, self._entropy = journal, entropy
        self._now: _Round | None = None

    @property
    def last(self) -> Word | None:
        """What was said last in the open round: after a reconnection it is said again."""
        return self._now.word if self._now is not None else None

    @property
    def lost(self) -> bool:
        """Whether the secrets of the open round are gone."""
        return self._now is not None and self._now.lost

    def open(self, terms: Terms) -> None:
        """There will be a sum: from here on, what is not in the journal was lost. Where a process before this one began
        it, and was killed before it had an update, the keys are those that it drew."""
        if self._now is None or self._now.terms.round != terms.round:
            self._now = now = _Round(terms, None)
            entry = self._journal.load(self._run)
            if entry is None or entry.facts.get("terms") != terms.digest:
                self._save()
            elif entry.secrets:
                self._recall(now, entry)

    def provide(self, terms: Terms, update: Blob) -> None:
        """The encoded update is there, and kept."""
        self.open(terms)
        assert self._now is not None
        self._now.update = update

    def resume(self, terms: Terms, update: Blob) -> None:
        """Go on where the last process was, with the update that it had kept."""
        self._now = now = _Round(terms, update)
        entry = self._journal.load(self._run)
        facts = entry.facts if entry is not None else {}
        if entry is None or facts.get("terms") != terms.digest:
            now.lost = True
            return
        if entry.secrets:  # or it was opened, and nothing was said yet
            self._recall(now, entry)

    def _recall(self, now: _Round, entry: Entry) -> None:
        """What the journal has of this very round."""
        now.masker = Masker.load(entry.secrets, self._me, self._trust, self._entropy)
        facts, blob = entry.facts, NO_BYTES
        if facts["said"] == "masked":
            kept = self._journal.kept(self._run, facts["digest"], facts["size"])
            if kept is None or now.update is None:
                now.lost = True
                return
            blob = kept
        payload = bytes.fromhex(facts["payload"])
        now.word = Word(now.masker.config.attempt, facts["said"], payload, blob)

    def say(self, round_: int) -> Word:
        """The first word of the round, the last that was said in it, or what waited for the update."""
        now = self._open(round_)
        if now.lost:
            raise LocalProtocolError(_LOST)
        if now.inbox is not None and now.update is not None:
            inbox, now.inbox = now.inbox, None
            return self._mask(now, inbox)
        return now.word or self._advertise(now, 0)

    def called(self, round_: int, attempt: int, collection: str, payload: bytes) -> Word | None:
        """The answer; None if there is none to give (yet). RemoteProtocolError for what may not be asked."""
        now = self._open(round_)
        config = now.masker.config if now.masker is not None else None
        if now.lost:
            raise LocalProtocolError(_LOST)
        if collection == "keys":
            return self._again(now, attempt, config)
        if now.masker is None or config is None or attempt != config.attempt:
            raise RemoteProtocolError(
                f"attempt {attempt} of round {round_} is not the one that this device takes part in"
            )
        if collection == "masked" and now.update is None:
            if now.inbox not in (None, payload):
                raise RemoteProtocolError(
                    "this device was told of other shares for the same sum; the first ones count"
                )
            now.inbox = payload
            return None
        match collection:
            case "shares":
                return self._said(now, collection, now.masker.share(payload))
            case "masked":
                return self._mask(now, payload)
            case "consistent":
                return self._said(now, collection, now.masker.consent(payload))
            case "reveal":
                return self._said(now, collection, now.masker.reveal(payload))
        raise RemoteProtocolError(f"a secure round has no collection {collection!r}")

    def end(self, round_: int) -> None:
        """The round is settled: nothing of its secrets stays. A later one may have begun before a kill: its do."""
        now = self._now
        if now is not None and now.terms.round == round_:
            self._now = None
            entry = self._journal.load(self._run)
            if entry is None or entry.facts.get("terms") == now.terms.digest:
                self._journal.end(self._run)

    # -- parts ------------------------------------------------------------------------------------------------

    def _open(self, round_: int) -> _Round:
        if self._now is None or round_ != self._now.terms.round:
            raise RemoteProtocolError(f"this device is in no sum of round {round_}")
        return self._now

    def _again(self, now: _Round, attempt: int, config: Config | None) -> Word:
        """Keys for an attempt: those of the one under way, or fresh ones for a later one."""
        if config is not None and attempt == config.attempt and now.word is not None:
            return now.word if now.word.collection == "keys" else self._said(now, "keys", self._advert(now))
        if config is not None and attempt < config.attempt:
            raise RemoteProtocolError(
                f"attempt {attempt} is over; this device is in attempt {config.attempt}"
            )
        if attempt >= Agreement.of(now.terms).attempts:
            raise RemoteProtocolError("the round's terms allow fewer attempts than that")
        if now.masker is not None and now.masker.revealed:
            raise RemoteProtocolError(
                "this device has said what opens a sum of this round; it joins no second one"
            )
        return self._advertise(now, attempt)

    def _advert(self, now: _Round) -> bytes:
        assert now.masker is not None
        return now.masker.advertise()

    def _advertise(self, now: _Round, attempt: int) -> Word:
        config = Agreement.of(now.terms).config(now.terms, attempt)
        now.masker, now.inbox = Masker(config, self._me, self._trust, self._entropy), None
        return self._said(now, "keys", now.masker.advertise())

    def _mask(self, now: _Round, inbox: bytes) -> Word:
        """Mask the update, once: what was masked before is sent as it was."""
        assert now.masker is not None
        assert now.update is not None
        unread = now.masker.receive(inbox)
        if now.masker.phase != "received":
            if now.word is not None and now.word.collection == "masked":
                return now.word
            raise RemoteProtocolError(
                "this device has handed in its masked update, and was asked for more since"
            )
        if unread:
            _log.warning("%s could not read the shares of %s", self._me.id, ", ".join(unread))
        # U2 is written down before the first masked byte is: masked twice, for two sets, it would open.
        self._save()
        draft = self._journal.masked(self._run)
        for piece in now.masker.pads.masked(_lanes(Agreement.of(now.terms), now.update)):
            draft.write(bytes(piece))
        blob = draft.finish()
        payload = now.masker.seal(blob.size, bytes.fromhex(blob.digest))
        return self._said(now, "masked", payload, blob)

    def _said(self, now: _Round, collection: str, payload: bytes, blob: Blob = NO_BYTES) -> Word:
        """The word, once it is written down."""
        assert now.masker is not None
        now.word = Word(now.masker.config.attempt, collection, payload, blob)
        self._save()
        return now.word

    def _save(self) -> None:
        now = self._now
        assert now is not None
        word = now.word
        facts = {
            "terms": now.terms.digest,
            "said": word.collection if word is not None else "",
            "payload": word.payload.hex() if word is not None else "",
            "digest": word.blob.digest if word is not None else "",
            "size": word.blob.size if word is not None else 0,
        }
        secrets = now.masker.dump() if now.masker is not None else b""
        self._journal.save(self._run, Entry(facts, secrets))


def _lanes(agreement: Agreement, update: Blob) -> Callable[[int, int, int], Array]:
    """A reader of the encoded update's lanes, by section."""
    sections = agreement.ring.sections

    def read(section: int, start: int, stop: int) -> Array:
        one = sections[section]
        width = one.nbytes // one.lanes
        data = update.window(one.offset + start * width, (stop - start) * width)
        return np.frombuffer(data, one.dtype)

    return read
