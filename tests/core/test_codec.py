"""The container: nothing is lost on the way, and no bytes whatever raise anything but BadBlob."""

import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from koinon_core import codecs
from koinon_core.codec import TILE, Reader, Writer, as_they_are, decode, encode, size_limit
from koinon_core.errors import BadBlob, LocalProtocolError, UsageError
from koinon_core.schema import FLOATS, INTEGERS, Field, Schema
from koinon_core.tensors import Tensors
from koinon_core.tiles import Held
from koinon_core.wire.v1 import container_pb2 as pb

CODECS = ["raw", "lossless"]
RAW, LOSSLESS = 1, 2


def schema_for(arrays: dict[str, np.ndarray]) -> Schema:
    return Schema(tuple(Field(n, a.shape, a.dtype.name, "buffer") for n, a in arrays.items()))


@st.composite
def arrays(draw) -> np.ndarray:
    """Any dtype and shape, with any bits: NaNs with payloads, -0.0, subnormals."""
    dtype = np.dtype(draw(st.sampled_from(FLOATS + INTEGERS)))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    nbytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
    data = draw(st.binary(min_size=nbytes, max_size=nbytes))
    if dtype.kind == "b":
        data = bytes(b & 1 for b in data)
    return np.frombuffer(data, dtype).reshape(shape)


@pytest.mark.parametrize("codec", CODECS)
@given(those=st.lists(arrays(), max_size=4))
def test_every_bit_of_every_dtype_and_shape_comes_back(codec, those):
    tensors = Tensors({f"t{i}": a for i, a in enumerate(those)})
    schema = schema_for(dict(tensors))
    blob = encode(tensors, schema, codec)
    assert decode(blob, schema) == tensors
    assert len(blob) <= size_limit(schema)


SPECIAL = np.array([0x7FF8000000000123, 0x7FF0000000000001, 1 << 63, 1, 0xFFF0000000000000], np.uint64)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "array",
    [
        np.array(-0.0),
        SPECIAL.view(np.float64),
        np.zeros((0, 7), np.float16),
        np.random.default_rng(0).standard_normal(TILE + 3).astype(np.float32),
        np.arange(2 * TILE) % 251 == 0,
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::2],
    ],
    ids=["0-d", "NaN payloads", "empty", "two tiles", "two full tiles", "transposed", "strided"],
)
def test_awkward_arrays_come_back_bit_by_bit(codec, array):
    schema = schema_for({"x": array})
    back = decode(encode(Tensors({"x": array}), schema, codec), schema)["x"]
    assert back.tobytes() == array.tobytes()
    assert (back.shape, back.dtype) == (array.shape, array.dtype)


def test_lossless_is_smaller_where_there_is_something_to_find():
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    schema = schema_for({"x": x})
    raw, lossless = (encode(Tensors({"x": x}), schema, c) for c in CODECS)
    assert len(lossless) < 0.9 * len(raw)


def test_noise_never_exceeds_what_a_receiver_allows():
    x = np.frombuffer(np.random.default_rng(0).bytes(8 * 5000), np.int64)
    schema = schema_for({"x": x, "one": x[0]})
    assert len(encode(Tensors({"x": x, "one": x[0]}), schema, "lossless")) <= size_limit(schema)


def test_the_same_tensors_are_the_same_bytes():
    assert encode(GOOD, SCHEMA) == encode(Tensors(GOOD, copy=True), SCHEMA)


def test_an_unknown_codec_is_refused_with_those_there_are():
    with pytest.raises(
        UsageError, match="no codec 'gzip'; this version has balanced, compact, fine, lossless, raw, thin"
    ):
        encode(GOOD, SCHEMA, "gzip")


def test_tensors_that_are_not_as_the_schema_says_are_not_encoded():
    with pytest.raises(UsageError, match="what is encoded has 'w' as"):
        encode(Tensors({**GOOD, "w": np.zeros(3)}), SCHEMA)


def test_one_tile_is_read_without_the_rest():
    x = np.arange(2 * TILE + 3, dtype=np.float32)
    schema = schema_for({"a": x, "b": x[:1]})
    blob = encode(Tensors({"a": x, "b": x[:1]}), schema, "raw")
    asked = []

    def window(offset, length):
        asked.append(length)
        return blob[offset : offset + length]

    reader = Reader(window, len(blob), schema)
    assert sum(asked) < 1000
    assert reader.values("a", 2 * TILE).tolist() == x[2 * TILE :].tolist()
    assert sum(asked) < 1000


