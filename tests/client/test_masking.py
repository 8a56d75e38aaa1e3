"""A device's part in a secure round, word by word, through kills and power cuts."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from koinon.masking import Masking, Word
from koinon.outbox.journal import MemoryJournal
from koinon.outbox.secrets import DiskJournal
from koinon_core.canonical import sha256
from koinon_core.errors import LocalProtocolError, RemoteProtocolError
from koinon_core.secagg.cohort import form
from koinon_core.secagg.unmasker import Session
from koinon_core.secure.sessions import config_of
from koinon_core.strategy import FedAvg
from koinon_core.tensors import Tensors
from koinon_core.update import Head
from sessions import Device, trust
from summing import Federation, spec_of

WORDS = ("keys", "shares", "masked", "consistent", "reveal")
ME = "d2"


class Play:
    """Four devices in one round; `me` is the one that is looked at, and its journal is on disk."""

    def __init__(self, folder: Path | None = None, names: tuple[str, ...] = ("d0", "d1", ME, "d3")):
        model = {"x": np.zeros(5)}
        fed = Federation(spec_of(FedAvg(), model, codec="exact"), Tensors(model))
        self.terms, self.folder = fed.terms(len(names)), folder
        self.updates = {
            name: fed.prepare(name, self.terms, {"x": np.full(5, float(i))}, Head(examples=1)).blob
            for i, name in enumerate(names)
        }
        self.people = {name: Device(name) for name in names}
        self.at = {name: self._fresh(name) for name in names}
        for name, masking in self.at.items():
            masking.provide(self.terms, self.updates[name])
        self.said: dict[str, dict[str, bytes]] = {}

    def _fresh(self, name: str) -> Masking:
        if name != ME or self.folder is None:
            return Masking("r", self.people[name], trust, MemoryJournal())
        (self.folder / "outbox").mkdir(exist_ok=True)
        journal = DiskJournal(self.folder / "outbox", self.folder / "memory")
        return Masking("r", self.people[name], trust, journal)

    @property
    def me(self) -> Masking:
        return self.at[ME]

    def kill(self) -> Masking:
        """The device's next process, which goes on from what is on disk."""
        self.at[ME] = self._fresh(ME)
        self.me.resume(self.terms, self.updates[ME])
        return self.me

    def hear(self, name: str, collection: str, attempt: int = 0) -> Word | None:
        return self.at[name].called(1, attempt, collection, self.call(name, collection))

    def call(self, name: str, collection: str) -> bytes:
        match collection:
            case "shares":
                return self.session.roster_for(name)
            case "masked":
                return self.session.inbox_for(name, self.said["shares"])
            case "consistent":
                return self.session.survivors(self.at, self.at)
            case "reveal":
                return self.session.quorum_for(name, self.said["consistent"])
        return b""

    def play(self, upto: str) -> Word:
        """All collections up to this one; what the device said in it."""
        word = None
        for collection in WORDS[len(self.said) : WORDS.index(upto) + 1]:
            words = {
                name: self.at[name].say(1) if collection == "keys" else self.hear(name, collection)
                for name in self.at
            }
            self.said[collection] = {name: one.payload for name, one in words.items() if one is not None}
            word = words[ME]
            if collection == "keys":
                leaves = {name: sha256(advert) for name, advert in self.said["keys"].items()}
                config = config_of(self.terms, 0)
                (cohort,) = form(leaves, least=3, gamma=config.gamma, delta=config.delta)
                self.session = Session(config, cohort, self.said["keys"], list(leaves.values()), trust)
        assert word is not None
        return word


@pytest.mark.parametrize("upto", WORDS)
def test_a_killed_device_says_the_same_word_again(upto: str, tmp_path: Path) -> None:
    play = Play(tmp_path)
    before = play.play(upto)
    again = play.kill().say(1)
    assert (again.attempt, again.collection, again.payload) == (0, upto, before.payload)
    assert again.blob.digest == before.blob.digest
    assert bytes(again.blob.bytes()) == bytes(before.blob.bytes())


def test_killed_after_every_word_it_is_in_the_sum_all_the_same(tmp_path: Path) -> None:
    play = Play(tmp_path)
    for collection in WORDS:
        play.play(collection)
        play.kill()
    names = frozenset(play.at)
    assert play.session.recover(play.said["shares"], names, names, play.said["reveal"]).suspects == ()


def test_killed_before_it_had_an_update_it_has_the_same_keys(tmp_path: Path) -> None:
    play = Play(tmp_path)
    masking = play._fresh(ME)
    masking.open(play.terms)
    word = masking.say(1)
    again = play._fresh(ME)
    again.open(play.terms)
    assert again.say(1).payload == word.payload


