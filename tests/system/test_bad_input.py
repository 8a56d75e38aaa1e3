"""Whatever a device sends, the others finish the round with the right model, and the one at fault is told why."""

import itertools
import re
import struct
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
from conftest import Clients, Coordinator
from hostile import Device, container, over, until
from koinon.operator import Operator
from koinon_core import codecs
from koinon_core.codec import Writer
from koinon_core.codecs import Step
from koinon_core.errors import Conflict, NotFound, RemoteProtocolError, UsageError
from koinon_core.schema import schema_of
from koinon_core.wire.v1 import fleet_pb2 as pb

NAN, INF = float("nan"), float("inf")
GOOD = container(x=[3.0] * 5)
NUMBERS = itertools.count(1)

PLUGIN = """
from dataclasses import dataclass
import koinon

@koinon.register
@dataclass(frozen=True)
class Mine(koinon.FedAvg):
    pass

@koinon.register
@dataclass(frozen=True)
class Broken(koinon.FedAvg):
    def server(self, s, agg, rng):
        return agg, s[1 / 0]
"""


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """One for all tests here, with a plugin in its folder. Nothing may make it stumble over a bug of its own."""
    folder = tmp_path_factory.mktemp("bad-input")
    (folder / "house_strategies.py").write_text(PLUGIN)
    one = Coordinator(folder, "--plugin", "house_strategies", cwd=folder)
    yield one
    one.stop()
    log = one.log.read_text()
    on_purpose = log.count("\nZeroDivisionError")
    assert log.count("Traceback (most") == on_purpose


def create(coordinator: Coordinator, **settings: Any) -> str:
    given = {"rounds": 1, "min_clients": 3, "clients": 4, "join_wait": 0.2, "codec": "lossless"}
    values = {**given, "aggregation": "open", **settings}
    name = f"run-{next(NUMBERS)}"
    koinon.Run(name, model={"x": np.zeros(5)}, **values).create(coordinator.address)
    return name


def honest(
    address: str, run: str, i: int, work: Callable[[koinon.Task], None] = lambda task: None
) -> koinon.Session:
    """A device that moves x by i + 1 every round, after `work`."""
    with koinon.join(address, run=run, name=f"honest-{i} of {run}") as session:
        model = {"x": np.zeros(5)}
        for task in session.tasks(model):
            work(task)
            model["x"] += i + 1
            task.submit(examples=10)
    return session


def start_honest(coordinator: Coordinator, clients: Clients, run: str, n: int = 3, **how: Any) -> None:
    for i in range(n):
        clients.start(lambda i=i: honest(coordinator.address, run, i, **how), f"honest-{i}")


def model_of(coordinator: Coordinator, run: str) -> Any:
    with Operator(coordinator.address) as operator:
        return operator.model(run)[1]["x"]


# -- updates that may not enter the sum -----------------------------------------------------------------------

Say = Callable[[Device, pb.Ask], None]


def update(blob: bytes, **values: Any) -> Say:
    return lambda device, ask: device.answer(ask, blob, **values)


def corrupt() -> bytes:
    """A right manifest behind bytes that are none of the codec's."""
    return GOOD[:5] + b"\xff" * 30 + GOOD[35:]


def quantised(x: Any) -> bytes:
    """An update with a step of 1/8."""
    schema, parts = schema_of({"delta/x": x}), list[bytes]()
    writer = Writer(
        parts.append, schema, lambda name: (codecs.by_name("fine"), Step(128, -10)), key=bytes(32)
    )
    writer.put("delta/x", 0, x)
    writer.close()
    return b"".join(parts)


