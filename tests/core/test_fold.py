"""The exact sum, against fractions."""

import hashlib
from fractions import Fraction
from functools import reduce
from itertools import permutations
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.codec import TILE, Reader, encode
from koinon_core.codecs.tile import Plain, on_grid
from koinon_core.errors import BadBlob, LocalProtocolError, UsageError
from koinon_core.fold import (
    Staged,
    Sum,
    check_codecs,
    counted,
    grid_for,
    sum_in_one_piece,
    verify,
)
from koinon_core.schema import Schema, schema_of
from koinon_core.sections import How
from koinon_core.tensors import Tensors
from koinon_core.tiles import Held

BOUND = 1024.0
values = st.floats(-BOUND, BOUND)


def stage(tensors: Tensors, weight: int, codec: str = "raw") -> Staged:
    blob = encode(tensors, schema_of(tensors), codec)
    return Staged(weight, Reader(lambda o, n: blob[o : o + n], len(blob), schema_of(tensors), "the update"))


def ways(like: Tensors, grid: int = 20, bound: float = BOUND) -> dict[str, How]:
    return {f.name: How("raw", f.rule, bound, "", grid) for f in schema_of(like)}


def joined(staged: list[Staged], like: Tensors, grid: int = 20) -> Tensors:
    schema, total = schema_of(like), Sum(staged, schema_of(like), ways(like, grid))
    flat = {
        f.name: [total.values(f.name, o) for o in range(0, f.size, TILE)] or [np.zeros(0, f.dtype)]
        for f in schema
    }
    return Tensors({f.name: np.concatenate(flat[f.name]).reshape(f.shape) for f in schema})


def verified(staged: Staged, like: Tensors) -> None:
    verify(staged.reader, schema_of(like), ways(like), Held(like))


def of(*x: float, dtype: type = np.float64) -> Tensors:
    return Tensors({"x": np.array(x, dtype)})


updates = st.integers(1, 4).flatmap(
    lambda n: st.lists(
        st.tuples(st.lists(values, min_size=n, max_size=n), st.integers(0, 1 << 33)), min_size=1, max_size=8
    )
)


@given(updates, st.sampled_from([1, 100, 1 << 20, 1 << 33]))
def test_the_mean_is_that_of_fractions_on_the_grid(those, most):
    those = [(x, 1 + w % most) for x, w in those]
    grid = grid_for(bound=BOUND, max_weight=most, devices=8)
    made = joined([stage(of(*x), w) for x, w in those], of(*those[0][0]), grid)["x"]
    total = sum(w for _, w in those)
    for i, found in enumerate(made.tolist()):
        # round() of a Fraction goes to the even neighbour, as rint does.
        units = sum(round(Fraction(x[i]) * 2**grid) * w for x, w in those)
        wanted = float(Fraction(units, total << grid))
        if abs(units) < 2**53:
            assert found == wanted
        else:  # the sum is exact; it is rounded once to a double and once by the division
            assert abs(Fraction(found) - Fraction(units, total << grid)) <= abs(Fraction(wanted)) / 2**52


@given(updates.filter(lambda u: len(u) > 1), st.randoms(use_true_random=False))
def test_the_order_of_updates_changes_no_byte(those, random):
    staged = [stage(of(*x), 1 + w % 100) for x, w in those]
    shuffled = random.sample(staged, len(staged))
    like = of(*those[0][0])
    assert joined(shuffled, like, 40) == joined(staged, like, 40)


def test_every_order_of_values_that_floats_add_up_differently_is_the_same():
    x = [1e3 + 0.1, -1e3, 1e-9, 0.3, -0.7]
    assert len({reduce(add, p) for p in permutations(x)}) > 1, (
        "plain addition does (sum() compensates since 3.12)"
    )
    staged = [stage(of(v), 1) for v in x]
    assert len({joined(list(p), of(0.0), 40)["x"].tobytes() for p in permutations(staged)}) == 1


def test_weights_weigh():
    made = joined([stage(of(1.0, -4.0), 3), stage(of(5.0, 4.0), 1)], of(0.0, 0.0))
    assert made == of(2.0, -2.0)


def test_an_update_of_weight_zero_changes_nothing():
    assert joined([stage(of(1.0), 3), stage(of(5.0), 0)], of(0.0)) == of(1.0)


