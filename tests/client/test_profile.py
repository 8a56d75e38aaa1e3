"""What a device says of itself, and that its owner may keep it back."""

import sys
from types import SimpleNamespace

import numpy as np

import koinon
from koinon import profile as profiles
from koinon.operator import Operator
from koinon.profile import profile
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb


def test_a_device_says_three_numbers():
    said = profile()
    assert said.keys() == {"memory_mb", "cores", "gpu"}
    assert said["memory_mb"] > 100
    assert said["cores"] >= 1
    assert convert.able_from(convert.hello("c", "i", able=said).able) == said
    assert not convert.hello("c", "i").HasField("able")
    assert convert.able_from(convert.hello("c", "i").able) == {"memory_mb": 0, "cores": 0, "gpu": 0}


def test_graphics_processors_are_those_that_torch_sees_or_whose_drivers_are_there(tmp_path, monkeypatch):
    torch = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 3))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert profile()["gpu"] == 3
    torch.cuda.device_count = lambda: 1 / 0
    monkeypatch.setattr(profiles, "_DEVICES", tmp_path)
    assert profile()["gpu"] == 0
    monkeypatch.delitem(sys.modules, "torch")
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    assert profile()["gpu"] == 2


def test_an_owner_may_keep_it_back(tmp_path, monkeypatch, coordinator):
    policy = tmp_path / "device.toml"
    policy.write_text("profile = false\n")
    koinon.Run("r", model={"x": np.zeros(1)}, aggregation="open", min_clients=1).create(coordinator.address)
    with koinon.join(coordinator.address, run="r", name="says"):
        monkeypatch.setenv("KOINON_POLICY", str(policy))
        with (
            koinon.join(coordinator.address, run="r", name="says-nothing"),
            Operator(coordinator.address) as operator,
        ):
            found = {d.id: d.able for d in operator.devices()}
    assert found["says"].cores >= 1
    assert (found["says-nothing"].cores, found["says-nothing"].memory_mb) == (0, 0)


def test_a_device_that_boasts_is_shown_like_any_other():
    said = convert.able_from(pb.Able(memory_mb=(1 << 64) - 1, cores=(1 << 32) - 1))
    assert convert.able_from(convert.able_to(said)) == said
