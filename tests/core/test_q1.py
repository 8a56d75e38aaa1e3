"""The quantiser: how far off, unbiased, exact in the sum, the same bytes for ever. The dither, and the difference."""

import hashlib
import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from koinon_core import codecs
from koinon_core.codecs import Place, Step, symbols, tile
from koinon_core.codecs.lossless import Lossless
from koinon_core.codecs.ordinal import ORDINAL
from koinon_core.codecs.planes import QUICK, Packer, Unpacker
from koinon_core.codecs.q1 import LEVELS, Q1
from koinon_core.codecs.quantised import Quantised
from koinon_core.codecs.tile import Plain, on_grid
from koinon_core.dither import keystream
from koinon_core.errors import BadBlob, UsageError
from koinon_core.schema import FLOATS, INTEGERS
from koinon_core.tiles import TILE

KEY = bytes(range(32))
GRID, BOUND = 30, 1024.0
UNBIASED = ["fine", "balanced", "compact"]
LATTICE, DITHERED, SPARSE = 1, 2, 3


def examples(count: int) -> settings:
    """So many examples, and as many times more in `make soak` as a test has there that says nothing."""
    return settings(max_examples=count * settings().max_examples // 100)


def gauss(count: int, rms: float = 1e-3, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(count) * rms).astype(dtype)


def heavy(count: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.standard_t(2, count) * draw.lognormal(0, 2, count) * 1e-4).astype(np.float32)


def thinned(x: np.ndarray, zeros: float, seed: int = 1) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(x.size) < zeros, x.dtype.type(0), x)


