"""The ring from end to end: devices encode, lanes are added in any order, the mean is read and its wraps counted."""

import hashlib
import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon_core.errors import BadBlob, BadUpdate, UsageError
from koinon_core.ring import Device, Group, Ring, Seeds, Sum, Wraps, decode, encode, suggest
from koinon_core.ring.checks import allowed
from koinon_core.ring.lanes import centred, to_lanes
from koinon_core.ring.rotation import COLUMNS, ROWS, hadamard, signs
from koinon_core.ring.seeds import keystream
from koinon_core.ring.sizing import nmse

SEEDS = Seeds(hashlib.sha256(b"terms").digest(), "run", 1)
W = Group(name="w", size=ROWS * 2 - 7, bits=12, grid=8, bound=64.0, wraps=1e-9)
LOSS = Group(name="loss", size=3, bits=64, grid=24, bound=1e6, rotated=False)
RING = Ring(groups=(W, LOSS), devices=50, max_weight=8)


def gauss(seed: int, size: int = W.size, sigma: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * sigma).astype(np.float32)


def readers(values):
    return {name: (lambda a, b, x=x: np.asarray(x[a:b])) for name, x in values.items()}


def blob(ring: Ring, device: Device, values, seeds: Seeds = SEEDS) -> bytes:
    out, end = bytearray(ring.nbytes), 0
    for at, lanes in encode(ring, seeds, device, readers(values)):
        assert 0 <= at - end < 8, "one after the other"
        end = at + lanes.nbytes
        out[at:end] = lanes.tobytes()
    assert end == len(out)
    return bytes(out)


def added(ring: Ring, blobs) -> Sum:
    total = Sum(ring)
    for one in blobs:
        total.add(one)
    return total


def read(total: Sum, names, seeds: Seeds = SEEDS):
    out = {g.name: np.full(g.size, np.nan) for g in total.ring.groups}

    def into(x):
        def write(start, values):
            x[start : start + len(values)] = values

        return write

    report = decode(total, seeds, names, {name: into(x) for name, x in out.items()})
    return out, report


def around(ring: Ring, values, weights=None, seeds: Seeds = SEEDS):
    """The decoded mean and report of devices d0, d1, ... with these values."""
    names = [f"d{i}" for i in range(len(values))]
    weights = weights or [1] * len(values)
    blobs = [
        blob(ring, Device(name=n, weight=w), v, seeds) for n, w, v in zip(names, weights, values, strict=True)
    ]
    return read(added(ring, blobs), names, seeds)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sum((found - wanted) ** 2) / np.sum(wanted**2))


# -- what comes out is what went in, give or take the predicted error -----------------------------------------


@pytest.mark.parametrize(
    ("bits", "c", "within"), [(5, 4.5, 0.1), (6, 4.5, 0.05), (8, 4.5, 0.05), (8, 5.5, 0.03), (12, 5.5, 0.03)]
)
def test_the_error_of_a_sum_of_twenty_is_the_tables(bits, c, within):
    devices, grid, size = 20, 6, ROWS * 16
    sigma = 2.0 ** (bits - 1 - grid) / c / math.sqrt(devices)
    x = [{"w": gauss(i, size, sigma)} for i in range(devices)]
    group = replace(W, size=size, bits=bits, grid=grid, bound=1e4, wraps=0.5)
    found, report = around(Ring(groups=(group,), devices=20), x)
    wanted = np.mean([v["w"] for v in x], axis=0, dtype=np.float64)
    predicted = devices * (2 * c) ** 2 / 12 / 4**bits
    if bits > 5:
        assert report.wraps["w"].estimate == 0, "else the prediction has another term"
    else:
        predicted = nmse(devices, bits, c)
    assert error(found["w"], wanted) == pytest.approx(predicted, rel=within)


