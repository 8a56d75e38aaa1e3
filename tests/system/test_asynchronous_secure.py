"""Asynchronous runs of which only sums are seen, deployed: real devices, real sessions, a coordinator that is killed
while some of them wait to be summed."""

import contextlib
import threading

import numpy as np
import pytest

import koinon
from conftest import Coordinator
from hostile import until
from koinon.operator import Operator
from koinon_coordinator.replay import replay
from koinon_coordinator.store import Store
from koinon_coordinator.store.upkeep import check, opened

pytestmark = pytest.mark.timeout(120)


class Gates:
    """Devices that do their work when they are told to: each change is what the device makes of x in that round."""

    def __init__(self, house: Coordinator, clients, folder, run: str):
        self.house, self.clients, self.folder, self.run = house, clients, folder, run
        self._told: dict[str, list[float | None]] = {}
        self._changed = threading.Condition()
        self.work: dict[str, int] = {}
        self.tasks: dict[str, list[koinon.Task]] = {}

    def begin(self, *names: str) -> None:
        for name in names:
            self._told[name] = []
            self.clients.start(lambda name=name: self._loop(name), name)

    def do(self, change: float | None, *names: str) -> None:
        with self._changed:
            for name in names:
                self._told[name].append(change)
            self._changed.notify_all()

    def at_work(self, round_: int, *names: str) -> None:
        until(lambda: all(self.work.get(name) == round_ for name in names))

    def _loop(self, name: str) -> None:
        with koinon.join(self.house.address, run=self.run, name=name, state=self.folder / "state") as session:
            model = {"x": np.zeros(1)}
            for task in session.tasks(model):
                self.tasks.setdefault(name, []).append(task)
                self.work[name] = task.round
                with self._changed:
                    while not self._told[name] and not task.cancelled:
                        self._changed.wait(0.1)
                    if task.cancelled:
                        continue
                    change = self._told[name].pop(0)
                if change is not None:  # else it declines
                    model["x"] += change
                    task.submit(examples=3)


def seen(house: Coordinator, run: str):
    with Operator(house.address) as operator:
        return operator.get(run)


def closed(house: Coordinator, run: str, number: int) -> None:
    until(lambda: [r.status for r in seen(house, run).rounds if r.number == number] == ["closed"], 30)


def x_of(house: Coordinator, run: str) -> float:
    with Operator(house.address) as operator:
        return float(operator.model(run, None)[1]["x"][0])


def run_of(name: str, strategy, rounds: int, **settings) -> koinon.Run:
    values = {
        "buffer": 3, "concurrency": 9, "codec": "exact", "evaluate": False, "staleness": 9, "phase": 20.0,
        "lease": 20.0, **settings,
    }  # fmt: skip
    return koinon.Run(
        name, model={"x": np.zeros(1)}, strategy=strategy, rounds=rounds, aggregation="secure", **values
    )


@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "killed"])
def test_the_slow_are_summed_late_and_their_sum_counts_by_its_age(tmp_path, clients, kill):
    """(D, tau) = (1, 0), (0.5, 0), (-1, 0), (2, 3): x = 0.5 + 2 / 2."""
    house = Coordinator(tmp_path)
    run_of("late", koinon.FedBuff(), 4).create(house.address)
    gates = Gates(house, clients, tmp_path, "late")
    quick, slow = ("q1", "q2", "q3"), ("s1", "s2", "s3")
    gates.begin(*quick, *slow)
    gates.at_work(1, *quick, *slow)
    for number, change in enumerate((1.0, 0.5, -1.0), start=1):
        gates.at_work(number, *quick)
        gates.do(change, *quick)
        closed(house, "late", number)
        if number == 1:
            gates.do(2.0, "s1")  # it waits from here on
            until(lambda: "1 device has one" in seen(house, "late").run.waiting_for)
        if kill:
            house.kill()
            house.start()
    assert x_of(house, "late") == pytest.approx(0.5, abs=1e-5)
    gates.do(2.0, "s2", "s3")
    closed(house, "late", 4)
    assert x_of(house, "late") == pytest.approx(1.5, abs=1e-5)
    clients.join(40)
    assert seen(house, "late").run.status == "finished"
    rounds = seen(house, "late").rounds
    assert [dict(r.metrics)["staleness"] for r in rounds] == [0.0, 0.0, 0.0, 3.0]
    counted = {(r.number, p.client) for r in rounds for p in r.participants if p.status == "counted"}
    assert counted == {(n, q) for n in (1, 2, 3) for q in quick} | {(1, s) for s in slow}
    for name in (*quick, *slow):
        told = [(t.round, t.outcome) for t in gates.tasks[name] if t.outcome == "counted"]
        assert {(number, name) for number, _ in told} == {key for key in counted if key[1] == name}
    assert house.stop() == 0
    with contextlib.closing(Store(house.url)) as store:
        row = next(iter(store.runs()))
        assert {r.verdict for r in replay(store, row)} == {"by design"}
        assert not store.vault.rounds(), "no key of a session is left"
    with opened(house.url) as place:
        assert check(place).findings == []