@pytest.mark.parametrize("upto", WORDS)
def test_without_its_secrets_it_drops_out_and_says_why(upto: str, tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.play(upto)
    shutil.rmtree(tmp_path / "memory")
    masking = play.kill()
    with pytest.raises(LocalProtocolError, match="lost its power: it drops out"):
        masking.say(1)
    for collection in WORDS:
        with pytest.raises(LocalProtocolError, match="lost its power"):
            masking.called(1, 1, collection, b"")


def test_a_masked_update_that_is_not_whole_is_not_masked_again(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.play("masked")
    (path,) = (tmp_path / "outbox" / "masked").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LocalProtocolError, match="drops out"):
        play.kill().say(1)


@pytest.mark.parametrize("kill", [False, True])
def test_whoever_has_revealed_joins_no_further_attempt(kill: bool, tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.play("reveal")
    masking = play.kill() if kill else play.me
    with pytest.raises(RemoteProtocolError, match="joins no second one"):
        masking.called(1, 1, "keys", b"")


@pytest.mark.parametrize("kill", [False, True])
def test_another_attempt_has_fresh_keys_and_masks_the_same_update_otherwise(
    kill: bool, tmp_path: Path
) -> None:
    play = Play(tmp_path)
    masked, first = play.play("masked"), play.said["keys"][ME]
    masking = play.kill() if kill else play.me
    word = masking.called(1, 1, "keys", b"")
    assert word is not None
    assert (word.attempt, word.collection) == (1, "keys")
    assert word.payload != first
    assert masked.blob.digest != play.updates[ME].digest
    with pytest.raises(RemoteProtocolError, match="attempt 0 is over"):
        masking.called(1, 0, "keys", b"")


def test_more_attempts_than_the_terms_allow_are_refused() -> None:
    play = Play()
    with pytest.raises(RemoteProtocolError, match="fewer attempts"):
        play.me.called(1, play.terms.secure["attempts"], "keys", b"")


@pytest.mark.parametrize("kill", [False, True])
def test_it_masks_once_and_agrees_once(kill: bool, tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.play("shares")
    word = play.hear(ME, "masked")
    masking = play.kill() if kill else play.me
    fewer = {name: said for name, said in play.said["shares"].items() if name != "d0"}
    with pytest.raises(RemoteProtocolError, match="told something else"):
        masking.called(1, 0, "masked", play.session.inbox_for(ME, fewer))
    again = masking.called(1, 0, "masked", play.call(ME, "masked"))
    assert again is not None
    assert word is not None
    assert again.payload == word.payload
    masking.called(1, 0, "consistent", play.call(ME, "consistent"))
    masking = play.kill() if kill else masking
    with pytest.raises(RemoteProtocolError, match="told something else"):
        masking.called(1, 0, "consistent", play.session.survivors(play.at, set(play.at) - {"d0"}))


def test_a_word_waits_for_the_update_that_it_needs() -> None:
    play = Play()
    play.play("shares")
    play.me._now.update = None  # type: ignore[union-attr]
    assert play.hear(ME, "masked") is None
    assert play.hear(ME, "masked") is None
    fewer = {name: said for name, said in play.said["shares"].items() if name != "d0"}
    with pytest.raises(RemoteProtocolError, match="the first ones count"):
        play.me.called(1, 0, "masked", play.session.inbox_for(ME, fewer))
    play.me.provide(play.terms, play.updates[ME])
    assert play.me.say(1).collection == "masked"


def test_another_attempt_waits_for_its_own_shares() -> None:
    play = Play()
    play.play("shares")
    play.me._now.update = None  # type: ignore[union-attr]
    assert play.hear(ME, "masked") is None
    play.me.called(1, 1, "keys", b"")
    assert play.me.called(1, 1, "masked", b"shares of the other attempt") is None


def test_at_the_end_nothing_is_left(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.play("reveal")
    play.me.end(1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(RemoteProtocolError, match="in no sum of round 1"):
        play.me.say(1)


def test_the_end_of_a_round_leaves_the_keys_of_the_next_one(tmp_path: Path) -> None:
    """Which began before its process was killed, while what became of the round before was not on disk yet."""
    play = Play(tmp_path)
    play.play("reveal")
    later = replace(play.terms, round=2)
    play.me.end(1)
    play.me.open(later)
    keys = play.me.say(2)
    masking = play.kill()
    masking.end(1)
    masking.open(later)
    assert masking.say(2).payload == keys.payload


def test_the_end_of_another_round_changes_nothing() -> None:
    play = Play()
    word = play.play("keys")
    play.me.end(7)
    assert play.me.say(1) == word
