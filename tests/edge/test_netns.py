"""A real link between a daemon and its coordinator, in a network namespace of its own, that goes down in mid-upload."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import koinon
from daemons import Daemon

pytestmark = pytest.mark.timeout(120)
SPACE, OURS, THEIRS, HERE = f"koinon{os.getpid()}", f"kn{os.getpid()}a", f"kn{os.getpid()}b", "10.211.77.1"
SIZE = 250_000  # float64: 2 MB


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


@pytest.fixture
def link():
    """A namespace whose only way out is a wire to here, of 20 Mbit/s."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    made = ip("netns", "add", SPACE, check=False)
    if made.returncode:
        pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
    try:
        ip("link", "add", OURS, "type", "veth", "peer", "name", THEIRS)
        ip("link", "set", THEIRS, "netns", SPACE)
        ip("addr", "add", f"{HERE}/24", "dev", OURS)
        ip("link", "set", OURS, "up")
        ip("-n", SPACE, "addr", "add", "10.211.77.2/24", "dev", THEIRS)
        ip("-n", SPACE, "link", "set", "lo", "up")
        up()
        shaped = [
            "tc",
            "qdisc",
            "add",
            "dev",
            THEIRS,
            "root",
            "tbf",
            "rate",
            "20mbit",
            "burst",
            "32k",
            "latency",
            "50ms",
        ]
        if shutil.which("tc") is None or subprocess.run(
            ["ip", "netns", "exec", SPACE, *shaped], capture_output=True, check=False
        ).returncode:  # fmt: skip
            pytest.skip("tc cannot slow the link down here")
        yield
    finally:
        ip("netns", "del", SPACE, check=False)
        ip("link", "del", OURS, check=False)


def up():
    ip("-n", SPACE, "link", "set", THEIRS, "up")


@pytest.fixture
def federation(tmp_path, link):
    home = tmp_path / "home"
    coordinate = [sys.executable, "-m", "koinon_coordinator"]
    subprocess.run([*coordinate, "init", "--dir", home], check=True, stdout=subprocess.DEVNULL)
    command = [
        *coordinate, "serve", "--dir", home, "--db", f"sqlite:///{tmp_path}/db", "--listen", f"{HERE}:0",
        "--name", HERE, "--enrol-listen", f"{HERE}:0",
    ]  # fmt: skip
    with (tmp_path / "coordinator.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    line = process.stdout.readline()
    assert " listens on " in line, (tmp_path / "coordinator.log").read_text()
    yield line.split(" listens on ")[1].split(",")[0].strip(), home / "admin"
    process.terminate()
    process.wait(20)


def test_a_link_that_goes_down_in_mid_upload_costs_no_work(tmp_path, federation):
    address, admin = federation
    daemon = Daemon(
        tmp_path, "far", address, step=f"np.random.default_rng(1).normal(size={SIZE})", size=SIZE,
        before='open("trained", "a").write("x")',
    )  # fmt: skip
    token = subprocess.run(
        [sys.executable, "-m", "koinon", "token", "create", "--address", address, "--credentials", admin],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "KOINON_INSECURE"}
    subprocess.run(
        [sys.executable, "-m", "koinon_edge.cli", "enrol", "--config", daemon.config],
        input=token.stdout, text=True, check=True, timeout=60, env=environment, capture_output=True,
    )  # fmt: skip
    daemon.environment, daemon.wrapper = {"KOINON_INSECURE": ""}, ("ip", "netns", "exec", SPACE)
    daemon.start()
    try:
        daemon.wait(lambda life: life["state"] == "ELIGIBLE")
        handle = koinon.Run(
            "toy", model={"x": np.zeros(SIZE)}, rounds=1, min_clients=1, clients=1, aggregation="open", codec="raw",
            evaluate=False, max_examples=16,
        ).create(address, credentials=admin)  # fmt: skip
        daemon.wait(lambda life: life["state"] == "UPLOADING", timeout=60)
        ip("-n", SPACE, "link", "set", THEIRS, "down")
        time.sleep(2)
        assert daemon.life()["state"] == "UPLOADING"
        up()
        handle.wait()
        assert handle.model()["x"] == pytest.approx(np.random.default_rng(1).normal(size=SIZE))
        assert (daemon.folder / "trained").read_text() == "x"
        assert daemon.stop() == 0
    finally:
        daemon.close()
