"""Networks that fail between real processes: the model is that of a network that did not, and nothing counts twice.

Every run here is one of four devices whose quorum is all of them, so that one update that is lost or counted twice
would be seen in the model's bytes; SCAFFOLD, so that a device that commits what was not counted (or the other way
round) would be seen there too.
"""

import contextlib
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import koinon
import koinon.link
from conftest import Clients, Coordinator
from hostile import until
from koinon.operator import Operator
from koinon_core import failpoints
from proxy import Fault, Proxy
from toy import ETA, START, TAU, N, gradient

pytestmark = pytest.mark.timeout(60)
NUMBERS = itertools.count(1)
KEEPALIVE = {
    "grpc.keepalive_time_ms": 1000, "grpc.keepalive_timeout_ms": 1000,
    "grpc.http2.ping_timeout_ms": 1000, "grpc.http2.min_ping_interval_without_data_ms": 100,
}  # fmt: skip
NOTICED = 4.0
"""Seconds in which these keepalive times find a peer that is gone, with room for a busy machine."""


class Quick(Coordinator):
    """A coordinator process that is quick to notice a dead link: the constant is another, no setting is."""

    SCRIPT = (
        "from koinon_coordinator import cli; from koinon_coordinator.service import listening; listening._OPTIONS ="
        f" list((dict(listening._OPTIONS) | {KEEPALIVE}).items()); cli.main()"
    )

    def start(self) -> None:
        command = [
            sys.executable, "-c", self.SCRIPT, "serve", "--insecure", "--db", f"sqlite:///{self.db}",
            "--listen", f"127.0.0.1:{self.port}",
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "listens on" in line, self.log.read_text()
        self.port = int(line.rsplit(":", 1)[1])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """One coordinator for all tests that do not kill it."""
    one = Quick(tmp_path_factory.mktemp("network"))
    yield one
    one.stop()
    assert "Traceback" not in one.log.read_text()


@pytest.fixture
def proxy(house: Coordinator) -> Iterator[Proxy]:
    with Proxy(house.port) as one:
        yield one


@pytest.fixture(autouse=True)
def _quick_links(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    options = dict(koinon.link.CHANNEL_OPTIONS) | KEEPALIVE
    monkeypatch.setattr(koinon.link, "CHANNEL_OPTIONS", list(options.items()))
    yield
    failpoints.disarm()


# -- a run and its devices ------------------------------------------------------------------------------------


class Fleet:
    """A run and its four devices on threads. `held` is called by a device before it trains."""

    def __init__(self, house: Coordinator, clients: Clients, rounds: int, *, size: int = 1, **settings: Any):
        number = next(NUMBERS)
        name = f"run-{number}"
        self.house, self.clients, self.size = house, clients, size
        self.names = [f"{name}-{i}" for i in range(4)]
        given = {"min_clients": 4, "clients": 4, "codec": "raw", "max_examples": 128, "population": 4}
        given["aggregation"] = "open"
        self.run = koinon.Run(
            # No two runs begin alike: an update that is at the coordinator already would not be sent again.
            name, model={"x": np.full(size, START + number)}, strategy=koinon.Scaffold(), rounds=rounds, evaluate=False,
            **{**given, **settings},
        )  # fmt: skip
        self.handle = self.run.create(house.address)
        self.tasks: dict[str, list[koinon.Task]] = {name: [] for name in self.names}
        self.held: Callable[[str, int], object] = lambda client, round_: None

    def client(self, session: Any) -> None:
        """Toy Q, in each of the model's values."""
        i = int(session.client[-1])
        model = {"x": np.zeros(self.size)}
        for task in session.tasks(model):
            self.tasks[session.client].append(task)
            self.held(session.client, task.round)
            for _ in range(TAU[i]):
                task.descend({"x": gradient(i, model["x"])}, lr=ETA)
            task.submit(examples=N[i])

    def start(self, addresses: dict[int, str] | None = None) -> None:
        """Start the devices; those that `addresses` has nothing for go straight to the coordinator."""
        for i, name in enumerate(self.names):
            address = (addresses or {}).get(i, self.house.address)
            self.clients.start(lambda name=name, address=address: self._attend(name, address), name)

    def _attend(self, name: str, address: str) -> None:
        with koinon.join(address, run=self.run.spec.name, name=name) as session:
            self.client(session)

    def seen(self) -> Any:
        with Operator(self.house.address) as operator:
            return operator.get(self.handle.id)

    def status(self, round_: int, i: int) -> str:
        """What the coordinator says of device `i` in a round; empty where it says nothing."""
        said = [p.status for r in self.seen().rounds if r.number == round_ for p in r.participants
                if p.client == self.names[i]]  # fmt: skip
        return said[0] if said else ""

    def is_as_if_nothing_had_happened(self) -> None:
        """The run is over, and all that can be known of it is what a good network would have made."""
        self.clients.join(40)
        assert self.handle.wait() == f"{self.run.spec.rounds} rounds closed"
        seen = self.seen()
        assert [r.status for r in seen.rounds] == ["closed"] * self.run.spec.rounds
        for r in seen.rounds:
            assert [(p.client, p.status) for p in r.participants] == [(n, "counted") for n in self.names]
        assert [i.message for i in seen.incidents] == []
        for tasks in self.tasks.values():
            assert [(t.round, t.outcome) for t in tasks] == [
                (n, "counted") for n in range(1, self.run.spec.rounds + 1)
            ]
        self.tasks = {name: [] for name in self.names}
        self.held = lambda client, round_: None
        whole = koinon.simulate(self.run, self.client, clients=self.names).model
        assert self.handle.model()["x"].tobytes() == whole["x"].tobytes()


def at(name: str, client: str, about: str, then: Callable[[], object], *, after: int = 0) -> threading.Event:
    """Do `then` in the link of a device when it is at the failpoint about `about` for the (after + 1)th time. The event
    is set once that is done."""
    done, passed = threading.Event(), itertools.count()

    def action(said: str) -> None:
        mine = threading.current_thread().name == f"koinon-link-{client}"
        if mine and said == about and next(passed) == after:
            then()
            done.set()

    failpoints.arm(name, action)
    return done


def setting(proxy: Proxy, fault: Fault) -> Callable[[], None]:
    return lambda: setattr(proxy, "fault", fault)


# -- answers that get lost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen_as", ["staged", "counted"])
def test_a_receipt_that_is_lost_is_said_again_and_commits_once(house, proxy, clients, seen_as):
    fleet = Fleet(house, clients, rounds=5)
    back = threading.Event()
    if seen_as == "staged":  # somebody else is not ready yet, so that the round stays open
        fleet.held = lambda client, round_: client == fleet.names[3] and round_ == 3 and back.wait(20)
    lost = at("link.said", fleet.names[2], "answer", setting(proxy, Fault(drop="down")), after=2)
    fleet.start({2: proxy.address})
    assert lost.wait(20)
    until(lambda: fleet.status(3, 2) == seen_as)
    assert not fleet.tasks[fleet.names[2]][2].outcome, "the device cannot know"
    proxy.heal()
    proxy.cut()
    until(lambda: proxy.connections > 1)
    back.set()
    fleet.is_as_if_nothing_had_happened()
    assert proxy.lost["down"]


def test_receipts_that_are_lost_again_and_again(house, proxy, clients):
    fleet = Fleet(house, clients, rounds=4)
    passed = itertools.count()

    def action(said: str) -> None:
        mine = threading.current_thread().name == f"koinon-link-{fleet.names[1]}"
        if mine and said == "answer" and next(passed) < 4:
            # It is said, and 50 ms later, whatever came of it, its sender is cut off.
            proxy.fault = Fault(drop="down")
            threading.Timer(0.05, lambda: (proxy.heal(), proxy.cut())).start()

    failpoints.arm("link.said", action)
    fleet.start({1: proxy.address})
    fleet.is_as_if_nothing_had_happened()
    assert proxy.connections >= 4


# -- half-open ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["up", "down", "both"])
def test_a_half_open_link_is_noticed_and_replaced(house, proxy, clients, way):
    fleet = Fleet(house, clients, rounds=4)
    gone = at("link.said", fleet.names[0], "answer", setting(proxy, Fault(drop=way)), after=1)
    fleet.start({0: proxy.address})
    assert gone.wait(20)
    began = time.monotonic()
    until(lambda: sum(proxy.lost.values()))
    proxy.heal()  # the old connection is dead for ever; another one works
    until(lambda: proxy.connections > 1, NOTICED + 1)
    until(lambda: fleet.status(2, 0) == "counted", NOTICED)
    assert time.monotonic() - began < NOTICED + 1
    fleet.is_as_if_nothing_had_happened()


def test_the_coordinator_notices_a_device_that_vanished(house, proxy, clients):
    fleet = Fleet(house, clients, rounds=2)
    session = koinon.join(proxy.address, run=fleet.run.spec.name, name=fleet.names[0])
    tasks = session.tasks({"x": np.zeros(1)})

    def wait() -> None:
        with contextlib.suppress(koinon.Unavailable):  # as the session closes
            next(tasks)

    threading.Thread(target=wait, daemon=True).start()
    until(lambda: fleet.names[0] in fleet.seen().attached)
    proxy.fault = Fault(drop="both")
    until(lambda: fleet.names[0] not in fleet.seen().attached, NOTICED)
    session.close()


# -- uploads --------------------------------------------------------------------------------------------------

BIG = 60_000
"""Values of a model whose update (delta and control variate, float64) is about a megabyte."""


def parts(house: Coordinator) -> list[Path]:
    """Uploads of which the coordinator has a part."""
    return list(house.folder.rglob("*.part"))


def test_an_upload_that_is_reset_again_and_again_goes_on_where_it_stopped(house, proxy, clients):
    fleet = Fleet(house, clients, rounds=1, size=BIG)
    proxy.fault = Fault(cut_up=250_000, every=True)
    fleet.start({3: proxy.address})
    fleet.is_as_if_nothing_had_happened()
    assert proxy.cuts >= 3, "no connection could carry an update"


def test_an_upload_whose_answer_is_lost_is_there_all_the_same(house, proxy, clients):
    fleet = Fleet(house, clients, rounds=1, size=BIG)
    last = []

    def action(at_byte: str) -> None:
        if threading.current_thread().name == f"koinon-link-{fleet.names[3]}":
            last.append(int(at_byte))
            if len(last) == 4:  # 64, 128, 256, 512 KiB: this is the last piece
                proxy.fault = Fault(drop="down")

    failpoints.arm("link.upload", action)
    fleet.start({3: proxy.address})
    until(lambda: len(last) == 4 and not parts(house))
    proxy.heal()
    proxy.cut()
    fleet.is_as_if_nothing_had_happened()


def test_what_was_damaged_on_its_way_is_sent_again(house, proxy, clients):
    fleet = Fleet(house, clients, rounds=1, size=BIG)
    proxy.fault = Fault(cut_up=500_000)
    damaged = threading.Event()
    fleet.held = lambda client, round_: client == fleet.names[3] or damaged.wait(20)
    away = at("link.attend", fleet.names[3], "", setting(proxy, Fault(refuse=True)), after=1)
    fleet.start({3: proxy.address})
    assert away.wait(20)
    (part,) = until(lambda: parts(house))
    with part.open("r+b") as file:
        file.write(b"not what it was")
    damaged.set()
    proxy.heal()
    fleet.is_as_if_nothing_had_happened()


def test_a_coordinator_killed_during_an_upload_takes_it_up_where_it_was(tmp_path, clients):
    house = Quick(tmp_path)
    with Proxy(house.port, Fault(rate=2_000_000)) as proxy:
        fleet = Fleet(house, clients, rounds=1, size=BIG)
        under_way = at("link.upload", fleet.names[1], str(64 * 1024 * 7), lambda: None)
        fleet.start({1: proxy.address})
        assert under_way.wait(20)
        until(lambda: sum(part.stat().st_size for part in parts(house)) > 100_000)
        house.kill()
        began = time.monotonic()
        house.start()
        until(lambda: fleet.status(1, 1) == "counted")
        assert time.monotonic() - began < 10
        fleet.is_as_if_nothing_had_happened()
        assert proxy.carried["up"] < 1.7 * 16 * BIG, "the first upload began again from nothing"
    assert house.stop() == 0


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_coordinator_that_goes_in_the_middle_of_a_round_and_comes_back(tmp_path, clients, how):
    house = Quick(tmp_path)
    fleet = Fleet(house, clients, rounds=4)
    back = threading.Event()
    fleet.held = lambda client, round_: round_ == 3 and client in fleet.names[2:] and back.wait(20)
    fleet.start()
    until(lambda: [fleet.status(3, 0), fleet.status(3, 1)] == ["staged"] * 2)
    getattr(house, how)()
    began = time.monotonic()
    house.start()
    back.set()
    until(lambda: fleet.status(3, 3) == "counted")
    assert time.monotonic() - began < 10
    fleet.is_as_if_nothing_had_happened()
    assert house.stop() == 0


# -- slow, and away -------------------------------------------------------------------------------------------


def test_a_round_trip_of_600_ms(house, proxy, clients):
    proxy.fault = Fault(delay=0.28, jitter=0.04)
    fleet = Fleet(house, clients, rounds=2)
    fleet.start(dict.fromkeys(range(4), proxy.address))
    fleet.is_as_if_nothing_had_happened()
    later = fleet.seen().rounds[1:]
    assert all(r.closed_at - r.opened_at < 2.0 for r in later), (
        "a round is one trip there and back, and its work"
    )


def test_a_device_that_is_away_for_longer_than_its_lease_is_named_and_comes_back(house, proxy, clients):
    fleet = Fleet(house, clients, rounds=6, min_clients=3, lease=1.5, join_wait=0.3)
    missed, back = threading.Event(), threading.Event()

    def held(client: str, round_: int) -> None:
        if client == fleet.names[2] and round_ == 2:
            proxy.fault = Fault(refuse=True)
            proxy.cut()
            missed.wait(20)  # it works on, and hands in what nobody waits for any more
        elif round_ == 5:
            back.wait(20)  # the run waits for it to be back

    fleet.held = held
    fleet.start({2: proxy.address})
    until(lambda: [r.status for r in fleet.seen().rounds if r.number == 2] == ["closed"])
    assert fleet.status(2, 2) not in ("counted", "staged")
    missed.set()
    until(lambda: len(fleet.seen().rounds) == 5)
    assert not fleet.tasks[fleet.names[2]][1].outcome, "nobody could tell it yet"
    proxy.heal()
    outcome = until(lambda: fleet.tasks[fleet.names[2]][1].outcome)
    assert "nothing was heard of it for 1.5 s" in outcome
    back.set()
    fleet.clients.join(30)
    assert fleet.handle.wait() == "6 rounds closed"
    assert [r.status for r in fleet.seen().rounds] == ["closed"] * 6
    counted = [sum(p.status == "counted" for p in r.participants) for r in fleet.seen().rounds]
    assert counted[:2] == [4, 3]
    assert counted[-1] == 4


def test_an_outage_in_every_round_costs_time_and_nothing_else(house, proxy, clients):
    fleet = Fleet(house, clients, rounds=3)
    proxies = [proxy, Proxy(house.port)]

    def held(client: str, round_: int) -> None:
        one = {fleet.names[0]: proxies[0], fleet.names[1]: proxies[1]}.get(client)
        if one is not None:
            one.fault = Fault(refuse=True)
            one.cut()
            threading.Timer(0.2, one.heal).start()

    fleet.held = held
    fleet.start({0: proxies[0].address, 1: proxies[1].address})
    fleet.is_as_if_nothing_had_happened()
    proxies[1].close()
