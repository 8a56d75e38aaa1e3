"""What the doctor finds on trees of other machines, with real interpreters, processes and disks."""

import os
import sys
import time
from pathlib import Path

import pytest

from koinon_core.errors import UsageError
from koinon_edge.doctor import Finding, Patient, Ran, accelerator, board, disk, lines, run, standing, worst
from koinon_edge.probe import Files
from sysfs import Tree

NOW = time.time()
R36 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025"


@pytest.fixture
def tree(tmp_path):
    one = Tree(tmp_path / "root")
    one.root.mkdir()
    yield one
    one.close()


@pytest.fixture
def files(tree):
    return Files(tree.root)


def only(found: list[Finding], topic: str) -> Finding:
    (one,) = [f for f in found if f.topic == topic]
    return one


# -- the machine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "verdict", "said"),
    [
        (R36, "ok", "L4T 36.4.3 (JetPack 6.2, CUDA 12.6)"),
        ("# R36 (release), REVISION: 4.0, X", "ok", "L4T 36.4.0 (JetPack 6.1, CUDA 12.6)"),
        ("# R38 (release), REVISION: 2.1, X", "ok", "JetPack 7.0, CUDA 13.0"),
        ("# R40 (release), REVISION: 1.0, X", "ok", "L4T 40.1.0 (an unknown JetPack)"),
        ("# R35 (release), REVISION: 4.1, X", "warn", "JetPack 5, CUDA 11.4"),
        ("something else", "warn", "no /etc/nv_tegra_release"),
    ],
)
def test_a_jetson_is_known_by_its_release(tree, files, release, verdict, said):
    tree.orin_nano().write({"etc/nv_tegra_release": release})
    found = board.machine(files)
    assert found.verdict == verdict
    assert "Orin Nano" in found.found
    assert said in found.found


def test_sensors_and_memory_that_are_well_and_that_are_not(tree, files):
    tree.orin_nano()
    found = board.sensors(files)
    assert [(f.topic, f.verdict, f.found) for f in found] == [
        ("heat", "ok", "51.25 °C"), ("power", "ok", "INA3221, of module: 7.4 W"),
    ]  # fmt: skip
    tree.zone(5, "tj-thermal", 96000)
    tree.write({"sys/class/thermal/cooling_device1/cur_state": 2, "proc/meminfo": "MemAvailable: 200000 kB"})
    tree.offline("sys/class/hwmon/hwmon4/in1_input")
    found = board.sensors(files)
    assert [(f.topic, f.verdict) for f in found] == [
        ("heat", "warn"),
        ("cooling", "warn"),
        ("power", "unknown"),
    ]
    assert only(found, "power").found == "VDD_IN: offline"
    assert only(board.memory(files, Patient()), "memory").verdict == "warn"
    assert only(board.sensors(Files(tree.root / "none")), "heat").verdict == "unknown"


# -- torch ----------------------------------------------------------------------------------------------------

TORCH = """
import os, signal, time
MODE = {mode!r}
__version__ = "2.8.0"
if MODE == "broken":
    raise OSError("libcudnn.so.9: cannot open shared object file")
class version:
    cuda = None if MODE == "no cuda" else "12.6"
class Tensor:
    def __init__(self, value=1.0, there=False):
        self.value, self.there = value, there
    def cuda(self): return Tensor(self.value, True)
    def cpu(self): return Tensor(self.value)
    def __sub__(self, other): return Tensor(self.value - other.value)
    def __truediv__(self, other): return Tensor(self.value / other.value)
    def abs(self): return Tensor(abs(self.value))
    def max(self): return self
    def __float__(self): return self.value
    def __matmul__(self, other):
        if self.there and MODE == "image":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        if self.there and MODE == "full":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB")
        if self.there and MODE == "hangs":
            time.sleep(600)
        if self.there and MODE == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.there and MODE == "illegal":
            os.kill(os.getpid(), signal.SIGILL)
        return Tensor({{"wrong": 7.0}}.get(MODE, 1.0001) if self.there else 1.0)
def manual_seed(seed): print("a library says something")
def randn(*shape): return Tensor()
class nn:
    class functional:
        @staticmethod
        def conv2d(image, filters):
            return Tensor(float("nan")) if image.there and MODE == "nan" else image @ filters
class cuda:
    is_available = staticmethod(lambda: MODE not in ("no cuda", "no gpu"))
    get_arch_list = staticmethod(lambda: ["sm_80", "sm_90"])
    get_device_name = staticmethod(lambda number: "Orin")
    get_device_capability = staticmethod(lambda number: (8, 7))
"""


