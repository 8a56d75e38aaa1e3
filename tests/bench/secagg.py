"""What secure aggregation costs, in the whole protocol as devices and coordinator speak it; one core, no network.

mask_rate_vs_keystream   a device's masks, expanded and added, as a share of the raw AES-256-GCM keystream of the
                         cryptography library in the same run (51 masks, tiles of 1 MiB)
client_keys_n1000_s      of one device among 1,000 (k/t = 114/78): keys, the roster checked, shares dealt and sealed
client_inbox_n1000_s     its neighbours' shares checked and opened
client_mask_n1000_s      a million 16-bit lanes masked and packed
recover_n100_d1e6_s      the coordinator's: 10 of 100 (32/22) lost after their shares: secrets put together and checked,
                         masks of a million 16-bit lanes taken off the sum
recover_n500_d1e5_s      50 of 500 (94/64), 100,000 lanes
upload_bytes_per_param   LEVEL.upload_..., LEVEL.mean_nmse: of 100 devices' masked updates (secure_encoding.py)

Every recovered sum is compared with the plain one.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM

from koinon_core.canonical import sha256
from koinon_core.identity import Entry, Trust
from koinon_core.secagg import Cohort, Config, Lane, Masker, PackedLayout, Session, form, unpack
from koinon_core.secagg.hazmat import sign, stream
from report import arguments, figure, report
from secure_encoding import encoding

DOMAIN = "bench"
MASKS = 51
TILES = 16
ROSTER_SECRET, ROSTER_KEY = sign.generate(os.urandom)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


class Device:
    """A device of a federation, with its line in the roster."""

    def __init__(self, name: str):
        self.id = name
        self._secret, public = sign.generate(os.urandom)
        self.entry = Entry(id=name, key=public, domain=DOMAIN, since=0).signed_by(ROSTER_SECRET).encoded

    def sign(self, message: bytes) -> bytes:
        return sign.sign(self._secret, message)


def trust() -> Trust:
    """Nobody was ever met before: every entry is checked."""
    return Trust(DOMAIN, ROSTER_KEY)


class Round:
    """A round of `count` devices with `lanes` 16-bit lanes, up to the advertisements."""

    def __init__(self, count: int, lanes: int):
        self.config = Config(terms="5e" * 32, least=3, gamma=0.1, delta=0.1, lanes=(Lane(16, lanes),))
        names = [f"device-{i}" for i in range(count)]
        self.maskers = {n: Masker(self.config, Device(n), trust(), os.urandom) for n in names}
        self.adverts = {n: masker.advertise() for n, masker in self.maskers.items()}
        leaves = {n: sha256(advert) for n, advert in self.adverts.items()}
        (self.cohort,) = form(leaves, least=3, gamma=0.1, delta=0.1)
        self.session = Session(self.config, self.cohort, self.adverts, list(leaves.values()), trust())

    def deal(self, names: Sequence[str]) -> dict[str, bytes]:
        return {n: self.maskers[n].share(self.session.roster_for(n)) for n in names}

    def read(self, plain: np.ndarray) -> Callable[[int, int, int], np.ndarray]:
        return lambda _, start, stop: plain[start:stop]


def keystream_share() -> dict[str, dict[str, Any]]:
    """Tile after tile, as masks are made: the best of several passes of each, for both are disturbed alike."""
    lanes = np.zeros(stream.TILE_BYTES // 2, "<u2")
    seeds = [(os.urandom(32), 1 if i % 2 else -1) for i in range(MASKS)]
    zeros, out = bytes(stream.TILE_BYTES), bytearray(stream.TILE_BYTES + 16)
    shares = []
    for _ in range(5):
        raw, _ = seconds(
            lambda: [
                Cipher(AES256(os.urandom(32)), GCM(bytes(12))).encryptor().update_into(zeros, out)
                for _ in range(MASKS)
            ]
        )
        made, _ = seconds(lambda: stream.accumulate(lanes, 0, seeds))
        shares.append(-raw / made)
    whole, _ = seconds(lambda: [stream.accumulate(lanes, tile, seeds) for tile in range(TILES)])
    rate = TILES * MASKS * stream.TILE_BYTES / whole
    # A figure is missed when it is above its target; this one must be at least 0.6.
    found = figure(shares, "", -0.6)
    return {
        "mask_rate_vs_keystream": {
            **found,
            "value": -found["value"],
            "target": 0.6,
            "runs": [-s for s in shares],
        },
        "mask_rate": figure([rate / 1e9], "GB/s"),
    }


def one_of_a_thousand(repeats: int) -> dict[str, dict[str, Any]]:
    runs = [_one_of_a_thousand() for _ in range(repeats)]
    keys, inboxes, masks = zip(*runs, strict=True)
    return {
        "client_keys_n1000_s": figure(list(keys), "s", 0.03),
        "client_inbox_n1000_s": figure(list(inboxes), "s"),
        "client_mask_n1000_s": figure(list(masks), "s", 0.04),
    }


def _one_of_a_thousand() -> tuple[float, float, float]:
    around = Round(1000, 1_000_000)
    me = next(iter(around.maskers))
    masker = around.maskers[me]
    dealt = around.deal([n for n in around.cohort.neighbours(me) if n != me])
    roster, device = around.session.roster_for(me), Device(me)
    advertised, _ = seconds(lambda: Masker(around.config, device, trust(), os.urandom).advertise())
    shared, said = seconds(lambda: masker.share(roster))
    inbox = around.session.inbox_for(me, {**dealt, me: said})
    opened, unread = seconds(lambda: masker.receive(inbox))
    assert not unread
    plain = np.arange(1_000_000, dtype="<u2")
    masked, _ = seconds(lambda: [len(t) for t in masker.pads.masked(around.read(plain))])
    return advertised + shared, opened, masked


def recovery(count: int, lanes: int, lost: int, name: str, target: float) -> dict[str, dict[str, Any]]:
    """The sum of those who are left, opened on one core."""
    around = Round(count, lanes)
    everyone = list(around.maskers)
    dealt = around.deal(everyone)
    for n in everyone:
        around.maskers[n].receive(around.session.inbox_for(n, dealt))
    stay = everyone[lost:]
    layout = PackedLayout(around.config)
    total, wanted = np.zeros(lanes, "<u2"), np.zeros(lanes, "<u2")
    for i, n in enumerate(stay):
        plain = np.full(lanes, i, "<u2")
        wanted += plain
        masked = b"".join(bytes(t) for t in around.maskers[n].pads.masked(around.read(plain)))
        for section, tile in layout.tiles():
            start, stop = around.config.lanes[section].span(tile)
            first, last = layout.range(section, tile)
            total[start:stop] += unpack(around.config, section, tile, masked[first:last])
        around.maskers[n].seal(len(masked), bytes.fromhex(sha256(masked)))
    survivors = around.session.survivors(everyone, stay)
    consents = {n: around.maskers[n].consent(survivors) for n in stay}
    reveals = {n: around.maskers[n].reveal(around.session.quorum_for(n, consents)) for n in stay}

    def opened() -> np.ndarray:
        recovered = around.session.recover(dealt, everyone, stay, reveals)
        left = total.copy()
        for section, tile in layout.tiles():
            start, stop = around.config.lanes[section].span(tile)
            recovered.unmask(section, tile, left[start:stop])
        return left

    runs = []
    for _ in range(3):
        took, left = seconds(opened)
        assert np.array_equal(left, wanted), "the sum that was opened is another"
        runs.append(took)
    k, t = around.cohort.k, around.cohort.t
    return {
        name: {
            **figure(runs, "s", target),
            "k": k,
            "t": t,
            "expansions": _expansions(around.cohort, everyone[:lost]),
        }
    }


def _expansions(cohort: Cohort, lost: Sequence[str]) -> int:
    gone = set(lost)
    pairs = sum(len(cohort.neighbours(v) - gone - {v}) for v in lost)
    return len(cohort.order) - len(lost) + pairs


def uploads() -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}
    for level in ("fine", "balanced", "compact"):
        found = encoding(level)
        figures[f"{level}.upload_bytes_per_param"] = found[f"{level}.bytes"]
        figures[f"{level}.mean_nmse"] = found[f"{level}.nmse"]
    return figures


def main() -> None:
    given = arguments(__doc__ or "", repeats=3)
    figures = keystream_share()
    figures |= one_of_a_thousand(given.repeats)
    figures |= recovery(100, 1_000_000, 10, "recover_n100_d1e6_s", 0.3)
    figures |= recovery(500, 100_000, 50, "recover_n500_d1e5_s", 0.6)
    report("secagg", {**figures, **uploads()}, given.json)


if __name__ == "__main__":
    main()
