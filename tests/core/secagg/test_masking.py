"""Masks hide every update and vanish in the sum; a device says everything once, and forgets what it no longer needs."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon_core.errors import BadBlob, LocalProtocolError, RemoteProtocolError, UsageError
from koinon_core.secagg import Lane, Masker, PackedLayout, form, unpack
from koinon_core.secagg.hazmat import agree
from koinon_core.secagg.pads import Pads, own_seed, pair_seed, sign_of
from koinon_core.wire.v1 import secagg_pb2 as pb
from sessions import Device, Stream, config, dealt, played, trust, world

WIDTHS = tuple(
    Lane(bits, count) for bits, count in ((1, 9), (7, 30), (12, 41), (16, 3), (20, 8), (33, 5), (64, 2))
)


@pytest.mark.parametrize("devices", [3, 5, 16, 70])
def test_the_sum_is_exact(devices):
    assert played(devices, lanes=WIDTHS).check().suspects == ()


def test_the_sum_is_exact_over_several_tiles():
    lanes = (Lane(8, (1 << 20) + 1), Lane(12, (1 << 19) - 1), Lane(40, (2 << 17) + 5))
    assert [lane.tiles for lane in lanes] == [2, 1, 3]
    played(3, lanes=lanes).check()


def test_a_device_killed_around_every_step_says_the_same():
    played(5, {"mask": ["d3"]}, kills=True).check()
    played(70, {"mask": ["d3", "d9"], "open": ["d4"]}, kills=True).check()


def test_no_device_needs_what_a_kill_took():
    one = world(4)
    one.advertise()
    one.seat()
    one.deal()
    inbox = one.session.inbox_for("d0", one.shares)
    one.maskers["d0"].receive(inbox)
    lanes = np.zeros(37, "<u2")
    again = np.zeros(37, "<u2")
    one.maskers["d0"].pads.apply(0, 0, lanes)
    one.reload("d0").pads.apply(0, 0, again)
    assert lanes.any()
    np.testing.assert_array_equal(lanes, again)


# -- what masks hide ----------------------------------------------------------------------------------------------


def chi_square(data: bytes) -> float:
    """Of the bytes' frequencies; 255 degrees of freedom: mean 255, and above 400 once in 10^8."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("bits", [8, 12, 20, 64])
def test_masked_bytes_of_nothing_but_zeros_are_uniform(bits):
    one = dealt(3, lanes=(Lane(bits, 1 << 15),))
    uploads = []
    for name in one.maskers:
        one.maskers[name].receive(one.session.inbox_for(name, one.shares))
        zeros = np.zeros(1 << 15, one.settings.lanes[0].dtype)
        uploads.append(b"".join(one.maskers[name].pads.masked(lambda s, a, b, zeros=zeros: zeros[a:b])))
        assert not zeros.any(), "what is masked is not changed"
    assert chi_square(bytes(len(uploads[0]))) > 1e6
    assert all(chi_square(upload) < 400 for upload in uploads)
    for one_upload, other in combinations(uploads, 2):
        apart = np.frombuffer(one_upload, np.uint8) ^ np.frombuffer(other, np.uint8)
        assert chi_square(apart.tobytes()) < 400


def test_a_sum_without_one_of_its_devices_stays_hidden():
    one = played(5, lanes=(Lane(8, 1 << 15),))
    recovery = one.recover()
    missing = one.uploads.pop("d2")
    assert chi_square(one.sum(recovery)[0].tobytes()) < 400
    one.uploads["d2"] = missing
    apart = one.sum(recovery)[0] - one.plain()[0]
    assert not apart.any()


def test_every_section_and_tile_has_a_mask_of_its_own():
    lanes = (Lane(8, 2 << 20), Lane(8, 1 << 20))
    pads = Pads(config(lanes=lanes), [(b"s" * 32, 1)])
    seen = set()
    for section, tile in PackedLayout(pads.config).tiles():
        part = np.zeros(1 << 20, np.uint8)
        pads.apply(section, tile, part)
        seen.add(part[:64].tobytes())
    assert len(seen) == 3


