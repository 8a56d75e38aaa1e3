"""Large blobs over links that are cut, under coordinators and devices that are killed, and many at a time."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import numpy as np
import pytest

import koinon
from conftest import Coordinator
from hostile import Device, container, until
from koinon.link import GrpcLink, error_of
from koinon_coordinator.config import Limits
from koinon_coordinator.federation import Federation
from koinon_coordinator.service import blobs, serve
from koinon_coordinator.store import Store
from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob, KoinonError, RemoteProtocolError, Unavailable
from koinon_core.wire.methods import BLOBS
from koinon_core.wire.v1 import blobs_pb2
from koinon_core.wire.v1 import fleet_pb2 as pb
from proxy import Fault, Proxy

MIB = 1 << 20
DRAW = np.random.default_rng(3)


def a_run(parameters: int, **settings: object) -> koinon.Run:
    """One round, of raw float32 updates that nothing compresses."""
    given = {"rounds": 1, "min_clients": 1, "clients": 1, "max_examples": 16, "evaluate": False}
    values = {**given, "aggregation": "open", **settings}
    model = {"w": DRAW.normal(size=parameters).astype(np.float32)}
    return koinon.Run("big", model=model, codec="raw", **values)


def work(session: koinon.Session, parameters: int) -> None:
    model = {"w": np.zeros(parameters, np.float32)}
    for task in session.tasks(model):
        model["w"] += np.random.default_rng(4).normal(size=parameters).astype(np.float32)
        task.submit(examples=1)


@contextmanager
def serving(folder, **limits: int) -> Iterator[str]:
    """A coordinator in this process, so that a test can reach into it; gives its address."""
    ready, ports, stops = threading.Event(), [], []

    async def house() -> None:
        stops.append((asyncio.get_running_loop(), asyncio.Event()))
        await serve(
            Federation(store),
            "127.0.0.1:0",
            stops[0][1],
            lambda port: (ports.append(port), ready.set()),
            Limits(**limits),
        )

    store = Store(f"sqlite:///{folder / 'koinon.db'}")
    thread = threading.Thread(target=lambda: asyncio.run(house()))
    thread.start()
    assert ready.wait(10)
    try:
        yield f"127.0.0.1:{ports[0]}"
    finally:
        stops[0][0].call_soon_threadsafe(stops[0][1].set)
        thread.join(20)
        assert not thread.is_alive()
        store.close()


# -- cuts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [Fault(cut_up=200_000, every=True), Fault(cut_down=200_000, every=True)])
def test_a_link_that_is_cut_every_200_kb_brings_everything_in_the_end(coordinator, cut):
    handle = a_run(1_000_000).create(coordinator.address)
    with Proxy(coordinator.port, cut) as proxy:
        with koinon.join(proxy.address, run="big", name="a", timeout=30) as session:
            work(session, 1_000_000)
        assert proxy.cuts > 15
        way = "up" if cut.cut_up else "down"
        assert proxy.carried[way] < 4 * 4_000_000, "most of what was carried arrived"
    assert handle.wait() == "1 rounds closed"


# -- kills ----------------------------------------------------------------------------------------------------

DEVICE = """
import sys
from pathlib import Path
import numpy as np
import koinon
address, folder, parameters = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
with koinon.join(address, run="big", name="a", state=folder, timeout=30) as session:
    fetch = session._link.fetch
    session._link.fetch = lambda content, into=None: fetch(content, into or folder / content.digest)
    model = {"w": np.zeros(parameters, np.float32)}
    for task in session.tasks(model):
        model["w"] += np.random.default_rng(4).normal(size=parameters).astype(np.float32)
        task.submit(examples=1)
    assert session.status == "finished", session.status