def interpreter(folder: Path, mode: str) -> str:
    """A Python with a torch that behaves like that; with none, where the mode is "none"."""
    path = folder / "python"
    inside = folder / "site"
    inside.mkdir()
    if mode == "none":
        said = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]"
        (inside / "sitecustomize.py").write_text(said)
    else:
        (inside / "torch.py").write_text(TORCH.format(mode=mode))
    path.write_text(f'#!/bin/sh\nPYTHONPATH={inside} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("mode", "verdict", "said", "advice"),
    [
        ("works", "ok", "torch 2.8.0 computes on Orin (sm_87) what it computes on the processor (CUDA 12.6)", ""),
        ("image", "bad", "torch says that there is a GPU, and its first kernel fails: RuntimeError: CUDA error: no",
         "this torch was not built for this GPU (Orin (sm_87); it was for sm_80, sm_90): install NVIDIA's own wheels"),
        ("full", "warn", "has no memory left", "end it"),
        ("wrong", "bad", "computes something else on Orin (sm_87) than on the processor: 6 off", "do not train"),
        ("nan", "bad", "computes something else", "do not train"),
        ("no cuda", "bad", "was built without CUDA", "jp6/cu126"),
        ("no gpu", "bad", "finds no GPU", "groups video and render"),
        ("broken", "bad", "torch cannot be imported: OSError: libcudnn.so.9", "jp6/cu126"),
        ("none", "warn", "has no torch", "if the task trains with torch"),
        ("killed", "bad", "SIGKILL", "swap"),
        ("illegal", "bad", "illegal instruction", "OPENBLAS_CORETYPE"),
    ],
)  # fmt: skip
def test_torch_is_judged_by_its_first_kernel(tree, files, tmp_path, mode, verdict, said, advice):
    tree.orin_nano().write({"etc/nv_tegra_release": R36})
    found = accelerator.torch(files, Patient(python=interpreter(tmp_path, mode)), run)
    assert found.verdict == verdict, found
    assert said in found.found
    assert advice in found.advice


def test_a_kernel_that_hangs_is_killed(files, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "LONGEST", 0.5)
    began = time.monotonic()
    found = accelerator.torch(files, Patient(python=interpreter(tmp_path, "hangs")), run)
    assert (found.verdict, time.monotonic() - began < 5) == ("bad", True)
    assert "did not end" in found.found


def test_an_interpreter_that_is_none_or_that_fails_is_said(files, tmp_path):
    assert "cannot be started" in accelerator.torch(files, Patient(python="/nowhere/python"), run).found
    failing = accelerator.torch(files, Patient(python="p"), lambda *_: Ran(2, "no JSON", "a\nbad option: -c"))
    assert failing.found == "the check ended with status 2: bad option: -c"


def test_without_a_gpu_the_processor_will_do(files, tmp_path):
    found = accelerator.torch(files, Patient(python=interpreter(tmp_path, "no cuda")), run)
    assert (found.verdict, found.found) == (
        "ok",
        "torch 2.8.0 computes on the processor; there is no NVIDIA GPU",
    )


def test_what_a_killed_program_started_dies_with_it(tmp_path):
    mark = tmp_path / "pid"
    ran = run(["/bin/sh", "-c", f"sleep 60 & echo $! > {mark}; wait"], 0.3)
    assert ran == Ran(None)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _lives(int(mark.read_text())):
        time.sleep(0.01)
    assert not _lives(int(mark.read_text()))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_this_machines_own_torch_is_asked(tree):
    """A few seconds: it imports torch in another process."""
    pytest.importorskip("torch")
    found = accelerator.torch(Files(Path("/")), Patient(python=sys.executable), run)
    assert found.topic == "torch"
    assert "computes on" in found.found


