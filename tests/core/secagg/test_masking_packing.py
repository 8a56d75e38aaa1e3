"""Masked bytes: as many bits as lanes have, in one way to write them, and every tile where it is said to be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg import Lane, PackedLayout, pack, unpack
from koinon_core.secagg.packing import packed_size
from sessions import config


def lanes(bits: int, count: int, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng(seed).integers(0, 1 << bits, count, np.uint64)
    return numbers.astype(Lane(bits, count).dtype)


@given(bits=st.integers(1, 64), count=st.integers(1, 300), seed=st.integers(0, 99))
def test_what_is_packed_is_unpacked(bits, count, seed):
    raw = np.random.default_rng(seed).bytes(8 * count)
    low = np.uint64((1 << bits) - 1)
    mine = (np.frombuffer(raw, "<u8") & low).astype(Lane(bits, count).dtype)
    packed = pack(mine, bits)
    assert packed.size == packed_size(bits, count)
    assert packed.size < count * bits / 8 + 6, "less than a byte is lost at each plane's end"
    np.testing.assert_array_equal(unpack(config(lanes=(Lane(bits, count),)), 0, 0, packed.data), mine)


@pytest.mark.parametrize("bits", [12, 13, 24, 57])
def test_large_tiles_are_packed_as_small_ones(bits):
    mine = lanes(bits, Lane(bits, 1 << 40).per_tile)
    one = config(lanes=(Lane(bits, mine.size),))
    np.testing.assert_array_equal(unpack(one, 0, 0, pack(mine, bits).tobytes()), mine)


def test_the_planes_are_where_the_format_says():
    twelve = np.array([0x321, 0x654, 0x987], "<u2")
    # Low bytes, then two bytes of nibbles: lanes 0 and 2, lane 1 and nothing.
    assert pack(twelve, 12).tobytes() == bytes([0x21, 0x54, 0x87, 0x93, 0x06])
    thirteen = np.array([0x1FFF, 0x0001, 0x1000], "<u2")
    assert pack(thirteen, 13).tobytes() == bytes([0xFF, 0x01, 0x00, 0x0F, 0x00, 0b101])
    twenty = np.array([0xABCDE, 0x12345], "<u4")
    assert pack(twenty, 20).tobytes() == bytes([0xDE, 0xBC, 0x45, 0x23, 0x1A])
    assert pack(np.array([1, 2], "<u8"), 64).tobytes() == bytes([1, *[0] * 7, 2, *[0] * 7])


def test_bits_above_those_of_a_lane_are_left_out():
    np.testing.assert_array_equal(
        pack(np.array([0xF321, 0x0321], "<u2"), 12), pack(np.array([0x321, 0x321], "<u2"), 12)
    )


def test_lanes_of_whole_bytes_are_read_where_they_lie():
    data = bytes(range(16))
    got = unpack(config(lanes=(Lane(16, 8),)), 0, 0, data)
    assert not got.flags.owndata
    assert got.tolist() == [256 * (2 * i + 1) + 2 * i for i in range(8)]


def test_every_tile_is_where_the_layout_says():
    one = config(lanes=(Lane(12, (1 << 19) + 3), Lane(8, 5), Lane(33, 2 << 17), Lane(3, 9)))
    layout = PackedLayout(one)
    tiles = list(layout.tiles())
    assert tiles == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0)]
    at = 0
    for section, tile in tiles:
        start, stop = layout.range(section, tile)
        lane = one.lanes[section]
        first, last = lane.span(tile)
        assert start == at
        assert stop - start == pack(lanes(lane.bits, last - first), lane.bits).size
        assert layout.at(start) == layout.at(stop - 1) == (section, tile)
        at = stop
    assert layout.total == at
    with pytest.raises(UsageError, match="no byte"):
        layout.at(at)


def test_bytes_of_another_size_are_refused():
    one = config(lanes=(Lane(12, 3),))
    for data in (bytes(4), bytes(6), b""):
        with pytest.raises(BadBlob, match="has 5 masked bytes"):
            unpack(one, 0, 0, data)


@pytest.mark.parametrize(("bits", "count"), [(12, 3), (1, 3), (2, 5), (4, 1), (15, 9)])
def test_bits_where_no_lane_is_are_refused(bits, count):
    one = config(lanes=(Lane(bits, count),))
    good = pack(lanes(bits, count), bits)
    refused = 0
    for bit in range(8 * good.size):
        bad = good.copy()
        bad[bit // 8] ^= 1 << bit % 8
        try:
            changed = unpack(one, 0, 0, bad.data)
        except BadBlob:
            refused += 1
        else:
            assert (changed != unpack(one, 0, 0, good.data)).sum() == 1
    assert refused == 8 * good.size - bits * count