def test_sections_may_take_turns_while_they_are_written():
    x = np.arange(2 * TILE, dtype=np.int32)
    tensors = Tensors({"a": x, "b": x[::-1].copy()})
    schema, parts = schema_for(dict(tensors)), []
    writer = Writer(parts.append, schema, as_they_are("raw"))
    for offset in (0, TILE):
        for name in ("b", "a"):
            writer.put(name, offset, tensors[name][offset : offset + TILE])
    writer.close()
    blob = b"".join(parts)
    assert writer.size == len(blob)
    assert decode(blob, schema) == tensors


def test_a_container_with_a_tile_missing_is_not_closed():
    schema = schema_for({"a": np.zeros(3), "b": np.zeros(2)})
    writer = Writer(lambda data: None, schema, as_they_are("raw"))
    writer.put("a", 0, np.zeros(3))
    with pytest.raises(LocalProtocolError, match="with 1 tiles missing"):
        writer.close()


def test_a_difference_needs_its_base_and_names_it():
    schema = schema_for({"a": np.zeros(5, np.float32)})
    before, after, parts = Held({"a": np.arange(5, dtype=np.float32)}), np.arange(1, 6, dtype=np.float32), []
    writer = Writer(parts.append, schema, as_they_are("lossless"), base=before, base_digest="ab" * 32)
    writer.put("a", 0, after)
    assert writer.again().values().tolist() == after.tolist()
    writer.close()
    blob = b"".join(parts)
    reader = Reader(lambda o, n: blob[o : o + n], len(blob), schema, base=before)
    assert reader.base == "ab" * 32
    assert reader.tensors()["a"].tobytes() == after.tobytes()
    with pytest.raises(BadBlob, match="differences to a model that is not here"):
        decode(blob, schema)


# -- bytes that lie -----------------------------------------------------------------------------------------

W = np.random.default_rng(1).standard_normal((40, 50)).astype(np.float32)
GOOD = Tensors({"w": W, "flags": W[0] > 0, "n": np.array(7), "none": np.zeros((0, 2))})
SCHEMA = schema_for(dict(GOOD))
BLOBS = [encode(GOOD, SCHEMA, c) for c in CODECS]
BODY, TAIL = 5, 8


def manifest_of(blob: bytes) -> tuple[pb.Manifest, bytes]:
    (length,) = struct.unpack_from("<I", blob, len(blob) - TAIL)
    at = len(blob) - TAIL - length
    return pb.Manifest.FromString(blob[at : at + length]), blob[BODY:at]


def container(manifest: pb.Manifest | bytes, payload: bytes) -> bytes:
    last = manifest if isinstance(manifest, bytes) else manifest.SerializeToString()
    return b"KOIN\x02" + payload + last + struct.pack("<I4s", len(last), b"NIOK")


def older(manifest: pb.Manifest, payload: bytes) -> bytes:
    """The container as Koinon 0.2 wrote it."""
    head = manifest.SerializeToString()
    return struct.pack("<4sBI", b"KOIN", 1, len(head)) + head + payload


def holding(schema: Schema, payload: bytes, codec: int = LOSSLESS) -> bytes:
    """A container of one field and one chunk, with any payload."""
    manifest = pb.Manifest(schema_digest=bytes.fromhex(schema.digest))
    (field,) = schema
    manifest.sections.add(name=field.name, dtype=field.dtype, shape=field.shape)
    manifest.chunks.add(
        section=0, offset=0, count=field.size, codec=codec, codec_version=1, size=len(payload)
    )
    return container(manifest, payload)


def refuses_or_reads(blob: bytes, schema: Schema = SCHEMA) -> Tensors | None:
    """What comes of `blob`: tensors as the schema says, or BadBlob (None); any other error is the test's."""
    tracemalloc.start()
    try:
        made = decode(blob, schema)
    except BadBlob:
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * schema.nbytes + (1 << 20)
    schema.check(made, "what was decoded")
    return made


@pytest.mark.parametrize(
    "array", [np.zeros(0), np.array(True), np.zeros((), np.float16), np.zeros(1, np.int8)]
)
def test_the_smallest_container_of_an_older_version_is_read(array):
    schema = schema_for({"x": array})
    blob = older(*manifest_of(encode(Tensors({"x": array}), schema, "raw")))
    assert decode(blob, schema) == Tensors({"x": array})