@pytest.mark.parametrize("subset", [1, 2, 8])
@pytest.mark.parametrize("rounding", ["public", "private"])
def test_on_average_over_rounds_nothing_is_lost(rounding, subset):
    # Coarse steps, so that rounding matters: 0.1 sigma against a step of 0.25.
    ring = Ring(groups=(replace(W, size=ROWS, grid=2, bits=8),), devices=1, subset=subset, rounding=rounding)
    x, rounds, once = gauss(0, ROWS), 100, 0.0
    mean = np.zeros(ROWS)
    for number in range(rounds):
        seeds = replace(SEEDS, round=number)
        secret = hashlib.sha256(b"%d" % number).digest() if rounding == "private" else None
        one, _ = read(
            added(ring, [blob(ring, Device(name="d", secret=secret), {"w": x}, seeds)]), ["d"], seeds
        )
        once += error(one["w"], x) / rounds
        mean += one["w"] / rounds
    # Independent errors average out to 1/100 of one round's; a bias of a tenth of the values would add 0.01.
    assert error(mean, x) == pytest.approx(once / rounds, rel=0.15)
    step = 0.25**2 / 12 / 0.01
    # Without its dither an error of f(1 - f) steps^2 remains, here about twice as much as the dithered 1/12.
    if rounding == "private":
        step *= 2
    assert once == pytest.approx(subset * step + subset - 1, rel=0.1)


def test_weights_weigh_before_rounding_and_the_clip_comes_first():
    x = [{"w": gauss(i), "loss": [float(i), -1.5, 1000.25]} for i in range(3)]
    weights = [1, 8, 5]
    found, report = around(RING, x, weights)
    wanted = np.average([v["w"].astype(float) for v in x], axis=0, weights=weights)
    assert np.abs(found["w"] - wanted).max() < 8 * 2.0**-8
    assert error(found["w"], wanted) < 1e-2
    assert found["loss"].tolist() == [18 / 14, -1.5, 1000.25]
    assert (report.devices, report.weight, report.clipped, report.overflow) == (3, 14, {"w": 0}, ())


def test_a_sum_is_neither_weighted_nor_divided():
    ring = Ring(groups=(replace(W, rule="sum", bits=16), replace(LOSS, rule="sum")), devices=9, max_weight=8)
    x = [{"w": gauss(i), "loss": [i, 0.5, -(2.0**-24)]} for i in range(3)]
    found, _ = around(ring, x, [1, 8, 5])
    assert error(found["w"], np.sum([v["w"] for v in x], axis=0)) < 1e-3
    assert found["loss"].tolist() == [3.0, 1.5, -3 * 2.0**-24]


@pytest.mark.parametrize("gain", [8, 11, 15])
def test_a_gain_refines_the_step_and_changes_nothing_else(gain):
    ring = Ring(groups=(replace(W, gain=gain, grid=3),), devices=1)
    errors = []
    for number in range(5):
        x = gauss(number)
        found, _ = around(ring, [{"w": x}], seeds=replace(SEEDS, round=number))
        errors.append(np.var(found["w"] - x))
    assert np.mean(errors) == pytest.approx((8 / gain / 8) ** 2 / 12, rel=0.05)


def test_thirty_two_bits_keep_what_float32_has():
    fine = replace(W, bits=32, grid=26, bound=16.0, wraps=0.0)
    x = gauss(0)
    assert error(around(Ring(groups=(fine,), devices=1), [{"w": x}])[0]["w"], x) < 1e-12


def test_who_is_too_long_is_clipped_and_counted():
    x = gauss(0)
    group = replace(W, bound=1.0, bits=16, grid=14)
    found, report = around(Ring(groups=(group,), devices=2), [{"w": x}, {"w": x / 100}])
    assert report.clipped == {"w": 1}
    assert error(found["w"], (x / np.linalg.norm(x) + x / 100) / 2) < 1e-3


def test_an_update_as_long_as_float32_allows_is_clipped_like_any_other():
    x = np.full(W.size, 2.0**93, np.float32)
    found, report = around(Ring(groups=(replace(W, bound=1.0, bits=16, grid=14),), devices=1), [{"w": x}])
    assert report.clipped == {"w": 1}
    assert error(found["w"], np.full(W.size, W.size**-0.5)) < 1e-2


# -- a pure function, tile by tile ----------------------------------------------------------------------------


