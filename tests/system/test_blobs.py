"""What is too large for a message goes through Download and Upload, and only for those it is meant for."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import koinon
from conftest import Clients, Coordinator
from hostile import Device, container, over, until
from koinon.operator import Operator
from koinon_core import codec
from koinon_core.canonical import sha256
from koinon_core.errors import BadBlob, KoinonError, NotFound, RemoteProtocolError, Unavailable
from koinon_core.schema import schema_of
from koinon_core.wire.v1 import fleet_pb2 as pb

N = 130_000  # float64: about 1 MB
DRAW = np.random.default_rng(7)
MODEL, STEP = DRAW.normal(size=N), DRAW.normal(size=N)
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    one = Coordinator(tmp_path_factory.mktemp("blobs"))
    yield one
    one.stop()
    assert "Traceback" not in one.log.read_text()


def create(coordinator: Coordinator, **settings: Any) -> koinon.RunHandle:
    values = {
        "rounds": 1,
        "min_clients": 1,
        "clients": 1,
        "codec": "lossless",
        "aggregation": "open",
        **settings,
    }
    run = koinon.Run(f"run-{next(NUMBERS)}", model={"x": MODEL}, **values)
    return run.create(coordinator.address)


@pytest.fixture
def run(coordinator: Coordinator) -> koinon.RunHandle:
    return create(coordinator)


@pytest.fixture
def update() -> bytes:
    """An update of the test's own: what is here already need not come again."""
    return container(x=STEP + next(NUMBERS))


def counted(device: Device, ask: pb.Ask, run: koinon.RunHandle, update: bytes) -> None:
    """The upload is whole: its update counts, and the model is right."""
    device.answer(ask, update, inline=False)
    assert device.hear("receipt").verdict == pb.VERDICT_STAGED
    assert device.hear("ended").status == "finished"
    step = codec.decode(update, schema_of({"delta/x": STEP}))["delta/x"]
    np.testing.assert_allclose(run.model()["x"], MODEL + step, rtol=0, atol=1e-9)


def test_a_megabyte_of_model_and_update_goes_through_the_blobs(
    coordinator: Coordinator, clients: Clients
) -> None:
    run = create(coordinator, rounds=2, min_clients=2, clients=2)

    def work(i: int) -> None:
        with koinon.join(coordinator.address, run=run.name, name=f"device-{i}") as session:
            model = {"x": np.zeros(N)}
            for task in session.tasks(model):
                model["x"] += (2 * i + 1) * STEP  # once and three times: on average twice
                task.submit(examples=10)

    for i in range(2):
        clients.start(lambda i=i: work(i))
    clients.join()
    assert run.wait() == "2 rounds closed"
    np.testing.assert_allclose(run.model()["x"], MODEL + 4 * STEP, rtol=0, atol=1e-9)
    for r in run.rounds():
        assert min(r.bytes_up, r.bytes_down) > 2 * 800_000


def test_a_model_is_downloaded_from_any_offset_and_is_what_its_digest_says(
    coordinator: Coordinator, run: koinon.RunHandle, update: bytes
) -> None:
    with Device(coordinator.address) as device:
        ask = device.enter(run.name)
        assert not ask.model.inline
        whole = device.download(ask.model.digest)
        assert (len(whole), sha256(whole)) == (ask.model.size, ask.model.digest)
        assert device.download(ask.model.digest, offset=777_777) == whole[777_777:]
        assert device.download(ask.model.digest, offset=ask.model.size + 5) == b""


def test_a_content_that_no_round_of_the_device_names_is_not_given(
    coordinator: Coordinator, run: koinon.RunHandle, update: bytes
) -> None:
    with Device(coordinator.address) as device, Device(coordinator.address, "outsider") as outsider:
        ask = device.enter(run.name)
        for who, digest in (
            (device, "ab" * 32),
            (device, "../../koinon.db"),
            (outsider, ask.model.digest),  # it never joined the run
        ):
            with pytest.raises(NotFound, match="no open round of this device names that content"):
                who.download(digest)
        with pytest.raises(RemoteProtocolError, match="no update of round 1 is awaited from this device"):
            outsider.upload(ask, [update], digest=sha256(update), size=len(update))


def test_blob_calls_need_the_token_of_a_stream_that_lives(
    coordinator: Coordinator, run: koinon.RunHandle, update: bytes
) -> None:
    with Device(coordinator.address, "gone") as gone:
        stale = gone.token
    with Device(coordinator.address) as device:
        ask = device.enter(run.name)
        for token in ("", "guess", stale):
            for call in (
                lambda token=token: device.stat(ask, "ab" * 32, token=token),
                lambda token=token: device.download(ask.model.digest, token=token),
                lambda token=token: device.upload(ask, [update], token=token, digest=sha256(update), size=9),
            ):
                with pytest.raises(RemoteProtocolError, match="only an attached device may move blobs"):
                    call()


