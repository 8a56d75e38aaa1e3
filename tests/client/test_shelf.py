"""A round's model on the device: put whole or not at all, and compared when it is read again."""

import numpy as np
import pytest

from koinon.adapt import Whole, adapt
from koinon.shelf import Shelf
from koinon_core import codec
from koinon_core.blob import Blob
from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob, BadUpdate
from koinon_core.round.terms import Terms
from koinon_core.schema import schema_of
from koinon_core.strategy.closing import digest_of_tensors
from koinon_core.tensors import Tensors
from koinon_core.tiles import TILE, Gather, Held
from koinon_core.wire.v1 import fleet_pb2 as pb

W = Tensors({"a": np.arange(TILE + 5, dtype=np.float32), "b": np.array([1.0, 2.0], np.float32)})
SCHEMA = schema_of(W)
BLOB = codec.encode(W, SCHEMA, "raw")


def asked(**terms) -> tuple[pb.Ask, Terms]:
    said = {
        "run": "r", "round": 1, "incarnation": "", "goal": 1, "quorum": 1, "schema": "", "strategy": "",
        "max_examples": 1, "bound": 1.0, "grid": 20, "model": sha256(BLOB),
        "weights": digest_of_tensors(Held(W), SCHEMA),
    }  # fmt: skip
    ask = pb.Ask(model=pb.Content(digest=sha256(BLOB), size=len(BLOB)))
    return ask, Terms(**{**said, **terms})


def shelf(folder) -> Shelf:
    def fetch(content, into):
        if into is not None:
            into.write_bytes(BLOB)
        return Blob.of(BLOB)

    return Shelf(folder, fetch)


def test_a_model_that_was_damaged_since_it_was_loaded_makes_no_update(tmp_path):
    source = shelf(tmp_path / "models").load(*asked(), SCHEMA, Gather(SCHEMA))
    assert source.values("a", TILE).tolist() == W["a"][TILE:].tolist()
    (path,) = (tmp_path / "models").iterdir()
    data = bytearray(path.read_bytes())
    data[4000] ^= 1
    path.write_bytes(data)
    assert source.values("b", 0).tolist() == [1.0, 2.0]
    with pytest.raises(BadUpdate, match="damaged on this device's disk: 'a' is not what it was"):
        source.values("a", 0)


def test_the_model_must_be_the_one_that_the_terms_name(tmp_path):
    with pytest.raises(BadBlob, match="not the one that its terms name"):
        shelf(tmp_path).load(*asked(model="00" * 32), SCHEMA, Gather(SCHEMA))
    with pytest.raises(BadBlob, match="other weights than its terms name"):
        shelf(tmp_path).load(*asked(weights="00" * 32), SCHEMA, Gather(SCHEMA))


def test_what_a_device_holds_is_said_while_another_thread_removes_it(tmp_path, monkeypatch):
    held = shelf(tmp_path)
    (tmp_path / "one").write_bytes(b"")
    (tmp_path / "two.part").write_bytes(b"")
    assert held.held == "one"
    found = list(tmp_path.glob("*"))
    monkeypatch.setattr("pathlib.Path.glob", lambda self, pattern: iter(found))
    (tmp_path / "one").unlink()
    assert held.held == ""
    assert Shelf(None, lambda content, into: Blob.of(b"")).held is None


class Own:
    """An owner's own kind of model, which knows nothing of tiles."""

    schema = SCHEMA

    def __init__(self):
        self.weights, self.reads = SCHEMA.zeros(), 0

    def read(self):
        self.reads += 1
        return self.weights

    def load(self, weights):
        self.weights = weights

    def steer(self, pull, start, *, measure, train):
        raise NotImplementedError


def test_a_model_that_is_loaded_as_a_whole_begins_anew_after_a_reading_that_broke_off():
    own = Own()
    model = adapt(own)
    assert isinstance(model, Whole)
    model.put("a", 0, np.full(TILE, -1, np.float32))  # and then the file turned out to be damaged
    for name, array in W.items():
        for offset in range(0, array.size, TILE):
            assert own.weights is not W
            model.put(name, offset, array[offset : offset + TILE])
    assert own.weights == W
    assert model.values("a", TILE).tolist() == W["a"][TILE:].tolist()