def test_a_tile_at_a_time_makes_the_bytes_that_the_whole_vector_makes():
    size = ROWS * (COLUMNS + 3) - 5
    x = gauss(1, size)
    ring = Ring(groups=(replace(W, size=size, bound=1e4),), devices=1)
    asked = []

    def reader(start, stop):
        asked.append(stop - start)
        return x[start:stop]

    pieces = list(encode(ring, SEEDS, Device(name="d"), {"w": reader}))
    assert max(asked) <= 1 << 20, "no window is the model"
    padded = np.zeros(ROWS * (COLUMNS + 3), np.float32)
    padded[:size] = x
    grid = padded.reshape(ROWS, COLUMNS + 3)
    keys = SEEDS.shared("signs", "w"), SEEDS.dither("d", "w")
    grid *= np.hstack([signs(keys[0], 0, ROWS, COLUMNS), signs(keys[0], 1, ROWS, 3)])
    hadamard(grid)
    dither = np.hstack([keystream(keys[1], t, ROWS * w).reshape(ROWS, w) for t, w in enumerate((COLUMNS, 3))])
    q = np.floor((np.rint(grid * np.float32(2.0 ** (8 + 8 - 6))) + dither) / 256).astype(np.int64)
    whole = (q % 2**12).astype("<u2")
    assert pieces[0][1].tobytes() == whole[:, :COLUMNS].tobytes()
    assert pieces[1][1].tobytes() == whole[:, COLUMNS:].tobytes()
    assert [at for at, _ in pieces] == [0, 2 * ROWS * COLUMNS, 2 * ROWS * (COLUMNS + 3)]


def test_the_bytes_of_an_update_are_these_on_every_machine():
    values = {"w": ((np.arange(W.size) * 37 % 101 - 50) / 777).astype(np.float32), "loss": [0.5, -1, 2]}
    made = blob(RING, Device(name="d", weight=3), values)
    assert (
        hashlib.sha256(made).hexdigest() == "0cd07b481d105d99240b1a2de41981f7ac65ab4a37fdcb68e94e4eb1e6d62f56"
    )


def test_an_update_is_encoded_once_and_for_all():
    values = {"w": gauss(0), "loss": [1, 2, 3]}
    made = blob(RING, Device(name="d"), values)
    assert blob(RING, Device(name="d"), values) == made
    assert blob(RING, Device(name="e"), values) != made
    assert blob(RING, Device(name="d"), values, replace(SEEDS, round=2)) != made
    private = replace(RING, rounding="private")
    first, second = (blob(private, Device(name="d", secret=s * 32), values) for s in (b"a", b"b"))
    assert first != second
    assert made not in (first, second)


# -- the sum --------------------------------------------------------------------------------------------------


BLOBS = [
    blob(RING, Device(name=f"d{i}", weight=1 + i), {"w": gauss(i), "loss": [i, -i, 0.1]}) for i in range(6)
]