def test_the_helpers_make_what_the_encoder_makes():
    for blob in BLOBS:
        manifest, payload = manifest_of(blob)
        assert decode(container(manifest, payload), SCHEMA) == GOOD
        assert decode(older(manifest, payload), SCHEMA) == GOOD
    x = np.arange(5.0)
    assert (
        refuses_or_reads(holding(schema_for({"x": x}), x.tobytes(), RAW), schema_for({"x": x}))["x"][4] == 4
    )


mutations = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 1 << 20), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, 1 << 20), st.integers(1, 300)),
        st.tuples(st.just("repeat"), st.integers(0, 1 << 20), st.integers(1, 300)),
        st.tuples(st.just("end"), st.integers(0, 1 << 20), st.just(0)),
        st.tuples(st.just("put"), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)),
        # Most of what can go wrong is in the manifest and in the heads of the planes.
        st.tuples(st.just("flip"), st.integers(-250, 250), st.integers(1, 255)),
        st.tuples(st.just("put"), st.integers(-250, 250), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def mutate(blob: bytes, how: list) -> bytes:
    data = bytearray(blob)
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


@settings(max_examples=800, suppress_health_check=[HealthCheck.too_slow])
@given(which=st.integers(0, 3), how=mutations)
def test_spoiled_bytes_are_refused_or_read_in_the_right_shape(which, how):
    refuses_or_reads(mutate([*BLOBS, *(older(*manifest_of(blob)) for blob in BLOBS)][which], how))


@settings(max_examples=200)
@given(st.binary(max_size=300))
@example(b"")
@example(b"KOIN")
def test_random_bytes_are_refused(data):
    assert refuses_or_reads(data) is None
    assert refuses_or_reads(struct.pack("<4sBI", b"KOIN", 1, len(data)) + data) is None
    assert refuses_or_reads(container(data, b"")) is None


@pytest.mark.parametrize("blob", BLOBS, ids=CODECS)
def test_a_container_cut_anywhere_is_refused(blob):
    for end in [*range(400), *range(400, len(blob), 97), len(blob) - 1]:
        assert refuses_or_reads(blob[:end]) is None


@pytest.mark.parametrize("blob", BLOBS, ids=CODECS)
@pytest.mark.parametrize("more", [b"\0", b"KOIN", b"x" * 5000])
def test_appended_bytes_are_refused(blob, more):
    assert refuses_or_reads(blob + more) is None
    assert refuses_or_reads(more + blob) is None


HUGE = (1 << 32) - 1
CHANGES = {
    "no chunks": lambda m: m.ClearField("chunks"),
    "a chunk missing": lambda m: m.chunks.pop(),
    "a chunk twice": lambda m: m.chunks.add().CopyFrom(m.chunks[0]),
    "a chunk twice in place of another": lambda m: m.chunks[1].CopyFrom(m.chunks[0]),
    "chunks swapped": lambda m: [m.chunks[0].CopyFrom(m.chunks[1]), m.chunks[1].CopyFrom(m.chunks[0])],
    "a chunk of nothing": lambda m: m.chunks.add(section=3, codec=1, codec_version=1),
    "a huge count": lambda m: setattr(m.chunks[0], "count", HUGE),
    "a count less": lambda m: setattr(m.chunks[0], "count", m.chunks[0].count - 1),
    "a huge offset": lambda m: setattr(m.chunks[0], "offset", 1 << 60),
    "an offset inside": lambda m: setattr(m.chunks[0], "offset", 1),
    "a section that is not there": lambda m: setattr(m.chunks[0], "section", 99),
    "a huge size": lambda m: setattr(m.chunks[0], "size", HUGE),
    "no size": lambda m: setattr(m.chunks[0], "size", 0),
    "sizes that wrap around": lambda m: [
        setattr(m.chunks[0], "size", HUGE), setattr(m.chunks[1], "size", m.chunks[1].size + 1)
    ],
    "a byte moved to the next chunk": lambda m: [
        setattr(m.chunks[0], "size", m.chunks[0].size - 1), setattr(m.chunks[1], "size", m.chunks[1].size + 1)
    ],
    "codec 0": lambda m: setattr(m.chunks[0], "codec", 0),
    "codec 99": lambda m: setattr(m.chunks[0], "codec", 99),
    "the other codec": lambda m: setattr(m.chunks[0], "codec", 3 - m.chunks[0].codec),
    "another version of the codec": lambda m: setattr(m.chunks[0], "codec_version", 2),
    "no sections": lambda m: m.ClearField("sections"),
    "a section missing": lambda m: m.sections.pop(),
    "a section twice": lambda m: m.sections.add().CopyFrom(m.sections[0]),
    "sections swapped": lambda m: m.sections.reverse(),
    "another name": lambda m: setattr(m.sections[0], "name", "v" * 200),
    "another dtype": lambda m: setattr(m.sections[0], "dtype", "float64"),
    "a dtype that runs code": lambda m: setattr(m.sections[0], "dtype", "O"),
    "a huge shape": lambda m: m.sections[0].shape.__setitem__(slice(None), [1 << 62, 1 << 62]),
    "a flat shape": lambda m: m.sections[0].shape.__setitem__(slice(None), [2000]),
    "another digest": lambda m: setattr(m, "schema_digest", bytes(32)),
    "no digest": lambda m: m.ClearField("schema_digest"),
    "a key that is none": lambda m: setattr(m, "key", b"k" * 31),
    "a base that is none": lambda m: setattr(m, "base", b"b" * 33),
    "differences to nothing": lambda m: [setattr(c, "codec", 4) for c in m.chunks],
}  # fmt: skip


@pytest.mark.parametrize("blob", BLOBS, ids=CODECS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_manifest_that_says_anything_else_is_refused(blob, change):
    manifest, payload = manifest_of(blob)
    change(manifest)
    assert refuses_or_reads(container(manifest, payload)) is None
    assert refuses_or_reads(older(manifest, payload)) is None


def test_a_manifest_longer_than_the_model_needs_is_refused_unread():
    manifest, payload = manifest_of(BLOBS[0])
    padded = manifest.SerializeToString() + b"\x7a\x80\x20" + bytes(4096)  # an unknown field of 4 KiB
    with pytest.raises(BadBlob, match="which the run's model cannot need"):
        decode(container(padded, payload), SCHEMA)
    for declared in (
        struct.pack("<4sBI", b"KOIN", 1, HUGE) + BLOBS[0][BODY:],
        BLOBS[0][:-TAIL] + struct.pack("<I4s", HUGE, b"NIOK"),
    ):
        with pytest.raises(BadBlob, match=f"a manifest of {HUGE} bytes"):
            decode(declared, SCHEMA)


def test_names_of_any_length_fit_in_the_manifest_that_a_receiver_allows():
    schema = Schema(tuple(Field("ü" * 500 + str(i), (1,) * 30, "float16") for i in range(20)))
    assert decode(encode(schema.zeros(), schema), schema) == schema.zeros()


def test_a_version_from_the_future_is_refused_by_its_number():
    with pytest.raises(BadBlob, match="version 3; this side reads up to 2"):
        decode(b"KOIN\x03" + BLOBS[0][5:], SCHEMA)


def test_a_container_for_another_schema_is_refused_with_the_first_difference():
    other = Schema((Field("w", (50, 40), "float32", "buffer"), *SCHEMA.fields[1:]))
    with pytest.raises(BadBlob, match=r"my blob has 'w' as float32\[40, 50\] where the run has 'w' as"):
        decode(BLOBS[0], other, "my blob")


def test_a_role_that_differs_is_another_schema():
    other = Schema((Field("w", (40, 50), "float32", "param"), *SCHEMA.fields[1:]))
    with pytest.raises(BadBlob, match="was made for another schema"):
        decode(BLOBS[0], other)


@pytest.mark.parametrize("blob", BLOBS, ids=CODECS)
def test_a_store_that_has_lost_bytes_is_noticed_where_they_are_read(blob):
    lost = bytearray(blob)

    def window(offset, length):
        return bytes(lost[offset : offset + length])

    reader = Reader(window, len(blob), SCHEMA)
    del lost[1200:]
    with pytest.raises(BadBlob, match="ends in the middle of 'w'"):
        reader.tensors()


@pytest.mark.parametrize("codec", [RAW, LOSSLESS])
def test_a_bool_that_is_neither_true_nor_false_is_refused(codec):
    schema = schema_for({"x": np.ones(3, bool)})
    payload = b"\1\2\0" if codec == RAW else struct.pack("<BI", 0, 3) + b"\1\2\0"
    with pytest.raises(BadBlob, match="neither true nor false"):
        decode(holding(schema, payload, codec), schema)


# -- planes and bombs ---------------------------------------------------------------------------------------

SMALL = Schema((Field("x", (4096,), "uint8", "buffer"),))
BOMB = bytes(10 << 20)


def plane(kind: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<BI", kind, len(data) if length is None else length) + data


def frame(data: bytes, **how) -> bytes:
    return zstandard.ZstdCompressor(**how).compress(data)


def lying(data: bytes, size: int) -> bytes:
    """A frame of `data` whose header says `size`."""
    made = bytearray(frame(data))
    assert made[4] >> 6 == 2, "the size takes four bytes"
    at = 5 if made[4] & 0x20 else 6
    assert struct.unpack_from("<I", made, at) == (len(data),)
    struct.pack_into("<I", made, at, size)
    return bytes(made)


def rle(size: int, blocks: int) -> bytes:
    """A frame by hand: it says `size`, and each of its blocks, 4 bytes long, unpacks to 128 KiB."""
    block = (((128 << 10) << 3) | 0b010).to_bytes(3, "little") + b"\0"
    last = (((128 << 10) << 3) | 0b011).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", size) + block * (blocks - 1) + last


PAYLOADS = {
    "nothing": b"",
    "half a head": b"\0\0\0",
    "a plane cut off": plane(0, bytes(4000), 4096),
    "a length past the end": plane(0, bytes(4096), HUGE),
    "too short": plane(0, bytes(4095)),
    "too long": plane(0, bytes(4097)),
    "an unknown kind": plane(2, frame(bytes(4096))),
    "a second plane": plane(1, frame(bytes(4096))) * 2,
    "bytes after the plane": plane(1, frame(bytes(4096))) + b"\0",
    "no frame": plane(1, b""),
    "part of a magic": plane(1, b"\x28\xb5"),
    "not a frame": plane(1, b"\0" * 64),
    "an older zstd": plane(1, b"\x27\xb5\x2f\xfd" + bytes(64)),
    "a skippable frame of that size": plane(1, b"\x50\x2a\x4d\x18" + struct.pack("<I", 4096) + bytes(4096)),
    "a skippable frame before it": plane(1, b"\x50\x2a\x4d\x18\0\0\0\0" + frame(bytes(4096))),
    "a frame cut off": plane(1, frame(W.tobytes()[:4096])[:-9]),
    "two frames": plane(1, frame(bytes(4096)) + frame(bytes(4096))),
    "two halves": plane(1, frame(bytes(2048)) * 2),
    "bytes after the frame": plane(1, frame(bytes(4096)) + b"x"),
    "a frame of nothing": plane(1, frame(b"")),
    "one byte less": plane(1, frame(bytes(4095))),
    "one byte more": plane(1, frame(bytes(4097))),
    "of unknown size": plane(1, frame(bytes(4096), write_content_size=False)),
    "a bomb": plane(1, frame(BOMB)),
    "a bomb of unknown size": plane(1, frame(BOMB, write_content_size=False)),
    "a bomb that claims to be small": plane(1, lying(BOMB, 4096)),
    "a bomb of hand-made blocks": plane(1, rle(4096, 80)),
    "a claim of 4 GiB": plane(1, rle(HUGE, 80)),
    "a dictionary that nobody has": plane(1, b"\x28\xb5\x2f\xfd\x61\x07" + frame(bytes(4096))[5:]),
}  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_a_payload_that_lies_is_refused_without_room_for_what_it_claims(payload):
    if len(payload) <= codecs.by_name("lossless").limit(4096):
        with pytest.raises(BadBlob):
            codecs.by_name("lossless").decode(memoryview(payload), "uint8", 4096)
    assert refuses_or_reads(holding(SMALL, payload), SMALL) is None


def test_a_payload_longer_than_an_honest_one_is_refused_by_the_manifest():
    blob = holding(SMALL, plane(1, frame(bytes(4096))) + bytes(5000))
    with pytest.raises(BadBlob, match=r"takes \d+ bytes for 4096 elements of 'x'"):
        Reader(lambda offset, length: blob[offset : offset + length], len(blob), SMALL)


@pytest.mark.parametrize("count", [0, 1, 7, 9, 1 << 20])
def test_a_raw_payload_of_another_length_is_refused(count):
    with pytest.raises(BadBlob, match=r"elements of float32 take \d+ bytes, not 32"):
        codecs.by_name("raw").decode(memoryview(bytes(32)), "float32", count)


def test_a_codec_that_a_chunk_names_must_be_known():
    assert codecs.by_id(LOSSLESS, 1) is codecs.by_name("lossless")
    with pytest.raises(BadBlob, match="codec 7 version 1 is not known here"):
        codecs.by_id(7, 1)
