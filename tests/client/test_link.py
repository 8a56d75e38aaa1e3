"""The link: what a stream begins with, and the pauses between attempts, with a clock and dice of the test's own."""

import math
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from hostile import until
from koinon.link import GrpcLink, Pauses
from koinon_core.wire.methods import FLEET
from koinon_core.wire.v1 import fleet_pb2 as pb


class Ear:
    """A coordinator that welcomes whoever comes, and notes what they say. `hang_up` ends the open stream."""

    def __init__(self, *, notes: bool = True) -> None:
        self._notes = notes
        self.streams: list[list[str]] = []
        self.hellos: list[pb.Hello] = []
        self._open: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._server = grpc.server(ThreadPoolExecutor(8))
        handler = grpc.stream_stream_rpc_method_handler(
            self._attend, FLEET.ATTEND.request.FromString, FLEET.ATTEND.response.SerializeToString
        )
        service = f"koinon.v1.{FLEET.ATTEND.service}"
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {FLEET.ATTEND.name: handler})]
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _attend(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        heard: list[str] = []
        self.streams.append(heard)
        self._open.put(context)
        welcome = pb.CoordinatorMessage(welcome=pb.Welcome(token="t", notes=self._notes))
        yield pb.AttendResponse(messages=[welcome])
        for request in requests:
            self.hellos += [message.hello for message in request.messages if message.HasField("hello")]
            heard += [message.WhichOneof("says") for message in request.messages]

    def hang_up(self) -> None:
        self._open.get(timeout=10).cancel()

    def stop(self) -> None:
        self._server.stop(0).wait()


class Interrupting:
    """A receiver whose owner hands in an update while a new stream is found, a moment before the link can say so."""

    def __init__(self) -> None:
        self.link: GrpcLink | None = None

    def connected(self) -> None:
        assert self.link is not None
        self.link.send(pb.DeviceMessage(answer=pb.Answer(run="id", round=1)))
        self.link.send(pb.DeviceMessage(join=pb.Join(run="id")))
        self.link.send(pb.DeviceMessage(recall=pb.Recall(run="id")))

    def heard(self, message: pb.CoordinatorMessage) -> None: ...
    def failed(self, error: Exception) -> None: ...
    def pulse(self) -> tuple[float, pb.DeviceMessage | None]:
        return 1.0, pb.DeviceMessage(progress=pb.Progress(run="id", round=1))


def test_a_stream_begins_with_its_join_whatever_the_owner_said_while_it_was_found():
    ear, receiver = Ear(), Interrupting()
    link = receiver.link = GrpcLink(f"127.0.0.1:{ear.port}", "a")
    try:
        link.start(receiver)
        for stream in range(2):
            until(lambda stream=stream: len(ear.streams) > stream and "recall" in ear.streams[stream])
            assert ear.streams[stream][:2] == ["hello", "join"]
            assert "answer" not in ear.streams[stream], "it was meant for the stream before"
            if not stream:
                ear.hang_up()
    finally:
        link.close()
        ear.stop()


@pytest.mark.parametrize(
    ("conditions", "heats"),
    [
        ([{"heat": 40.0, "state": "IDLE"}, {"heat": 70.0, "state": "TRAINING"}], [40.0, 70.0]),
        ([{"heat": math.nan}, {"heats": 3}], [None, None]),
        ([{"state": "IDLE"}, {}], [None, None]),
    ],
    ids=["known", "broken sensors", "no sensor"],
)
def test_a_device_is_asked_how_it_is_whenever_it_greets(conditions, heats):
    left = list(conditions)
    ear, receiver = Ear(), Interrupting()
    link = receiver.link = GrpcLink(f"127.0.0.1:{ear.port}", "a", condition=lambda: left.pop(0))
    try:
        link.start(receiver)
        until(lambda: len(ear.hellos) == 1)
        ear.hang_up()
        until(lambda: len(ear.hellos) == 2)
    finally:
        link.close()
        ear.stop()
    assert [h.condition.heat if h.condition.HasField("heat") else None for h in ear.hellos] == heats


@pytest.mark.parametrize("notes", [True, False], ids=["this version", "an older one"])
def test_what_is_for_the_operator_alone_is_not_said_to_a_coordinator_that_would_refuse_it(notes):
    ear, receiver = Ear(notes=notes), Interrupting()
    link = receiver.link = GrpcLink(f"127.0.0.1:{ear.port}", "a")
    try:
        link.start(receiver)
        until(lambda: ear.streams and "recall" in ear.streams[0])
        link.send(pb.DeviceMessage(condition=pb.Condition(state="IDLE")))
        link.send(pb.DeviceMessage(spent=pb.Spent(run="id", round=1)))
        link.send(pb.DeviceMessage(ahead=pb.Ahead(run="id")))
        until(lambda: "ahead" in ear.streams[0])
    finally:
        link.close()
        ear.stop()
    said = [kind for kind in ear.streams[0] if kind in ("condition", "spent")]
    assert said == (["condition", "spent"] if notes else [])


def most(low: float, high: float) -> float:
    assert low == 0.0, "full jitter begins at no pause at all"
    return high


def outage(pauses: Pauses, now: float, attempts: int, each: float = 0.0) -> list[float]:
    """The longest pauses of an outage: every attempt takes `each` seconds and fails."""
    drawn = []
    for _ in range(attempts):
        now += each
        drawn.append(pauses.next(now, 0.0))
        now += drawn[-1]
    return drawn


def test_pauses_double_up_to_two_seconds():
    assert outage(Pauses(0.0, most), 0.0, 7) == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_after_two_minutes_of_outage_the_cap_is_a_minute_and_there_is_no_last_attempt():
    drawn = outage(Pauses(0.0, most), 0.0, 5000)
    prompt = drawn.index(60.0)
    assert drawn[5:prompt] == [2.0] * (prompt - 5)
    assert sum(drawn[: prompt - 1]) < 120.0 <= sum(drawn[:prompt])
    assert drawn[prompt:] == [60.0] * (5000 - prompt)


def test_time_that_attempts_take_counts_as_outage():
    drawn = outage(Pauses(0.0, most), 0.0, 11, each=20.0)
    assert drawn == [
        0.1,
        0.2,
        0.4,
        0.8,
        1.6,
        3.2,
        6.4,
        12.8,
        25.6,
        51.2,
        60.0,
    ]  # the sixth ends after two minutes


def test_a_stream_that_worked_ends_the_outage():
    pauses = Pauses(0.0, most)
    outage(pauses, 0.0, 200)
    assert pauses.next(10_000.0, 30.0) == 0.1
    assert outage(pauses, 10_000.0, 5) == [0.2, 0.4, 0.8, 1.6, 2.0]


def test_streams_that_break_at_once_again_and_again_are_not_hammered():
    pauses = Pauses(0.0, most)
    assert [pauses.next(now, 0.01) for now in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    # But somebody is there: the pauses stay short, however long that goes on.
    assert [pauses.next(1000.0 + now, 0.01) for now in range(3)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_the_dice_choose_from_all_of_it(share):
    assert Pauses(0.0, lambda low, high: low + share * (high - low)).next(0.0, 0.0) == 0.1 * share


def test_a_thousand_devices_that_lost_their_coordinator_do_not_come_back_in_step():
    fleet = [Pauses(0.0) for _ in range(1000)]
    for pauses in fleet:
        outage(pauses, 0.0, 5)
    fifth = sorted(pauses.next(10.0, 0.0) for pauses in fleet)
    # Uniform over two seconds: no tenth of a second has much more than its fiftieth or twentieth of them.
    busiest = max(sum(at <= one < at + 0.1 for one in fifth) for at in (n / 10 for n in range(20)))
    assert busiest < 100