@settings(max_examples=60)
@given(st.data())
def test_masks_of_any_graph_cancel_when_all_of_it_is_in_the_sum(data):
    devices = data.draw(st.integers(2, 7))
    edges = [e for e in combinations(range(devices), 2) if data.draw(st.booleans())]
    lane = Lane(data.draw(st.integers(1, 64)), data.draw(st.integers(1, 50)))
    settled = config(lanes=(lane,))
    keys = [agree.generate(Stream(f"key {i} {data.draw(st.integers(0, 99))}")) for i in range(devices)]
    total = np.zeros(lane.count, lane.dtype)
    for i, (private, public) in enumerate(keys):
        near = [keys[j][1] for j in range(devices) if tuple(sorted((i, j))) in edges]
        masks = [(pair_seed(b"sid", private, public, other), sign_of(public, other)) for other in near]
        mine = np.zeros(lane.count, lane.dtype)
        Pads(settled, masks).apply(0, 0, mine)
        assert int(mine.max()) < 1 << lane.bits
        total += mine
    Pads(settled, []).apply(0, 0, total)  # reduces to the bits
    assert not total.any()


def test_threads_mask_and_unmask_as_one_does():
    lanes = (Lane(8, 5 << 20), Lane(16, 700_000))
    one = played(3, lanes=lanes)
    serial = one.sum()
    recovery, layout = one.recover(), PackedLayout(one.settings)

    def tile(at: tuple[int, int]) -> np.ndarray:
        total = np.zeros(len(range(*lanes[at[0]].span(at[1]))), lanes[at[0]].dtype)
        for upload in one.uploads.values():
            total += unpack(one.settings, *at, upload[slice(*layout.range(*at))])
        recovery.unmask(*at, total)
        return total

    with ThreadPoolExecutor(4) as pool:
        tiles = list(pool.map(tile, layout.tiles()))
    np.testing.assert_array_equal(np.concatenate(tiles[:5]), serial[0])
    np.testing.assert_array_equal(np.concatenate(tiles[5:]), serial[1])


@pytest.mark.parametrize(
    "lanes", [np.zeros(36, "<u2"), np.zeros(37, "<u4"), np.zeros(37, "<i2"), np.zeros((37, 1), "<u2")]
)
def test_only_a_whole_tile_is_masked(lanes):
    with pytest.raises(UsageError, match="37 lanes of <u2"):
        Pads(config(), []).apply(0, 0, lanes)
    with pytest.raises(UsageError, match="no tile 1"):
        Pads(config(), []).apply(0, 1, lanes)


def test_seeds_differ_by_session_and_device():
    assert len({own_seed(sid, name, b"b" * 32) for sid in (b"1", b"2") for name in ("a", "b")}) == 4


# -- once, and then no more ---------------------------------------------------------------------------------------


def drawn(one, name: str) -> dict[str, bytes]:
    """A device's secrets, by what they are."""
    found = one.maskers[name]._entropy.drawn
    return dict(zip(("sealing", "masking", "seed"), found, strict=False))


def test_a_secret_is_gone_as_soon_as_it_has_done_its_work():
    one = world(4)
    kept = {}

    def look(step: str) -> None:
        dump = one.maskers["d0"].dump()
        kept[step] = {what for what, secret in drawn(one, "d0").items() if secret in dump}

    one.advertise()
    look("advertised")
    one.seat()
    one.deal()
    look("shared")
    one.maskers["d0"].receive(one.session.inbox_for("d0", one.shares))
    look("received")
    one.mask()
    look("masked")
    one.agree()
    look("consented")
    assert one.maskers["d0"]._memory.kept in one.maskers["d0"].dump()
    own = one.maskers["d0"]._memory.kept
    one.open()
    look("revealed")
    assert kept == {
        "advertised": {"sealing", "masking"},
        "shared": {"sealing", "masking", "seed"},
        "received": {"sealing", "masking", "seed"},
        "masked": {"sealing"},
        "consented": {"sealing"},
        "revealed": set(),
    }
    # Of its own share it has given back one half, and the other one is nowhere.
    last = one.maskers["d0"].dump()
    assert own[:32] in last
    assert own[32:] not in last
    left = pb.Memory.FromString(last)
    assert [f.name for f, _ in left.ListFields()] == ["version", "config", "id", "phase", "exchanges"]
    assert list(left.exchanges) == ["revealed"]


