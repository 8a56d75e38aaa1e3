"""Asynchronous runs, simulated and deployed: closed forms through the whole stack, killed between any two updates."""

import contextlib
import threading
import time

import numpy as np
import pytest

import koinon
from conftest import Coordinator
from hostile import Device, container, until
from koinon.operator import Operator
from koinon.tracking.told import counted_in
from koinon_coordinator.replay import replay
from koinon_coordinator.store import Store
from koinon_coordinator.store.upkeep import check, opened
from koinon_core.canonical import sha256
from koinon_core.errors import KoinonError
from koinon_core.wire.v1 import fleet_pb2 as pb

EXACT = {"aggregation": "open", "codec": "raw", "bound": 16.0, "evaluate": False, "retention": "keep"}

SMALL = {"slow": 2.0**-10, "quick": 2.0**-9}


def run_of(name: str, strategy, rounds: int, **settings) -> koinon.Run:
    model = {"x": np.zeros(1)}
    return koinon.Run(
        name, model=model, strategy=strategy, rounds=rounds, **{**EXACT, "staleness": 20, **settings}
    )


class Hands:
    """Devices by hand: each takes work when it is told to, and answers when it is told to. They survive the
    coordinator by coming back, as any device does."""

    def __init__(self, house: Coordinator, run: str):
        self.house, self.run, self.id = house, run, ""
        self.devices: dict[str, Device] = {}
        self.work: dict[str, pb.Ask] = {}

    def take(self, name: str) -> None:
        """The device asks for work, and gets it."""
        device = self._device(name)
        device.offer(self.id)
        self.work[name] = device.asked()

    def answer(self, name: str, change: float, verdict: int | None = pb.VERDICT_STAGED) -> None:
        ask = self.work[name]
        device = self._device(name)
        device.answer(ask, container("raw", x=np.array([change])))
        if verdict is not None:
            receipt = device.hear("receipt")
            assert (receipt.round, receipt.verdict) == (ask.round, verdict), receipt.reason

    def told(self, name: str, verdict: int = pb.VERDICT_COUNTED) -> pb.Receipt:
        receipt = self._device(name).hear("receipt")
        assert (receipt.round, receipt.verdict) == (self.work[name].round, verdict), receipt.reason
        return receipt

    def gone(self) -> None:
        """Every stream is cut."""
        for device in self.devices.values():
            device.cut()
        self.devices = {}

    def _device(self, name: str) -> Device:
        if name not in self.devices:
            device = Device(self.house.address, name)
            device.__enter__()
            self.id = device.join(self.run)
            self.devices[name] = device
        return self.devices[name]


@pytest.fixture
def hands(tmp_path):
    house = Coordinator(tmp_path)
    made: list[Hands] = []

    def make(run: koinon.Run) -> Hands:
        run.create(house.address)
        made.append(Hands(house, run.spec.name))
        return made[-1]

    yield make
    for one in made:
        one.gone()
    if house.process.poll() is None:
        assert house.stop() == 0


def seen(house: Coordinator, run: str):
    with Operator(house.address) as operator:
        return operator.get(run)


def until_closed(house: Coordinator, run: str, number: int) -> None:
    until(lambda: [r.status for r in seen(house, run).rounds if r.number == number] == ["closed"])


def x_of(house: Coordinator, run: str) -> float:
    with Operator(house.address) as operator:
        return float(operator.model(run, None)[1]["x"][0])


@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "killed at every step"])
def test_fedbuff_ends_where_its_closed_form_says(hands, kill):
    """K = 2, (D, tau) = (1, 0), (2, 3) and then (-1, 8), (0.5, 0): x = -13/12. Updates of nothing make the versions in
    between."""
    one = hands(run_of("buff", koinon.FedBuff(), rounds=13, buffer=2, concurrency=9))
    house, number = one.house, 1

    def disturb() -> None:
        if kill:
            one.gone()
            house.kill()
            house.start()

    def fill(**changes: float) -> None:
        nonlocal number
        for name, change in changes.items():
            if name not in one.work or name in ("p", "q"):
                one.take(name)
            one.answer(name, change)
            if number in (4, 13):
                disturb()
        until_closed(house, "buff", number)
        number += 1

    one.take("slow")  # at version 0
    for _ in range(3):
        fill(p=0.0, q=0.0)
    fill(p=-1.0, slow=-2.0)
    assert x_of(house, "buff") == pytest.approx(-1.0, abs=1e-9)
    one.take("slower")  # at version 4
    for _ in range(8):
        fill(p=0.0, q=0.0)
    fill(slower=1.0, q=-0.5)
    assert x_of(house, "buff") == pytest.approx(-13 / 12, abs=1e-9)
    assert seen(house, "buff").run.status == "finished"
    metrics = {r.number: dict(r.metrics) for r in seen(house, "buff").rounds}
    assert (metrics[4]["staleness"], metrics[4]["updates"]) == (1.5, 2.0)
    assert {counted_in(r) for r in seen(house, "buff").rounds} == {2}, "whichever rounds gave them their work"
    one.gone()
    assert house.stop() == 0
    with contextlib.closing(Store(house.url)) as store:
        row = next(iter(store.runs()))
        assert {r.verdict for r in replay(store, row)} == {"match"}
    with opened(house.url) as place:
        assert check(place).findings == []