@pytest.mark.parametrize(
    ("pieces", "start", "sentence"),
    [
        (lambda update: [update, b"more"], {}, "bytes was declared, and more were sent"),
        (lambda update: [bytes(len(update))], {}, "what arrived has SHA-256 .* send it again"),
        (lambda update: [update[100:]], {"offset": 100}, "goes on at byte 100, but 0 bytes are here"),
        (
            lambda update: [update],
            {"size": 1 << 40},
            "1099511627776 bytes is refused: this run's model needs at most",
        ),
        (lambda update: [update], {"digest": "../../x"}, "is not the SHA-256 of anything"),
        (lambda update: [update], {"round": 2}, "no update of round 2 is awaited"),
        (lambda update: [update], {"run": "no-such-run"}, "no update of round 1 is awaited"),
    ],
    ids=["too-many", "other-bytes", "wrong-offset", "oversized", "bad-digest", "other-round", "other-run"],
)
def test_an_upload_that_is_not_what_was_declared_is_refused_and_may_be_done_right(
    coordinator: Coordinator, run: koinon.RunHandle, update: bytes, pieces: Callable[[bytes], list[bytes]],
    start: dict[str, Any], sentence: str,
) -> None:  # fmt: skip
    right = {"digest": sha256(update), "size": len(update)}
    with Device(coordinator.address) as device:
        ask = device.enter(run.name)
        with pytest.raises((BadBlob, RemoteProtocolError, Unavailable), match=sentence):
            device.upload(ask, pieces(update), **{**right, **start})
        if not device.stat(ask, right["digest"]):
            assert device.upload(ask, [update], **right).complete
        counted(device, ask, run, update)


def test_an_update_that_is_too_large_for_a_message_is_refused_in_one(
    coordinator: Coordinator, run: koinon.RunHandle, update: bytes
) -> None:
    with Device(coordinator.address) as device:
        device.answer(device.enter(run.name), update)
        receipt = device.hear("receipt")
        assert receipt.verdict == pb.VERDICT_NOT_COUNTED
        assert "must be uploaded, not sent in the message" in receipt.reason


def test_an_upload_that_was_cut_goes_on_where_it_stopped(
    coordinator: Coordinator, run: koinon.RunHandle, update: bytes
) -> None:
    digest, size = sha256(update), len(update)
    with Device(coordinator.address) as device, Device(coordinator.address, "other") as other:
        ask = device.enter(run.name)
        half = device.upload(ask, [update[:100_000], update[100_000:400_000]], digest=digest, size=size)
        assert (half.offset, half.complete) == (400_000, False)

        def breaks_off() -> Iterator[bytes]:
            yield update[400_000:700_000]
            raise ConnectionError

        with pytest.raises(KoinonError):
            device.upload(ask, breaks_off(), digest=digest, size=size, offset=400_000)
        at = device.stat(ask, digest)
        assert at in (400_000, 700_000)
        with pytest.raises(RemoteProtocolError, match="no update of round 1 is awaited from this device"):
            other.stat(ask, digest)  # one device's part is nobody else's
        device.answer(ask, update, inline=False, round=7)  # not handed in before it is whole
        rest = device.upload(ask, [update[at:]], digest=digest, size=size, offset=at)
        assert (rest.offset, rest.complete) == (size, True)
        assert device.upload(ask, [], digest=digest, size=size).complete  # it is here already
        assert device.hear("receipt").reason == "round 7 has not begun"
        counted(device, ask, run, update)
    assert over(coordinator.address, run.name).incidents == []


def test_a_sum_for_which_there_is_no_room_waits_and_says_so(
    tmp_path: Path, clients: Clients, update: bytes
) -> None:
    coordinator = Coordinator(tmp_path, "--quota", "3.3MB")  # a model and two updates, and not the next model
    try:
        run = create(coordinator, rounds=1, min_clients=2, clients=2)

        def work(i: int) -> None:
            with koinon.join(coordinator.address, run=run.name, name=f"device-{i}") as session:
                model = {"x": np.zeros(N)}
                for task in session.tasks(model):
                    model["x"] += STEP
                    task.submit(examples=10)

        for i in range(2):
            clients.start(lambda i=i: work(i))
        with Operator(coordinator.address) as operator:
            waiting = until(lambda: "disk" in (w := operator.get(run.name).run.waiting_for) and w, 20)
            assert "of the 3300000 bytes that --quota allows" in waiting
            (r,) = operator.get(run.name).rounds
            # A small sum shares its commit with the last update, which then waits at its device.
            assert {p.status for p in r.participants} <= {"asked", "staged"}, "and nobody is given up"
        coordinator.stop()
        coordinator._arguments = ("--quota", "20MB")
        coordinator.start()
        clients.join(60)
        assert run.wait() == "1 rounds closed"
        np.testing.assert_allclose(run.model()["x"], MODEL + STEP, rtol=0, atol=1e-9)
    finally:
        coordinator.kill()


def test_an_upload_beyond_the_quota_waits_at_its_device_and_the_operator_sees_why(
    tmp_path: Path, clients: Clients, update: bytes
) -> None:
    coordinator = Coordinator(tmp_path, "--quota", "6MB")
    try:
        run = create(coordinator, rounds=1, min_clients=2, clients=2)
        filler = coordinator.blobs / "filler"
        filler.write_bytes(bytes(4_900_000))
        coordinator.stop()
        coordinator.start()  # what is in the folder is counted when it starts

        def work(i: int) -> None:
            with koinon.join(coordinator.address, run=run.name, name=f"device-{i}") as session:
                model = {"x": np.zeros(N)}
                for task in session.tasks(model):
                    model["x"] += STEP
                    task.submit(examples=10)

        for i in range(2):
            clients.start(lambda i=i: work(i))

        def waits() -> list[Any]:
            with Operator(coordinator.address) as operator:
                return [i for i in operator.get(run.name).incidents if "its upload waits" in i.message]

        (incident, *_) = until(waits)
        assert "of the 6000000 bytes that --quota allows" in incident.message
        assert {i.client for i in waits()} <= {"device-0", "device-1"}
        filler.unlink()
        coordinator.stop()
        coordinator.start()  # there is room again; the devices come back by themselves
        clients.join(60)
        assert run.wait() == "1 rounds closed"
    finally:
        coordinator.kill()
