"""Rounding with a dither: whole numbers whose mean is the value, exactly, and whose error is known by half a step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.ring.dither import quantise, remainder
from koinon_core.ring.seeds import derive, keystream

EVERY = np.arange(256, dtype=np.uint8)


@given(st.integers(-(2**20), 2**20), st.sampled_from([np.int32, np.int64]))
def test_over_all_dithers_the_mean_is_the_value_and_the_error_is_uniform(x, dtype):
    q = quantise(np.full(256, x, np.float32), 1.0, EVERY, dtype)
    assert q.dtype == dtype
    assert 256 * int(q.sum()) == 256 * x
    # In 2^-9 steps: what whoever knows the dither reads, less the value.
    error = 512 * q.astype(int) + 255 - 2 * EVERY.astype(int) - 2 * x
    assert sorted(error) == list(range(-255, 256, 2))


def test_a_value_between_two_points_of_the_grid_goes_to_the_nearer():
    found = quantise(np.array([0.4, 0.6, -0.4, -0.6], np.float32), 1.0, np.zeros(4, np.uint8), np.int32)
    assert found.tolist() == [0, 0, 0, -1]
    assert quantise(np.array([1.0], np.float32), 256.0, np.zeros(1, np.uint8), np.int32).tolist() == [1]


@pytest.mark.parametrize("count", [0, 1, 257, 258, 600])
def test_the_remainder_is_the_sum_of_every_devices_dither(count):
    keys = [derive(b"device", number) for number in range(count)]
    wanted = sum((255 - 2 * keystream(key, 5, 12).astype(int) for key in keys), np.zeros(12, int))
    assert remainder(keys, 5, (3, 4)).tolist() == wanted.reshape(3, 4).tolist()