def test_models_are_mixed_as_far_as_their_age_lets_them(tmp_path, clients):
    """FedAsync over cohorts: y = 1 of three, then y = 2 of three that began with 0, a version later."""
    house = Coordinator(tmp_path)
    run_of("mix", koinon.FedAsync(alpha=0.6), 2).create(house.address)
    gates = Gates(house, clients, tmp_path, "mix")
    gates.begin("a", "b", "c", "d", "e", "f")
    gates.at_work(1, *"abcdef")
    gates.do(1.0, *"abc")
    closed(house, "mix", 1)
    assert x_of(house, "mix") == pytest.approx(0.6, abs=1e-5)
    gates.do(2.0, *"def")
    closed(house, "mix", 2)
    share = 0.6 / 2**0.5
    assert x_of(house, "mix") == pytest.approx(0.6 + share * (2.0 - 0.6), abs=1e-5)
    clients.join(40)
    assert house.stop() == 0


def test_who_is_left_of_an_older_model_with_too_few_others_is_told_and_works_on(tmp_path, clients):
    house = Coordinator(tmp_path)
    run_of("few", koinon.FedBuff(), 3).create(house.address)
    gates = Gates(house, clients, tmp_path, "few")
    gates.begin(*"abcdef")
    gates.at_work(1, *"abcdef")
    gates.do(1.0, *"abc")
    closed(house, "few", 1)
    gates.do(7.0, "d")
    until(lambda: "1 device has one" in seen(house, "few").run.waiting_for)
    gates.do(None, "e")
    gates.at_work(2, *"abcdef")
    outcome = next(t.outcome for t in gates.tasks["d"] if t.round == 1)
    assert "too few for a sum" in outcome
    rows = {
        p.client: (p.status, p.reason)
        for r in seen(house, "few").rounds
        if r.number == 1
        for p in r.participants
    }
    assert {rows[name][0] for name in "def"} == {"left"}
    assert "too few for a sum" in rows["d"][1]
    gates.do(1.0, *"abcdef")
    closed(house, "few", 3)
    assert x_of(house, "few") == pytest.approx(2.0 + 2**-0.5, abs=1e-5)
    clients.join(40)
    assert house.stop() == 0


def test_a_simulation_of_it_is_the_same_every_time_and_ends_where_all_devices_pull():
    def client(session):
        model, target = {"x": np.zeros(1)}, float(session.client[-1])
        for task in session.tasks(model):
            for _ in range(4):
                task.descend({"x": model["x"] - target}, lr=0.1)
            task.submit(examples=1)

    run = run_of("sim", koinon.FedBuff(lr=0.5), 60, patience=100)
    faults = koinon.Faults(delay=3.0, drop=0.1)
    first, again = (koinon.simulate(run, client, clients=9, faults=faults, seed=3) for _ in range(2))
    assert first.models == again.models
    ages = [m["staleness"] for m in first.metrics.values()]
    assert max(ages) > 0, "nobody waited for the slowest"
    assert {m["updates"] for m in first.metrics.values()} <= {3.0, 4.0, 5.0}
    assert float(first.model["x"][0]) == pytest.approx(4.0, abs=2.0)


def test_a_database_is_sound_while_devices_of_older_rounds_are_in_a_session(tmp_path, clients):
    """Their masked updates belong to a round that is over, and are needed."""
    house = Coordinator(tmp_path)
    run_of("sound", koinon.FedBuff(), 2).create(house.address)
    gates = Gates(house, clients, tmp_path, "sound")
    gates.begin(*"abcdef")
    gates.at_work(1, *"abcdef")
    gates.do(1.0, *"abc")
    closed(house, "sound", 1)
    gates.do(2.0, *"de")
    until(lambda: "2 devices have one" in seen(house, "sound").run.waiting_for)
    with opened(house.url) as place:
        assert check(place).findings == []
    gates.do(2.0, "f")
    clients.join(40)
    assert house.stop() == 0