# -- the disk -------------------------------------------------------------------------------------------------


def test_a_disk_with_room_that_keeps_what_is_written_is_well_and_left_as_it_was(files, tmp_path):
    meant = tmp_path / "state" / "koinon" / "line-4"
    before = sorted(tmp_path.iterdir())
    found = disk.disk(files, meant, 1000)
    assert [(f.topic, f.verdict) for f in found] == [("disk", "ok"), ("disk speed", "ok")]
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_is_full_slow_or_worn_is_said(tree, files, tmp_path):
    moments = iter([0.0, 0.9])
    found = disk.disk(files, tmp_path, 10**18, lambda: next(moments))
    assert [(f.topic, f.verdict) for f in found] == [("disk", "warn"), ("disk speed", "warn")]
    assert "durable after 900 ms" in found[1].found
    for life, verdict in (("0x03 0x01", "ok"), ("0x08 0x02", "warn"), ("0x0b 0x0b", "bad")):
        tree.write({"sys/class/mmc_host/mmc0/mmc0:0001/life_time": life})
        assert only(disk.disk(files, None, 1), "wear").verdict == verdict


def test_a_folder_in_which_nothing_can_be_written_is_said(files, monkeypatch):
    (found,) = disk.disk(files, Path("/proc/koinon"), 1)
    assert (found.verdict, "nothing can be written in /proc" in found.found) == ("bad", True)
    monkeypatch.setattr(disk, "_LONGEST", 0.1)
    monkeypatch.setattr(disk, "_room", lambda *_: time.sleep(1))
    (found,) = disk.disk(files, Path("/tmp"), 1)
    assert "does not answer" in found.found


# -- clock, edge.toml, systemd --------------------------------------------------------------------------------


def test_a_clock_that_is_before_this_program_is_off(tree, files):
    assert standing.clock(files, 1000.0).verdict == "bad"
    assert standing.clock(files, NOW).verdict == "unknown"
    (tree.root / "run/systemd/timesync").mkdir(parents=True)
    assert standing.clock(files, NOW).verdict == "warn"
    (tree.root / "run/systemd/timesync/synchronized").touch()
    assert standing.clock(files, NOW).verdict == "ok"


def test_an_edge_toml_that_is_wrong_is_said_in_its_own_words():
    def wrong() -> object:
        raise UsageError("edge.toml line 3: [gate] has no key 'windos'; did you mean windows?")

    assert standing.settings(wrong).found.startswith("edge.toml line 3")
    assert (standing.settings(None).verdict, standing.settings(dict).verdict) == ("unknown", "ok")


@pytest.mark.parametrize(
    ("environment", "unit", "verdict"),
    [
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "60000000"}, False, "ok"),
        ({"NOTIFY_SOCKET": "/run/n"}, False, "warn"),
        ({}, True, "ok"),
        ({}, False, "unknown"),
    ],
)
def test_somebody_looks_after_the_daemon(tree, files, environment, unit, verdict):
    if unit:
        tree.write({"etc/systemd/system/koinon-edge.service": "[Service]"})
    assert standing.systemd(files, Patient(environment=environment)).verdict == verdict


# -- how it is shown ------------------------------------------------------------------------------------------


def test_findings_are_lines_with_a_mark_and_advice():
    well, bad = Finding("disk", "ok", "5 GB free"), Finding("clock", "bad", "it is 1970", "set it")
    unknown = Finding("a", "unknown", "no sensor")
    assert lines([well, bad, unknown]) == [
        "ok  disk   5 GB free",
        " X  clock  it is 1970",
        "           -> set it",
        " ?  a      no sensor",
    ]
    assert (worst([well, bad, unknown]), worst([well]), worst([well, unknown])) == ("bad", "ok", "unknown")
    assert (lines([]), worst([])) == ([], "ok")