def test_masks_are_there_only_while_the_lanes_are_masked():
    one = world(4)
    masker = one.maskers["d0"]
    with pytest.raises(LocalProtocolError, match="no masks in phase 'new'"):
        _ = masker.pads
    one.advertise()
    one.seat()
    one.deal()
    one.mask()
    with pytest.raises(LocalProtocolError, match="no masks in phase 'masked'"):
        _ = masker.pads


def test_nothing_is_masked_twice():
    one = dealt(3)
    one.mask()
    total = PackedLayout(one.settings).total
    with pytest.raises(LocalProtocolError, match="mask none again"):
        one.maskers["d0"].seal(total, b"x" * 32)
    with pytest.raises(LocalProtocolError, match="have"):
        one.maskers["d0"].seal(total - 1, b"x" * 32)
    assert one.maskers["d0"].seal(total, hashlib.sha256(one.uploads["d0"]).digest()) == one.masked["d0"]


@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("shared", lambda m: m.share(b"")),
        ("received", lambda m: m.receive(b"")),
        ("masked", lambda m: m.seal(PackedLayout(m.config).total, b"0" * 32)),
        ("consented", lambda m: m.consent(b"")),
        ("revealed", lambda m: m.reveal(b"")),
    ],
)
def test_no_step_is_skipped_and_none_follows_the_last(step, call):
    fresh = world(3).maskers["d0"]
    before = fresh.dump()
    with pytest.raises(RemoteProtocolError, match=f"is new in this session and cannot be {step} next"):
        call(fresh)
    assert fresh.dump() == before
    done = played(3).maskers["d0"]
    assert done.revealed
    with pytest.raises(RemoteProtocolError, match=r"is revealed in this session"):
        call(done)
    with pytest.raises(RemoteProtocolError, match=r"is revealed in this session"):
        done.advertise()


def test_a_memory_is_of_one_device_and_whole():
    one = dealt(3)
    data = one.maskers["d0"].dump()
    with pytest.raises(LocalProtocolError, match="of device 'd0', not of 'd1'"):
        Masker.load(data, one.devices["d1"], trust, Stream(""))
    for damaged in (b"", data[:-1], data[1:], pb.Memory(version=2, phase="new").SerializeToString()):
        with pytest.raises(BadBlob):
            Masker.load(damaged, one.devices["d0"], trust, Stream(""))


def test_an_identity_that_others_would_refuse_does_not_advertise():
    person = Device("d" * 129)
    with pytest.raises(BadBlob, match="1 to 128 printable"):
        Masker(config(), person, trust, Stream("")).advertise()
    person = Device("d")
    person.entry += bytes(4096)
    with pytest.raises(UsageError, match="may have 4096"):
        Masker(config(), person, trust, Stream("")).advertise()


# -- groups -------------------------------------------------------------------------------------------------------


def test_every_group_is_a_session_of_its_own():
    one = world(11, groups=2)
    one.advertise()
    leaves = {name: hashlib.sha256(advert).hexdigest() for name, advert in one.adverts.items()}
    cohorts = form(leaves, groups=2, least=3, gamma=0.1, delta=0.1)
    assert [len(c.order) for c in cohorts] == [6, 5]
    assert {name for c in cohorts for name in c.order} == set(one.maskers)
    totals = []
    for cohort in cohorts:
        part = world(11, groups=2)
        part.maskers = {name: one.maskers[name] for name in cohort.order}
        part.adverts = {name: one.adverts[name] for name in cohort.order}
        part.session = part.sit(cohort, leaves)
        for step in (part.deal, part.mask, part.agree, part.open):
            step()
        part.check()
        totals.append(part)
    assert totals[0].session.sid != totals[1].session.sid
    stranger = totals[1].session.roster_for(cohorts[1].order[0])
    fresh = world(11, groups=2)
    fresh.advertise()
    assert fresh.adverts == one.adverts
    with pytest.raises(RemoteProtocolError, match="not those of this device's neighbours"):
        fresh.maskers[cohorts[0].order[0]].share(stranger)
