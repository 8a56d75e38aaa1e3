"""Sessions of secure aggregation in memory: real devices, the coordinator's real half, and what a test does between.

All randomness follows from a seed, by device, so a session can be played again.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob
from koinon_core.secagg import (
    Cohort,
    Config,
    Lane,
    Masker,
    PackedLayout,
    Recovery,
    Session,
    check_advert,
    form,
    unpack,
)
from koinon_core.secagg.hazmat import sign

LANES = (Lane(12, 37), Lane(8, 5), Lane(64, 3))
TERMS = "5e" * 32


class Stream:
    """Bytes that follow from a name: SHAKE-256 of it, read on. What was drawn is recorded."""

    def __init__(self, name: str):
        self._name, self._at = name.encode(), 0
        self.drawn: list[bytes] = []

    def __call__(self, size: int) -> bytes:
        self._at += size
        self.drawn.append(hashlib.shake_256(self._name).digest(self._at)[self._at - size :])
        return self.drawn[-1]


class Device:
    """A long-term identity: an Ed25519 key, and an entry that says whose."""

    def __init__(self, name: str, seed: int = 0):
        self.id = name
        self.private, self.public = sign.generate(Stream(f"identity {name} {seed}"))
        self.entry = b"entry " + self.public + name.encode()

    def sign(self, message: bytes) -> bytes:
        return sign.sign(self.private, message)


def trust(entry: bytes) -> tuple[str, bytes]:
    """Everybody's entry is believed, if it is one."""
    if entry[:6] != b"entry ":
        raise BadBlob("this is no roster entry")
    return entry[38:].decode(), entry[6:38]


def config(**changes) -> Config:
    return Config(**{"terms": TERMS, "gamma": 0.1, "delta": 0.1, "lanes": LANES, **changes})


def lanes_of(name: str, settings: Config, seed: int = 0) -> list[np.ndarray]:
    """A device's encoded update: uniform lanes, by section."""
    out = []
    for section, lane in enumerate(settings.lanes):
        raw = hashlib.shake_256(f"lanes {name} {seed} {section}".encode()).digest(lane.count * 8)
        numbers = np.frombuffer(raw, "<u8") & np.uint64((1 << lane.bits) - 1)
        out.append(numbers.astype(lane.dtype))
    return out