def test_fedasync_ends_where_its_closed_form_says(hands):
    """(y, tau) = (1, 0), (2, 3), (-1, 8) with alpha 0.6 and a polynomial of 0.5: x = 0.616. Models equal to the newest
    make the versions in between, and those that devices began with are not all the same."""
    one = hands(run_of("async", koinon.FedAsync(alpha=0.6), rounds=13, buffer=1, concurrency=9))
    house, x, number = one.house, 0.0, 1

    def mix(name: str, change: float) -> None:
        nonlocal number, x
        one.answer(name, change)
        until_closed(house, "async", number)
        number, x = number + 1, x_of(house, "async")

    one.take("p")
    mix("p", 1.0)  # version 1: 0.6
    one.take("slow")  # began with 0.6, at version 1
    for _ in range(3):
        one.take("p")
        mix("p", 0.0)
    assert x == pytest.approx(0.6, abs=1e-9)
    one.take("slower")  # began with 0.6, at version 4
    mix("slow", 2.0 - 0.6)  # its model is 2, three versions later
    assert x == pytest.approx(1.02, abs=1e-9)
    for _ in range(7):
        one.take("p")
        mix("p", 0.0)
    mix("slower", -1.0 - 0.6)  # eight versions later
    assert x == pytest.approx(0.616, abs=1e-9)
    assert seen(house, "async").run.status == "finished"


def test_what_is_too_old_is_cancelled_and_a_device_may_come_back_for_new_work(hands):
    one = hands(run_of("old", koinon.FedBuff(), rounds=9, buffer=1, concurrency=9, staleness=1))
    one.take("slow")
    for number in (1, 2):
        one.take("p")
        one.answer("p", 0.5)
        until_closed(one.house, "old", number)
    cancel = one.devices["slow"].hear("cancel")
    assert cancel.round == 1
    assert "2 versions old" in cancel.reason
    one.answer("slow", 9.0, pb.VERDICT_NOT_COUNTED)
    one.take("slow")
    assert one.work["slow"].round == 3


def test_a_device_that_was_cut_off_hears_what_became_of_its_update(hands):
    one = hands(run_of("cut", koinon.FedBuff(), rounds=9, buffer=2, concurrency=9))
    for name in ("a", "b", "c"):
        one.take(name)
    one.answer("c", 1.0)
    one.gone()  # and so are all others; c is in the buffer
    one.answer("a", 2.0)
    until_closed(one.house, "cut", 1)
    one.answer("c", 1.0, pb.VERDICT_COUNTED)  # it says it again, and hears from the database
    one.answer("b", 0.25)
    one.answer("a", 2.0, pb.VERDICT_COUNTED)
    rows = {
        (r.number, p.client): (p.status, p.reason)
        for r in seen(one.house, "cut").rounds
        for p in r.participants
    }
    assert rows[1, "b"] == ("staged", "in round 2")
    assert rows[1, "a"] == ("counted", "")


def test_real_devices_of_different_speed_are_never_waited_for(tmp_path, coordinator, clients):
    """The SDK's own loop: four devices, one of them a hundred times slower; all that it hands in counts once."""
    run = run_of("speeds", koinon.FedBuff(lr=0.5), rounds=12, buffer=2, concurrency=4, staleness=50)
    handle = run.create(coordinator.address)
    outcomes: dict[str, list[koinon.Task]] = {}

    def client(name: str, pause: float) -> None:
        with koinon.join(coordinator.address, run="speeds", name=name) as session:
            model = {"x": np.zeros(1)}
            for task in session.tasks(model):
                outcomes.setdefault(name, []).append(task)
                time.sleep(pause)
                task.descend({"x": model["x"] - 1.0}, lr=0.5)
                task.submit(examples=3)

    for name, pause in (("a", 0.01), ("b", 0.02), ("c", 0.03), ("slow", 0.4)):
        clients.start(lambda name=name, pause=pause: client(name, pause), name)
    assert handle.wait() == "12 rounds closed"
    clients.join(40)
    rounds = seen(coordinator, "speeds").rounds
    counted = [(r.number, p.client) for r in rounds for p in r.participants if p.status == "counted"]
    assert len(counted) == 24
    assert len(set(counted)) == 24
    for name, tasks in outcomes.items():
        for task in tasks:
            assert (task.outcome == "counted") == ((task.round, name) in counted)
    assert 0.5 < x_of(coordinator, "speeds") <= 1.0


