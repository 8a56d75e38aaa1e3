"""The ring's rotation: exact in integers, orthonormal but for a power of two, and strided."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import UsageError
from koinon_core.ring.rotation import COLUMNS, ROWS, Rotation, hadamard, kept_rows, signs

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def whole(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-99, 100, shape)


def forward(rotation: Rotation, x: np.ndarray) -> list[np.ndarray]:
    return [rotation.forward(lambda a, b: x[a:b], t) for t in range(rotation.tiles)]


def backward(rotation: Rotation, tiles: list[np.ndarray]) -> np.ndarray:
    out = np.full(rotation.size, np.nan)

    def write(start: int, values: np.ndarray) -> None:
        assert np.isnan(out[start : start + len(values)]).all(), "written twice"
        out[start : start + len(values)] = values

    for t, tile in enumerate(tiles):
        rotation.backward(tile.astype(np.int64), t, write, 4096.0)
    return out


def test_the_transform_is_walshs_and_hadamards():
    found = np.eye(16, dtype=np.int64)
    hadamard(found)
    assert found.tolist() == [[1 - 2 * ((i & j).bit_count() % 2) for j in range(16)] for i in range(16)]


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 130])
def test_twice_the_transform_is_4096_times_the_values(columns):
    x = whole(columns, ROWS, columns) << 40
    y = x.copy()
    hadamard(y)
    assert np.array_equal(
        (y[:, 0] >> 40).astype(object) @ (y[:, 0] >> 40), ROWS * (x[:, 0] >> 40) @ (x[:, 0] >> 40)
    )
    hadamard(y)
    assert np.array_equal(y, x << 12)


@given(st.integers(1, 3 * ROWS))
def test_what_is_rotated_and_rotated_back_is_what_was(size):
    x = whole(size, size)
    rotation = Rotation(size, 1, KEY, OTHER)
    assert np.array_equal(backward(rotation, forward(rotation, x)), x)


def test_several_tiles_cover_every_value_once():
    size = ROWS * (COLUMNS + 2) - 3
    x = whole(0, size)
    rotation = Rotation(size, 1, KEY, OTHER)
    assert [rotation.shape(t) for t in range(rotation.tiles)] == [(ROWS, COLUMNS), (ROWS, 2)]
    assert np.array_equal(backward(rotation, forward(rotation, x)), x)


def test_a_block_is_every_mth_value_and_energy_is_kept():
    size, m = ROWS * 3 - 1, 3
    for i in (0, 1, 5, size - 1):
        x = np.zeros(size, np.float32)
        x[i] = 1
        (tile,) = forward(Rotation(size, 1, KEY, OTHER), x)
        assert set(np.flatnonzero(np.abs(tile).sum(axis=0))) == {i % m}
        assert set(np.abs(tile[:, i % m])) == {1.0}, "spread evenly"


def test_signs_flatten_what_the_transform_alone_would_pile_up():
    x = np.ones(ROWS * 4, np.float32)
    (tile,) = forward(Rotation(x.size, 1, KEY, OTHER), x)
    assert np.abs(tile).max() < 6 * 64, "six standard deviations; without signs it is 4096"
    made = signs(KEY, 3, 100, 999)
    assert made.shape == (100, 999)
    assert set(np.unique(made)) == {-1, 1}
    assert abs(made.mean()) < 0.02
    assert not np.array_equal(made, signs(KEY, 4, 100, 999))


@pytest.mark.parametrize("subset", [2, 4, 8])
def test_a_subset_keeps_its_share_and_every_row_as_often(subset):
    rotation = Rotation(ROWS * 2, subset, KEY, OTHER)
    x = whole(1, rotation.size).astype(np.float32)
    (kept,) = forward(rotation, x)
    (full,) = forward(Rotation(rotation.size, 1, KEY, OTHER), x)
    rows = kept_rows(OTHER, 0, subset)
    assert np.array_equal(kept, full[rows])
    assert len(set(rows)) == ROWS // subset
    seen = np.zeros(ROWS)
    for tile in range(400):
        seen[kept_rows(OTHER, tile, subset)] += 1
    assert abs(seen - 400 / subset).max() < 6 * np.sqrt(400 / subset * (1 - 1 / subset))


@pytest.mark.parametrize("given_", [1, 0, 4])
def test_a_reader_that_gives_another_number_of_values_is_found(given_):
    rotation = Rotation(ROWS * 3, 1, KEY, OTHER)
    with pytest.raises(
        UsageError, match=f"the values 0 to 12288 of a group were asked for, and {given_} came"
    ):
        rotation.forward(lambda a, b: np.zeros(given_, np.float32), 0)
