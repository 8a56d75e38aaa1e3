"""Links that break and disks that fail while work is on its way: nothing is lost, nobody hangs."""

import asyncio
import threading

import numpy as np
import pytest

import koinon
from koinon_coordinator.federation import Federation
from koinon_coordinator.service import serve
from koinon_coordinator.store import Store
from koinon_core.errors import StoreError
from proxy import Fault, Proxy
from toy import NAMES, TAU, toy_client, toy_run

SIZE = 1_000_000  # 4 MB of random float32: far over what travels inline, and not compressible


def big_run(**settings):
    model = {"w": np.zeros(SIZE, np.float32)}
    return koinon.Run(
        "big",
        model=model,
        aggregation="open",
        rounds=2,
        min_clients=1,
        clients=1,
        max_examples=16,
        codec="raw",
        patience=1,
        **settings,
    )


def big_client(session):
    model = {"w": np.zeros(SIZE, np.float32)}
    dice = np.random.default_rng(1)
    for task in session.tasks(model):
        model["w"] += dice.normal(size=SIZE).astype(np.float32)
        task.submit(examples=1)


CUTS = {"upload": Fault(cut_up=1_500_000), "download": Fault(cut_down=1_500_000)}


@pytest.mark.parametrize("cut", CUTS)
def test_a_link_that_is_cut_in_the_middle_goes_on_where_it_stopped(coordinator, cut):
    handle = big_run().create(coordinator.address)
    with Proxy(coordinator.port, CUTS[cut]) as proxy:
        with koinon.join(proxy.address, run="big", name="a") as session:
            big_client(session)
        assert proxy.cuts == 1
    assert handle.wait() == "2 rounds closed"
    expected = koinon.simulate(big_run(), big_client, clients=["a"]).model
    assert handle.model() == expected


def test_what_was_submitted_before_the_session_closed_is_still_sent(coordinator):
    handle = big_run(evaluate=False).create(coordinator.address)
    with Proxy(coordinator.port, Fault(rate=600_000)) as proxy:
        with koinon.join(proxy.address, run="big", name="a") as session:
            model = {"w": np.zeros(SIZE, np.float32)}
            for task in session.tasks(model):
                model["w"] += 1
                task.submit(examples=1)
                break
        for seen in handle.watch():
            if seen.run.rounds_closed:
                break
    assert seen.run.rounds_closed == 1


class FlakyStore(Store):
    """A database that, now and then, commits and then says it failed, or fails before it commits."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.writes = 0

    def write(self, change):
        self.writes += 1
        if self.writes % 17 == 3:
            raise StoreError("the disk said no")
        super().write(change)
        if self.writes % 17 == 11:
            raise StoreError("the answer got lost, but it was written")


def test_commits_that_fail_or_lie_change_nothing_in_the_model(tmp_path, clients):
    ready, ports, stop = threading.Event(), [], []

    async def house():
        done = asyncio.Event()
        stop.append((asyncio.get_running_loop(), done))
        federation = Federation(store)
        await serve(federation, "127.0.0.1:0", done, lambda port: (ports.append(port), ready.set()))

    store = FlakyStore(f"sqlite:///{tmp_path / 'koinon.db'}")
    thread = threading.Thread(target=lambda: asyncio.run(house()))
    thread.start()
    assert ready.wait(10)
    address = f"127.0.0.1:{ports[0]}"
    run = toy_run(koinon.Scaffold(), 6, evaluate=False, deadline=20.0)
    handle = run.create(address)

    def device(name):
        with koinon.join(address, run="toy", name=name) as session:
            toy_client(TAU)(session)

    for name in NAMES:
        clients.start(lambda name=name: device(name), name)
    clients.join(90)
    assert handle.wait() == "6 rounds closed"
    assert handle.model() == koinon.simulate(run, toy_client(TAU), clients=NAMES).model
    assert store.writes > 12
    loop, done = stop[0]
    loop.call_soon_threadsafe(done.set)
    thread.join(20)
    assert not thread.is_alive()
    store.close()