@pytest.mark.parametrize("staged", [[], [0], [0, 0]])
def test_weights_that_add_up_to_nothing_are_refused(staged):
    with pytest.raises(BadBlob, match="add up to nothing"):
        joined([stage(of(1.0), w) for w in staged], of(0.0))


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint8", "bool"])
def test_integers_take_the_largest_whatever_their_weight(dtype):
    a, b = (Tensors({"n": np.array(x).astype(dtype)}) for x in ([1, 0, 0], [0, 1, 0]))
    made = joined([stage(a, 1000), stage(b, 1)], a)
    assert made["n"].dtype == dtype
    assert made["n"].tolist() == [1, 1, 0]


def test_the_largest_of_negative_counters_is_not_zero():
    a, b = (Tensors({"n": np.array(n)}) for n in (-7, -(2**63)))
    assert joined([stage(a, 1), stage(b, 1)], a) == a


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_mean_of_any_float_is_in_double(dtype):
    a, b = of(1.0, dtype=dtype), of(1.0 + 2.0**-9, dtype=dtype)
    assert joined([stage(a, 1), stage(b, 1)], a) == of(1.0 + 2.0**-10)


def test_shapes_come_back_even_of_scalars_and_of_nothing():
    like = Tensors({"s": np.array(1.5), "m": np.ones((2, 3)), "e": np.zeros((0, 4)), "n": np.array(3)})
    assert joined([stage(like, 2, "lossless"), stage(like, 5)], like) == like


def test_a_tensor_of_several_tiles_is_joined_in_each_of_them():
    rng = np.random.default_rng(0)
    a, b = (
        Tensors({
            "x": rng.integers(-1000, 1000, TILE + 3).astype(np.float32),
            "n": rng.integers(0, 9, TILE + 3).astype(np.int8),
        })
        for _ in range(2)
    )  # fmt: skip
    made = joined([stage(a, 1), stage(b, 3, "lossless")], a)
    assert made["x"].tobytes() == ((a["x"] + 3.0 * b["x"].astype(np.float64)) / 4).tobytes()
    assert made["n"].tobytes() == np.maximum(a["n"], b["n"]).tobytes()


# -- what may not enter a sum -------------------------------------------------------------------------------

BAD = [
    (np.nan, "'x' holds NaN or Inf"),
    (np.inf, "'x' holds NaN or Inf"),
    (-np.inf, "'x' holds NaN or Inf"),
    (np.nextafter(BOUND, np.inf), "'x' holds 1024; a value must be finite and at most 1024"),
    (-2000.5, "'x' holds 2000.5; a value must be finite and at most 1024"),
]


@pytest.mark.parametrize(("value", "sentence"), BAD)
def test_what_may_not_enter_a_sum_is_refused_with_the_tensors_name(value, sentence):
    staged = stage(of(0.0, value), 1)
    for refuse in (
        lambda: on_grid(np.array([0.0, value]), 20, BOUND, "x"),
        lambda: counted(Plain(np.array([0.0, value])), ways(of(0.0))["x"], "x"),
        lambda: verified(staged, of(0.0, 0.0)),
        lambda: joined([stage(of(0.0, 0.0), 1), staged], of(0.0, 0.0)),
    ):
        with pytest.raises(BadBlob, match=sentence):
            refuse()


def test_one_bad_value_in_the_last_tile_is_found():
    x = np.zeros(TILE + 3, np.float32)
    x[-1] = np.nan
    with pytest.raises(BadBlob, match="NaN"):
        verified(stage(Tensors({"x": x}), 1), Tensors({"x": x}))


def test_verify_reads_integers_too():
    x = np.ones(4, bool)
    blob = bytearray(encode(Tensors({"x": x}), schema_of({"x": x}), "raw"))
    blob[8] = 2
    reader = Reader(lambda o, n: blob[o : o + n], len(blob), schema_of({"x": x}))
    with pytest.raises(BadBlob, match="neither true nor false"):
        verified(Staged(1, reader), Tensors({"x": x}))


def test_the_bound_itself_and_nothing_are_allowed():
    assert on_grid(np.array([BOUND, -BOUND, -0.0]), 16, BOUND, "x").tolist() == [2**26, -(2**26), 0]
    assert on_grid(np.zeros((0, 2)), 16, BOUND, "x").shape == (0, 2)


def test_what_a_device_takes_for_counted_is_what_the_coordinator_counts():
    x = Tensors({"x": np.random.default_rng(0).uniform(-9, 9, 500)})
    how = ways(x, 18)["x"]
    taken = Tensors({"x": counted(Plain(x["x"]), how, "x")})
    assert joined([stage(x, 7)], x, 18) == taken
    assert counted(Plain(taken["x"]), how, "x").tobytes() == taken["x"].tobytes()
    assert taken["x"].tobytes() != x["x"].tobytes()