@dataclass
class World:
    """Devices and what the coordinator holds of their session; one group. Every device's masker is killed and loaded
    again around each of its steps if `kills`."""

    settings: Config
    maskers: dict[str, Masker]
    devices: dict[str, Device]
    seed: int = 0
    kills: bool = False
    adverts: dict[str, bytes] = field(default_factory=dict)
    session: Session | None = None
    shares: dict[str, bytes] = field(default_factory=dict)
    masked: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    consents: dict[str, bytes] = field(default_factory=dict)
    reveals: dict[str, bytes] = field(default_factory=dict)

    @property
    def cohort(self):
        return self.session.cohort

    def fork(self) -> "World":
        """The same again, to go on differently from here."""
        copied = copy.copy(self)
        for name in ("adverts", "shares", "masked", "uploads", "consents", "reveals"):
            setattr(copied, name, dict(getattr(self, name)))
        copied.maskers = {name: self.reload(name) for name in self.maskers}
        return copied

    def reload(self, name: str) -> Masker:
        """A device after a kill: from what it had written down, with the very same bytes."""
        masker = self.maskers[name]
        data = masker.dump()
        again = Masker.load(data, self.devices[name], trust, masker._entropy)
        assert again.dump() == data
        assert (again.phase, again.revealed) == (masker.phase, masker.revealed)
        return again

    def ask(self, name: str, step: Callable[[Masker], Any]) -> Any:
        if not self.kills:
            return step(self.maskers[name])
        self.maskers[name] = self.reload(name)
        said = step(self.maskers[name])
        self.maskers[name] = self.reload(name)
        assert step(self.maskers[name]) == said, "asked again after a kill, a device says the same"
        return said

    # -- the collections, each from the devices that are named (all) -----------------------------------------------

    def advertise(self, names: Iterable[str] | None = None) -> None:
        for name in self.maskers if names is None else names:
            self.adverts[name] = self.ask(name, lambda m: m.advertise())
            check_advert(self.settings, name, self.adverts[name], trust)

    def seat(self) -> None:
        """Close the collection of keys."""
        s = self.settings
        leaves = {name: sha256(advert) for name, advert in self.adverts.items()}
        (cohort,) = form(
            leaves, groups=s.groups, least=s.least, gamma=s.gamma, delta=s.delta, sigma=s.sigma, eta=s.eta,
            hardened=s.hardened,
        )  # fmt: skip
        self.session = self.sit(cohort, leaves)

    def sit(self, cohort: Cohort, leaves: Mapping[str, str]) -> Session:
        return Session(self.settings, cohort, self.adverts, list(leaves.values()), trust)

    def deal(self, names: Iterable[str] | None = None) -> None:
        for name in self.adverts if names is None else names:
            self.shares[name] = self.ask(name, lambda m, n=name: m.share(self.session.roster_for(n)))
            self.session.check_shares(name, self.shares[name])

    def mask(self, names: Iterable[str] | None = None) -> None:
        for name in self.shares if names is None else names:
            inbox = self.session.inbox_for(name, self.shares)
            self.ask(name, lambda m, inbox=inbox: m.receive(inbox))
            mine = self.lanes_of(name)
            upload = b"".join(self.maskers[name].pads.masked(lambda s, a, b, mine=mine: mine[s][a:b]))
            digest = hashlib.sha256(upload)
            sealed = (len(upload), digest.digest())
            self.masked[name] = self.ask(name, lambda m, sealed=sealed: m.seal(*sealed))
            said = self.session.check_masked(name, self.masked[name])
            assert (said.size, said.sha256) == (len(upload), digest.hexdigest())
            self.uploads[name] = upload

    def agree(self, names: Iterable[str] | None = None) -> None:
        who = self.session.survivors(self.shares, self.masked)
        for name in self.masked if names is None else names:
            self.consents[name] = self.ask(name, lambda m: m.consent(who))
            self.session.check_consent(name, self.consents[name], self.masked.keys())

    def open(self, names: Iterable[str] | None = None) -> None:
        for name in self.consents if names is None else names:
            quorum = self.session.quorum_for(name, self.consents)
            self.reveals[name] = self.ask(name, lambda m, quorum=quorum: m.reveal(quorum))
            self.session.check_reveal(name, self.reveals[name], self.shares.keys(), self.masked.keys())

    def recover(self) -> Recovery:
        return self.session.recover(self.shares, self.shares.keys(), self.masked.keys(), self.reveals)

    def lanes_of(self, name: str) -> list[np.ndarray]:
        return lanes_of(name, self.settings, self.seed)

    # -- the sum ----------------------------------------------------------------------------------------------------

    def sum(self, recovery: Recovery | None = None) -> list[np.ndarray]:
        """The lanes' sums, by section, as they come out of the masked bytes."""
        recovery = recovery or self.recover()
        sums = [np.zeros(lane.count, lane.dtype) for lane in self.settings.lanes]
        layout = PackedLayout(self.settings)
        for section, tile in layout.tiles():
            lane = self.settings.lanes[section]
            part = sums[section][slice(*lane.span(tile))]
            for upload in self.uploads.values():
                part += unpack(
                    self.settings, section, tile, memoryview(upload)[slice(*layout.range(section, tile))]
                )
            recovery.unmask(section, tile, part)
        return sums

    def plain(self) -> list[np.ndarray]:
        """What the sums must be: those of the devices in U3, modulo 2^bits."""
        sums = []
        for section, lane in enumerate(self.settings.lanes):
            total = np.zeros(lane.count, np.uint64)
            for name in self.masked:
                total += self.lanes_of(name)[section].astype(np.uint64)
            sums.append((total & np.uint64((1 << lane.bits) - 1)).astype(lane.dtype))
        return sums

    def check(self) -> Recovery:
        """The sum is exact."""
        recovery = self.recover()
        for got, expected in zip(self.sum(recovery), self.plain(), strict=True):
            np.testing.assert_array_equal(got, expected)
        return recovery


def world(devices: int | Iterable[str], *, seed: int = 0, kills: bool = False, **changes) -> World:
    """Devices d0, d1, ... that know of the config and have said nothing yet."""
    names = [f"d{i}" for i in range(devices)] if isinstance(devices, int) else list(devices)
    settings = config(**changes)
    people = {name: Device(name, seed) for name in names}
    maskers = {
        name: Masker(settings, device, trust, Stream(f"entropy {name} {seed}"))
        for name, device in people.items()
    }
    return World(settings, maskers, people, seed=seed, kills=kills)


def dealt(devices: int, **changes) -> World:
    """... whose shares are all in."""
    one = world(devices, **changes)
    one.advertise()
    one.seat()
    one.deal()
    return one


def played(devices: int, lost: Mapping[str, Iterable[str]] = {}, **changes) -> World:
    """A whole session, in which devices are lost before they deal, mask, agree or open."""
    one = world(devices, **changes)
    one.advertise()
    one.seat()
    gone: set[str] = set()
    for step in ("deal", "mask", "agree", "open"):
        gone |= set(lost.get(step, ()))
        getattr(one, step)([name for name in one.maskers if name not in gone])
    return one
