"""The gate over a real daemon at work: heat pauses it, patience ends it, and a network that costs money is left."""

import os
import time

import numpy as np
import pytest

from conftest import Coordinator
from daemons import QUIET, Fleet, before, incidents
from koinon.operator import Operator
from sysfs import Tree

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def board(tmp_path):
    tree = Tree(tmp_path / "board").orin_nano()
    tree.routes("eth0")
    yield tree
    tree.close()


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    """One for all tests here."""
    one = Coordinator(tmp_path_factory.mktemp("house"))
    yield one
    one.stop()


@pytest.fixture
def daemons(tmp_path, coordinator, board):
    fleet = Fleet(tmp_path, coordinator, root=board.root)
    yield fleet
    fleet.close()


SLOW = """
for _ in range(100):
    time.sleep(0.02)
    open("alive", "a").write("x")
    if task.remaining == 0: break
"""


def alive(daemon):
    try:
        return (daemon.folder / "alive").stat().st_size
    except OSError:
        return 0


def until(condition, timeout=20):
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_a_hot_device_is_not_asked_and_says_why(coordinator, daemons, board):
    board.zone(1, "gpu-thermal", 80_000)
    daemon = daemons()
    life = daemon.wait(lambda life: life["state"] == "IDLE")
    assert "75" in life["reason"]
    daemons.created()
    with Operator(coordinator.address, insecure=True) as operator:
        assert not any(d.attached for d in operator.devices() if d.id == daemon.name)


def test_heat_pauses_the_work_and_it_goes_on_when_that_is_over(daemons, board):
    daemon = daemons(before=before(SLOW))
    _, handle = daemons.created(rounds=1)
    until(lambda: alive(daemon) > 3)
    board.zone(1, "gpu-thermal", 92_000)
    until(lambda: "pauses" in daemon.said())
    stood = alive(daemon)
    time.sleep(0.3)
    assert alive(daemon) <= stood + 1
    board.zone(1, "gpu-thermal", 60_000)
    handle.wait()
    assert alive(daemon) == 100
    assert handle.model()["x"] == pytest.approx([1.0] * 5)


def test_work_that_pauses_for_too_long_is_handed_in_as_far_as_it_is(daemons, board):
    daemon = daemons(
        before=before(SLOW.replace("range(100)", "range(100000)")), lines=QUIET + 'patience = "1s"\n'
    )
    _, handle = daemons.created(rounds=1)
    until(lambda: alive(daemon) > 3)
    board.zone(1, "gpu-thermal", 92_000)
    handle.wait()
    assert handle.model()["x"] == pytest.approx([1.0] * 5)
    assert alive(daemon) < 5000


def test_what_a_round_has_cost_is_the_operators_to_see(coordinator, daemons, board):
    daemons(before="time.sleep(1.2)")
    _, handle = daemons.created(rounds=1)
    handle.wait()

    def told():
        with Operator(coordinator.address, insecure=True) as operator:
            (round_,) = operator.get(handle.id, costs=True).rounds
            return [p.spent for p in round_.participants if p.HasField("spent")]

    (cost,) = until(told)
    train = next(phase for phase in cost.phases if phase.name == "train")
    assert cost.scope == "module"
    assert train.joules / (train.seconds * (1 - train.missing)) == pytest.approx(5.0 * 1.48, rel=1e-3)
    assert train.seconds > 1.0
    assert train.missing < 0.5


def test_an_update_waits_while_its_network_costs_money(daemons, board):
    """It is held in mid-upload, and goes on with the same bytes over the next network."""
    daemon = daemons(
        lines=QUIET.replace("metered = true", "") + '[network]\nbandwidth = "300KB"\n', size=250_000,
        step="np.random.default_rng(1).normal(size=250_000)", before='open("trained", "a").write("x")',
    )  # fmt: skip
    _, handle = daemons.created(size=250_000, rounds=1, max_examples=16)
    daemon.wait(lambda life: life["state"] == "UPLOADING")
    board.routes("wwan0")
    (board.root / "sys/class/net/wwan0/operstate").write_text("up\n")
    until(lambda: "nothing is sent or fetched now: wwan0 is metered" in daemon.said(), timeout=60)
    board.routes("eth0")
    handle.wait()
    assert handle.model()["x"] == pytest.approx(np.random.default_rng(1).normal(size=250_000))
    assert (daemon.folder / "trained").read_text() == "x"


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root here")
def test_a_program_above_its_memory_is_killed_by_the_kernel_and_not_the_daemon(daemons):
    daemon = daemons(before="hog = bytearray(500 << 20)", task='memory = "200MB"')
    _, handle = daemons.created(rounds=1)
    found = until(lambda: [i for i in incidents(handle) if i.code == "OOM_KILLED"])
    assert (
        "killed by the kernel for memory (it may have 200 MB)" in found[0].message
        or "likely" in found[0].message
    )
    assert daemon.stop() == 0
