"""Devices that do not stay attached: they are told when to come back, small fleets meet, and nobody misses who left."""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import koinon
from conftest import Coordinator
from hostile import Device, container, over, until
from koinon.operator import Operator
from koinon_coordinator.config import Config
from koinon_coordinator.store import Store
from koinon_coordinator.visits import Visits
from koinon_core import run as runs
from koinon_core.errors import UsageError
from koinon_core.wire.v1 import fleet_pb2 as pb
from lab import Lab

PERIOD = 3.0
UPDATE = container(x=np.ones(3, np.float32))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """What is told does not depend on the database."""
    one = Store(f"sqlite:///{tmp_path / 'lab.db'}")
    yield one
    one.close()


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    one = Coordinator(tmp_path, "--visit-period", "3s")
    yield one
    if one.process.poll() is None:
        one.kill()


def described(**settings: Any) -> koinon.Run:
    given = {
        "aggregation": "open", "min_clients": 2, "clients": 2, "codec": "lossless", "evaluate": False, "rounds": 1,
        "join_wait": 0.1, **settings,
    }  # fmt: skip
    return koinon.Run("r", model={"x": np.zeros(3, np.float32)}, **given)


def visit(device: Device, run: str) -> pb.Pace:
    """Offer as a visitor; what it is told."""
    device.say(offer=pb.Offer(run=run, visit=True))
    told: pb.Pace = device.hear("pace")
    assert told.run == run
    return told


def heard_until(device: Device, kind: str) -> list[str]:
    """The kinds of all that comes, up to one of these."""
    kinds: list[str] = []
    while kind not in kinds:
        kinds.append(device._heard.get(timeout=5).WhichOneof("says"))
    return kinds


def asked_within(device: Device, seconds: float) -> pb.Ask | None:
    with suppress(queue.Empty):
        ask: pb.Ask = device.hear("ask", timeout=seconds)
        return ask
    return None


def test_two_visitors_that_never_saw_each_other_meet_and_a_round_opens(coordinator):
    described().create(coordinator.address)
    visits: dict[str, int] = {}
    failed: list[BaseException] = []

    def goes_on_visiting(name: str, share: float) -> None:
        """As a device on a battery does: come, stay for as long as it is told, hang up, come back when it is told."""
        for n in range(1, 20):
            with Device(coordinator.address, name, instance=name) as device:
                told = visit(device, device.join("r"))
                visits[name] = n
                ask = asked_within(device, told.stay_s)
                if ask is not None:
                    device.answer(ask, UPDATE)
                    assert device.hear("ended").status == "finished"
                    return
            time.sleep(told.after_s + share * told.jitter_s)

    def thread(name: str, share: float) -> threading.Thread:
        def run() -> None:
            try:
                goes_on_visiting(name, share)
            except BaseException as error:
                failed.append(error)

        one = threading.Thread(target=run)
        one.start()
        return one

    # So that the first leaves before the second comes, and well before they meet.
    time.sleep(PERIOD - time.time() % PERIOD)
    threads = [thread("a", 0.0)]
    time.sleep(1.2)
    threads.append(thread("b", 1.0))
    for one in threads:
        one.join(40)
    assert failed == []
    got = over(coordinator.address, "r")
    assert got.run.status == "finished"
    assert [i.message for i in got.incidents] == []
    assert visits["a"] > 1, "it had left before the other came"


