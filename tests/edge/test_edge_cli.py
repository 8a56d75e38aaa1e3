"""The owner's commands with a federation of real identities: enrol, run, status, remove."""

import itertools
import json
import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

import koinon
from daemons import Daemon
from koinon.operator import Operator

pytestmark = pytest.mark.timeout(90)
NUMBERS = itertools.count(5)
DAEMON_KNOWS_NOT = ("numpy", "torch", "sqlalchemy", "typer", "koinon_coordinator")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """(address, folder of the admin's credentials)."""
    folder = tmp_path_factory.mktemp("federation")
    coordinate = [sys.executable, "-m", "koinon_coordinator"]
    subprocess.run([*coordinate, "init", "--dir", folder / "home"], check=True, stdout=subprocess.DEVNULL)
    command = [
        *coordinate,
        "serve",
        "--dir",
        folder / "home",
        "--db",
        f"sqlite:///{folder}/db",
        "--listen",
        "127.0.0.1:0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    address = process.stdout.readline().split(" listens on ")[1].split(",")[0].strip()
    yield address, folder / "home" / "admin"
    process.terminate()
    process.wait(20)


def edge(device, *arguments, said=""):
    environment = {k: v for k, v in os.environ.items() if k != "KOINON_INSECURE"}
    return subprocess.run(
        [sys.executable, "-m", "koinon_edge.cli", *arguments, "--config", device.config],
        input=said, capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip


def token(federation):
    address, admin = federation
    made = subprocess.run(
        [sys.executable, "-m", "koinon", "token", "create", "--address", address, "--credentials", admin],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return made.stdout


@pytest.fixture
def device(tmp_path, federation, request):
    name = "line-4" if "removed" in request.node.name else f"line-{next(NUMBERS)}"
    one = Daemon(tmp_path, name, federation[0], run="toy")
    one.environment = {"KOINON_INSECURE": ""}
    yield one
    one.close()


def test_a_device_enrols_takes_part_and_is_removed(federation, device):
    address, admin = federation
    before = edge(device, "status")
    assert before.returncode == 2
    assert f"koinon-edge enrol --config {device.config}" in before.stderr
    assert str(device.folder / "state") in before.stderr
    wrong = edge(device, "enrol", said="KOI1.rubbish")
    assert wrong.returncode == 1
    assert "token" in wrong.stderr
    used = token(federation)
    assert "line-4 is enrolled" in edge(device, "enrol", said=used).stdout
    other = edge(device, "enrol", "--name", "line-3", said=used)
    assert other.returncode == 2
    assert "says that this device is 'line-4', and it is to enrol as 'line-3'" in other.stderr

    device.start()
    device.wait(lambda life: life["state"] == "ELIGIBLE")
    run = koinon.Run(
        "toy", model={"x": np.zeros(5)}, rounds=1, min_clients=1, clients=1, aggregation="open", codec="raw",
        evaluate=False,
    )  # fmt: skip
    with Operator(address, admin) as operator:
        until = time.monotonic() + 20
        while not ((listed := operator.devices()[0]).attached and listed.HasField("condition")):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert listed.id == "line-4"
        assert listed.condition.disk_free_mb > 0
        assert listed.condition.state == "ELIGIBLE"
    handle = run.create(address, credentials=admin)
    handle.wait()
    assert handle.model()["x"] == pytest.approx([1.0] * 5)

    shown = edge(device, "status", "--explain")
    assert shown.returncode == 0, shown.stderr
    assert "The daemon runs." in shown.stdout
    assert "PREDICATE" in shown.stdout
    assert "heat" in shown.stdout
    told = json.loads(edge(device, "status", "--json").stdout)
    assert told["name"] == "line-4"
    assert told["gate"]["open"] is True
    running = edge(device, "remove", "--yes")
    assert "stop it first" in running.stderr
    assert device.stop() == 0
    assert "The daemon does not run" in edge(device, "status").stdout
    assert "is removed from this machine" in edge(device, "remove", "--yes").stdout
    assert not device.state.exists()
    assert edge(device, "status").returncode == 2


def test_a_task_that_nobody_registered_is_never_run(federation, device):
    device.config.write_text(device.config.read_text().replace('run = "toy"', 'run = "other"'))
    edge(device, "enrol", said=token(federation))
    device.start()
    device.wait(lambda life: life["state"] == "ELIGIBLE")
    koinon.Run(
        "nobodys", model={"x": np.zeros(5)}, rounds=1, min_clients=1, clients=1, aggregation="open", codec="raw",
        evaluate=False,
    ).create(federation[0], credentials=federation[1])  # fmt: skip
    time.sleep(0.5)
    assert device.life()["state"] == "ELIGIBLE"


def test_the_doctor_says_what_is_wrong_and_its_bundle_names_nobody(federation, device, tmp_path):
    ill = edge(device, "doctor")
    assert ill.returncode == 1
    assert "enrol" in ill.stdout
    edge(device, "enrol", said=token(federation))
    done = edge(device, "doctor", "--report", str(tmp_path / "bundle.zip"))
    assert "the coordinator" in done.stdout, done.stderr
    with zipfile.ZipFile(tmp_path / "bundle.zip") as bundle:
        held = b"".join(bundle.read(name) for name in bundle.namelist())
    assert device.name.encode() not in held
    assert b"127.0.0.1" not in held
    assert str(tmp_path).encode() not in held


def test_a_typo_is_named_with_its_line_and_the_right_key(device):
    device.config.write_text('name = "x"\n[gate]\nheat_strat = 60\n')
    done = edge(device, "run")
    assert done.returncode == 2
    assert "line 3" in done.stderr
    assert "heat_start" in done.stderr


def test_a_second_daemon_of_the_same_device_is_refused(federation, device):
    edge(device, "enrol", said=token(federation))
    device.start()
    device.wait(lambda life: life["state"] == "ELIGIBLE")
    second = edge(device, "run")
    assert second.returncode == 1
    assert f"another koinon-edge runs for device {device.name!r}" in second.stderr


def test_an_idle_daemon_has_no_numpy_in_memory():
    code = f"import sys, koinon_edge.run; print([m for m in {DAEMON_KNOWS_NOT} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


def test_the_child_is_laid_out_whole_for_another_python(device, federation):
    edge(device, "enrol", said=token(federation))
    device.start()
    device.wait(lambda life: life["state"] == "ELIGIBLE")
    from koinon.outbox.folder import runtime_of

    child = runtime_of(device.state) / "edge" / "child"
    code = (
        "import sys, koinon_child; print([m for m in ('koinon', 'koinon_core', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": str(child)},
    )  # fmt: skip
    assert out.stdout.strip() == "[]", out.stderr
