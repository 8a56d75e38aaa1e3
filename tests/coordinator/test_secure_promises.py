"""What a coordinator promises of secure rounds: whoever spoils one is named and left out, whoever lost its part is
asked again, and the event loop waits for no database."""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from koinon_coordinator.admission import Voice, hear
from koinon_coordinator.book import Item
from koinon_coordinator.devices import Devices
from koinon_coordinator.store import Part, Store
from koinon_coordinator.store.folder import Folder
from koinon_coordinator.store.uploads import Uploads
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.identity import Trust
from koinon_core.round.machine import Round
from koinon_core.secagg.adverts import write_advert
from koinon_core.secure.sessions import config_of
from koinon_core.wire.v1 import fleet_pb2 as pb
from koinon_core.wire.v1 import secagg_pb2
from lab import Lab, driven, noise, until
from speaking import WORDS, Speaker

TRUST = Trust.loose()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(f"sqlite:///{tmp_path / 'koinon.db'}")
    yield one
    one.close()


class Play:
    """A secure run of five devices c0 to c4, of which any three are enough; `lies` says which of them lie, and in
    which word."""

    def __init__(self, store: Store, devices: int = 5, **lies: str):
        self.lab = Lab.create(
            store, devices=devices, aggregation="secure", codec="exact", min_clients=3, clients=devices
        )
        self.store = store
        self.people = {name: Speaker(name, lies.get(name, "")) for name in self.lab.names}
        self.lab.open()

    @property
    def round(self) -> Round:
        assert self.lab.run.round is not None
        return self.lab.run.round

    def item(self, name: str, word: bytes | None = None) -> Item:
        """What becomes of a device's word (its own) in the collection that is open."""
        r, sessions, one = self.round, self.lab.ledger.sessions, self.people[name]
        if word is None:
            word = one.say(r.terms, r.stage, sessions.call(name), r.masking.attempt)
        upload = one.upload if r.stage == "masked" else b""
        voice = Voice(
            client=name, round=r.terms.round, attempt=r.masking.attempt, collection=r.stage, terms=r.terms.digest,
            payload=word, digest=sha256(upload) if upload else "", size=len(upload), data=upload,
        )  # fmt: skip
        return hear(self.store, self.lab.run, sessions, voice, TRUST, self.lab.clock())

    def speak(self, names: Iterable[str] | None = None) -> None:
        """Everybody who is awaited, or these, say their words in one turn."""
        names = sorted(self.round.masking.now.awaited) if names is None else names
        self.lab.turn(*[self.item(name) for name in names])

    def play(self, upto: str) -> "Play":
        """All collections before this one."""
        for collection in WORDS[: WORDS.index(upto)]:
            assert self.round.stage == collection
            self.speak()
        assert self.round.stage == upto
        return self

    def told(self, name: str, engaged: int) -> list[str]:
        """What a device is told that offers itself."""
        said = self.lab.ledger.turn([Item(runs.Offered(self.lab.clock(), name, engaged=engaged))])
        messages = [m for one in said for m in pb.AttendResponse.FromString(one.message).messages]
        assert {one.client for one in said} == {name}
        return [m.WhichOneof("says") or "" for m in messages]

    def incidents(self, code: str) -> set[str]:
        return {i.client for i in self.store.incidents(self.lab.run.id) if i.code == code}


# -- whoever spoils it for all --------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("stolen", "used"), [("sealing", "sealing"), ("masking", "masking"), ("masking", "sealing")]
)
def test_a_device_that_advertises_anothers_key_is_left_out_and_the_others_go_on(
    store: Store, stolen: str, used: str, together: bool
) -> None:
    """They would all refuse to share with two devices of one key, whoever of them had it first."""
    play = Play(store)
    first, own = play.item("c0"), play.item("c1")
    assert first.payload is not None
    assert own.payload is not None
    theirs, mine = (secagg_pb2.Advert.FromString(item.payload.data) for item in (first, own))
    setattr(mine, used, getattr(theirs, stolen))
    config = config_of(play.round.terms, 0)
    second = play.item("c1", write_advert(config, play.people["c1"], mine.sealing, mine.masking))
    for items in [(first, second)] if together else [(first,), (second,)]:
        play.lab.turn(*items)
    assert set(play.round.masking.now.heard) == {"c0"}
    assert play.round.update.left == {"c1": "refused: it advertises a key that another device has"}
    play.lab.turn(first)
    assert play.incidents("REFUSED") == {"c1"}, "its own, said again, is no theft"
    play.play("reveal")
    assert play.round.accepted == ("c0", "c2", "c3", "c4")