def test_what_must_be_equal_is_compared_with_the_model():
    x = Tensors({"count/x": np.arange(5)})
    how = {"count/x": How("raw", "equal", BOUND, "")}
    reader = stage(x, 1).reader
    verify(reader, schema_of(x), how, Held({"x": np.arange(5)}))
    with pytest.raises(BadBlob, match="must be equal on all devices"):
        verify(reader, schema_of(x), how, Held({"x": np.arange(1, 6)}))


def test_a_chunk_in_another_codec_than_the_runs_is_refused():
    x = of(1.0, 2.0)
    check_codecs(stage(x, 1).reader, ways(x))
    with pytest.raises(BadBlob, match="came in codec 2 version 1, and this run has 'raw' for it"):
        check_codecs(stage(x, 1, "lossless").reader, ways(x))


def test_the_digest_covers_every_tile_in_one_order_however_they_were_taken():
    x = Tensors({"a": np.arange(TILE + 3, dtype=np.float32) % 7, "b": np.array([1.0, 2.0])})
    staged = [stage(x, 2), stage(x, 3)]
    tiles = [("a", 0), ("a", TILE), ("b", 0)]

    def digest(order, of=staged):
        total = Sum(of, schema_of(x), ways(x))
        for name, offset in order:
            total.exact(name, offset)
        return total.digest(b"numbers")

    assert digest(tiles) == digest(tiles[::-1]) == digest(tiles, staged[::-1])
    assert digest(tiles) != digest(tiles, [stage(x, 2), stage(x, 4)])
    with pytest.raises(LocalProtocolError, match="was never taken"):
        digest(tiles[1:])
    whole = hashlib.sha256(b"numbers")
    for array in x.values():
        whole.update(np.rint(array * 2.0**20 * 5).astype("<i8").tobytes())
    assert sum_in_one_piece(staged, schema_of(x), ways(x), b"numbers") == whole.hexdigest()


# -- that nothing overflows ---------------------------------------------------------------------------------

factors = st.tuples(
    st.one_of(st.floats(1e-9, 1e12), st.integers(0, 40).map(lambda n: 2.0**n)),
    st.one_of(st.integers(1, 1 << 40), st.integers(1, 1 << 62)),
    st.one_of(st.integers(1, 10_000), st.integers(1, 1 << 40)),
)


@given(factors)
def test_a_grid_is_given_where_the_worst_case_fits_and_refused_where_it_would_not(those):
    bound, max_weight, devices = those
    try:
        grid = grid_for(bound=bound, max_weight=max_weight, devices=devices)
    except UsageError:
        # Each of the three factors is rounded up to a power of two, and one bit more is kept.
        assert max(1, Fraction(bound)) * 2**16 * max_weight * devices > 2**59
        return
    assert 16 <= grid <= 40
    assert round(Fraction(bound) * 2**grid) * max_weight * devices < 2**63
    assert grid == 40 or max(1, Fraction(bound)) * 2 ** (grid + 4) * max_weight * devices > 2**62


def test_the_finest_grid_of_round_numbers_is_known():
    assert grid_for(bound=1024.0, max_weight=1 << 20, devices=1024) == 22
    assert grid_for(bound=1.0, max_weight=1, devices=1) == 40
    assert grid_for(bound=1.0, max_weight=1 << 46, devices=1) == 16


@pytest.mark.parametrize(
    "factors",
    [(1024.0, 1 << 20, 1 << 17), (2.0**47, 1, 1), (1.0, (1 << 46) + 1, 1), (1.0, 10**400, 1), (1e308, 1, 1)],
)
def test_a_sum_that_cannot_be_proven_to_fit_is_refused_with_what_to_lower(factors):
    bound, max_weight, devices = factors
    with pytest.raises(
        UsageError, match="does not fit in 63 bits: lower max_examples, bound or the number of"
    ):
        grid_for(bound=bound, max_weight=max_weight, devices=devices)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_worst_case_does_not_wrap_around(sign):
    bound, weight, devices = 1024.0, 1 << 20, 1024
    x = of(sign * bound)
    one = stage(x, weight)
    grid = grid_for(bound=bound, max_weight=weight, devices=devices)
    total = Sum([one] * devices, schema_of(x), ways(x, grid, bound))
    assert total.values("x", 0).tolist() == [sign * bound]


def test_an_empty_schema_folds_to_nothing():
    nothing = Tensors()
    assert joined([stage(nothing, 1)], nothing) == nothing
    assert len(Schema(())) == 0
