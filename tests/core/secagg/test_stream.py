"""The masks' keystream: the same bytes by both ways, and masks that cancel."""

import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon_core.errors import UsageError
from koinon_core.secagg.hazmat.stream import BLOCK_BYTES, TILE_BYTES, accumulate, fill, tile_key

SEED = bytes(range(32))
WAYS = ["gcm", "ctr"]
LANES = [np.uint8, np.uint16, np.uint32, np.uint64]
# SP 800-38A, F.5.5: the key, the counter of block 1 and what AES-256 makes of it.
NIST_KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
NIST_COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
NIST_BLOCK = "0bdf7df1591716335e9a8b15c860c502"


def aes(key: bytes, blocks: bytes) -> bytes:
    return Cipher(AES256(key), ECB()).encryptor().update(blocks)


def slow_key(seed: bytes, tile: int) -> bytes:
    return hmac.digest(seed, b"koinon.secagg/1 tile" + tile.to_bytes(8, "little") + b"\1", "sha256")


def slow_stream(key: bytes, count: int) -> bytes:
    counters = b"".join(bytes(12) + i.to_bytes(4, "big") for i in range(2, 2 + -(-count // 16)))
    return aes(key, counters)[:count]


def filled(key: bytes, count: int, how: str = "gcm") -> bytes:
    out = np.full(count, 0xAA, np.uint8)
    fill(key, out, how=how)
    return out.tobytes()


def test_the_oracle_is_the_aes_of_sp_800_38a():
    assert aes(NIST_KEY, NIST_COUNTER).hex() == NIST_BLOCK


@pytest.mark.parametrize("how", WAYS)
def test_the_first_block_is_that_of_gcms_specification(how):
    # McGrew and Viega, case 14: sixteen zeros under the zero key and nonce.
    assert filled(bytes(32), 16, how).hex() == "cea7403d4d606b6e074ec5d3baf39d18"


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000, BLOCK_BYTES, BLOCK_BYTES + 5, TILE_BYTES])
def test_both_ways_count_from_two(how, count):
    assert filled(NIST_KEY, count, how) == slow_stream(NIST_KEY, count)


def test_a_memoryview_is_filled_as_an_array_is():
    out = bytearray(100)
    fill(NIST_KEY, memoryview(out))
    assert bytes(out) == slow_stream(NIST_KEY, 100)


def test_every_tile_of_every_seed_has_a_key_of_its_own():
    assert tile_key(SEED, 0) == slow_key(SEED, 0)
    assert tile_key(SEED, 2**40) == slow_key(SEED, 2**40)
    assert len({tile_key(seed, tile) for seed in (SEED, bytes(32)) for tile in (0, 1, 256, 2**32)}) == 8


@pytest.mark.parametrize(
    ("dtype", "lanes"),
    [
        (np.uint8, ["f8", "23", "66", "9d"]),
        (np.uint16, ["23f8", "9d66", "5070", "4d8f"]),
        (np.uint32, ["9d6623f8", "4d8f5070", "1c9e58b", "eecc306c"]),
        (np.uint64, ["4d8f50709d6623f8", "eecc306c01c9e58b", "375777a4e8dbdd38", "f7873d5673787a4d"]),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_lanes_are_little_endian_whatever_the_machine(dtype, lanes, order):
    wanted = [int(lane, 16) for lane in lanes]
    width = np.dtype(dtype).itemsize
    stream = slow_stream(slow_key(SEED, 5), 4 * width)
    assert [int.from_bytes(stream[i : i + width], "little") for i in range(0, 4 * width, width)] == wanted
    tile = np.zeros(4, np.dtype(dtype).newbyteorder(order))
    accumulate(tile, 5, [(SEED, 1)])
    assert tile.tolist() == wanted


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("dtype", LANES)
@pytest.mark.parametrize("room", [None, 1000, BLOCK_BYTES, TILE_BYTES])
def test_masks_are_added_and_subtracted_modulo_the_lane(dtype, how, room):
    # More than two blocks, and not a whole number of any.
    size = (2 * BLOCK_BYTES + 888) // np.dtype(dtype).itemsize
    bits = 8 * np.dtype(dtype).itemsize
    tile = np.arange(size).astype(dtype)
    seeds = [(bytes([i]) * 32, sign) for i, sign in enumerate([1, -1, -1, 1, -1])]
    scratch = None if room is None else np.full(room, 7, np.uint8)
    accumulate(tile, 9, seeds, scratch, how=how)
    wanted = np.arange(size).astype(object)
    for seed, sign in seeds:
        mask = np.frombuffer(
            slow_stream(slow_key(seed, 9), size * bits // 8), np.dtype(dtype).newbyteorder("<")
        )
        wanted += sign * mask.astype(object)
    assert (tile == (wanted % (1 << bits)).astype(dtype)).all()


def test_a_view_is_masked_in_place_and_what_is_beside_it_is_not():
    lanes = np.zeros(300, np.uint16)
    accumulate(lanes[100:200], 0, [(SEED, 1)])
    assert lanes[100:200].all()
    assert not lanes[:100].any()
    assert not lanes[200:].any()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_masks_of_any_graph_cancel_in_the_sum(data):
    n = data.draw(st.integers(2, 6))
    pairs = [(u, v) for u in range(n) for v in range(u)]
    edges = data.draw(st.sets(st.sampled_from(pairs), min_size=1))
    dtype = data.draw(st.sampled_from(LANES))
    size = data.draw(st.integers(1, 200))
    inputs = np.arange(n * size).reshape(n, size).astype(dtype)
    seeds = {edge: bytes(edge) * 16 for edge in edges}
    masked = inputs.copy()
    for device, row in enumerate(masked):
        own = [(seed, 1 if device == u else -1) for (u, v), seed in seeds.items() if device in (u, v)]
        accumulate(row, 3, own)
        # Equal by accident in 64 bits or more of one keystream: never.
        assert not own or size * row.itemsize < 8 or (row != inputs[device]).any()
    assert (masked.sum(axis=0, dtype=dtype) == inputs.sum(axis=0, dtype=dtype)).all()


@pytest.mark.parametrize("size", [1, 5, 6])
def test_a_tile_that_ends_a_lane_into_a_block_is_masked_to_its_end(size):
    tile = np.zeros(size, np.uint32)
    accumulate(tile, 5, [(SEED, 1)], np.empty(20, np.uint8))
    assert tile.tobytes() == slow_stream(slow_key(SEED, 5), 4 * size)


def test_no_mask_changes_nothing_and_an_empty_tile_takes_any():
    tile = np.arange(10, dtype=np.uint32)
    accumulate(tile, 0, [])
    assert tile.tolist() == list(range(10))
    accumulate(tile[:0], 0, [(SEED, 1)])


@pytest.mark.parametrize(
    "lanes",
    [
        np.zeros(4, np.int16),
        np.zeros(4, np.float32),
        np.zeros((2, 2), np.uint8),
        np.zeros(TILE_BYTES // 2 + 1, np.uint16),
    ],
)
def test_what_is_no_tile_is_refused(lanes):
    with pytest.raises(UsageError, match="cut the lanes into tiles"):
        accumulate(lanes, 0, [(SEED, 1)])


def test_keys_signs_and_sizes_are_checked_before_a_lane_changes():
    tile = np.zeros(8, np.uint16)
    with pytest.raises(UsageError, match="sign"):
        accumulate(tile, 0, [(SEED, 1), (SEED, 0)])
    with pytest.raises(UsageError, match="not 31"):
        accumulate(tile, 0, [(SEED, 1), (bytes(31), 1)])
    with pytest.raises(UsageError, match="scratch of 1 bytes"):
        accumulate(tile, 0, [(SEED, 1)], np.empty(1, np.uint8))
    assert not tile.any()
    with pytest.raises(UsageError, match="not 16; take it"):
        fill(bytes(16), np.empty(4, np.uint8))
    with pytest.raises(UsageError, match="take the next"):
        fill(SEED, np.empty(TILE_BYTES + 1, np.uint8))
