"""Which tensors of an owner's model go to and fro under koinon-edge, and how: as in Koinon itself, with less."""

import copy
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from torch import nn

from childworker import PlayedWorker, same
from koinon import child
from koinon.adapt import adapt
from koinon.child.adapt import adapt as adapt_child
from koinon_core.errors import UsageError
from koinon_core.schema import schema_of
from koinon_core.strategy import Pull
from koinon_core.tensors import Tensors

PACKAGE = Path(child.__file__).parent


@pytest.fixture
def worker(tmp_path, monkeypatch):
    played = PlayedWorker(tmp_path)
    monkeypatch.setenv("KOINON_SOCKET", str(played.path))
    yield played
    played.close()


class Net(nn.Module):
    """Parameters of which one is frozen and one tied, statistics, a table, and a buffer that is not kept."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 4)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.body = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 4)
        self.head.weight = self.body.weight
        self.register_buffer("table", torch.arange(3.0))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x):
        return self.head(self.body(self.norm(self.frozen(x))))


def handing_in(net):
    """A program that hands in what it was given."""

    def script():
        with child.join() as session:
            for task in session.tasks(net):
                task.submit(examples=1)

    return script


# -- which tensors --------------------------------------------------------------------------------------------


def fields(model):
    return [[f.name, list(f.shape), f.dtype, f.role] for f in adapt_child(model).fields]


def quietly(model, function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(model)


@pytest.mark.parametrize(
    "made",
    [
        Net,
        lambda: nn.Linear(3, 2).to(torch.bfloat16),
        lambda: nn.Sequential(nn.Linear(3, 2, dtype=torch.float64), nn.BatchNorm1d(2)).half(),
        lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
    ],
)
def test_the_tensors_of_a_module_are_those_that_koinon_itself_takes(made):
    net = made()
    mine, theirs = quietly(net, adapt_child), quietly(net, adapt)
    assert [[f.name, list(f.shape), f.dtype, f.role] for f in mine.fields] == theirs.schema.to_json()
    assert dict(mine.tied) == dict(theirs.tied)
    assert mine.rounds == theirs.rounds


def test_the_tensors_of_arrays_are_those_that_koinon_itself_takes():
    kinds = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    model = {f"a.{k}": np.zeros((2, 3), dtype=k) for k in kinds}
    model |= {"bn.running_var": np.zeros(2), "bn.num_batches_tracked": np.array(3), "scalar": np.array(1.5)}
    assert fields(model) == schema_of(model).to_json()


def test_a_frozen_module_has_nothing_to_train():
    with pytest.raises(UsageError, match="nothing to train"):
        adapt_child(nn.Linear(2, 2).requires_grad_(False))


def test_a_trained_parameter_of_16_bits_is_warned_of():
    with pytest.warns(UserWarning, match="'weight' and 1 more trained parameters have 16 bits"):
        adapt_child(nn.Linear(2, 2).half())


def test_tied_weights_are_named_to_the_worker(worker):
    worker.run(handing_in(Net()))
    ready = worker.welcome()
    assert ready["tied"] == {"head.weight": "body.weight"}
    worker.finish()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_16_bits_travels_in_32_and_its_anchor_is_what_it_holds(worker, dtype):
    net = nn.Linear(3, 2).to(dtype)
    twin = copy.deepcopy(net)
    weights = {"weight": np.full((2, 3), 0.1, np.float32), "bias": np.full(2, 1 / 3, np.float32)}

    def fit(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.125)
        for _ in range(3):
            optimizer.zero_grad()
            module(torch.ones(2, 3, dtype=dtype)).sum().backward()
            optimizer.step()

    def script():
        with child.join() as session:
            for task in session.tasks(net):
                fit(net)
                task.submit(examples=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        worker.run(script)
        ready = worker.welcome()
        assert ready["rounds"]
        assert {d for _, _, d, _ in ready["schema"]} == {"float32"}
        done, saved = worker.work(load=worker.file("load", **weights), mu=0.5)
        worker.finish()
        model = adapt(twin)
        model.load(Tensors(weights))
        with model.steer(Pull(0.5), model.read(), measure=False, train=None):
            fit(twin)
        same(saved, model.read())
    assert done["steps"] == 3


def test_a_gradient_of_16_bits_can_be_measured_in_koinon_itself():
    net = nn.Linear(2, 1).to(torch.bfloat16)
    model = quietly(net, adapt)
    with model.steer(Pull(), model.read(), measure=True, train=None) as steering:
        net(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
        torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert steering.gradient()["weight"].tolist() == [[1.0, 1.0]]
    assert steering.gradient()["weight"].dtype == np.float32


def test_buffers_that_a_forward_pass_replaces_are_loaded_and_saved_where_they_are(worker):
    class Replacing(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))
            self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))
            self.register_buffer("mask", torch.tensor([True, False]))

        def forward(self):
            self.seen = self.seen + 1
            return self.w.sum()

    net = Replacing()

    def script():
        with child.join() as session:
            for task in session.tasks(net):
                net().backward()
                task.submit(examples=1)

    worker.run(script).welcome()
    load = {"w": np.zeros(1, np.float32), "seen": np.array([5, 6]), "mask": np.array([False, True])}
    for _ in range(2):
        _, saved = worker.work(load=worker.file("load", **load))
        assert saved["seen"].tolist() == [6, 7]
        assert saved["mask"].tolist() == [False, True]
    worker.finish()


def test_elements_that_lie_in_another_order_come_and_go_as_they_are_named(worker):
    net = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)
    weights = {"weight": np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3)}

    worker.run(handing_in(net)).welcome()
    _, saved = worker.work(load=worker.file("load", **weights))
    worker.finish()
    same(saved, weights)
    assert net.weight.is_contiguous(memory_format=torch.channels_last)


def test_tensors_of_more_than_a_piece_and_of_nothing_come_and_go(tmp_path):
    net = nn.Module()
    net.large = nn.Parameter(torch.zeros(3, 500_001))
    net.none = nn.Parameter(torch.zeros(0, 4))
    net.single = nn.Parameter(torch.tensor(2.0))
    given = {
        "large": torch.arange(1_500_003.0).reshape(3, -1),
        "none": torch.zeros(0, 4),
        "single": torch.tensor(7.0),
    }
    save_torch(given, tmp_path / "load")
    model = adapt_child(net)
    model.load(child.files.TensorFile(str(tmp_path / "load")))
    child.files.write(str(tmp_path / "save"), model.fields, model.pieces)
    saved = load_torch(tmp_path / "save")
    assert all(torch.equal(saved[n], given[n]) for n in given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_of_16_bits_may_be_loaded_into_32(tmp_path, dtype):
    given = torch.tensor([1.5, -0.1, 3e4]).to(dtype)
    save_torch({"x": given}, tmp_path / "load")
    held = {"x": np.zeros(3, dtype=np.float32)}
    adapt_child(held).load(child.files.TensorFile(str(tmp_path / "load")))
    assert held["x"].tolist() == given.tolist()
    net = nn.Module()
    net.x = nn.Parameter(torch.zeros(3))
    adapt_child(net).load(child.files.TensorFile(str(tmp_path / "load")))
    assert net.x.tolist() == given.tolist()


# -- without numpy --------------------------------------------------------------------------------------------


def test_a_torch_program_needs_no_numpy(worker, tmp_path):
    code = textwrap.dedent("""
        import sys
        sys.modules["numpy"] = None
        import torch
        import koinon_child as koinon
        net = torch.nn.Linear(2, 1)
        with koinon.join() as session:
            for task in session.tasks(net, evaluate=lambda net: {"loss": net.weight.sum()}):
                optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
                optimizer.zero_grad()
                net(torch.ones(1, 2)).sum().backward()
                optimizer.step()
                task.submit(examples=1, metrics={"loss": torch.tensor(0.5)})
    """)
    (tmp_path / "koinon_child").symlink_to(PACKAGE)
    environment = {"PYTHONPATH": str(tmp_path), "KOINON_SOCKET": str(worker.path)}
    program = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], env=environment)
    try:
        worker.wait_longer(30)
        worker.welcome()
        weights = {"weight": np.array([[1.0, 2.0]], np.float32), "bias": np.zeros(1, np.float32)}
        load = worker.file("load", **weights)
        worker.say("evaluate", id=90, load=load)
        assert worker.hear("evaluated")["metrics"] == {"loss": 3.0}
        _, saved = worker.work(shift=worker.file("shift", **{"bias": np.ones(1, np.float32)}), mu=1.0)
        assert saved["weight"].tolist() == [[0.5, 1.5]]
        assert saved["bias"].tolist() == [-1.0]
        _, saved = worker.work(kind="measure")
        assert saved["weight"].tolist() == [[1.0, 1.0]]
        worker.say("ended", status="finished", reason="")
        assert program.wait(10) == 0
    finally:
        program.kill()
        program.wait()