def test_a_visitor_that_hung_up_is_neither_lost_nor_waited_for(coordinator):
    described(clients=3, rounds=2).create(coordinator.address)
    address = coordinator.address
    with Device(address, "v", instance="v") as early:
        told = visit(early, early.join("r"))
        assert 0 < told.stay_s <= PERIOD
    with Operator(address) as operator:
        until(lambda: list(operator.get("r").attached) == [])
    with Device(address, "a") as a, Device(address, "b") as b:
        for device in (a, b):
            device.offer(device.join("r"))
        asks = [device.asked() for device in (a, b)]
        with Device(address, "v", instance="v") as late:
            told = visit(late, late.join("r"))
            assert told.after_s <= PERIOD
            assert asked_within(late, 0.3) is None
        for round_ in (1, 2):
            for device, ask in zip((a, b), asks, strict=True):
                device.answer(ask, UPDATE)
            if round_ == 1:
                for device in (a, b):
                    device.offer(asks[0].run)
                asks = [device.asked() for device in (a, b)]
        got = over(address, "r")
    assert [sorted(p.client for p in r.participants if p.status == "counted") for r in got.rounds] == [
        ["a", "b"]
    ] * 2
    assert [i.message for i in got.incidents] == []
    assert all(r.closed_at - r.asked_at < 5 for r in got.rounds), "nobody was waited for"


def test_a_visitor_of_a_paused_run_comes_back_later_and_one_of_a_run_that_is_over_not_at_all(coordinator):
    described().create(coordinator.address)
    with Device(coordinator.address, "v") as device, Operator(coordinator.address) as operator:
        run = device.join("r")
        operator.control("r", "pause")
        told = visit(device, run)
        assert (told.after_s, told.jitter_s, told.stay_s) == (4 * PERIOD, PERIOD, PERIOD / 4)
        operator.control("r", "cancel")
        device.hear("ended")
        device.say(offer=pb.Offer(run=run, visit=True))
        device.say(recall=pb.Recall(run=run))
        assert heard_until(device, "standing") == ["ended", "standing"]


def test_a_device_that_stays_is_told_no_pace(coordinator):
    described().create(coordinator.address)
    with Device(coordinator.address, "s") as device:
        run = device.join("r")
        device.offer(run)
        device.say(recall=pb.Recall(run=run))
        assert heard_until(device, "standing") == ["standing"]


# -- what is known of a fleet ---------------------------------------------------------------------------------


def test_a_fleet_is_known_to_be_large_from_its_visits_and_small_again_when_they_end(store):
    lab = Lab.create(store, devices=3)
    visits, now = Visits(300.0), 300.0 * 4_000_000
    for i in range(40):
        told = visits.told(lab.run, f"v{i}", now + i)
    assert told.jitter == 300.0, "of forty devices a round needs three: they are spread"
    later = now + 11 * 300.0
    assert visits.told(lab.run, "v0", later).jitter == 300.0, "those of the stretch before still count"
    assert visits.told(lab.run, "v0", later + 11 * 300.0).jitter == 10.0
    visits.told(lab.run, "v1", later)
    visits.forget(lab.run.id)
    assert visits.told(lab.run, "v0", later).jitter == 10.0


def test_whom_the_open_round_awaits_stays_for_it_and_another_comes_back(store):
    lab = Lab.create(store, devices=3).open()
    visits, now = Visits(300.0), 300.0 * 4_000_000 + 10
    assert visits.told(lab.run, "c0", now).stay == 32.0
    assert visits.told(lab.run, "v", now).stay == 4.0
    deadline = lab.run.round.update.deadline
    assert visits.told(lab.run, "v", deadline - 24).after == 20.0
    lab.close()
    assert visits.told(lab.run, "v", now).stay == 32.0, "the next round gathers"
    lab.turn(runs.Paused(lab.clock()))
    assert visits.told(lab.run, "v", now).after == 1200.0


def test_in_a_run_with_buffers_there_may_be_work_at_any_time(store):
    lab = Lab.create(store, devices=3, clients=None, buffer=3, min_clients=1).open()
    assert Visits(300.0).told(lab.run, "v", 300.0 * 4_000_000 + 10).stay == 32.0


@pytest.mark.parametrize("text", ["", "soon", "0s", "2d", "5"])
def test_a_period_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=r"--visit-period .* is no time between visits"):
        Config(db="sqlite://", listen="127.0.0.1:0", insecure=True, visit_period=text)
    assert Config(db="sqlite://", listen="127.0.0.1:0", insecure=True, visit_period="90s").visit_seconds == 90
