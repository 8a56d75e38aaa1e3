"""What the core promises of secure rounds: what no honest device says costs nobody but its sender."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob, UsageError
from koinon_core.identity import Trust
from koinon_core.ring import Device, Group, Ring, Seeds, Sum, decode, encode
from koinon_core.round import events, masked
from koinon_core.round.machine import Round, step
from koinon_core.secure.sessions import Sessions
from koinon_core.strategy import FedAvg
from koinon_core.tensors import Tensors
from speaking import WORDS, Speaker
from summing import Federation, spec_of

MODEL = {"x": np.zeros(5)}
SEEDS = Seeds(bytes(32), "run", 1)


# -- words ----------------------------------------------------------------------------------------------------


class Session:
    """A round of four devices, with what they said."""

    def __init__(self) -> None:
        self.people = {f"d{i}": Speaker(f"d{i}") for i in range(4)}
        self.round = joined(self.people)
        self.said: dict[tuple[str, str], bytes] = {}
        self.known: dict[int, Any] = {}

    @property
    def sessions(self) -> Sessions:
        return Sessions(self.round, self.said, self.known)

    def words(self) -> dict[str, bytes]:
        """What everybody has to say in the collection that is open."""
        r, sessions = self.round, self.sessions
        return {c: one.say(r.terms, r.stage, sessions.call(c)) for c, one in self.people.items()}

    def take(self, words: dict[str, bytes]) -> None:
        stage = self.round.stage
        for client, word in words.items():
            heard = self.sessions.check(client, word, Trust.loose())
            self.said[stage, client] = word
            voiced = events.Voiced(1.0, client, stage, 0, heard.digest, heard.missing)
            self.round, _ = step(self.round, voiced)

    def upto(self, collection: str) -> "Session":
        while self.round.stage != collection:
            self.take(self.words())
        return self


def joined(clients: Iterable[str]) -> Round:
    """A secure round that asks these devices for their keys."""
    names = list(clients)
    federation = Federation(
        spec_of(FedAvg(), MODEL, codec="exact", max_clients=len(names), population=len(names)), Tensors(MODEL)
    )
    r, _ = step(None, events.Opened(0.0, federation.terms(len(names))))
    for name in names:
        r, _ = step(r, events.Heard(0.0, name, "joined"))
    assert r.stage == "keys"
    return r


def voiced(client: str, collection: str) -> events.Voiced:
    return events.Voiced(1.0, client, collection, 0, sha256(f"{client} {collection}".encode()))


def junk(size: int) -> bytes:
    """A field that no message has, with so many bytes in it: whoever parses the message steps over them."""
    length = bytearray()
    left = size
    while left:
        length.append(left & 127 | (128 if left > 127 else 0))
        left >>= 7
    return b"\xfa\x7f" + bytes(length) + bytes(size)


@pytest.mark.parametrize("collection", WORDS)
def test_a_word_with_junk_behind_it_is_refused(collection: str) -> None:
    """It would be kept with the word, and told to others."""
    session = Session().upto(collection)
    words = session.words()
    with pytest.raises(BadBlob, match=r"bytes are (too many|more than)"):
        session.sessions.check("d0", words["d0"] + junk(10_000), Trust.loose())
    session.take(words)
    assert not session.round.over
    assert session.round.stage != collection


# -- the round ------------------------------------------------------------------------------------------------


def test_a_word_for_no_collection_changes_nothing() -> None:
    names = [f"d{i}" for i in range(4)]
    r = joined(names)
    for collection in WORDS:
        for name in names:
            if r.stage != "folding":
                r, _ = step(r, voiced(name, collection))
    assert r.stage == "folding"
    (late,) = r.masking.now.awaited
    after, told = step(r, voiced(late, "folding"))
    assert after is r
    assert told == ()


def test_the_whole_graph_is_looked_at_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once somebody has left, each look at whether waiting still helps costs all of it."""
    names = [f"d{i}" for i in range(256)]
    r = joined(names)
    for name in names:
        r, _ = step(r, voiced(name, "keys"))
    r, _ = step(r, events.Left(1.0, "d0", "DECLINED"))
    looks, right = [], masked._sharing
    monkeypatch.setattr(masked, "_sharing", lambda *about: (looks.append(1), right(*about))[1])
    for name in names[1:129]:
        r, _ = step(r, voiced(name, "shares"))
    assert r.stage == "shares"
    assert 1 <= len(looks) <= 128 // 4


# -- the sum --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "most"), [("mean", 2.0), ("sum", 2.0 * 3)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_beyond_what_its_devices_can_give_is_refused(rule: Any, most: float, sign: int) -> None:
    group = Group(name="loss", size=4, bits=64, grid=24, bound=2.0, rotated=False, rule=rule)
    ring, names = Ring(groups=(group,), devices=3, max_weight=8), ["a", "b", "c"]

    def read(beyond: float) -> list[float]:
        total, found = Sum(ring), np.zeros(4)
        for name, weight in zip(names, (1, 8, 5), strict=True):
            device = Device(name=name, weight=weight)
            values = {"loss": lambda a, b: np.full(b - a, 2.0 * sign)}
            for at, lanes in encode(ring, SEEDS, device, values):
                total.add(lanes.tobytes(), at)
        # What one of them adds that its own encoder would never make.
        total.lanes(ring.sections[0])[2:3] += (
            np.array([sign * beyond * 2**24]).astype(np.int64).view(np.uint64)
        )
        decode(total, SEEDS, names, {"loss": lambda at, x: found.__setitem__(slice(at, at + len(x)), x)})
        return list(found)

    assert read(0.0) == [most * sign] * 4, "all of it is what they may give"
    with pytest.raises(BadBlob, match="group 'loss' is beyond what 3 devices can give"):
        read(1.0)


# -- the spec -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"delta": 0.5}, "delta = 0.5 suit no group of 3 devices"),
        ({"gamma": 0.5}, "gamma = 0.5 and delta = 0.1 suit no group of 4 devices"),
        ({"delta": 0.44, "min_clients": 65}, "suit no group of 65 devices: no ring withstands"),
        (
            {"max_clients": 100_000, "population": 100_000},
            "up to 65535 devices, and this run's may have 100000",
        ),
        ({"keys": "early", "clients": 10, "over_selection": 3.0}, "over_selection = 1, or keys = 'ready'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_run_that_may_have_rounds_without_a_sum_is_refused_at_submission(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        spec_of(FedAvg(), MODEL, **values)
