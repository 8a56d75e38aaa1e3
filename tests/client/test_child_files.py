"""The program's own safetensors files: what others write is read, what it writes others read, and lies are refused."""

import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from koinon.child.adapt import adapt
from koinon.child.files import Field, TensorFile, write
from koinon_core.errors import BadBlob, StoreError

FIELDS = [Field("x", (2, 3), "float32", "param")]
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def raw(path, header, data=b"", *, length=None):
    """A file with this header, which may say anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return str(path)


def entry(**given):
    return {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **given}}


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
)
def test_what_safetensors_writes_is_read_and_the_other_way_round(tmp_path, dtype):
    given = {"a": np.arange(5).astype(dtype), "empty": np.zeros((0, 2), dtype), "one": np.array(1, dtype)}
    save_file(given, tmp_path / "given", metadata={"format": "pt"})
    held = {name: np.zeros_like(array) for name, array in given.items()}
    model = adapt(held)
    model.load(TensorFile(str(tmp_path / "given")))
    write(str(tmp_path / "written"), model.fields, model.pieces)
    for name, array in load_file(tmp_path / "written").items():
        assert (array.dtype, array.shape) == (given[name].dtype, given[name].shape)
        assert array.tobytes() == given[name].tobytes() == held[name].tobytes()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (entry(shape=[1 << 40, 1 << 40], data_offsets=[0, 24]), "not where it fits"),
        (entry(shape=[1 << 20, 1 << 20], data_offsets=[0, 4 << 40]), "not where it fits"),
        (entry(data_offsets=[8, 32]), "not where it fits"),
        (entry(data_offsets=[24, 0]), "not where it fits"),
        (entry(data_offsets=[-24, 0]), "where a size was to be"),
        (entry(data_offsets=[0.0, 24.0]), "where a size was to be"),
        (entry(shape=[True, 6]), "where a size was to be"),
        (entry(shape=[-2, -3]), "where a size was to be"),
        (entry(shape="23"), "where a size was to be"),
        (entry(dtype="F8_E4M3"), "which is none that travels"),
        (entry(dtype=["F32"]), "cannot be read"),
        (entry(data_offsets=[0]), "cannot be read"),
        ({"x": 3}, "cannot be read"),
        ({"x": {"dtype": "F32"}}, "cannot be read"),
        ([1, 2], "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 200_000, "cannot be read"),
        ({}, "no tensor 'x'"),
        (entry(shape=[3, 2]), "it has 'x' as F32[3, 2], and the model has it as F32[2, 3]"),
        (entry(dtype="I32"), "it has 'x' as I32[2, 3]"),
        (entry(dtype="BF16", data_offsets=[0, 24]), "not where it fits"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path, header, words):
    path = raw(tmp_path / "lies", header, X.tobytes())
    with pytest.raises(BadBlob, match="is not the safetensors file") as caught:
        TensorFile(path).check(FIELDS)
    assert words in str(caught.value)


@pytest.mark.parametrize("length", [25, 1 << 20, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_refused(tmp_path, length):
    with pytest.raises(BadBlob, match="its header is longer"):
        TensorFile(raw(tmp_path / "lies", b"{}", b"x" * 22, length=length))


def test_a_header_of_more_than_any_model_needs_is_refused_unread(tmp_path):
    path = tmp_path / "sparse"
    path.write_bytes(struct.pack("<Q", 17 << 20))
    os.truncate(path, 1 << 30)
    with pytest.raises(BadBlob, match="or than 16 MiB"):
        TensorFile(str(path))


@pytest.mark.parametrize("data", [b"", b"\0\0\0"])
def test_a_file_without_a_header_is_refused(tmp_path, data):
    (tmp_path / "short").write_bytes(data)
    with pytest.raises(BadBlob, match="its header is longer"):
        TensorFile(str(tmp_path / "short"))


def test_a_file_that_is_not_there_is_the_workers_fault(tmp_path):
    with pytest.raises(BadBlob, match=r"cannot be read: No such file.*koinon-edge was to put"):
        TensorFile(str(tmp_path / "gone"))


def test_a_file_that_is_cut_short_after_its_header_was_read_is_refused(tmp_path):
    path = tmp_path / "file"
    save_file({"x": X}, path)
    file = TensorFile(str(path))
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(BadBlob, match="cut short"):
        adapt({"x": np.zeros_like(X)}).load(file)


def test_a_model_is_left_as_it_was_by_a_file_that_does_not_fit(tmp_path):
    held = {"a": np.ones(1, np.float32), "x": np.ones((2, 3), np.float32)}
    save_file({"a": np.zeros(1, np.float32), "x": X.T.copy()}, tmp_path / "file")
    with pytest.raises(BadBlob):
        adapt(held).load(TensorFile(str(tmp_path / "file")))
    assert held["a"].tolist() == [1.0]


def test_a_file_that_was_opened_is_read_though_another_takes_its_place(tmp_path):
    path = tmp_path / "file"
    save_file({"x": X}, path)
    file = TensorFile(str(path))
    path.unlink()
    save_file({"x": X + 1}, path)
    held = {"x": np.zeros_like(X)}
    adapt(held).load(file)
    assert held["x"].tolist() == X.tolist()


def test_an_anchor_must_be_of_every_parameter_and_a_shift_may_be_of_some(tmp_path):
    held = {"x": X.copy(), "y": np.zeros(2)}
    save_file({"x": X}, tmp_path / "some")
    file = TensorFile(str(tmp_path / "some"))
    options = {"measure": False, "train": None}
    assert adapt(held).steer(0.0, None, file, **options).recorded.steps == 0
    with pytest.raises(BadBlob, match="no tensor 'y'"):
        adapt(held).steer(0.5, file, None, **options)
    save_file({"x": X.reshape(6)}, tmp_path / "other")
    with pytest.raises(BadBlob, match=r"'x' as F32\[6\]"):
        adapt(held).steer(0.0, None, TensorFile(str(tmp_path / "other")), **options)


def test_a_file_that_cannot_be_written_leaves_the_one_before_it(tmp_path):
    path = tmp_path / "save"
    model = adapt({"x": X.copy()})
    write(str(path), model.fields, model.pieces)

    def torn(field):
        yield memoryview(b"\0" * 8)
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match=r"cannot be saved in .*: No space left on device; free some space"):
        write(str(path), model.fields, torn)
    assert load_file(path)["x"].tolist() == X.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["save"]


def test_a_rest_of_a_program_that_was_killed_is_in_nobodys_way(tmp_path):
    (tmp_path / "save.new").write_bytes(b"half")
    model = adapt({"x": X.copy()})
    write(str(tmp_path / "save"), model.fields, model.pieces)
    assert load_file(tmp_path / "save")["x"].tolist() == X.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["save"]


def test_arrays_whose_elements_lie_in_another_order_are_written_as_they_are_named(tmp_path):
    model = adapt({"x": np.asfortranarray(X), "turned": X[::-1]})
    write(str(tmp_path / "save"), model.fields, model.pieces)
    saved = load_file(tmp_path / "save")
    assert saved["x"].tolist() == X.tolist()
    assert saved["turned"].tolist() == X[::-1].tolist()
