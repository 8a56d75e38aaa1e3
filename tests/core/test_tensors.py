"""Tensors: a vector's operators, without broadcasting, without aliases."""

import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import UsageError
from koinon_core.tensors import Tensors

OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv]
finite = st.integers(-(10**6), 10**6).map(lambda n: n / 64)


def two(a=2.0, b=-3.0) -> Tensors:
    return Tensors({"w": np.full((2, 3), a, np.float32), "b": np.array(b)})


def of_shape(*shape: int) -> Tensors:
    return Tensors({"w": np.ones(shape)})


@pytest.mark.parametrize("do", OPERATORS)
@given(a=finite, b=finite.filter(bool))
def test_an_operator_on_two_sets_is_numpys_on_every_array(do, a, b):
    x, y = two(a, b), two(b, a or 1.0)
    made = do(x, y)
    assert made == Tensors({n: do(x[n], y[n]) for n in x})
    assert list(made) == ["w", "b"]


@pytest.mark.parametrize("do", OPERATORS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("scalar", [3.0, 3, np.float64(3), np.float32(3), np.array(3.0)])
def test_a_scalar_keeps_each_arrays_dtype(do, dtype, scalar):
    made = do(Tensors({"w": np.full(2, 6, dtype), "one": np.array(6, dtype)}), scalar)
    assert {a.dtype for a in made.values()} == {np.dtype(dtype)}
    assert made["w"][0] == made["one"] == do(6, 3)


@pytest.mark.parametrize("scalar", [2.0, np.float64(2), np.float32(2)])
def test_a_scalar_may_stand_on_the_left(scalar):
    assert scalar * two() == two() * 2.0


def test_an_array_of_numbers_is_no_scalar():
    for wrong in (np.ones(3), np.ones((2, 3))):
        with pytest.raises(TypeError):
            two() * wrong
        with pytest.raises(TypeError):
            wrong * two()


def test_negation_roots_zeros_and_map_are_elementwise():
    t = two(4.0, 9.0)
    assert -t == two(-4.0, -9.0)
    assert t.sqrt() == two(2.0, 3.0)
    assert t.zeros() == two(0.0, 0.0)
    assert t.map(lambda a: a + a) == two(8.0, 18.0)


@pytest.mark.parametrize("do", [*OPERATORS, Tensors.dot])
@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (3,)), ((2, 3), (1, 3)), ((1,), ()), ((2,), (3,)), ((0,), (1,))]
)
def test_shapes_are_never_broadcast(do, a, b):
    with pytest.raises(UsageError, match=r"'w' has shape .* never broadcast"):
        do(of_shape(*a), of_shape(*b))


@pytest.mark.parametrize("do", [*OPERATORS, Tensors.dot])
def test_other_names_are_refused_and_one_of_them_is_named(do):
    for a, b in ((two(), two().without("b")), (two().without("b"), two())):
        with pytest.raises(UsageError, match="'b' is in only one of them"):
            do(a, b)


def test_the_order_of_names_does_not_matter_between_two_sets():
    a = two()
    b = Tensors((n, a[n]) for n in ("b", "w"))
    assert a == b
    assert a + b == two(4.0, -6.0)


def test_what_is_inside_cannot_be_written_to():
    for t in (
        two(),
        Tensors({"w": np.ones(2)}, copy=True),
        two() + two(),
        two().select(["w"]),
        two().zeros(),
    ):
        with pytest.raises(ValueError, match="read-only"):
            t["w"][...] = 1
    with pytest.raises(TypeError):
        two()["w"] = np.ones(2)
    with pytest.raises(AttributeError):
        two().more = 1


def test_the_callers_own_array_stays_writeable():
    mine = np.ones(2)
    Tensors({"w": mine})
    mine[0] = 5.0
    assert mine.flags.writeable


def test_a_copy_does_not_see_what_the_caller_writes_later():
    mine = np.ones(2)
    copied = Tensors({"w": mine}, copy=True)
    mine[0] = 5.0
    assert copied["w"].tolist() == [1.0, 1.0]


def test_equality_is_by_bytes():
    nan, other_nan = np.array([0x7FF8000000000000, 0x7FF8000000000001], np.uint64).view(np.float64)
    assert Tensors({"x": nan}) == Tensors({"x": nan})
    assert Tensors({"x": nan}) != Tensors({"x": other_nan})
    assert Tensors({"x": np.array(0.0)}) != Tensors({"x": np.array(-0.0)})


@pytest.mark.parametrize(
    "other",
    [{"x": np.ones(4, np.int32)}, {"x": np.ones((2, 2), np.float32)}, {"y": np.ones(4, np.float32)}, {}],
)
def test_another_dtype_shape_or_name_is_not_equal(other):
    assert Tensors({"x": np.ones(4, np.float32)}) != Tensors(other)


def test_a_set_of_tensors_has_no_hash_and_equals_no_dict():
    with pytest.raises(TypeError, match="unhashable"):
        hash(two())
    assert Tensors() != {}


def test_select_keeps_its_own_order_and_names_what_is_missing():
    assert list(two().select(["b", "w"])) == ["w", "b"]
    assert list(two().without(["w", "absent"])) == ["b"]
    with pytest.raises(UsageError, match="no tensor named 'c' here"):
        two().select(["w", "c"])


def test_norm_and_dot_go_over_all_arrays():
    t = Tensors({"a": np.array([3.0, 0.0]), "b": np.array(4.0, np.float32)})
    assert t.norm() == 5.0
    assert t.dot(t * 2.0) == 50.0
    assert Tensors().norm() == 0.0


def test_the_norm_of_what_overflows_is_infinite_and_of_nan_is_nan():
    with np.errstate(over="ignore"):
        assert Tensors({"a": np.array([1e154]), "b": np.array([1e154])}).norm() == math.inf
        assert Tensors({"a": np.array([1e200])}).norm() == math.inf
    assert math.isnan(Tensors({"a": np.array([math.nan]), "b": np.array([math.inf])}).norm())


def test_nbytes_and_repr_tell_what_there_is():
    assert two().nbytes == 6 * 4 + 8
    assert repr(two()) == "Tensors(w: float32[2, 3], b: float64[])"


@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f8", "f8"), ("f4", "f8"), ("f8", "f4"), ("f2", "f2")])
def test_a_blend_has_the_bytes_of_the_products_added(dtypes):
    draw = np.random.default_rng(3)
    a, b = (
        Tensors({"w": draw.normal(size=99).astype(d), "s": draw.normal(size=()).astype(d)}) for d in dtypes
    )
    before = a["w"].tobytes(), b["w"].tobytes()
    assert a.blend(0.9, b, 1 - 0.9) == a * 0.9 + b * (1 - 0.9)
    assert (a["w"].tobytes(), b["w"].tobytes()) == before
    with pytest.raises(UsageError, match="shape"):
        a.blend(1, Tensors({"w": np.zeros(3), "s": np.zeros(())}), 1)


def test_what_was_computed_is_as_unchangeable_as_what_was_given():
    a = Tensors({"w": np.ones(3), "s": np.float64(2)})
    for made in (a + a, a * 2, -a, a.sqrt(), a.blend(1, a, 2), Tensors.own({"w": np.ones(2)})):
        assert not any(array.flags.writeable for array in made.values())
        assert all(type(array) is np.ndarray for array in made.values())