@given(st.permutations(range(6)), st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_every_order_of_updates_and_of_their_windows_gives_the_same_bytes(order, random):
    names = [f"d{i}" for i in range(6)]
    wanted, report = read(added(RING, BLOBS), names)
    total = Sum(RING)
    windows = []
    for i in order:
        cuts = sorted({0, RING.nbytes, *(8 * random.randrange(RING.nbytes // 8) for _ in range(5))})
        windows += [(BLOBS[i][a:b], a) for a, b in pairwise(cuts)]
    random.shuffle(windows)
    for data, at in windows:
        total.add(memoryview(data), at)
    found, again = read(total, [names[i] for i in order])
    assert again == report
    assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in wanted.items()}


def test_masks_that_cancel_leave_the_sum_as_it_was():
    mask = np.frombuffer(np.random.default_rng(0).bytes(RING.nbytes), np.uint8)
    total, masked = added(RING, BLOBS), added(RING, [*BLOBS, mask.tobytes()])
    minus = bytearray(RING.nbytes)
    for section in RING.sections:
        here = slice(section.offset, section.offset + section.nbytes)
        minus[here] = (0 - mask[here].view(section.dtype)).astype(section.dtype).tobytes()
    assert masked.lanes(RING.sections[0]).tobytes() != total.lanes(RING.sections[0]).tobytes()
    masked.add(minus)
    names = [f"d{i}" for i in range(6)]
    assert read(masked, names)[0]["w"].tobytes() == read(total, names)[0]["w"].tobytes()


@given(st.integers(2, 64), st.integers(-(2**63), 2**63 - 1))
def test_lanes_are_integers_modulo_two_to_the_b(bits, value):
    dtype = f"<u{next(n for n in (1, 2, 4, 8) if 8 * n >= bits)}"
    lanes = to_lanes(np.array([value]), bits, dtype)
    assert lanes.dtype == dtype
    assert int(lanes[0]) == value % 2**bits
    half = 2 ** (bits - 1)
    assert centred(lanes.astype(np.int64), bits).tolist() == [(value + half) % 2**bits - half]


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(-1e6, 1e6)), min_size=1, max_size=8))
@settings(max_examples=40)
def test_exact_lanes_are_the_fractions_they_stand_for(those):
    ring = Ring(groups=(replace(LOSS, size=1),), devices=8, max_weight=8)
    found, _ = around(ring, [{"loss": [v]} for _, v in those], [w for w, _ in those])
    units = sum(w * round(Fraction(v) * 2**24) for w, v in those)
    wanted = Fraction(units, 2**24 * sum(w for w, _ in those))
    assert found["loss"][0] == pytest.approx(float(wanted), rel=2**-51, abs=0)


@pytest.mark.parametrize(
    ("size", "at"),
    [(8, -8), (4, 4), (8, 4), (7, 0), (8, RING.nbytes), (RING.nbytes + 8, 0), (16, RING.nbytes - 8)],
)
def test_a_window_that_is_none_of_an_update_is_refused_and_changes_nothing(size, at):
    total = added(RING, BLOBS[:1])
    with pytest.raises(BadBlob, match="no window of an update"):
        total.add(b"\1" * size, at)
    assert all(total.lanes(s).tobytes() == added(RING, BLOBS[:1]).lanes(s).tobytes() for s in RING.sections)


# -- wraps ----------------------------------------------------------------------------------------------------


def crowd(size: int, scale: float, number: int, devices: int = 20):
    """A round of devices whose sum is `scale` times as large as the ring was sized for."""
    sized = suggest(8, devices, 0.1 * math.sqrt(devices))
    group = Group(name="w", size=size, bits=8, grid=sized.grid, gain=sized.gain, bound=1e3, wraps=sized.wraps)
    x = [{"w": gauss(100 * number + i, size, 0.1 * scale)} for i in range(devices)]
    return around(Ring(groups=(group,), devices=devices), x, seeds=replace(SEEDS, round=number))[1]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("size", [4000, ROWS * 5])
def test_a_doubled_norm_overflows_and_the_expected_one_does_not(size, number):
    assert crowd(size, 1.0, number).overflow == ()
    assert crowd(size, 2.0, number).overflow == ("w",)


def test_a_few_wraps_are_chance_where_some_are_stated_and_one_is_too_many_where_none_is():
    assert not Wraps((1, 0, -2), allowed(1e-9, 4096)).overflow
    assert Wraps((4, 0, -1), allowed(1e-9, 4096)).overflow
    assert allowed(1e-3, 10**6) == 4000
    assert Wraps((0, -1), allowed(0.0, 4096)).overflow
    assert not Wraps((0, 0), allowed(0.0, 4096)).overflow


def test_the_estimate_of_wraps_is_their_number_on_average():
    # 2.2 standard deviations: the share of a Gaussian beyond is what is estimated.
    group = Group(name="w", size=ROWS * 4, bits=8, grid=0, bound=1e6, wraps=0.1)
    ring = Ring(groups=(group,), devices=1)
    rate = math.erfc(2.2 / math.sqrt(2))
    found = [
        around(ring, [{"w": gauss(n, group.size, 128 / 2.2)}], seeds=replace(SEEDS, round=n))[1]
        .wraps["w"]
        .estimate
        for n in range(25)
    ]
    assert np.mean(found) == pytest.approx(rate * ring.sections[0].lanes, rel=0.15)


def test_by_the_exact_rule_one_wrap_is_an_overflow():
    exact = Ring(groups=(Group(name="w", size=ROWS, bits=8, grid=4, bound=3.0),), devices=2)
    # All of its energy in one rotated coordinate: of norm 3, 3 * 2^4 steps in each of two devices.
    spike = np.zeros((ROWS, 1), np.float32)
    spike[7] = 1 / 64
    hadamard(spike)
    x = spike[:, 0] * signs(SEEDS.shared("signs", "w"), 0, ROWS, 1)[:, 0]
    assert around(exact, [{"w": 3 * x}] * 2)[1].overflow == ()
    # Of norm 6 and not clipped, 2 * 96 steps are 64 beyond the half of 2^8.
    lax = replace(exact, groups=(replace(exact.groups[0], bound=6.0, wraps=0.5),))
    blobs = [blob(lax, Device(name=name), {"w": 6 * x}) for name in ("d0", "d1")]
    _, report = read(added(exact, blobs), ["d0", "d1"])
    assert report.overflow == ("w",)
    assert report.wraps["w"].estimate == 1
    assert read(added(lax, blobs), ["d0", "d1"])[1].overflow == ()


def test_checks_that_are_not_of_the_same_values_are_a_bad_blob():
    broken = bytearray(BLOBS[0])
    broken[-8] ^= 1
    with pytest.raises(BadBlob, match="the check lanes of group 'w' are of other values"):
        read(added(RING, [broken]), ["d0"])
    broken = bytearray(BLOBS[0])
    broken[0] ^= 1  # a lane's lowest bit
    with pytest.raises(BadBlob, match="the check lanes"):
        read(added(RING, [broken]), ["d0"])


# -- who is at fault ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2.0**100])
def test_what_is_no_number_or_exploded_is_refused_before_anything_is_encoded(bad):
    x = gauss(0)
    x[-1] = bad
    with pytest.raises(BadUpdate, match="group 'w' holds NaN or Inf"):
        blob(RING, Device(name="d"), {"w": x, "loss": [0, 0, 0]})
    with pytest.raises(BadUpdate, match="group 'loss' holds a value that is not finite or beyond 1e"):
        blob(RING, Device(name="d"), {"w": gauss(0), "loss": [0, 0, bad]})


def test_an_exact_value_beyond_its_bound_is_refused_and_the_bound_is_not():
    blob(RING, Device(name="d"), {"w": gauss(0), "loss": [1e6, -1e6, 0]})
    with pytest.raises(BadUpdate, match="beyond 1e"):
        blob(RING, Device(name="d"), {"w": gauss(0), "loss": [np.nextafter(1e6, 2e6), 0, 0]})


@pytest.mark.parametrize(
    ("device", "values", "kind", "sentence"),
    [
        (Device(name="d", weight=0), {"w", "loss"}, BadUpdate, "a weight of 0 is outside of 1 to 8"),
        (Device(name="d", weight=9), {"w", "loss"}, BadUpdate, "a weight of 9 is outside"),
        (Device(name="d", secret=bytes(32)), {"w", "loss"}, UsageError, "public rounding was given a secret"),
        (Device(name="d"), {"w"}, UsageError, "differ in loss"),
        (Device(name="d"), {"w", "loss", "more"}, UsageError, "differ in more"),
    ],
)
def test_a_device_that_does_not_fit_the_ring_is_refused_at_once(device, values, kind, sentence):
    with pytest.raises(kind, match=sentence):
        encode(RING, SEEDS, device, readers({name: np.zeros(W.size, np.float32) for name in values}))
    with pytest.raises(UsageError, match="private rounding was given no secret"):
        encode(replace(RING, rounding="private"), SEEDS, Device(name="d"), readers({"w": [], "loss": []}))


def test_a_reader_that_ends_too_soon_is_refused():
    for short in ({"w": gauss(0, 5), "loss": [0, 0, 0]}, {"w": gauss(0), "loss": [0.0]}):
        with pytest.raises(UsageError, match="were asked for, and"):
            blob(RING, Device(name="d"), short)


@pytest.mark.parametrize("names", [[], ["d0", "d0"], [f"d{i}" for i in range(51)]])
def test_a_sum_names_its_devices_each_once(names):
    with pytest.raises(UsageError, match="is to name 1 to 50, each once"):
        read(added(RING, BLOBS[:1]), names)


def test_accounts_that_so_many_devices_cannot_have_are_a_bad_blob():
    with pytest.raises(BadBlob, match="the weights of 1 devices add up to 21"):
        read(added(RING, BLOBS), ["d0"])
    with pytest.raises(BadBlob, match="the weights of 6 devices add up to 1"):
        read(added(RING, BLOBS[:1]), [f"d{i}" for i in range(6)])
    broken = bytearray(BLOBS[0])
    broken[RING.sections[-1].offset + 8] = 2
    with pytest.raises(BadBlob, match="more devices than there are say that they clipped 'w'"):
        read(added(RING, [broken]), ["d0"])
    with pytest.raises(UsageError, match="those to be written differ in loss, w"):
        decode(added(RING, BLOBS[:1]), SEEDS, ["d0"], {})