def test_a_simulation_is_asynchronous_too_and_the_same_every_time():
    def client(session):
        model = {"x": np.zeros(1)}
        target = float(session.client[-1])
        for task in session.tasks(model):
            for _ in range(4):
                task.descend({"x": model["x"] - target}, lr=0.1)
            task.submit(examples=1)

    run = run_of("sim", koinon.FedBuff(lr=0.3), rounds=60, buffer=2, concurrency=4)
    faults = koinon.Faults(delay=3.0, drop=0.2)
    first = koinon.simulate(run, client, clients=5, faults=faults, seed=3)
    again = koinon.simulate(run, client, clients=5, faults=faults, seed=3)
    assert first.models == again.models
    assert len(first.models) == 61
    ages = [m["staleness"] for m in first.metrics.values()]
    assert max(ages) > 0, "nobody waited for the slowest"
    assert float(first.model["x"][0]) == pytest.approx(2.0, abs=1.0)
    mixed = koinon.simulate(
        run_of("mix", koinon.FedAsync(alpha=0.2), rounds=60, buffer=1), client, clients=5, faults=faults
    )
    assert float(mixed.model["x"][0]) == pytest.approx(2.0, abs=1.0)


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed in between"])
def test_a_large_update_whose_upload_outlasts_its_round_counts_in_the_next(tmp_path, killed):
    """What came of it before the round was over, and before a kill, is not sent again."""
    model = {"w": np.random.default_rng(5).standard_normal(40_000).astype(np.float32)}
    run = koinon.Run(
        "large", model=model, strategy=koinon.FedBuff(exponent=0.0), rounds=3, buffer=1, concurrency=2,
        **{**EXACT, "retention": "none"}, models="none",
    )  # fmt: skip
    house = Coordinator(tmp_path)
    run.create(house.address)
    slow, quick = Device(house.address, "slow"), Device(house.address, "quick")
    changes = {name: container("raw", w=np.full(40_000, step, np.float32)) for name, step in SMALL.items()}
    with contextlib.ExitStack() as undone:
        for device in (slow, quick):
            undone.enter_context(device)
        asks = {name: device.enter("large") for name, device in (("slow", slow), ("quick", quick))}
        update, ask = changes["slow"], asks["slow"]
        digest, half = sha256(update), len(update) // 2
        gone_on = threading.Event()

        def pieces():
            yield update[:half]
            assert gone_on.wait(20)
            if not killed:
                yield update[half:]

        def upload():
            with contextlib.suppress(KoinonError):  # where it is killed
                slow.upload(ask, pieces(), digest=digest, size=len(update))

        uploading = threading.Thread(target=upload)
        uploading.start()
        quick.upload(asks["quick"], [changes["quick"]], digest=sha256(changes["quick"]), size=len(update))
        quick.answer(asks["quick"], changes["quick"], inline=False)
        quick.hear("receipt")
        assert quick.hear("receipt").verdict == pb.VERDICT_COUNTED
        assert slow.download(ask.model.digest), "the model that it began with is there for it"
        time.sleep(0.3)  # what is there of the update is durable every 0.1 s
        if killed:
            house.kill()
            gone_on.set()
            uploading.join(20)
            house = Coordinator(tmp_path)
            slow = undone.enter_context(Device(house.address, "slow"))
            slow.join("large")
            slow.say(offer=pb.Offer(run=ask.run, engaged=ask.round))
            assert slow.stat(ask, digest) == half
            slow.upload(ask, [update[half:]], digest=digest, size=len(update), offset=half)
        gone_on.set()
        uploading.join(20)
        slow.answer(ask, update, inline=False)
        said = [slow.hear("receipt").verdict for _ in range(2)]
        assert said == [pb.VERDICT_STAGED, pb.VERDICT_COUNTED]
    with Operator(house.address) as operator:
        after = operator.model("large", None)[1]["w"]
    assert np.array_equal(after, model["w"] + np.float32(SMALL["quick"]) + np.float32(SMALL["slow"]))
    assert house.stop() == 0