def in_rows(x: np.ndarray) -> np.ndarray:
    """Every other row of 256 is zeros, as where a unit is silent."""
    return np.where(np.arange(x.size) // 256 % 2 == 0, x, x.dtype.type(0))


def rms_of(x: np.ndarray) -> float:
    return math.sqrt(float(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def place_for(codec: Q1, x: np.ndarray, grid: int = GRID, key: bytes = KEY, **where) -> Place:
    return Place(key=key, step=codec.step_for(rms_of(x), grid), **where)


def through(codec: Q1, x: np.ndarray, place: Place) -> tile.Tile:
    """What becomes of `x`; the receiver has no step."""
    there = Place(key=place.key, section=place.section, offset=place.offset)
    payload = codec.encode(x, place)
    assert len(payload) <= codec.limit(x.nbytes)
    return codec.decode(memoryview(payload), x.dtype.name, x.size, there)


def integers(values: np.ndarray, weight: int, grid: int = GRID) -> np.ndarray:
    """What the interface promises, done the slow way."""
    return np.array([round(Fraction(float(v)) * 2**grid) * weight for v in values], dtype=np.int64)


# -- the dither ---------------------------------------------------------------------------------------------

# RFC 8439, appendix A.1 (1, 2) and section 2.3.2: the key, the nonce as section and tile, the counter, the keystream.
VECTORS = [
    (bytes(32), 0, 0, 0,
     "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
     "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"),
    (bytes(32), 0, 0, 1,
     "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
     "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"),
    (KEY, 0x09000000, 0x4A000000, 1,
     "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
     "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "section", "number", "counter", "expected"), VECTORS)
def test_the_dither_is_the_keystream_of_the_rfc(key, section, number, counter, expected):
    out = np.empty(64, np.uint8)
    keystream(key, section, number * TILE + counter * 64)(out)
    assert out.tobytes().hex() == expected


@given(
    st.integers(0, 3 * TILE), st.lists(st.integers(1, 200), min_size=1, max_size=5), st.sampled_from([1, 2])
)
def test_any_stretch_of_the_dither_can_be_made_alone(offset, sizes, width):
    def take(at: int, count: int) -> bytes:
        out = np.empty(count * width, np.uint8)
        keystream(KEY, 3, at, width)(out)
        return out.tobytes()

    fill, at = keystream(KEY, 3, offset, width), offset
    for size in sizes:
        out = np.empty(size * width, np.uint8)
        fill(out)
        if at // TILE == offset // TILE:
            assert out.tobytes() == take(at, size)
        at += size


def test_every_key_section_and_tile_has_a_dither_of_its_own():
    def bytes_of(*where) -> bytes:
        out = np.empty(16, np.uint8)
        keystream(*where)(out)
        return out.tobytes()

    those = [(KEY, 0, 0), (KEY, 1, 0), (KEY, 0, TILE), (KEY, 0, TILE << 32), (KEY[::-1], 0, 0)]
    assert len({bytes_of(*where) for where in those}) == len(those)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length):
    x = gauss(100)
    place = place_for(LEVELS["balanced"], x)
    payload = LEVELS["balanced"].encode(x, place)
    with pytest.raises(BadBlob, match=f"dither key has {length} bytes, not 32"):
        LEVELS["balanced"].decode(memoryview(payload), "float32", 100, Place(key=bytes(length)))
    with pytest.raises(BadBlob, match="dither key"):
        LEVELS["balanced"].encode(x, Place(key=bytes(length), step=place.step))


# -- the step -----------------------------------------------------------------------------------------------


@given(st.floats(1e-30, 1e6), st.sampled_from(sorted(LEVELS)), st.integers(16, 40))
@example(1e6, "thin", 40)
@example(2.0, "compact", 40)
def test_the_step_is_within_four_thousandths_or_the_finest_that_the_grid_holds(rms, name, grid):
    codec = LEVELS[name]
    step = codec.step_for(rms, grid)
    wanted, unit = codec.level * rms, 2.0**-grid
    assert step.e - 8 * step.fine >= -grid
    if codec.biased:
        assert not step.fine
    else:  # dithered, as long as the grid has room for the dither's eight places
        assert step.fine == (wanted >= 256 * unit)
    end = unit * (256 if step.fine else 1)
    if wanted >= 128 * end:
        assert abs(step.value / wanted - 1) <= 0.004
    else:  # near the end of the grid there are fewer steps to choose from
        assert abs(step.value - max(wanted, end)) <= end / 2


def test_no_change_at_all_has_the_smallest_step():
    assert LEVELS["balanced"].step_for(0.0, 30) == Step(1, -30, fine=False)
    assert LEVELS["balanced"].step_for(5e-324, 30) == Step(1, -30, fine=False)


def test_a_step_is_no_larger_than_the_bound_and_a_biased_one_no_larger_than_what_is_there():
    assert LEVELS["compact"].step_for(1.0, 30, most=0.5).value == 0.5
    assert LEVELS["thin"].step_for(1.0, 30, peak=1.0).value == 1.0
    assert LEVELS["thin"].step_for(1.0, 30, peak=100.0).value == 6.0
    assert LEVELS["balanced"].step_for(1.0, 30, peak=0.01).value == 0.25


@pytest.mark.parametrize("rms", [1e-4, 1e-6, 3e-8])
def test_small_changes_on_a_coarse_grid_are_rounded_without_bias_and_without_dither(rms):
    x = np.random.default_rng(2).normal(0, rms, 50_000).astype(np.float32)
    codec, grid = LEVELS["balanced"], 26
    step = codec.step_for(rms_of(x), grid)
    means = [through(codec, x, Place(key=bytes([n]) * 32, step=step)).values() for n in range(64)]
    through(codec, x, Place(key=KEY, step=step)).check(grid, BOUND, "x")
    worst = max(step.value, rms)
    assert abs(float(np.mean(np.mean(means, axis=0) - x))) < worst / 64
    nmse = float(np.mean((means[0] - x) ** 2) / np.mean(x**2))
    assert nmse <= 0.0115 if rms > 1e-7 else nmse <= 0.3


def test_the_levels_are_those_that_the_runs_agreed_on():
    assert {name: (codec.level, codec.biased) for name, codec in LEVELS.items()} == {
        "fine": (0.125, False), "balanced": (0.25, False), "compact": (2, False), "thin": (6, True)
    }  # fmt: skip


@pytest.mark.parametrize("rms", [math.nan, math.inf, -math.inf])
def test_a_root_mean_square_that_is_no_number_has_no_step(rms):
    with pytest.raises(BadBlob, match="NaN or Inf"):
        LEVELS["balanced"].step_for(rms, 30)


@pytest.mark.parametrize(("k", "e"), [(-1, 0), (256, 0), (0, 0), (128, 65), (128, -65), (255, 127)])
def test_a_step_out_of_range_cannot_be_said(k, e):
    with pytest.raises(BadBlob, match="out of range"):
        Step(k, e)


def test_a_root_mean_square_beyond_any_model_has_no_step():
    with pytest.raises(BadBlob, match="out of range"):
        LEVELS["thin"].step_for(1e30, 30)


# -- how far off --------------------------------------------------------------------------------------------

shapes = st.sampled_from([gauss, lambda n, seed: heavy(n, seed=seed)])


@st.composite
def updates(draw) -> np.ndarray:
    """Dense, heavy-tailed, thinned or in rows; any length, either dtype, any size of values."""
    count = draw(st.sampled_from([1, 2, 63, 64, 65, 500, 4096, 70_001]))
    seed = draw(st.integers(0, 1 << 30))
    x = draw(st.sampled_from([gauss(count, seed=seed), heavy(count, seed=seed)]))
    x = x * np.float32(10.0 ** draw(st.integers(-6, 4)))
    x = draw(st.sampled_from([x, thinned(x, 0.3, seed), thinned(x, 0.9, seed), in_rows(x), np.zeros_like(x)]))
    x = np.clip(x, -BOUND / 2, BOUND / 2)
    return x.astype(draw(st.sampled_from(["float32", "float64"])))


@examples(150)
@given(updates(), st.sampled_from(sorted(LEVELS)))
def test_nothing_is_further_off_than_its_rounding_allows(x, name):
    codec = LEVELS[name]
    place = place_for(codec, x)
    payload = codec.encode(x, place)
    off = np.abs(through(codec, x, place).values().astype(np.float64) - x)
    # Dither and nearest are off by half a step, stochastic rounding by a whole one; the dither's 8 bits add 1/256.
    most = 0.51 if codec.biased or payload[0] != LATTICE else 1.0
    assert np.all(off <= place.step.value * most)


@pytest.mark.parametrize("rms", [10.0**n for n in range(-6, 7)] + [0.7e-4, 3.3e-3, 0.99, 1.01])
@pytest.mark.parametrize("make", [gauss, lambda n, rms: thinned(gauss(n, rms), 0.2),
                                  lambda n, rms: thinned(gauss(n, rms), 0.5), lambda n, rms: in_rows(gauss(n, rms)),
                                  lambda n, rms: heavy(n) * np.float32(rms / rms_of(heavy(n)))])  # fmt: skip
def test_balanced_is_within_six_thousandths_whatever_the_size_of_the_values(rms, make):
    x = make(200_000, rms)
    codec = LEVELS["balanced"]
    off = through(codec, x, place_for(codec, x, grid=40)).values().astype(np.float64) - x
    assert rms_of(off) ** 2 <= 0.006 * rms_of(x) ** 2


def test_the_levels_take_less_and_less():
    x = gauss(1 << 18)
    bits = {name: 8 * len(codec.encode(x, place_for(codec, x))) / x.size for name, codec in LEVELS.items()}
    assert bits["fine"] < 5.2
    assert bits["balanced"] < 4.2
    assert bits["compact"] < 1.55
    assert bits["thin"] < 0.04
    sparse = thinned(x, 0.8)
    assert 8 * len(LEVELS["balanced"].encode(sparse, place_for(LEVELS["balanced"], sparse))) / x.size < 1.8


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("make", [gauss, lambda n: thinned(gauss(n), 0.7), lambda n: in_rows(gauss(n))])
def test_the_mean_over_many_keys_is_what_was_sent(name, make):
    codec, x, keys = LEVELS[name], make(3000), 1500
    step = codec.step_for(rms_of(x), GRID)
    total = np.zeros(x.size)
    for number in range(keys):
        total += through(codec, x, Place(key=struct.pack("<32s", b"%d" % number), step=step)).values()
    off = (total / keys - x) / step.value
    # Of one key, the variance is 1/12 of a step squared with dither and at most 1/4 without.
    deviation = 0.5 / math.sqrt(keys)
    assert np.max(np.abs(off)) < 5.5 * deviation
    assert abs(float(np.mean(off))) < 1 / 512 + 5 * deviation / math.sqrt(x.size)


def test_values_much_smaller_than_a_step_are_not_lost_where_most_are_zeros():
    codec, keys = LEVELS["balanced"], 400
    x = np.zeros(20_000, np.float32)
    step = Step(128, 0)
    x[::3] = step.value / 1000
    total = sum(
        float(through(codec, x, Place(key=struct.pack("<32s", b"%d" % n), step=step)).values().sum())
        for n in range(keys)
    )
    assert total / keys == pytest.approx(float(x.sum()), rel=0.05)


@given(st.integers(0, 1 << 30), st.sampled_from(["fine", "balanced", "compact", "thin"]))
@examples(30)
def test_zeros_stay_zeros_where_half_or_more_are(seed, name):
    x = thinned(gauss(5000, seed=seed), 0.6, seed + 1)
    codec = LEVELS[name]
    assert codec.encode(x, place_for(codec, x))[0] == LATTICE
    assert not np.any(through(codec, x, place_for(codec, x)).values()[x == 0])


def test_blocks_of_zeros_stay_zeros_among_dithered_values():
    x = gauss(64 * 10 + 7)
    x[64:128] = x[64 * 9 :] = 0
    x[64 * 3 : 64 * 4] = -0.0
    codec = LEVELS["balanced"]
    assert codec.encode(x, place_for(codec, x))[0] == SPARSE
    back = through(codec, x, place_for(codec, x)).values()
    assert np.flatnonzero(back == 0).tolist() == np.flatnonzero(x == 0).tolist()


@pytest.mark.parametrize("count", [1, 2, 10, 33, 63, 64, 65, 100])
def test_dense_values_are_dithered_however_few(count):
    x = gauss(count)
    codec = LEVELS["balanced"]
    assert codec.encode(x, place_for(codec, x))[0] == DITHERED
    x[: (count + 1) // 2] = 0
    assert codec.encode(x, place_for(codec, x))[0] == LATTICE


def test_of_dense_values_an_exact_zero_is_dithered_like_its_neighbours():
    x = gauss(640)
    x[5] = 0
    codec = LEVELS["balanced"]
    assert codec.encode(x, place_for(codec, x))[0] == DITHERED
    seen = {float(through(codec, x, place_for(codec, x, key=bytes([n]) * 32)).values()[5]) for n in range(20)}
    assert len(seen) > 10


# -- exact --------------------------------------------------------------------------------------------------


def by_the_formula(x: np.ndarray, step: Step, dither: np.ndarray) -> list[Fraction]:
    """Subtractive dither with the numbers of the docstring."""
    size = Fraction(step.k) * Fraction(2) ** step.e
    # The encoder's own product with 1/step is a float32.
    scale = np.float32(1 / (size / 256))
    made = []
    for value, b in zip(x, dither, strict=True):
        q = (math.floor(float(np.float32(value) * scale)) + int(b)) // 256
        made.append((256 * q + 128 - int(b)) * size / 256)
    return made


@given(st.floats(-6, 3), st.integers(0, 1 << 30), st.integers(0, 5), st.integers(0, 300))
@examples(40)
def test_dithered_values_are_those_of_the_formula(exponent, seed, section, number):
    x = gauss(200, 10.0**exponent, seed)
    codec = LEVELS["balanced"]
    place = place_for(codec, x, section=section, offset=number * TILE)
    dither = np.empty(200, np.uint8)
    keystream(KEY, section, number * TILE)(dither)
    expected = by_the_formula(x, place.step, dither)
    for dtype in ("float32", "float64"):
        made = codec.decode(memoryview(codec.encode(x, place)), dtype, 200, place)
        assert [Fraction(float(v)) for v in made.values()] == expected
    acc = np.zeros(200, np.int64)
    through(codec, x, place).add_to(acc, 7, GRID, 1e5, "x")
    assert acc.tolist() == [v * 2**GRID * 7 for v in expected]


def tiles(x: np.ndarray) -> dict[str, tile.Tile]:
    made: dict[str, tile.Tile] = {}
    for name in codecs.names():
        codec = codecs.by_name(name)
        place = place_for(codec, x) if isinstance(codec, Q1) else Place()
        made[name] = codec.decode(memoryview(codec.encode(x, place)), x.dtype.name, x.size, place)
    base = Place(base=np.roll(x, 1))
    made["ordinal"] = ORDINAL.decode(memoryview(ORDINAL.encode(x, base)), x.dtype.name, x.size, base)
    return made


@examples(40)
@given(updates().filter(lambda x: x.size <= 4096), st.integers(1, 1 << 12))
def test_every_tile_adds_its_weight_times_its_values_on_the_grid(x, weight):
    start = np.arange(x.size, dtype=np.int64) - 5
    for name, one in tiles(x).items():
        assert one.count == x.size
        assert one.values().dtype == x.dtype
        acc = start.copy()
        one.add_to(acc, weight, GRID, BOUND, "x")
        assert (acc - start).tolist() == integers(one.values(), weight).tolist(), name


@examples(60)
@given(st.floats(-30, 6), st.integers(16, 40), st.sampled_from(sorted(LEVELS)), st.integers(0, 1 << 30))
def test_what_is_decoded_lies_on_the_grid_whatever_the_size_of_the_values(exponent, grid, name, seed):
    rms = 10.0**exponent
    x = np.random.default_rng(seed).standard_normal(300) * rms
    grid = min(
        grid, 55 - math.ceil(math.log2(max(1.0, 8 * rms)))
    )  # that there is room in 63 bits is the run's proof
    codec = LEVELS[name]
    for kind in ("float32", "float64"):
        made = through(codec, x.astype(kind), place_for(codec, x, grid))
        assert isinstance(made, Quantised)
        if made.escapes.size:
            continue
        on = made.values().astype(np.float64) * 2.0**grid
        assert np.array_equal(on, np.rint(on))
        acc = np.zeros(300, np.int64)
        made.add_to(acc, 3, grid, 8e7, "x")
        assert np.array_equal(acc, on.astype(np.int64) * 3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1e-8, 1e-3, 1.0, 900.0])  # the largest do not fit in 31 bits on the grid
def test_floats_are_rounded_to_the_grid_to_even(dtype, size):
    x = np.random.default_rng(0).uniform(-size, size, 3000).astype(dtype)
    if dtype != "float16":
        x[:4] = np.array([0.5, 1.5, 2.5, -0.5]) * 2.0**-GRID
    acc = np.zeros(x.size, np.int64)
    Plain(x).add_to(acc, 5, GRID, BOUND, "x")
    assert acc.tolist() == integers(x, 5).tolist()
    assert np.array_equal(on_grid(x.reshape(30, 100), GRID, BOUND, "x").ravel() * 5, acc)


@pytest.mark.parametrize("size", [64, 192, 4096])
@pytest.mark.parametrize(
    "make", [gauss, heavy, lambda n: thinned(gauss(n), 0.7), lambda n: in_rows(gauss(n))]
)
def test_how_much_is_worked_on_at_a_time_changes_nothing(monkeypatch, size, make):
    x = make(10_000)

    def everything() -> list[bytes]:
        made = []
        for codec in LEVELS.values():
            place = place_for(codec, x)
            acc = np.zeros(x.size, np.int64)
            one = through(codec, x, place)
            one.add_to(acc, 3, GRID, BOUND, "x")
            made += [codec.encode(x, place), one.values().tobytes(), acc.tobytes()]
        acc = np.zeros(x.size, np.int64)
        Plain(x).add_to(acc, 3, GRID, BOUND, "x")
        return [*made, acc.tobytes()]

    at_once = everything()
    monkeypatch.setattr(tile, "BLOCK", size)
    assert everything() == at_once


# Written once; a reader of any version of Koinon must make the same of it. Key 00 01 .. 1f, section 2, second tile.
THERE = Place(key=KEY, section=2, offset=TILE)
GOLDEN_X = np.array([
    1, 299, -274, -891, -455, -992, 60, 1340, -492, -620, 490, 357, 105, -930, -29, 695, -1344, -458, -1901, -1290,
    -1842, -235, -1267, 271,
]) / 1000  # fmt: skip
GOLDEN = "02c8f6000000000000180000000001fffbfefb0007fefd030200fb0003f9fdf6f9f6fffa01"
GOLDEN_SUM = [
    4200, 55400, -58600, -240800, -118800, -261800, 6800, 370800, -114200, -157800,
    145000, 96800, 5000, -261000, -16800, 170600, -343800, -129200, -495000, -353800, -504600, -39200, -309400, 52200
]  # fmt: skip


def test_a_payload_is_written_as_it_always_was():
    place = Place(key=KEY, section=2, offset=TILE, step=Step(200, -10))
    assert LEVELS["balanced"].encode(GOLDEN_X.astype(np.float32), place).hex() == GOLDEN
    acc = np.zeros(24, np.int64)
    LEVELS["balanced"].decode(memoryview(bytes.fromhex(GOLDEN)), "float32", 24, THERE).add_to(
        acc, 1, 18, BOUND, "x"
    )
    assert acc.tolist() == GOLDEN_SUM


# (elements, payload, SHA-256 of the sum on a grid of 2^-18, its beginning): few that are not zero, and escapes; rows
# of zeros; nibbles; a list; in full.
WRITTEN = {
    "few": (
        192,
        "01c8f600000000020018000000659459659459659459659459659659659459659459659459014500000028b52ffd2059e501"
        "0012c40b11d0a503299124f30000000000c05c15482f9471e7c9b873b436215767a04506323dd8a31f655e3a5a64a00774b4"
        "16030020905b99b68be204",
        "b3add05a67cbe4d3",
    ),
    "rows": (
        192,
        "03c8f60100000000010000004000015c00000028b52ffd20809d020062861114c0251d496e9938ffffff3ffcffff7f73d7de"
        "32a542379e5b70b461587d4373077abd14dfd098c51545eca26cbc14ba80e7165715310b581f2f4b371e736051823d20e075"
        "650310059b9ca3349b051400006144",
        "9a2307c8cec3f205",
    ),
    "nibbles": (
        192,
        "02c8f90000000001014100000028b52ffd2060c5010002060d11c0251dd6feffffffffff77ad8c6c3e2d05c78e2edb632b40"
        "d13c628154a4c78e6224835f01453dc2aa32cde1c8a37e986a2403000000000000",
        "18ae9ef85301ab4d",
    ),
    "listed": (386, "01c8fa0000000003000200000001010002000000c081000200000001ed", "6aea8be86a0392ed"),
    "full": (
        192,
        "00011200000028b52ffd20c04d000010000001003b0a6001012800000028b52ffd20c0fd0000c000e0403830000060c0c020"
        "204050003000208490e8e0f860010094969a63012800000028b52ffd20c0fd0000c0203a2b0b8e1b165199c1995f831191d9"
        "528f94498f124529010094969a63012800000028b52ffd20c0fd0000c04145c5c6c5c64446c5c5454544c6c345c6c5c6c6c6"
        "c5c645010094969a63",
        "353e8216fb1eb814",
    ),
}


@pytest.mark.parametrize(("count", "payload", "expected"), WRITTEN.values(), ids=WRITTEN.keys())
def test_what_others_wrote_is_read_as_they_meant_it(count, payload, expected):
    acc = np.zeros(count, np.int64)
    made = LEVELS["thin"].decode(memoryview(bytes.fromhex(payload)), "float32", count, THERE)
    made.add_to(acc, 1, 18, 2.0**20, "x")
    assert hashlib.sha256(acc.astype("<i8").tobytes()).hexdigest()[:16] == expected


# -- escapes ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", sorted(LEVELS))
def test_what_is_far_beyond_the_others_comes_back_as_it_was(name):
    x = gauss(5000)
    x[[0, 17, 4999]] = 300.0, -np.float32(1000.1), 1.5
    codec = LEVELS[name]
    place = Place(key=KEY, step=codec.step_for(1e-3, GRID))
    made = through(codec, x, place)
    assert isinstance(made, Quantised)
    assert made.values()[[0, 17, 4999]].tolist() == x[[0, 17, 4999]].tolist()
    acc = np.full(5000, 11, np.int64)
    made.add_to(acc, 3, GRID, BOUND, "x")
    assert (acc - 11).tolist() == integers(made.values(), 3).tolist()
    for far in (2, 3, 4):
        beyond = x.copy()
        beyond[17] = 10.0**far * 11
        with pytest.raises(BadBlob, match="'x' holds 1100" if far == 2 else "'x' holds"):
            through(codec, beyond, place).add_to(acc, 3, GRID, BOUND, "x")


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_a_chunk_that_is_unlike_its_section_is_sent_in_full(name):
    x = gauss(1000, 1.0)
    codec = LEVELS[name]
    made = through(codec, x, Place(key=KEY, step=codec.step_for(1e-6, GRID)))
    assert made.values().tobytes() == x.tobytes()


@examples(40)
@given(st.integers(0, 1 << 30), st.floats(1.2, 4), st.sampled_from(sorted(LEVELS)))
def test_honest_values_never_fail_however_heavy_their_tails(seed, tail, name):
    x = (np.random.default_rng(seed).pareto(tail, 4000) * 1e-4).astype(np.float32)
    codec = LEVELS[name]
    place = place_for(codec, x)
    made = through(codec, x, place)
    made.check(GRID, 2.0**40, "x")
    assert np.max(np.abs(made.values() - x)) <= place.step.value


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_no_number_is_no_number_for_the_receiver(bad, dtype):
    x = gauss(1000, dtype=dtype)
    x[500] = bad
    codec = LEVELS["balanced"]
    made = through(codec, x, Place(key=KEY, step=codec.step_for(1e-3, GRID)))
    with pytest.raises(BadBlob, match="'x' holds NaN or Inf"):
        made.check(GRID, BOUND, "x")


# -- what may not enter a sum -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["balanced", "compact", "thin"])
def test_the_bound_holds_for_every_value_and_no_other(name):
    x = gauss(5000, 1.0)
    codec = LEVELS[name]
    made = through(codec, x, place_for(codec, x))
    largest = float(np.max(np.abs(made.values())))
    made.check(GRID, largest, "x")
    with pytest.raises(BadBlob, match=rf"'x' holds {largest:.6g}"):
        made.check(GRID, math.nextafter(largest, 0), "x")
    acc = np.zeros(5000, np.int64)
    with pytest.raises(BadBlob):
        made.add_to(acc, 1, GRID, math.nextafter(largest, 0), "x")
    assert not np.any(acc)


def test_a_step_finer_than_the_grid_is_refused():
    x = gauss(100)
    codec = LEVELS["balanced"]
    made = through(codec, x, place_for(codec, x, grid=40))
    made.check(40, BOUND, "x")
    with pytest.raises(BadBlob, match=r"'x' has a step of 0\.00024128, whose values are not all on"):
        made.check(16, BOUND, "x")


def test_a_step_beyond_any_sum_adds_nothing_where_all_is_zero():
    codec = LEVELS["thin"]
    made = through(codec, np.zeros(100, np.float32), Place(step=Step(255, 64)))
    acc = np.ones(100, np.int64)
    made.add_to(acc, 1 << 20, GRID, BOUND, "x")
    assert acc.tolist() == [1] * 100
    one = np.zeros(100, np.float32)
    one[3] = 2.0**72
    with pytest.raises(BadBlob, match="'x' holds"):
        through(codec, one, Place(step=Step(255, 64))).add_to(acc, 1, GRID, BOUND, "x")


# -- names and places ---------------------------------------------------------------------------------------


def test_a_run_may_ask_for_these_codecs():
    assert codecs.names() == ("raw", "lossless", "fine", "balanced", "compact", "thin")
    for name in codecs.names():
        codec = codecs.by_name(name)
        assert codecs.by_id(codec.id, codec.version).id == codec.id
        assert codec.exact == (name in ("raw", "lossless"))
        assert [d for d in FLOATS + INTEGERS if not codec.takes(d)] == (
            [] if codec.exact else ["float16", *INTEGERS]
        )
    with pytest.raises(UsageError, match="there is no codec 'ordinal'"):
        codecs.by_name("ordinal")
    assert codecs.by_id(4, 1) is ORDINAL


def test_any_level_reads_what_another_wrote():
    x = gauss(1000)
    place = place_for(LEVELS["fine"], x)
    payload = memoryview(LEVELS["fine"].encode(x, place))
    made = [codec.decode(payload, "float32", 1000, place).values().tobytes() for codec in LEVELS.values()]
    assert len(set(made)) == 1


def test_encoding_needs_a_step_and_floats():
    with pytest.raises(UsageError, match="q1 needs a step"):
        LEVELS["balanced"].encode(gauss(5), Place(key=KEY))
    with pytest.raises(UsageError, match="not int32"):
        LEVELS["balanced"].encode(np.arange(5, dtype=np.int32), Place(key=KEY, step=Step(128, 0)))


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_nothing_comes_back_as_nothing(name):
    x = np.zeros(0, np.float32)
    made = through(LEVELS[name], x, place_for(LEVELS[name], x))
    acc = np.zeros(0, np.int64)
    made.add_to(acc, 1, GRID, BOUND, "x")
    assert made.values().shape == (0,)


# -- symbols ------------------------------------------------------------------------------------------------


@examples(200)
@given(
    st.sampled_from([0, 1, 2, 63, 255, 256, 257, 4095, 4097, 20_000]), st.sampled_from([0.0, 0.01, 0.2, 0.4, 0.9]),
    st.sampled_from([1, 7, 8, 9, 128]), st.integers(0, 1 << 30),
)  # fmt: skip
def test_symbols_come_back_in_whichever_way_they_were_written(count, share, largest, seed):
    draw = np.random.default_rng(seed)
    those = draw.integers(-largest, min(largest, 127), count, endpoint=True).astype(np.int8)
    those[draw.random(count) >= share] = 0
    those[draw.random(count) < 0.005] = -128
    packer = Packer(QUICK)
    symbols.add(those, packer)
    source = Unpacker(memoryview(packer.bytes()))
    assert symbols.take(source, count).tolist() == those.tolist()
    source.end()


@pytest.mark.parametrize(
    ("way", "share", "largest"),
    [(0, 0.9, 100), (1, 0.9, 7), (1, 0.4, 1), (2, 0.2, 1), (2, 0.4, 100), (2, 0.03, 100), (3, 0.01, 100)],
)
def test_the_way_of_symbols_follows_from_how_many_are_zero_and_how_large_they_are(way, share, largest):
    draw = np.random.default_rng(0)
    those = np.where(draw.random(20_000) < share, draw.integers(1, largest, 20_000, endpoint=True), 0).astype(
        np.int8
    )
    packer = Packer(QUICK)
    symbols.add(those, packer)
    assert packer.bytes()[0] == way


# -- the difference to a base -------------------------------------------------------------------------------


@st.composite
def pairs(draw) -> tuple[np.ndarray, np.ndarray]:
    """Any bits, and any others of the same dtype and length."""
    dtype = np.dtype(draw(st.sampled_from(FLOATS + INTEGERS)))
    count = draw(st.integers(0, 50))
    size = count * dtype.itemsize

    def some() -> np.ndarray:
        data = draw(st.binary(min_size=size, max_size=size))
        return np.frombuffer(bytes(b & 1 for b in data) if dtype.kind == "b" else data, dtype)

    return some(), some()


SPECIAL = np.array([0x7FF8000000000123, 0x7FF0000000000001, 1 << 63, 0, 1, 0xFFF0000000000000], np.uint64)


@given(pairs())
@example((SPECIAL.view(np.float64), SPECIAL[::-1].copy().view(np.float64)))
@example((np.array([True, False]), np.array([False, False])))
def test_the_difference_to_a_base_gives_back_every_bit(pair):
    x, base = pair
    payload = ORDINAL.encode(x, Place(base=base))
    assert len(payload) <= ORDINAL.limit(x.nbytes)
    made = ORDINAL.decode(memoryview(payload), x.dtype.name, x.size, Place(base=base)).values()
    assert (made.dtype, made.tobytes()) == (x.dtype, x.tobytes())


def test_the_difference_is_small_where_little_changed():
    base = gauss(100_000, 0.05)
    x = base + gauss(100_000, 1e-6, seed=1)
    difference = len(ORDINAL.encode(x, Place(base=base)))
    assert difference < 0.6 * len(Lossless().encode(x))
    assert len(ORDINAL.encode(base, Place(base=base))) < 200


@pytest.mark.parametrize("dtype", FLOATS)
def test_neighbouring_floats_differ_by_one_across_zero_too(dtype):
    smallest = np.array([np.finfo(dtype).smallest_subnormal], dtype)
    line = np.concatenate([-smallest, np.array([-0.0, 0.0], dtype), smallest])
    payload = ORDINAL.encode(line[1:], Place(base=line[:-1]))
    assert Lossless().decode(memoryview(payload), f"uint{8 * line.itemsize}", 3).values().tolist() == [
        2,
        2,
        2,
    ]  # zigzag of +1


@pytest.mark.parametrize(
    "base", [None, np.zeros(4, np.float32), np.zeros(5, np.float64), np.zeros((5, 1), np.float32)]
)
def test_a_difference_needs_the_base_that_it_is_to(base):
    x = np.ones(5, np.float32)
    payload = ORDINAL.encode(x, Place(base=np.zeros(5, np.float32)))
    with pytest.raises(BadBlob, match="a base that is not here"):
        ORDINAL.decode(memoryview(payload), "float32", 5, Place(base=base))
    with pytest.raises(UsageError, match="base of the same dtype and length"):
        ORDINAL.encode(x, Place(base=base))
