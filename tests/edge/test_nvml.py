"""NVIDIA's graphics processors, asked through libraries that answer as three drivers do."""

import ctypes
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from koinon_edge.metering import Sampler, choose
from koinon_edge.probe import Files, Gpus, gpus_of, survey
from sysfs import Tree

COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) to make a driver's library with")


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    """Libraries by the kind of driver."""
    folder, source = tmp_path_factory.mktemp("nvml"), Path(__file__).with_name("fake_nvml.c")
    made = {}
    for kind in ("SERVER", "JETSON", "BROKEN", "OLD"):
        made[kind] = str(folder / f"lib{kind}.so")
        command = [str(COMPILER), f"-D{kind}", "-shared", "-fPIC", "-o", made[kind], str(source)]
        subprocess.run(command, check=True, timeout=60)
    return made


@pytest.fixture
def tree(tmp_path):
    one = Tree(tmp_path)
    yield one
    one.close()


@pytest.fixture
def gpus(drivers):
    opened = []

    def of(kind: str, **settings: float) -> Gpus:
        opened.append(Gpus(drivers[kind], **settings))
        return opened[-1]

    yield of
    for one in opened:
        one.close()


def test_a_server_says_what_its_graphics_processors_do(gpus):
    found = gpus("SERVER")
    assert found.names == ("NVIDIA H200", "NVIDIA H200")
    assert {name: str(reading) for name, reading in found.readings().items()} == {
        "gpu 0 power": "120.5 W", "gpu 0 heat": "41 °C", "gpu 0 at work": "87 %", "gpu 0 memory in use": "2000 MB",
        "gpu 1 power": "121.5 W", "gpu 1 heat": "42 °C", "gpu 1 at work": "87 %", "gpu 1 memory in use": "2000 MB",
    }  # fmt: skip
    assert (found.power().value, found.power().unit) == (242.0, "W")
    assert found.energy().value == pytest.approx(10.75)  # 5.25 and 5.5 J


def test_a_jetson_whose_driver_supports_nothing_says_so_and_not_0(gpus):
    found = gpus("JETSON")
    assert found.names == ("NVIDIA H200",)
    readings = [*found.readings().values(), found.power(), found.energy()]
    assert len(readings) == 6
    assert {(r.value, r.why) for r in readings} == {(None, "not supported by this driver")}


def test_where_there_is_no_driver_there_is_no_sensor(gpus, tmp_path):
    broken = gpus("BROKEN")
    assert (broken.names, broken.why, broken.readings()) == ((), "the driver is not loaded", {})
    none = Gpus(str(tmp_path / "libnvidia-ml.so.1"))
    assert (none.names, none.why, none.readings()) == ((), "no driver", {})
    assert (none.power().value, none.power().why) == (None, "no driver")


def test_a_driver_that_hangs_holds_nobody_up(gpus, tmp_path, monkeypatch):
    hangs = tmp_path / "hangs"
    monkeypatch.setenv("KOINON_NVML_HANGS", str(hangs))
    found = gpus("SERVER", deadline=0.1)
    assert found.power().value == 242.0
    hangs.touch()
    began, threads = time.monotonic(), threading.active_count()
    for _ in range(20):
        assert (found.power().value, found.power().why) == (None, "late")
    assert found.readings()["gpu 1 heat"].why == "late", "nothing else is asked meanwhile"
    assert time.monotonic() - began < 1.0, "it is waited for once"
    assert threading.active_count() <= threads, "others may have ended meanwhile"
    hangs.unlink()
    deadline = time.monotonic() + 5
    while found.power().value is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found.power().value == 242.0, "an answer that came late is not taken for another's"


def test_what_is_closed_is_let_go(gpus, drivers):
    still_open = ctypes.CDLL(drivers["OLD"]).still_open
    threads = threading.active_count()
    found = gpus("OLD")
    assert still_open() == 1
    found.close()
    assert (still_open(), found.power().why) == (0, "closed")
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads, "others may have ended meanwhile"


# -- where it is used -----------------------------------------------------------------------------------------


def test_an_owner_reads_it_beside_all_else(gpus, tree):
    board, found, about = survey(Files(tree.orin_nano().root), gpus("JETSON"))
    assert board.startswith("NVIDIA Jetson")
    assert str(found["gpu 0 power"]) == "unknown (not supported by this driver)"
    assert about.startswith("power is that of VDD_IN")
    assert gpus_of(Files(tree.root)) is None, "another machine's tree is not this one's driver"
    assert not [name for name in survey(Files(tree.root))[1] if name.startswith("gpu ")]


@pytest.mark.parametrize(
    ("kind", "machine", "name", "scope"),
    [
        ("SERVER", "server", "NVML energy counter", "2 gpus"),
        ("OLD", "server", "NVML power", "2 gpus"),
        ("JETSON", "orin_nano", "INA3221", "module"),
        ("JETSON", "server", "RAPL", "cpu package"),
        ("JETSON", "laptop", "none", "nothing"),
        ("BROKEN", "server", "RAPL", "cpu package"),
    ],
)
def test_power_is_measured_by_what_answers(gpus, tree, kind, machine, name, scope):
    getattr(tree, machine)()
    source = choose(Files(tree.root), gpus(kind))
    assert (source.name, source.scope) == (name, scope)


def test_a_drivers_counter_becomes_the_joules_of_a_phase(gpus, tree):
    found = gpus("SERVER")
    sampler = Sampler(choose(Files(tree.root), found), every=3600.0)
    sampler.begin("train")
    time.sleep(0.01)
    assert sampler.end().phases["train"].joules == pytest.approx(
        1.0
    )  # each question moves two counters by 0.25 J
