"""The schema: one digest, and a sentence for every difference."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import UsageError
from koinon_core.schema import FLOATS, INTEGERS, Field, Schema, schema_of
from koinon_core.tensors import Tensors

fields_ = st.lists(
    st.one_of(
        st.builds(
            Field, st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
            st.lists(st.integers(0, 9), max_size=3).map(tuple), st.sampled_from(FLOATS),
            st.sampled_from(["param", "buffer"]),
        ),
        st.builds(Field, st.text(st.characters(codec="utf-8"), min_size=1), st.just(()),
                  st.sampled_from(INTEGERS), st.just("buffer")),
    ),
    max_size=6, unique_by=lambda f: f.name,
)  # fmt: skip

MODEL = Schema(
    (
        Field("conv.weight", (2, 3), "float32"),
        Field("bn.running_mean", (2,), "float32", "buffer"),
        Field("bn.num_batches_tracked", (), "int64", "buffer"),
    )
)


@given(fields_)
def test_json_gives_back_the_same_schema_with_the_same_digest(fields):
    schema = Schema(tuple(fields))
    again = Schema.from_json(schema.to_json())
    assert again == schema
    assert again.digest == schema.digest
    assert list(again) == fields


@pytest.mark.parametrize(
    "change",
    [{"name": "conv.bias"}, {"shape": (3, 2)}, {"shape": (6,)}, {"dtype": "float64"}, {"role": "buffer"}],
)
def test_any_change_of_a_field_changes_the_digest(change):
    first, *rest = MODEL
    assert Schema((replace(first, **change), *rest)).digest != MODEL.digest


def test_the_order_and_the_number_of_fields_are_in_the_digest():
    digests = {
        MODEL.digest,
        Schema(MODEL.fields[::-1]).digest,
        Schema(MODEL.fields[:2]).digest,
        Schema(()).digest,
    }
    assert len(digests) == 4


def test_the_digest_is_sha256_of_compact_json_in_utf8():
    wanted = hashlib.sha256('[["é",[1,2],"float64","param"]]'.encode()).hexdigest()
    assert Schema((Field("é", (1, 2), "float64"),)).digest == wanted


REFUSED = [
    (("", (1,), "float32"), "1 to 512 characters, not 0"),
    (("x" * 513, (1,), "float32"), "1 to 512 characters, not 513"),
    (("x", (1,), "complex64"), "'x' is complex64, which cannot be federated; use one of float64"),
    (("x", (1,), "object"), "cannot be federated"),
    (("x", (1,), ">f4"), "cannot be federated"),
    (("x", (1,), "uint64", "buffer"), "cannot be federated"),
    (("x", (1,), "float32", "weight"), "has role 'weight'; it is 'param' or 'buffer'"),
    (("x", (1,), "int64"), "is int64 and cannot be trained; make it a buffer"),
    (("x", (1,), "bool", "param"), "cannot be trained"),
    (("x", (2, -1), "float32"), "which is no size"),
    (("x", (1 << 21, 1 << 20), "float32"), "which is no size"),
    (("x", (1,) * 33, "float32"), "has 33 dimensions; 32 are the most"),
]


@pytest.mark.parametrize(("values", "sentence"), REFUSED)
def test_a_field_that_cannot_be_is_refused(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        Field(*values)


def test_every_field_that_is_accepted_can_be_held_by_numpy():
    deepest = Field("x", (1,) * 32, "float32")
    assert np.zeros(deepest.shape, deepest.dtype).nbytes == deepest.nbytes == 4


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(UsageError, match="two tensors of the model have the same name"):
        Schema((MODEL.fields[0], MODEL.fields[0]))


@pytest.mark.parametrize(
    "junk",
    [
        None, 5, "abcd", [5], [None], ["abcd"], [[]], [["x"]], [["x", [1], "float32"]], {"abcd": 1},
        [["x", 1, "float32", "param"]], [["x", None, "float32", "param"]], [["x", ["2"], "float32", "param"]],
        [["x", [2.5], "float32", "param"]], [["x", [math.inf], "float32", "param"]],
        [["x", [math.nan], "float32", "param"]], [["x", [10**400], "float32", "param"]],
        [["x", [1], "float32", []]], [["x", [1], None, "param"]], [["x", [1], "float32", "param", 1]],
        [["x", [1], "float32", "param"]] * 2,
    ],
)  # fmt: skip
def test_junk_is_no_schema_and_raises_nothing_but_a_usage_error(junk):
    with pytest.raises(UsageError):
        Schema.from_json(junk)


def test_floats_are_averaged_and_integers_take_the_largest():
    assert {Field("x", (), d, "buffer").rule for d in FLOATS} == {"mean"}
    assert {Field("x", (), d, "buffer").rule for d in INTEGERS} == {"max"}


def test_sizes_count_elements_and_bytes():
    assert (MODEL.size, MODEL.nbytes) == (6 + 2 + 1, 24 + 8 + 8)
    assert Field("x", (3, 0), "float32").size == 0


def test_names_only_and_without_keep_the_order():
    assert MODEL.names(role="buffer") == ("bn.running_mean", "bn.num_batches_tracked")
    assert MODEL.names(rule="mean") == ("conv.weight", "bn.running_mean")
    assert MODEL.only(["bn.running_mean", "conv.weight"]).names() == ("conv.weight", "bn.running_mean")
    assert MODEL.without(["conv.weight", "absent"]).names() == ("bn.running_mean", "bn.num_batches_tracked")


def test_zeros_are_as_the_schema_says():
    zeros = MODEL.zeros()
    MODEL.check(zeros, "zeros")
    assert not any(a.any() for a in zeros.values())


# -- normalisation layers -----------------------------------------------------------------------------------


def names(*those: str) -> Schema:
    return Schema(tuple(Field(n, (1,), "float32") for n in those))


def test_a_layer_with_running_statistics_is_one_of_normalisation():
    schema = names("c.weight", "a.b.weight", "a.b.bias", "a.b.running_mean", "a.b.running_var", "a.weight")
    assert schema.batchnorm() == {"a.b.weight", "a.b.bias", "a.b.running_mean", "a.b.running_var"}


def test_one_statistic_alone_makes_no_normalisation_layer():
    assert names("a.weight", "a.running_mean").batchnorm() == set()
    assert names("a.weight", "a.running_var").batchnorm() == set()
    assert names("a.running_mean", "b.running_var").batchnorm() == set()


def test_a_model_that_is_a_normalisation_layer_itself_is_found():
    assert names("weight", "running_mean", "running_var", "sub.weight").batchnorm() == {
        "weight", "running_mean", "running_var",
    }  # fmt: skip


# -- what there is against what there should be -------------------------------------------------------------


def test_the_first_difference_is_named_in_the_order_of_the_run():
    mine = names("a", "b", "extra")
    with pytest.raises(UsageError, match="my model has no tensor 'c', which the run's model has"):
        mine.must_equal(names("a", "c", "d"), "my model")
    with pytest.raises(
        UsageError, match="my model has a tensor 'extra', which the run's model does not have"
    ):
        mine.must_equal(names("a", "b"), "my model")
    with pytest.raises(UsageError, match=r"it has 'b' as float32\[1\]; the run's model has float32\[2, 1\]"):
        mine.must_equal(Schema((Field("b", (2, 1), "float32"), Field("z", (), "float32"))), "it")
    with pytest.raises(UsageError, match=r"as float32\[1\]; the run's model has float64\[1\]"):
        mine.must_equal(Schema((Field("a", (1,), "float64"),)), "it")


def test_tensors_as_the_schema_says_pass_in_any_order():
    zeros = MODEL.zeros()
    MODEL.check(Tensors((n, zeros[n]) for n in reversed(MODEL.names())), "mine")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"conv.weight": np.zeros((3, 2), np.float32)},
            r"float32\[3, 2\]; the run's model has float32\[2, 3\]",
        ),
        ({"conv.weight": np.zeros((2, 3))}, r"mine has 'conv.weight' as float64\[2, 3\]"),
        ({"conv.weight": np.zeros((2, 3), np.int64)}, r"mine has 'conv.weight' as int64\[2, 3\]"),
        ({"bn.num_batches_tracked": np.array(0.0)}, r"as float64\[\]; the run's model has int64\[\]"),
        ({"more": np.zeros(1)}, "a tensor 'more', which the run's model does not have"),
    ],
)
def test_tensors_that_differ_are_refused_with_the_difference(change, sentence):
    with pytest.raises(UsageError, match=sentence):
        MODEL.check(Tensors({**MODEL.zeros(), **change}), "mine")


def test_a_missing_tensor_is_named():
    with pytest.raises(UsageError, match=r"mine has no tensor 'conv\.weight'"):
        MODEL.check(MODEL.zeros().without(["conv.weight"]), "mine")


def test_roles_are_found_from_names_and_dtypes():
    made = schema_of(
        {"w": np.zeros(1), "n": np.zeros(1, int), "bn.running_var": np.zeros(1), "b": np.zeros(1), "o": 1.5},
        buffers=["b"],
    )
    assert {f.name: f.role for f in made} == {
        "w": "param", "n": "buffer", "bn.running_var": "buffer", "b": "buffer", "o": "param",
    }  # fmt: skip


def test_roles_can_be_taken_from_another_schema():
    like = Schema((Field("w", (1,), "float32", "buffer"),))
    assert schema_of({"w": np.zeros(1)}, like=like).fields[0].role == "buffer"