"""
PARAMETERS = 2_500_000


@contextmanager
def a_device(address, folder) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, "-c", DEVICE, address, folder, str(PARAMETERS)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("whom", ["coordinator", "device"])
def test_what_is_killed_in_a_transfer_sends_at_most_two_mib_twice(coordinator, tmp_path, whom, way, share):
    handle = a_run(PARAMETERS).create(coordinator.address)
    # Raw float32 up; down, the model as the coordinator keeps it.
    size = 4 * PARAMETERS if way == "up" else sum(f.stat().st_size for f in coordinator.blobs.glob("??/*"))
    with Proxy(coordinator.port, Fault(rate=40_000_000)) as proxy:
        with a_device(proxy.address, tmp_path / "state") as device:
            until(lambda: proxy.carried[way] >= share * size, 60)
            assert proxy.carried[way] < size, "it is still under way"
            if whom == "device":
                device.kill()
            else:
                coordinator.kill()
                coordinator.start()
                assert device.wait(60) == 0
        if whom == "device":
            with a_device(proxy.address, tmp_path / "state") as device:
                assert device.wait(60) == 0
        assert handle.wait() == "1 rounds closed"
        twice = proxy.carried[way] - size
    assert twice <= 2 * MIB + 100_000, (
        f"{twice / MIB:.2f} MiB were sent twice"
    )  # frames, and what is not blobs


# -- downloads into a file ------------------------------------------------------------------------------------


@pytest.fixture
def attended(coordinator, tmp_path) -> Iterator[tuple[GrpcLink, pb.Content]]:
    """A link, and the content that it may download."""
    a_run(500_000, rounds=2).create(coordinator.address)
    with koinon.join(coordinator.address, run="big", name="a", state=tmp_path / "state") as session:
        asked: list[pb.Content] = []
        heard = session.heard

        def listen(message: pb.CoordinatorMessage) -> None:
            if message.HasField("ask"):
                asked.append(message.ask.model)
            heard(message)

        session._link._receiver = session
        session.heard = listen
        session._talk.offered()
        until(lambda: asked)
        yield session._link, asked[0]


def test_a_download_goes_on_with_what_an_earlier_process_left(attended, tmp_path):
    link, content = attended
    into = tmp_path / "models" / "one"
    whole = link.fetch(content).bytes()
    part = into.with_name("one.part")
    part.parent.mkdir()
    part.write_bytes(whole[:1_500_000])
    told = []
    link._transfers._progress = lambda *what: told.append(what)
    blob = link.fetch(content, into)
    assert told[0][1] > 1_500_000, "what is here does not come again"
    assert told[-1] == ("download", content.size, content.size)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert (blob.digest, blob.size) == (content.digest, content.size)
    assert into.read_bytes() == blob.bytes() == whole
    assert blob.window(1_000_001, 7) == whole[1_000_001:1_000_008]
    assert not part.exists()
    told.clear()
    assert link.fetch(content, into).bytes() == whole
    assert told == [], "and a file that is whole is not fetched again"


@pytest.mark.parametrize("left", [b"other bytes" * 1000, bytes(5_000_000)], ids=["other", "too-long"])
def test_what_lies_in_a_downloads_way_is_replaced(attended, tmp_path, left):
    link, content = attended
    (tmp_path / "one.part").write_bytes(left)
    (tmp_path / "one").write_bytes(b"an old model")
    assert sha256(link.fetch(content, tmp_path / "one").bytes()) == content.digest
    assert (tmp_path / "one").stat().st_size == content.size


def test_bytes_that_are_not_what_was_meant_are_not_kept(attended, tmp_path):
    link, content = attended
    other = pb.Content(digest=content.digest, size=9, inline=b"not those")
    with pytest.raises(BadBlob, match="not what its digest says"):
        link.fetch(other, tmp_path / "one")
    assert list(tmp_path.glob("one*")) == []


# -- many at a time -------------------------------------------------------------------------------------------


def announce(device: Device, ask: pb.Ask, update: bytes, pieces, offset: int = 0) -> threading.Thread:
    """An upload on a thread of its own; how it ends is the last word in `device.said`."""
    device.said = getattr(device, "said", [])

    about = {"digest": sha256(update), "size": len(update), "offset": offset}

    def run() -> None:
        try:
            device.said.append(device.upload(ask, pieces, **about).complete)
        except KoinonError as error:
            device.said.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@contextmanager
def two_devices(address: str, size: int = 100_000) -> Iterator[tuple[tuple[Device, pb.Ask], ...]]:
    """Two that are asked in one round."""
    run = koinon.Run(
        "r",
        model={"x": DRAW.normal(size=size)},
        rounds=1,
        min_clients=2,
        clients=2,
        codec="lossless",
        aggregation="open",
    )
    run.create(address)
    with Device(address, "first") as first, Device(address, "second") as second:
        for device in (first, second):
            device.offer(device.join("r"))
        yield (first, first.asked()), (second, second.asked())


def test_while_its_turn_has_not_come_a_device_sends_nothing(tmp_path, clients):
    update = container(x=DRAW.normal(size=100_000))
    release = threading.Event()

    def slowly():
        yield update[:1000]
        release.wait(20)
        yield update[1000:]

    with serving(tmp_path, uploads=1) as address:
        run = koinon.Run(
            "r",
            model={"x": DRAW.normal(size=100_000)},
            rounds=1,
            min_clients=2,
            clients=2,
            codec="lossless",
            aggregation="open",
        )
        handle = run.create(address)
        with Proxy(int(address.rpartition(":")[2])) as proxy, Device(address, "first") as first:
            first.offer(first.join("r"))

            def second() -> None:
                with koinon.join(proxy.address, run="r", name="second") as session:
                    model = {"x": np.zeros(100_000)}
                    for task in session.tasks(model):
                        until(lambda: first.said == [] and turn.is_set())
                        model["x"] += DRAW.normal(size=100_000)
                        task.submit(examples=1)

            first.said, turn = [], threading.Event()
            clients.start(second)
            ask = first.asked()
            uploading = announce(first, ask, update, slowly())
            until(lambda: first.said or list((tmp_path / "koinon.db.blobs").rglob("*.part")))
            turn.set()
            time.sleep(1.0)
            assert proxy.carried["up"] < 40_000, "it waits, and holds no memory at the coordinator"
            release.set()
            uploading.join(10)
            assert first.said == [True]
            first.answer(ask, update, inline=False)
            clients.join(20)
            assert proxy.carried["up"] > 400_000
        assert handle.wait() == "1 rounds closed"


def test_an_upload_that_stands_still_does_not_keep_others_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(blobs, "_TURN", 0.5)
    update = container(x=DRAW.normal(size=100_000))
    release = threading.Event()

    def stands_still():
        yield update[:1000]
        release.wait(20)

    with (
        serving(tmp_path, uploads=1) as address,
        two_devices(address) as ((first, ask), (second, other)),
    ):
        stalled = announce(first, ask, update, stands_still())
        until(lambda: list((tmp_path / "koinon.db.blobs").rglob("*.part")))
        time.sleep(1.0)
        assert first.said == [], "while nobody waits it may take its time"
        announce(second, other, update, [update]).join(10)
        assert second.said == [True]
        release.set()
        stalled.join(10)
        assert isinstance(first.said[0], Unavailable)
        assert "1 others wait to upload, and this one had 0.5 s" in str(first.said[0])
        assert first.stat(ask, sha256(update)) == 1000, "and what it brought is here"


def test_a_slow_upload_lets_others_in_between_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(blobs, "_TURN", 0.3)
    update = container(x=DRAW.normal(size=20_000))
    size = len(update) // 100

    def slowly(begin):
        for at in range(begin, len(update), size):
            yield update[at : at + size]
            time.sleep(0.02)

    with (
        serving(tmp_path, uploads=1) as address,
        two_devices(address) as ((first, ask), (second, other)),
    ):
        slow = announce(first, ask, update, slowly(0))
        until(lambda: list((tmp_path / "koinon.db.blobs").rglob("*.part")))
        announce(second, other, update, [update]).join(10)
        assert second.said == [True]
        slow.join(10)
        assert isinstance(first.said[0], Unavailable)
        held = first.stat(ask, sha256(update))
        assert 0 < held < len(update)
        announce(first, ask, update, slowly(held), offset=held).join(10)
        assert first.said[1] is True


def test_a_newer_upload_of_a_device_ends_the_older_whether_it_waits_or_writes(tmp_path, monkeypatch):
    update = container(x=DRAW.normal(size=20_000))
    release = threading.Event()
    arrived, turn = [], blobs.Blobs._turn

    async def seen(self, over):
        arrived.append(over)
        await turn(self, over)

    monkeypatch.setattr(blobs.Blobs, "_turn", seen)

    def stands_still():
        yield update[:1000]
        release.wait(20)

    with (
        serving(tmp_path, uploads=1) as address,
        two_devices(address) as ((first, ask), (second, other)),
    ):
        older = announce(first, ask, update, stands_still())
        until(lambda: list((tmp_path / "koinon.db.blobs").rglob("*.part")))
        waits = announce(second, other, update, stands_still())
        until(lambda: len(arrived) == 2)  # or the one that is meant to be newer may be first
        newer = announce(second, other, update, [update])
        waits.join(10)
        assert [str(said) for said in second.said] == ["this upload goes on in another stream"]
        announce(first, ask, update, [update[1000:]], offset=1000).join(10)
        newer.join(10)
        release.set()
        older.join(10)
        assert sorted(map(str, first.said)) == ["True", "this upload goes on in another stream"]
        assert second.said[1] is True


def test_the_more_streams_there_are_the_smaller_are_their_pieces():
    assert [blobs._share(n) for n in (0, 1, 4, 8, 16, 64, 1000)] == [
        1 << 20, 1 << 20, 1 << 20, 1 << 19, 1 << 18, 1 << 16, 1 << 16
    ]  # fmt: skip


def downloading(device: Device, digest: str):
    """(call, its pieces); the coordinator's refusal is raised as what it is."""
    call = device._blob_call(BLOBS.DOWNLOAD, blobs_pb2.DownloadRequest(digest=digest), None)

    def pieces():
        try:
            yield from call
        except grpc.RpcError as error:
            raise error_of(error, device.address) from None

    return call, pieces()