BAD: dict[str, tuple[Say, str]] = {
    "NaN": (update(container(x=[NAN, 0, 0, 0, 0])), "'delta/x' holds NaN or Inf"),
    "Inf": (update(container(x=[0, 0, 0, 0, -INF])), "'delta/x' holds NaN or Inf"),
    "a value beyond the bound": (update(container(x=[1e9, 0, 0, 0, 0])), "holds 1e.09; .* at most 64"),
    "another name": (update(container(y=np.zeros(5))), "has 'delta/y' .* the run has 'delta/x'"),
    "another tensor more": (update(container(x=np.zeros(5), y=np.zeros(5))), "2 tensors; the run's has 1"),
    "a shape that would broadcast": (update(container(x=np.zeros(1))), r"float64\[1\] where .* float64\[5\]"),
    "as many elements in another shape": (update(container(x=np.zeros((5, 1)))), r"float64\[5, 1\] where"),
    "another dtype": (update(container(x=np.zeros(5, "float32"))), "as float32.* where the run has"),
    "no tensors": (update(container()), "has 0 tensors"),
    "no bytes": (update(b""), "never arrived"),
    "examples below zero": (update(GOOD, examples=-1), "-1 examples is refused: this run takes 1 to"),
    "no examples": (update(GOOD, examples=0), "over 0 examples is refused"),
    "an absurd number of examples": (update(GOOD, examples=10**12), "1000000000000 examples is refused"),
    "examples of an evaluation below zero": (update(GOOD, head={"evaluation_examples": -1}), "over -1 examples"),
    "a NaN metric": (update(GOOD, head={"training": {"loss": NAN}}), "'loss' is nan: metrics are "),
    "a metric that overflows the mean": (update(GOOD, head={"training": {"loss": 1e308}}), "'loss' is 1e.308"),
    "a total that the strategy has not": (update(GOOD, head={"totals": {"n": 1.0}}), "the update has .'n'."),
    "other terms": (update(GOOD, terms_digest="0" * 64), "made under other terms"),
    "garbage": (update(b"not a container at all"), "not a Koinon container"),
    "a container cut short": (update(GOOD[:-1]), "ends in the middle"),
    "a codec that was not agreed to": (update(container("raw", x=np.zeros(5))), "this run has 'lossless' for it"),
    "a lossy codec that was not agreed to": (
        update(quantised(np.ones(5))),
        "'delta/x' came in codec 3 version 1",
    ),
    "an NMSE below zero": (update(GOOD, stats=pb.Stats(nmse=-1.0)), "NMSE is said to be -1"),
    "more parameters than there are": (update(GOOD, stats=pb.Stats(parameters=6)), "said to hold 6 parameters"),
    "a manifest larger than the model needs": (
        update(struct.pack("<4sBI", b"KOIN", 1, 1 << 31) + bytes(99)),
        "manifest of 2147483648 bytes",
    ),
    "corrupt chunks": (update(corrupt()), "payload is cut off"),
    "another digest than its bytes'": (update(GOOD, content={"digest": "ab" * 32}), "not what its digest says"),
    "a digest that is none": (update(GOOD, inline=False, content={"digest": "../../etc"}), "not the SHA-256"),
    "a blob that was never uploaded": (update(GOOD, inline=False), "never arrived; upload them"),
    "a declared size beyond the model's": (
        update(GOOD, content={"size": 1 << 40, "inline": b""}),
        "1099511627776 bytes is refused: this run's model needs at most",
    ),
    "too many bytes in the message": (update(bytes(100_000)), "100000 bytes must be uploaded, not sent"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_update_costs_its_sender_one_sentence_and_the_others_nothing(
    coordinator: Coordinator, clients: Clients, case: str
) -> None:
    say, sentence = BAD[case]
    run = create(coordinator)
    start_honest(coordinator, clients, run)
    with Device(coordinator.address) as mallory:
        ask = mallory.enter(run)
        say(mallory, ask)
        receipt = mallory.hear("receipt")
        assert receipt.verdict == pb.VERDICT_NOT_COUNTED
        assert re.search(sentence, receipt.reason), receipt.reason
        mallory.answer(ask, GOOD)  # and there is no second try
        assert mallory.hear("receipt").verdict == pb.VERDICT_NOT_COUNTED
    clients.join()
    seen = over(coordinator.address, run)
    assert seen.run.status == "finished"
    assert [(i.client, i.round, i.message) for i in seen.incidents] == [("mallory", 1, receipt.reason)]
    people = {p.client: (p.status, p.reason) for p in seen.rounds[0].participants}
    assert people.pop("mallory") == ("left", receipt.reason)
    assert set(people.values()) == {("counted", "")}
    np.testing.assert_array_equal(model_of(coordinator, run), 2.0)


def test_a_device_that_sent_nonsense_may_do_better_in_the_next_round(
    coordinator: Coordinator, clients: Clients
) -> None:
    run = create(coordinator, rounds=2)
    start_honest(coordinator, clients, run)
    with Device(coordinator.address) as mallory:
        mallory.answer(mallory.enter(run), b"nonsense")
        mallory.offer(mallory.join(run))
        mallory.answer(mallory.asked(), container(x=[6.0] * 5))
        assert mallory.hear("ended").status == "finished"
    clients.join()
    np.testing.assert_array_equal(model_of(coordinator, run), 2.0 + 3.0)


# -- updates at the wrong time or place -----------------------------------------------------------------------


def test_the_same_update_twice_is_harmless_and_a_different_one_is_refused(
    coordinator: Coordinator, clients: Clients
) -> None:
    run, go = create(coordinator), threading.Event()
    start_honest(coordinator, clients, run, work=lambda task: go.wait(20))
    with Device(coordinator.address) as mallory:
        ask = mallory.enter(run)
        for _ in range(2):
            mallory.answer(ask, GOOD)
            assert mallory.hear("receipt").verdict == pb.VERDICT_STAGED
        mallory.answer(ask, container(x=[100.0] * 5))
        receipt = mallory.hear("receipt")
        assert receipt.verdict == pb.VERDICT_NOT_COUNTED
        assert "a second, different update for this round is refused" in receipt.reason
        go.set()
        assert mallory.hear("receipt").verdict == pb.VERDICT_COUNTED
    clients.join()
    np.testing.assert_array_equal(model_of(coordinator, run), (1 + 2 + 3 + 3) / 4)
    (incident,) = over(coordinator.address, run).incidents
    assert (incident.client, incident.round) == ("mallory", 1)
    assert "second, different update" in incident.message


def test_a_late_update_is_told_that_it_is_late(coordinator: Coordinator, clients: Clients) -> None:
    run = create(coordinator, clients=3, over_selection=4 / 3)  # all four are asked, three are enough
    start_honest(coordinator, clients, run)
    with Device(coordinator.address) as mallory:
        ask = mallory.enter(run)
        assert "late: round 1" in mallory.hear("cancel").reason
        assert mallory.hear("ended").status == "finished"
        mallory.answer(ask, GOOD)
        receipt = mallory.hear("receipt")
        assert receipt.verdict == pb.VERDICT_NOT_COUNTED
        assert receipt.reason.startswith("late: round 1 is over")
    clients.join()
    people = {p.client: p.status for p in over(coordinator.address, run).rounds[0].participants}
    assert people["mallory"] == "late"
    np.testing.assert_array_equal(model_of(coordinator, run), 2.0)


def test_an_update_of_another_round_or_run_is_refused_by_name(
    coordinator: Coordinator, clients: Clients
) -> None:
    run, go = create(coordinator), threading.Event()
    start_honest(coordinator, clients, run, work=lambda task: go.wait(20))
    with Device(coordinator.address) as mallory, Device(coordinator.address, "stranger") as stranger:
        ask = mallory.enter(run)
        for number, sentence in ((0, "round 0 is over"), (7, "round 7 has not begun")):
            mallory.answer(ask, GOOD, round=number)
            receipt = mallory.hear("receipt")
            assert receipt.verdict == pb.VERDICT_NOT_COUNTED
            assert sentence in receipt.reason
        mallory.answer(ask, GOOD, round=(1 << 64) - 1)
        assert "there is no round 18446744073709551615" in mallory.hear("trouble").message
        mallory.answer(ask, GOOD, run="no-such-run")
        trouble = mallory.hear("trouble")
        assert (trouble.code, trouble.run) == ("NOT_FOUND", "no-such-run")
        assert "has no run 'no-such-run'" in trouble.message
        stranger.answer(ask, GOOD)  # it never joined
        assert "join a run before" in stranger.hear("trouble").message
        stranger.join(run)
        stranger.answer(ask, GOOD)  # it was never asked
        assert "was not asked in this round" in stranger.hear("receipt").reason
        mallory.answer(ask, GOOD)
        go.set()
        clients.join()
    seen = over(coordinator.address, run)
    assert seen.run.status == "finished"
    assert [(i.client, "not asked" in i.message) for i in seen.incidents] == [("stranger", True)]
    np.testing.assert_array_equal(model_of(coordinator, run), (1 + 2 + 3 + 3) / 4)


def test_an_evaluation_that_brings_bytes_along_is_refused(coordinator: Coordinator) -> None:
    run = create(coordinator, min_clients=1, clients=1)
    with Device(coordinator.address) as device:
        run_id = device.join(run)
        device.say(offer=pb.Offer(run=run_id, evaluates=True))
        device.answer(device.asked(), GOOD, head={"evaluation": {"loss": 1.0}, "evaluation_examples": 1})
        assert device.hear("receipt").verdict == pb.VERDICT_STAGED
        device.say(offer=pb.Offer(run=run_id, evaluates=True))
        device.answer(
            device.asked(), b"", examples=0, content={"digest": "ab" * 32, "size": 3, "inline": b"abc"}
        )
        receipt = device.hear("receipt")
        assert receipt.verdict == pb.VERDICT_NOT_COUNTED
        assert "an evaluation has numbers only" in receipt.reason
    assert over(coordinator.address, run).run.status == "finished"


# -- messages that are none -----------------------------------------------------------------------------------


def test_messages_of_no_kind_and_absurd_numbers_are_answered_and_change_nothing(
    coordinator: Coordinator, clients: Clients
) -> None:
    run = create(coordinator)
    with Device(coordinator.address) as mallory:
        mallory.say()
        assert "unknown kind" in mallory.hear("trouble").message
        mallory.say(hello=pb.Hello(client="me again"))
        assert "unknown kind 'hello'" in mallory.hear("trouble").message
        mallory.say(offer=pb.Offer(run=run))
        assert "join a run before" in mallory.hear("trouble").message
        run_id = mallory.join(run)
        huge = (1 << 64) - 1
        mallory.say(leave=pb.Leave(run=run_id, round=huge, detail="no such round"))
        assert f"there is no round {huge}" in mallory.hear("trouble").message
        mallory.say(leave=pb.Leave(run=run_id, code="X" * 10_000, detail="[/bold]\x1b[2J\n" * 10_000))
        mallory.say(progress=pb.Progress(run=run_id, round=huge, steps=huge))
        mallory.say(offer=pb.Offer(run=run_id, engaged=huge))
        start_honest(coordinator, clients, run)
        mallory.answer(mallory.asked(), GOOD)
        clients.join()
    seen = over(coordinator.address, run)
    assert seen.run.status == "finished"
    (incident,) = seen.incidents
    assert incident.message.isprintable()
    assert (len(incident.message), len(incident.code)) == (2000, 32)


def test_a_stream_must_begin_with_a_hello_of_the_same_protocol_and_a_name(coordinator: Coordinator) -> None:
    for hello, sentence in (
        ({"protocol": 99}, "'mallory' .* speaks protocol 99.*install the same version on both"),
        ({"client": "m" * 1000}, "a name of 1 to 128 printable characters"),
        ({"client": "new\nline"}, "a name of 1 to 128 printable characters"),
    ):
        device = Device(coordinator.address, **hello)
        with pytest.raises(RemoteProtocolError, match=sentence):
            device.hear("welcome")
        device.cut()


def test_two_processes_with_one_name_are_a_conflict(coordinator: Coordinator) -> None:
    run = create(coordinator)
    sentence = r"'twin' is attached already, from another process"
    with Device(coordinator.address, "twin"), pytest.raises(Conflict, match=sentence):
        koinon.join(coordinator.address, run=run, name="twin")
    with koinon.join(coordinator.address, run=run, name="twin", timeout=5):
        pass  # its place is free again


def test_a_strategy_that_breaks_costs_its_rounds_and_the_run_fails_by_name(coordinator: Coordinator) -> None:
    making = (
        "import sys, numpy, koinon, house_strategies as h;"
        "koinon.Run('broken', model={'x': numpy.zeros(5)}, strategy=h.Broken(), rounds=1, min_clients=1, clients=1,"
        "patience=2, codec='lossless', aggregation='open').create(sys.argv[1])"
    )
    subprocess.run(
        [sys.executable, "-c", making, coordinator.address], cwd=coordinator.folder, check=True, timeout=20
    )
    with Device(coordinator.address) as device, Operator(coordinator.address) as operator:
        ask = device.enter("broken")
        for last in (False, True):
            device.answer(ask, GOOD)
            assert device.hear("receipt").verdict == pb.VERDICT_STAGED
            assert "ZeroDivisionError" in device.hear("receipt").reason
            if not last:
                device.offer(ask.run)
                ask = device.asked()
        assert "2 rounds in a row were abandoned" in device.hear("ended").reason
        got = operator.get("broken")
        assert got.run.status == "failed"
        assert "ZeroDivisionError" in got.incidents[0].message


# -- clients that cannot, will not, or go away ----------------------------------------------------------------


def test_an_unknown_run_is_not_found_and_those_there_are_are_listed(coordinator: Coordinator) -> None:
    run = create(coordinator)
    with pytest.raises(NotFound, match=rf"has no run 'digits' \(there are: .*\b{run}\b"):
        koinon.join(coordinator.address, run="digits", name="lost")


def test_a_model_of_another_schema_is_refused_on_the_device_and_the_operator_sees_it(
    coordinator: Coordinator, clients: Clients
) -> None:
    run = create(coordinator, clients=3)
    sentence = r"your model has 'x' as float64\[1\]; the run's model has float64\[5\]"
    with (
        koinon.join(coordinator.address, run=run, name="odd") as session,
        pytest.raises(UsageError, match=sentence),
    ):
        next(session.tasks({"x": np.zeros(1)}))
    start_honest(coordinator, clients, run)
    clients.join()
    (incident,) = over(coordinator.address, run).incidents
    assert (incident.client, incident.code) == ("odd", "REFUSED")
    assert re.search(sentence, incident.message)


def test_a_device_that_lacks_the_strategy_declines_by_name(
    coordinator: Coordinator, clients: Clients
) -> None:
    folder = coordinator.folder
    making = (
        "import sys, numpy, koinon, house_strategies as h;"
        "koinon.Run('ours', model={'x': numpy.zeros(5)}, strategy=h.Mine(), rounds=1, min_clients=1, clients=1,"
        "aggregation='open').create(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", making, coordinator.address], cwd=folder, check=True)
    with pytest.raises(NotFound, match=r"no strategy 'house_strategies\.Mine' here .* --plugin MODULE"):
        koinon.join(coordinator.address, run="ours", name="plain")
    with Operator(coordinator.address) as operator:
        (incident,) = until(lambda: operator.get("ours").incidents)
        assert (incident.client, incident.code) == ("plain", "DECLINED")
        assert "house_strategies.Mine" in incident.message
        joining = (
            "import sys, numpy, koinon\n"
            "m = {'x': numpy.zeros(5)}\n"
            "with koinon.join(sys.argv[1], run='ours', name='full', plugins=['house_strategies']) as s:\n"
            "    for task in s.tasks(m):\n"
            "        m['x'] += 1\n"
            "        task.submit(examples=1)\n"
        )
        subprocess.run(
            [sys.executable, "-c", joining, coordinator.address], cwd=folder, check=True, timeout=20
        )
        assert operator.get("ours").run.status == "finished"


def test_devices_that_decline_raise_or_break_out_cost_the_round_only_their_part(
    coordinator: Coordinator, clients: Clients
) -> None:
    run = create(coordinator, min_clients=3, clients=6)

    def declines() -> None:
        with koinon.join(coordinator.address, run=run, name="declines") as session:
            for _ in session.tasks({"x": np.zeros(5)}):
                continue
        assert session.status == "finished"

    def fails() -> None:
        with koinon.join(coordinator.address, run=run, name="raises") as session:
            for _ in session.tasks({"x": np.zeros(5)}):
                1 / 0  # noqa: B018

    def raises() -> None:
        with pytest.raises(ZeroDivisionError):
            fails()

    def breaks() -> None:
        with koinon.join(coordinator.address, run=run, name="breaks") as session:
            for _ in session.tasks({"x": np.zeros(5)}):
                break

    start_honest(coordinator, clients, run)
    for one in (declines, raises, breaks):
        clients.start(one, one.__name__)
    clients.join()
    seen = over(coordinator.address, run)
    assert seen.run.status == "finished"
    np.testing.assert_array_equal(model_of(coordinator, run), 2.0)
    reasons = {p.client: p.reason for p in seen.rounds[0].participants if p.status == "left"}
    assert reasons == {
        "declines": "the loop went on without submitting an update",
        "raises": "ZeroDivisionError: division by zero",
        "breaks": "the session was closed",
    }
    assert {i.client: (i.code, i.message) for i in seen.incidents} == {
        "declines": ("DECLINED", reasons["declines"]),
        "raises": ("FAILED", reasons["raises"]),
        "breaks": ("DECLINED", reasons["breaks"]),
    }


def test_an_update_that_may_not_be_sent_is_raised_where_it_was_made(
    coordinator: Coordinator, clients: Clients
) -> None:
    run = create(coordinator)

    def careless() -> None:
        model = {"x": np.zeros(5)}
        with koinon.join(coordinator.address, run=run, name="careless") as session:
            for task in session.tasks(model):
                model["x"] += NAN
                with pytest.raises(koinon.BadUpdate, match="NaN or Inf"):
                    task.submit(examples=10)

    start_honest(coordinator, clients, run)
    clients.start(careless)
    clients.join()
    (incident,) = over(coordinator.address, run).incidents
    assert (incident.client, incident.code) == ("careless", "REFUSED")
    np.testing.assert_array_equal(model_of(coordinator, run), 2.0)


def test_a_device_that_dies_in_the_middle_is_given_up_after_its_lease(
    coordinator: Coordinator, clients: Clients
) -> None:
    run = create(coordinator, lease=1.0)
    start_honest(coordinator, clients, run)
    with Device(coordinator.address) as mallory:
        mallory.enter(run)
    clients.join()
    seen = over(coordinator.address, run)
    assert seen.run.status == "finished"
    people = {p.client: (p.status, p.reason) for p in seen.rounds[0].participants}
    assert people["mallory"] == ("left", "nothing was heard of it for 1 s")
    np.testing.assert_array_equal(model_of(coordinator, run), 2.0)


def test_a_device_that_works_longer_than_its_lease_says_so_by_itself(
    coordinator: Coordinator, clients: Clients
) -> None:
    run = create(coordinator, lease=0.6, clients=3)
    start_honest(coordinator, clients, run, work=lambda task: time.sleep(1.5))
    clients.join()
    seen = over(coordinator.address, run)
    assert (seen.run.status, len(seen.rounds), len(seen.incidents)) == ("finished", 1, 0)


# -- the operator's hand --------------------------------------------------------------------------------------


def test_a_cancelled_run_reaches_the_loop_and_the_session(coordinator: Coordinator, clients: Clients) -> None:
    run = create(coordinator, clients=3)
    at_work, sessions = threading.Barrier(4), []

    def work(task: koinon.Task) -> None:
        at_work.wait(10)
        until(lambda: task.cancelled)
        assert "wrong labels" in task.outcome

    def go(i: int) -> None:
        sessions.append(honest(coordinator.address, run, i, work))

    for i in range(3):
        clients.start(lambda i=i: go(i))
    at_work.wait(10)
    with Operator(coordinator.address) as operator:
        assert operator.control(run, "cancel", "wrong labels").status == "cancelled"
        clients.join()
        assert {(s.status, s.reason) for s in sessions} == {("cancelled", "wrong labels")}
        seen = operator.get(run)
        assert seen.rounds[0].status == "abandoned"
        assert "wrong labels" in seen.rounds[0].reason
        np.testing.assert_array_equal(model_of(coordinator, run), 0.0)
        for verb in ("cancel", "pause", "resume"):
            with pytest.raises(Conflict, match=f"cancelled already; there is nothing to {verb}"):
                operator.control(run, verb)


def test_a_loop_that_begins_when_the_run_is_over_ends_at_once(coordinator: Coordinator) -> None:
    run = create(coordinator)
    with koinon.join(coordinator.address, run=run, name="slow") as session:
        with Operator(coordinator.address) as operator:
            operator.control(run, "cancel", "enough")
        for _ in range(2):  # in a notebook, the cell may be run again
            assert list(session.tasks({"x": np.zeros(5)})) == []
            assert (session.status, session.reason) == ("cancelled", "enough")
    with koinon.join(coordinator.address, run=run, name="slower") as session:
        assert list(session.tasks({"x": np.zeros(5)})) == []
        assert session.status == "cancelled"


def test_a_paused_run_ends_its_round_and_opens_no_other_until_it_is_resumed(
    coordinator: Coordinator, clients: Clients
) -> None:
    run, go = create(coordinator, rounds=2, clients=3), threading.Event()
    start_honest(coordinator, clients, run, work=lambda task: go.wait(20))
    with Operator(coordinator.address) as operator:
        until(lambda: operator.get(run).rounds and operator.get(run).rounds[0].status == "update")
        assert operator.control(run, "pause").status == "paused"
        go.set()
        until(lambda: operator.get(run).run.rounds_closed == 1)
        seen = operator.get(run).run
        assert (seen.status, seen.waiting_for) == ("paused", "paused: `koinon run resume` lets it go on")
        assert operator.control(run, "resume").status in ("running", "finished")
        clients.join()
        assert operator.get(run).run.status == "finished"
    np.testing.assert_array_equal(model_of(coordinator, run), 4.0)


def test_a_run_whose_devices_all_decline_fails_after_its_patience_with_the_reason(
    coordinator: Coordinator, clients: Clients
) -> None:
    run = create(coordinator, min_clients=2, clients=2, patience=3)

    def declines(i: int) -> None:
        with koinon.join(coordinator.address, run=run, name=f"unwilling-{i}") as session:
            for _ in session.tasks({"x": np.zeros(5)}):
                continue
        assert session.status == "failed"
        assert "3 rounds in a row were abandoned" in session.reason

    for i in range(2):
        clients.start(lambda i=i: declines(i))
    clients.join()
    seen = over(coordinator.address, run)
    assert seen.run.status == "failed"
    assert re.search("3 rounds in a row .* lost its quorum: 1 of at least 2 are left", seen.run.reason)
    assert [r.status for r in seen.rounds] == ["abandoned"] * 3
    with pytest.raises(koinon.RunEnded, match="failed: 3 rounds in a row"):
        koinon.RunHandle(coordinator.address, seen.run.id, run).wait()


def test_the_coordinator_stops_in_good_order_while_devices_wait(tmp_path: Path, clients: Clients) -> None:
    own = Coordinator(tmp_path)
    run = create(own)
    with Device(own.address) as waiting:
        waiting.offer(waiting.join(run))
        started = time.monotonic()
        assert own.stop() == 0
        assert time.monotonic() - started < 5
    assert "Traceback" not in own.log.read_text()
