"""The network of a real daemon: a proxy, a bandwidth, links that are cut, visits, bytes that are counted."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest

from conftest import Coordinator
from daemons import QUIET, Fleet, incidents
from proxy import Fault, Proxy

pytestmark = pytest.mark.timeout(90)
WIDE = 125_000  # float64: 1 MB


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    """One for all tests here."""
    one = Coordinator(tmp_path_factory.mktemp("house"))
    yield one
    one.stop()


@pytest.fixture
def daemons(tmp_path, coordinator):
    fleet = Fleet(tmp_path, coordinator)
    yield fleet
    fleet.close()


class Connecting:
    """An HTTP proxy that knows CONNECT alone. It counts tunnels."""

    def __init__(self):
        self.tunnels: list[str] = []
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        def run():
            async def serve():
                self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
                self.port = self._server.sockets[0].getsockname()[1]
                ready.set()

            self._loop.run_until_complete(serve())
            self._loop.run_forever()

        threading.Thread(target=run, daemon=True).start()
        assert ready.wait(10)

    async def _serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        verb, target, _ = head.split(b" ", 2)
        assert verb == b"CONNECT"
        self.tunnels.append(target.decode())
        host, _, port = target.decode().rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer), return_exceptions=True)

    async def _pump(self, reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    def close(self):
        self._loop.call_soon_threadsafe(self._loop.stop)


def test_all_goes_through_the_owners_proxy(coordinator, daemons):
    proxy = Connecting()
    daemons(lines=QUIET + f'[network]\nproxy = "http://127.0.0.1:{proxy.port}"\n')
    _, handle = daemons.created()
    handle.wait()
    proxy.close()
    assert len(proxy.tunnels) >= 2, "the bell's connection, and the worker's"
    assert set(proxy.tunnels) == {coordinator.address}


def test_an_update_arrives_over_a_link_that_is_cut_every_200_kilobytes(coordinator, daemons):
    with Proxy(coordinator.port) as proxy:
        daemon = daemons(
            address=proxy.address, step="np.random.default_rng(1).normal(size=125_000)", size=WIDE
        )
        _, handle = daemons.created(size=WIDE, rounds=1, max_examples=16)
        daemon.wait(lambda life: life["state"] in ("TRAINING", "PACKING", "UPLOADING", "DONE"))
        proxy.fault = Fault(delay=0.01, rate=5e6, cut_up=200_000, every=True)
        handle.wait()
        assert proxy.cuts >= 3
    assert handle.model()["x"] == pytest.approx(np.random.default_rng(1).normal(size=WIDE))
    assert incidents(handle) == []


def test_a_bandwidth_is_kept_and_bytes_are_counted_by_the_day(daemons):
    lines = QUIET + 'bytes_day = "1GB"\n[network]\nbandwidth = "500KB"\n'
    daemon = daemons(step="np.random.default_rng(1).normal(size=125_000)", size=WIDE, lines=lines)
    _, handle = daemons.created(size=WIDE, rounds=1, max_examples=16)
    daemon.wait(lambda life: life["state"] == "PACKING")
    began = time.monotonic()
    handle.wait()
    assert time.monotonic() - began > 1.5, "a megabyte at 500 KB a second"
    daemon.wait(lambda life: life["state"] == "DONE")
    assert daemon.stop() == 0
    spent = json.loads((daemon.state / "edge" / "budget.json").read_text())
    assert 900_000 < max(v for v in spent.values() if isinstance(v, int)) < 4_000_000


def test_a_day_without_bytes_left_keeps_it_from_work(daemons):
    daemon = daemons(lines=QUIET + "bytes_day = 0\n")
    life = daemon.wait(lambda life: life["state"] == "IDLE" and life["reason"])
    assert "day" in life["reason"]


def test_one_that_visits_is_told_when_to_come_back_and_does(daemons):
    daemon = daemons(lines=QUIET + '[network]\nattach = "never"\n')
    _, handle = daemons.created(rounds=1)
    handle.wait()
    assert handle.model()["x"] == pytest.approx([1.0] * 5)
    assert daemon.stop() == 0