def test_a_device_has_two_downloads_at_a_time(tmp_path):
    with serving(tmp_path) as address, two_devices(address, size=4_000_000) as ((first, ask), _):
        digest = ask.model.digest
        under_way = [downloading(first, digest) for _ in range(2)]
        assert all(next(pieces).data for _, pieces in under_way)
        with pytest.raises(Unavailable, match="has 2 downloads already"):
            next(downloading(first, digest)[1])
        for call, _ in under_way:
            call.cancel()

        def again() -> bool:
            with suppress(Unavailable):
                return bool(next(downloading(first, digest)[1]).data)
            return False

        until(again)


def test_while_nothing_comes_what_came_becomes_durable(tmp_path, monkeypatch):
    synced = []
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (sync(fd), synced.append(os.fstat(fd).st_size)))
    update = container(x=DRAW.normal(size=100_000))
    release = threading.Event()

    def slowly():
        yield update[:1000]
        release.wait(20)

    with serving(tmp_path) as address, two_devices(address) as ((first, ask), _):
        uploading = announce(first, ask, update, slowly())
        until(lambda: synced, 5)
        assert synced == [1000]
        release.set()
        uploading.join(10)


# -- limits ---------------------------------------------------------------------------------------------------


def test_a_device_moves_no_faster_than_its_rate(tmp_path):
    update = container(x=DRAW.normal(size=100_000))  # about 700 KB
    with serving(tmp_path, rate=250_000) as address, two_devices(address) as ((device, ask), _):
        began = time.monotonic()
        pieces = [update[at : at + 100_000] for at in range(0, len(update), 100_000)]
        assert device.upload(ask, pieces, digest=sha256(update), size=len(update)).complete
        took = time.monotonic() - began
        assert took > (len(update) / 250_000 - 1) * 0.9, "a second's worth may come at once"


def test_a_device_over_its_quota_is_refused_in_one_sentence(tmp_path):
    update = container(x=DRAW.normal(size=100_000))
    with serving(tmp_path, quota=1_000_000) as address, two_devices(address) as ((device, ask), _):
        assert len(device.download(ask.model.digest)) == ask.model.size
        sentence = rf"'first' has moved {ask.model.size} of the 1000000 bytes that --device-quota allows"
        with pytest.raises(RemoteProtocolError, match=sentence):
            device.upload(ask, [update], digest=sha256(update), size=len(update))
        with pytest.raises(RemoteProtocolError, match=sentence):
            device.download(ask.model.digest)
        assert device.download(ask.model.digest, offset=ask.model.size - 10), "what is left of it may go"


def test_the_coordinator_is_started_with_its_limits(tmp_path):
    one = Coordinator(tmp_path, "--uploads", "2", "--device-rate", "50MB", "--device-quota", "100KB")
    try:
        a_run(100_000).create(one.address)
        with Device(one.address) as device:
            ask = device.enter("big")
            with pytest.raises(RemoteProtocolError, match="of the 100000 bytes that --device-quota allows"):
                device.download(ask.model.digest)
    finally:
        one.kill()
