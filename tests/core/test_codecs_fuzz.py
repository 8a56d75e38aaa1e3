"""Bytes that lie: whatever a payload says, there is a tile of the right shape or a BadBlob, and no more memory than
the elements are worth."""

import struct
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from koinon_core import codecs
from koinon_core.codecs import Codec, Place, Step
from koinon_core.codecs.ordinal import ORDINAL
from koinon_core.codecs.q1 import LEVELS, Q1
from koinon_core.errors import BadBlob
from koinon_core.schema import FLOATS, INTEGERS
from koinon_core.tiles import TILE

KEY = bytes(range(32))
HUGE = (1 << 32) - 1
COUNT = 2000
SLACK = 128 << 10


def examples(count: int) -> settings:
    """So many examples, and as many times more in `make soak` as a test has there that says nothing."""
    return settings(max_examples=count * settings().max_examples // 100)


def everywhere(dtype: str = "float32", count: int = COUNT) -> Place:
    return Place(key=KEY, section=1, offset=TILE, step=Step(200, -10), base=np.ones(count, dtype))


def outcome(codec: Codec, payload: bytes, dtype: str = "float32", count: int = COUNT) -> np.ndarray | None:
    """The values that come of `payload`, or None for a BadBlob; any other error is the test's."""
    place, room = everywhere(dtype, count), 2 * count * np.dtype(dtype).itemsize + SLACK
    view = memoryview(payload)
    tracemalloc.start()
    try:
        made = codec.decode(view, dtype, count, place)
        assert tracemalloc.get_traced_memory()[1] < room
    except BadBlob:
        assert tracemalloc.get_traced_memory()[1] < room
        return None
    finally:
        tracemalloc.stop()
    assert made.count == count
    values = made.values()
    assert (values.shape, values.dtype) == ((count,), np.dtype(dtype))
    if dtype in FLOATS:
        _sum_of(made, values)
    return values


def _sum_of(made, values: np.ndarray) -> None:
    """It is refused, or is what its values are."""
    acc = np.zeros(values.size, np.int64)
    try:
        made.check(20, 1024.0, "x")
    except BadBlob:
        with pytest.raises(BadBlob):
            made.add_to(acc, 3, 20, 1024.0, "x")
        return
    made.add_to(acc, 3, 20, 1024.0, "x")
    assert np.all(np.abs(values) <= 1024.0)
    assert np.array_equal(acc, np.rint(values.astype(np.float64) * 2.0**20).astype(np.int64) * 3)


# -- honest payloads, spoiled -------------------------------------------------------------------------------


def _honest() -> Iterator[tuple[str, Codec, str, bytes]]:
    draw = np.random.default_rng(0)
    x = (draw.standard_normal(COUNT) * 0.8).astype(np.float32)
    far = x.copy()
    far[::50] = 100.0
    rows = np.where(np.arange(COUNT) // 128 % 2 == 0, x, np.float32(0))
    few = np.where(draw.random(COUNT) < 0.2, x, np.float32(0))
    kinds = {
        "dense": x,
        "escapes": far,
        "rows": rows,
        "few": few,
        "small": x / 2,
        "listed": few / 16,
        "full": x * 200,
    }
    for name, values in kinds.items():
        codec = LEVELS["thin" if name == "listed" else "balanced"]
        for dtype in ("float32", "float64"):
            yield f"{name} {dtype}", codec, dtype, codec.encode(values.astype(dtype), everywhere(dtype))
    for dtype in FLOATS + INTEGERS:
        values = (x * 500).astype(dtype)
        for codec_name, codec in (("lossless", codecs.by_name("lossless")), ("ordinal", ORDINAL)):
            yield f"{codec_name} {dtype}", codec, dtype, codec.encode(values, everywhere(dtype))


HONEST = {name: (codec, dtype, payload) for name, codec, dtype, payload in _honest()}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_payload_is_read(name):
    codec, dtype, payload = HONEST[name]
    assert len(payload) <= codec.limit(COUNT * np.dtype(dtype).itemsize)
    assert outcome(codec, payload, dtype) is not None


def test_the_honest_payloads_are_of_every_kind():
    seen = {
        (payload[0], payload[7])
        for c, _, payload in HONEST.values()
        if isinstance(c, Q1) and payload[0] in (1, 2)
    }
    assert seen >= {(1, 2), (1, 3), (2, 0), (2, 1)}
    assert {payload[0] for c, _, payload in HONEST.values() if isinstance(c, Q1)} == {0, 1, 2, 3}


mutations = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 1 << 20), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, 1 << 20), st.integers(1, 300)),
        st.tuples(st.just("repeat"), st.integers(0, 1 << 20), st.integers(1, 300)),
        st.tuples(st.just("end"), st.integers(0, 1 << 20), st.just(0)),
        st.tuples(st.just("put"), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)),
        # Most of what can go wrong is in the head and at the beginning of the planes.
        st.tuples(st.just("flip"), st.integers(0, 24), st.integers(1, 255)),
        st.tuples(st.just("put"), st.integers(0, 24), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def mutate(payload: bytes, how: list) -> bytes:
    data = bytearray(payload)
    for kind, at, what in how:
        at %= len(data) + 1
        match kind:
            case "flip" if at < len(data):
                data[at] ^= what
            case "cut":
                del data[at : at + what]
            case "repeat":
                data[at:at] = data[at : at + what]
            case "end":
                del data[at:]
            case "put":
                data[at : at + len(what)] = what
    return bytes(data)


@examples(1500)
@given(st.sampled_from(sorted(HONEST)), mutations)
def test_a_spoiled_payload_is_refused_or_read_in_the_right_shape(name, how):
    codec, dtype, payload = HONEST[name]
    outcome(codec, mutate(payload, how), dtype)


@examples(300)
@given(st.binary(max_size=400), st.sampled_from(["balanced", "lossless", "raw"]), st.integers(0, 70))
@example(b"", "balanced", 0)
@example(b"\0", "balanced", 1)
def test_random_bytes_are_refused_or_read_in_the_right_shape(data, name, count):
    codec = codecs.by_name(name)
    for dtype in ("float32", "float64"):
        outcome(codec, data, dtype, count)
        for mode in (1, 2, 3):
            outcome(LEVELS["balanced"], bytes((mode, 200, 0xF6)) + bytes(4) + data, dtype, count)
    outcome(ORDINAL, data, "int16", count)


@pytest.mark.parametrize("name", HONEST)
def test_a_payload_cut_anywhere_or_with_more_behind_it_is_refused(name):
    codec, dtype, payload = HONEST[name]
    for end in [*range(min(60, len(payload))), *range(60, len(payload), 211), len(payload) - 1]:
        assert outcome(codec, payload[:end], dtype) is None
    for more in (b"\0", bytes(4), payload):
        assert outcome(codec, payload + more, dtype) is None


# -- made to hurt -------------------------------------------------------------------------------------------


def plane(data: bytes, kind: int | None = None, length: int | None = None) -> bytes:
    """A plane of zstd (or of another kind), which says its length, or another one."""
    packed = zstandard.compress(data) if kind in (None, 1) else data
    return struct.pack("<BI", 1 if kind is None else kind, len(packed) if length is None else length) + packed


def head(mode: int = 2, k: int = 200, e: int = -10, escapes: int = 0) -> bytes:
    return struct.pack("<BBbI", mode, k, e, escapes)


def symbols(values: bytes, way: int = 0) -> bytes:
    return bytes((way,)) + plane(values)


RUNS, BLOCKS = -(-TILE // 256), TILE // 64
ONE_ESCAPE = symbols(b"\x80" + bytes(TILE - 1))
LIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no head": ("cut off", lambda: head()[:5]),
    "an unknown mode": ("a way numbered 4", lambda: head(4) + symbols(bytes(TILE))),
    "a k of 0": ("out of range", lambda: head(k=0) + symbols(bytes(TILE))),
    "an e of 127": ("out of range", lambda: head(e=127) + symbols(bytes(TILE))),
    "an e of -128": ("out of range", lambda: head(e=-128) + symbols(bytes(TILE))),
    "an unknown way": ("a way numbered 4", lambda: head() + symbols(bytes(TILE), 4)),
    "a bomb": (f"claims to unpack to {10 * TILE}", lambda: head() + symbols(bytes(10 * TILE))),
    "symbols too few": (f"claims to unpack to {TILE - 1}", lambda: head() + symbols(bytes(TILE - 1))),
    "bytes behind": ("1 bytes follow", lambda: head() + symbols(bytes(TILE)) + b"\0"),
    "too many escapes": ("are escapes", lambda: head(escapes=TILE // 16 + 1) + symbols(b"\x80" * TILE)),
    "escapes beyond counting": ("are escapes", lambda: head(escapes=HUGE) + symbols(bytes(TILE))),
    "an escape without a mark": ("0 symbols for its 1", lambda: head(escapes=1) + symbols(bytes(TILE)) + bytes(4)),
    "a mark without an escape": ("1 symbols for its 0", lambda: head() + ONE_ESCAPE),
    "marks everywhere": (f"{TILE} symbols for its 0", lambda: head() + symbols(b"\x80" * TILE)),
    "half an escape": ("cut off", lambda: head(escapes=1) + ONE_ESCAPE + bytes(3)),
    "wide nibbles everywhere": ("stand by themselves", lambda: head() + symbols(b"\x88" * (TILE // 2), 1)),
    "a full mask": ("stand by themselves", lambda: head() + symbols(b"\xff" * (TILE // 8), 2)),
    "a mask of another size": ("claims to unpack", lambda: head() + symbols(b"\xff" * TILE, 2)),
    "a list of everything": ("stand by themselves", lambda: head() + symbols(b"\xff" * RUNS, 3)),
    "a list out of order": (
        "not in order", lambda: head() + symbols(b"\2" + bytes(RUNS - 1), 3) + plane(b"\5\5") + plane(b"\1\1")
    ),
    "blocks of another size": ("claims to unpack", lambda: head(3) + plane(bytes(BLOCKS)) + symbols(bytes(TILE))),
    "symbols for blocks of zeros": (
        "claims to unpack", lambda: head(3) + plane(b"\xff" * (BLOCKS // 8)) + symbols(bytes(TILE))
    ),
    "an unknown kind of plane": ("a way numbered 2", lambda: head() + b"\0" + plane(bytes(TILE), 2)),
    "a plane as it is, too long": ("bytes, not", lambda: head() + b"\0" + plane(bytes(TILE + 1), 0)),
    "a length beyond the end": ("cut off", lambda: head() + b"\0" + plane(bytes(TILE), 0, HUGE)),
    "no frame": ("cannot be unpacked", lambda: head() + b"\0" + struct.pack("<BI", 1, 9) + b"not zstd."),
    "in full, cut off": ("cut off", lambda: b"\0" + plane(bytes(TILE)) * 3),
    "in full, with more": ("follow", lambda: b"\0" + plane(bytes(TILE)) * 5),
}  # fmt: skip


@pytest.mark.parametrize(("sentence", "lie"), LIES.values(), ids=LIES.keys())
def test_a_lie_is_refused_by_its_name_before_there_is_memory_for_it(sentence, lie):
    payload = memoryview(lie())
    tracemalloc.start()
    try:
        with pytest.raises(BadBlob, match=sentence):
            LEVELS["balanced"].decode(payload, "float32", TILE, everywhere())
        assert tracemalloc.get_traced_memory()[1] < 2 * 4 * TILE + SLACK
    finally:
        tracemalloc.stop()


def test_the_lies_are_lies_only_where_they_say():
    for mode in (1, 2):
        LEVELS["balanced"].decode(
            memoryview(head(mode) + symbols(bytes(TILE))), "float32", TILE, everywhere()
        )
    made = LEVELS["balanced"].decode(
        memoryview(head(escapes=1) + ONE_ESCAPE + bytes(4)), "float32", TILE, everywhere()
    )
    assert made.values()[0] == 0


@pytest.mark.parametrize("which", ["dense", "few", "rows", "small", "heavy", "full"])
def test_a_whole_tile_takes_no_more_than_twice_its_memory_to_read(which):
    x = (np.random.default_rng(0).standard_normal(TILE) * 0.8).astype(np.float32)
    places = np.arange(TILE)
    values = {
        "dense": x, "few": x * (places % 2), "rows": x * (places // 64 % 9 > 0), "small": x / 2,
        "heavy": x * np.where(places % 100 == 0, np.float32(200), 1), "full": x * 200,
    }[which].astype(np.float32)  # fmt: skip
    payload = memoryview(LEVELS["balanced"].encode(values, everywhere()))
    acc = np.zeros(TILE, np.int64)
    tracemalloc.start()
    try:
        made = LEVELS["balanced"].decode(payload, "float32", TILE, everywhere())
        assert tracemalloc.get_traced_memory()[1] < 2 * 4 * TILE + SLACK
        made.add_to(acc, 3, 30, 1024.0, "x")
        assert tracemalloc.get_traced_memory()[1] < 2 * 4 * TILE + SLACK
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("worst", [np.nan, np.inf, 3e38])
def test_an_escape_may_be_anything_and_is_still_checked(worst):
    payload = head(escapes=1) + symbols(b"\x80" + bytes(99)) + struct.pack("<f", worst)
    made = LEVELS["balanced"].decode(memoryview(payload), "float32", 100, everywhere())
    with pytest.raises(BadBlob, match="'x' holds"):
        made.check(20, 1024.0, "x")


@pytest.mark.parametrize("dtype", ["float16", *INTEGERS])
def test_what_cannot_have_been_quantised_is_refused(dtype):
    payload = memoryview(head() + symbols(bytes(10)))
    with pytest.raises(BadBlob, match=f"{dtype} cannot have been quantised"):
        LEVELS["balanced"].decode(payload, dtype, 10, everywhere())