def test_whose_key_was_taken_is_still_known_after_a_restart(store: Store) -> None:
    play = Play(store)
    first = play.item("c0")
    assert first.payload is not None
    play.lab.turn(first)
    theirs = secagg_pb2.Advert.FromString(first.payload.data)
    play.lab = Lab.take_up(store, play.lab.row, devices=5, clock=play.lab.clock)
    config, fresh = config_of(play.round.terms, 0), bytes(range(1, 33))
    play.lab.turn(play.item("c1", write_advert(config, play.people["c1"], theirs.sealing, fresh)))
    assert "a key that another device has" in play.round.update.left["c1"]


def test_a_dealer_whose_shares_open_nothing_is_named_and_in_no_further_round(store: Store) -> None:
    play = Play(store, c3="shares").play("reveal")
    play.speak()
    assert play.round.masking.thorough, "the rest of the answers might have opened it"
    play.speak()
    first = store.rounds(play.lab.run.id)[0]
    assert (first.stage, play.lab.run.number) == ("abandoned", 2)
    assert "the secrets of c3 cannot be put together" in first.reason
    assert play.incidents("SHARES") == {"c3"}
    play.lab.open()
    play.lab.clock.now += play.round.terms.join_wait
    play.lab.turn(runs.Tick(play.lab.clock()))
    assert play.round.update.asked == {"c0", "c1", "c2", "c4"}
    play.people = {name: Speaker(name) for name in play.people}
    play.play("reveal")
    assert play.round.accepted == ("c0", "c1", "c2", "c4")


def test_nobody_is_blamed_for_what_others_gave_back(store: Store) -> None:
    """Too many of them lie for any sum to be opened: that is not the fault of those who dealt."""
    play = Play(store, c0="reveal", c1="reveal").play("reveal")
    play.speak()
    play.speak()
    first = store.rounds(play.lab.run.id)[0]
    assert first.stage == "abandoned"
    assert "cannot be put together" in first.reason
    assert play.incidents("SHARES") == play.lab.run.barred == frozenset()


# -- whoever lost its part ------------------------------------------------------------------------------------


def test_a_device_that_comes_back_without_the_rounds_work_gets_it_with_the_call(store: Store) -> None:
    play = Play(store).play("shares")
    assert play.told("c0", engaged=0) == ["ask", "call"]
    assert play.told("c1", engaged=play.lab.run.number) == ["call"], "and whoever has it hears the call alone"


def test_five_attempts_at_one_sum_can_be_uploaded(tmp_path: Path) -> None:
    uploads, part = Uploads(Folder(tmp_path / "blobs")), Part("r", 1, "c0")
    for attempt in range(5):
        data = noise(attempt, 30_000).tobytes()
        incoming = uploads.receive(part, sha256(data), len(data))
        assert incoming is not None
        with incoming:
            incoming.write(data)
            incoming.finish()
        assert uploads.has(part, sha256(data))


# -- the federation -------------------------------------------------------------------------------------------


def test_the_event_loop_looks_nobody_up_who_advertises(store: Store) -> None:
    threads: list[int] = []

    def trust(entry: bytes) -> tuple[str, bytes]:
        threads.append(threading.get_ident())
        return TRUST(entry)

    async def play() -> None:
        async with driven(store, min_clients=3, clients=3, codec="exact") as (federation, run):
            federation.trust, devices = trust, Devices(federation)
            driver = federation.drivers[run.id]
            attached = [federation.roster.attach(f"c{i}", f"i{i}") for i in range(3)]
            for one in attached:
                devices.join(one, run.id)
                await devices.offer(one, run.id, False, 0)
            await until(driver, lambda: driver.run.round is not None and driver.run.round.stage == "keys")
            assert driver.run.round is not None
            terms = driver.run.round.terms
            word = Speaker("c0").say(terms, "keys", b"")
            voice = Voice(
                client="c0", round=1, attempt=0, collection="keys", terms=terms.digest, payload=word
            )
            await devices.voice(attached[0], run.id, voice)
            await until(driver, lambda: "c0" in driver.run.round.masking.now.heard)  # type: ignore[union-attr]

    asyncio.run(play())
    assert threads, "it was looked up"
    assert threading.get_ident() not in threads


def test_a_coordinator_that_lost_a_run_can_read_none_of_its_words(store: Store, tmp_path: Path) -> None:
    async def play() -> None:
        async with driven(store, min_clients=3, clients=3, codec="exact") as (federation, run):
            store.vault.seal(run.id, 1, b"a word", "1/0/keys/c0")
            other = Store(str(store.database.url), tmp_path / "other", alone=False)
            try:
                driver = federation.drivers[run.id]
                other.release(run.id, driver.ledger.epoch, federation.clock())
                other.take(run.id, federation.clock())
                driver.tell(runs.Offered(federation.clock(), "c0"))
                await until(driver, lambda: run.id not in federation.drivers)
                assert store.vault.rounds() == []
                assert "another coordinator" in str(federation.aside[run.id])
            finally:
                other.close()

    asyncio.run(play())
