"""The outbox: whatever moment a device dies at, what it had said it kept is there, and nothing is there by halves."""

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from koinon import outbox as module
from koinon.outbox import DiskOutbox, Kept, MemoryOutbox, Outbox, Sent, open_outbox
from koinon_core import failpoints
from koinon_core.canonical import sha256
from koinon_core.errors import Conflict, LocalProtocolError, StoreError
from koinon_core.strategy.protocol import State
from koinon_core.tensors import Tensors
from koinon_core.update import Head

POINTS = ("outbox.written", "outbox.synced", "outbox.named", "outbox.removed")
RUN = "5f" * 16
NEW = Kept(state={}, settled=0, sent=None, pin={})


@pytest.fixture(autouse=True)
def _nothing_stays_armed() -> Iterator[None]:
    yield
    failpoints.disarm()


def state_of(value: float) -> State:
    """What SCAFFOLD and FedBN keep, and a set that is empty."""
    c = Tensors({"layer/w": np.full((2, 3), float(value)), "b": np.float32([value, -value])})
    return {
        "c_i": c,
        "own": Tensors({"steps": np.int64(value), "none": np.zeros((0, 4))}),
        "empty": Tensors(),
    }


def sent_of(number: int, *, pending: State | None = None, size: int = 40) -> Sent:
    blob = bytes(i * number % 251 for i in range(size))
    head = Head(examples=number, totals={"tau": 1.5}, training={"loss": 0.25}, steps=7)
    return Sent(
        round=number,
        terms=b'{"round":%d}' % number,
        digest=sha256(blob),
        blob=blob,
        head=head,
        pending=pending,
    )


def evaluated(number: int, loss: float = 0.5) -> Sent:
    head = Head(evaluation={"loss": loss}, evaluation_examples=3)
    return Sent(round=number, terms=b"{}", digest="", blob=b"", head=head, pending=None)


def stands(folder: Path, run: str = RUN) -> Kept:
    """What a process that starts now finds."""
    one = DiskOutbox(folder)
    try:
        return one.enter(run)
    finally:
        one.close()


def names(folder: Path) -> set[str]:
    return {re.sub(r"^.*-[0-9a-f]{16}\.", "", path.name) for path in folder.iterdir()}


def file(folder: Path, what: str) -> Path:
    (path,) = folder.glob(what if what == "device" else f"*.{what}")
    return path


# -- the law ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "disk"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    one: Outbox = MemoryOutbox() if request.param == "memory" else DiskOutbox(tmp_path / "device")
    yield one
    one.close()


def test_counted_makes_the_pending_state_the_state_and_not_counted_drops_it(outbox: Outbox):
    assert outbox.enter(RUN) == NEW
    outbox.keep(RUN, sent_of(3, pending=state_of(1.0)))
    assert outbox.enter(RUN).sent == sent_of(3, pending=state_of(1.0))
    assert outbox.enter(RUN).state == {}
    outbox.commit(RUN, 3)
    after = Kept(state=state_of(1.0), settled=3, sent=None, pin={})
    assert outbox.enter(RUN) == after
    outbox.keep(RUN, sent_of(4, pending=state_of(2.0)))
    outbox.drop(RUN, 4)
    assert outbox.enter(RUN) == after


def test_an_update_without_a_pending_state_leaves_the_state_as_it_is(outbox: Outbox):
    outbox.keep(RUN, sent_of(1, pending=state_of(1.0)))
    outbox.commit(RUN, 1)
    outbox.keep(RUN, evaluated(2))
    assert outbox.enter(RUN).sent == evaluated(2)
    outbox.commit(RUN, 2)
    assert outbox.enter(RUN) == Kept(state=state_of(1.0), settled=2, sent=None, pin={})


def test_settling_twice_is_settling_once(outbox: Outbox):
    outbox.keep(RUN, sent_of(2, pending=state_of(1.0)))
    outbox.commit(RUN, 2)
    after = outbox.enter(RUN)
    outbox.commit(RUN, 2)
    outbox.commit(RUN, 1)
    outbox.drop(RUN, 2)
    outbox.drop(RUN, 9)
    assert outbox.enter(RUN) == after


def test_the_same_update_again_changes_nothing_and_another_one_is_refused(outbox: Outbox):
    first = sent_of(2, pending=state_of(1.0))
    outbox.keep(RUN, first)
    outbox.keep(RUN, sent_of(2, pending=state_of(7.0)))
    assert outbox.enter(RUN).sent == first
    with pytest.raises(LocalProtocolError, match="round 2 has its update already"):
        outbox.keep(RUN, sent_of(2, size=41))
    with pytest.raises(LocalProtocolError, match="the update of round 2 is still out"):
        outbox.keep(RUN, sent_of(3))
    assert outbox.enter(RUN).sent == first


def test_a_round_that_only_evaluates_says_the_same_numbers_again(outbox: Outbox):
    outbox.keep(RUN, evaluated(1, math.nan))
    outbox.keep(RUN, evaluated(1, math.nan))
    with pytest.raises(LocalProtocolError):
        outbox.keep(RUN, evaluated(1, 0.25))


def test_nothing_is_kept_for_a_round_that_is_settled(outbox: Outbox):
    outbox.keep(RUN, sent_of(5))
    outbox.commit(RUN, 5)
    with pytest.raises(LocalProtocolError, match="round 5 is settled"):
        outbox.keep(RUN, sent_of(5))
    with pytest.raises(LocalProtocolError, match="round 6 is said to be counted"):
        outbox.commit(RUN, 6)


def test_runs_are_kept_apart_and_forgotten_one_by_one(outbox: Outbox):
    for run in ("a", "b"):
        outbox.keep(run, sent_of(1, pending=state_of(1.0)))
        outbox.pin(run, {"run": run})
    outbox.commit("a", 1)
    outbox.forget("a")
    assert outbox.enter("a") == NEW
    assert outbox.enter("b") == Kept(
        state={}, settled=0, sent=sent_of(1, pending=state_of(1.0)), pin={"run": "b"}
    )
    outbox.forget("a")
    outbox.forget("c")


def test_a_pin_is_json_and_nobody_else_can_change_it(outbox: Outbox):
    mine = {"round": 3, "head": "ab", "seen": (1, 2)}
    outbox.pin(RUN, mine)
    mine["round"] = 4
    assert outbox.enter(RUN).pin == {"round": 3, "head": "ab", "seen": [1, 2]}
    with pytest.raises(TypeError):
        outbox.pin(RUN, {"no": object()})
    assert outbox.enter(RUN).pin["round"] == 3


@pytest.mark.parametrize("counted", [True, False])
def test_a_pin_that_comes_with_an_update_outlives_it(outbox: Outbox, counted: bool):
    outbox.pin(RUN, {"round": 1})
    outbox.keep(RUN, sent_of(2))
    assert outbox.enter(RUN).pin == {"round": 1}
    outbox.drop(RUN, 2)
    outbox.keep(RUN, replace(sent_of(3), pin={"round": 3}))
    assert outbox.enter(RUN).pin == {"round": 3}
    (outbox.commit if counted else outbox.drop)(RUN, 3)
    assert outbox.enter(RUN).pin == {"round": 3}
    outbox.keep(RUN, replace(sent_of(4), pin={"round": 4}))
    outbox.pin(RUN, {"round": 5})
    assert outbox.enter(RUN).pin == {"round": 5}
    outbox.drop(RUN, 4)
    assert outbox.enter(RUN).pin == {"round": 5}


def test_numpy_numbers_in_a_head_are_numbers(tmp_path: Path):
    one = DiskOutbox(tmp_path)
    head = Head(examples=np.int64(3), totals={"tau": np.float32(0.5)})  # type: ignore[arg-type]
    one.keep(RUN, Sent(round=1, terms=b"", digest="", blob=b"", head=head, pending=None))
    one.close()
    found = stands(tmp_path).sent
    assert found is not None
    assert found.head == Head(examples=3, totals={"tau": 0.5})
    assert type(found.head.examples) is int


def test_a_state_comes_back_bit_by_bit_whatever_its_size(tmp_path: Path):
    big = np.random.default_rng(1).normal(size=(1 << 20) + 3)
    big[:3] = (math.nan, -0.0, math.inf)
    state = {
        "c": Tensors({"w": big, "flag": np.array([True, False]), "half": np.float16([1.5])}),
        **state_of(2),
    }
    one = DiskOutbox(tmp_path)
    one.keep(RUN, sent_of(1, pending=state, size=3_000_000))
    one.commit(RUN, 1)
    one.close()
    found = stands(tmp_path)
    assert found.state == state
    assert list(found.state) == list(state)


# -- starting again -----------------------------------------------------------------------------------------------


def test_a_memory_knows_itself_and_counts_its_starts(tmp_path: Path):
    folder = tmp_path / "deep" / "device"
    seen = []
    for _ in range(3):
        one = DiskOutbox(folder)
        seen.append((one.instance, one.boot))
        one.close()
    assert [boot for _, boot in seen] == [1, 2, 3]
    assert len({instance for instance, _ in seen}) == 1
    assert len(bytes.fromhex(seen[0][0])) == 16
    other = DiskOutbox(tmp_path / "other")
    assert other.instance != seen[0][0]
    other.close()
    assert MemoryOutbox().instance != MemoryOutbox().instance
    assert MemoryOutbox().boot == 0


def test_only_its_user_may_read_it(tmp_path: Path):
    folder = tmp_path / "device"
    old = os.umask(0)
    try:
        one = DiskOutbox(folder)
        one.keep(RUN, sent_of(1, pending=state_of(1.0)))
        one.close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_what_is_settled_takes_no_place(tmp_path: Path):
    one = DiskOutbox(tmp_path)
    for number in range(1, 6):
        one.keep(RUN, sent_of(number, pending=state_of(number)))
        (one.drop if number % 2 else one.commit)(RUN, number)
    assert names(tmp_path) == {"lock", "device", "run", "state-4"}
    one.forget(RUN)
    assert names(tmp_path) == {"lock", "device"}
    one.close()


def test_one_process_at_a_time(tmp_path: Path):
    first = open_outbox("jetson-3", tmp_path)
    with pytest.raises(Conflict, match="another process of this machine is device 'jetson-3' already"):
        open_outbox("jetson-3", tmp_path)
    open_outbox("jetson-4", tmp_path).close()
    first.close()
    first.close()
    with pytest.raises(LocalProtocolError, match="let go"):
        first.keep(RUN, sent_of(1))
    open_outbox("jetson-3", tmp_path).close()


def python(code: str, *arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    setup = "import os, signal, sys\nfrom pathlib import Path\nfrom koinon.outbox import *\n"
    setup += (
        "from koinon_core import failpoints\nfrom koinon_core.update import Head\nimport test_outbox as t\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", setup + code, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_another_process_is_refused_and_a_forked_child_holds_nothing(tmp_path: Path):
    first = DiskOutbox(tmp_path)
    refused = python("DiskOutbox(Path(sys.argv[1]), 'gate')", tmp_path)
    assert refused.returncode == 1
    assert "Conflict: another process of this machine is device 'gate' already" in refused.stderr
    reads, writes = os.pipe()
    up, says_up = os.pipe()
    child = os.fork()
    if child == 0:  # a data loader's worker, which outlives its parent for a while
        os.close(writes)
        os.write(says_up, b"x")
        os.read(reads, 1)
        os._exit(0)
    try:
        os.read(up, 1)
        first.close()
        stands(tmp_path)
    finally:
        for end in (writes, reads, up, says_up):
            os.close(end)
        os.waitpid(child, 0)


# -- dying --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here: nothing of it runs any more, not even what tidies up."""


def killing(at: int) -> list[str]:
    """Arm every failpoint of the outbox: the process dies at the `at`-th that it comes to."""
    passed: list[str] = []

    def action(point: str) -> Callable[[str], None]:
        def die(about: str) -> None:
            passed.append(f"{point} {about}")
            if len(passed) == at:
                raise Killed

        return die

    for point in POINTS:
        failpoints.arm(point, action(point))
    return passed


def before_keep(one: DiskOutbox) -> None:
    one.keep(RUN, sent_of(1, pending=state_of(1.0)))
    one.commit(RUN, 1)
    one.pin(RUN, {"head": "a"})


def before_settling(one: DiskOutbox) -> None:
    before_keep(one)
    one.keep(RUN, sent_of(2, pending=state_of(2.0)))


def before_evaluation(one: DiskOutbox) -> None:
    before_keep(one)
    one.keep(RUN, evaluated(2))


def before_dropping(one: DiskOutbox) -> None:
    before_keep(one)
    one.keep(RUN, replace(sent_of(2, pending=state_of(2.0)), pin={"head": "b"}))


def before_dropping_an_older_pin(one: DiskOutbox) -> None:
    before_dropping(one)
    one.pin(RUN, {"head": "c"})


Step = Callable[[DiskOutbox], object]
STEPS: dict[str, tuple[Step, Step]] = {
    "the first keep": (
        lambda one: one.enter(RUN),
        lambda one: one.keep(RUN, sent_of(1, pending=state_of(1.0))),
    ),
    "the first entry": (lambda one: None, lambda one: one.enter(RUN)),
    "keep": (before_keep, lambda one: one.keep(RUN, sent_of(2, pending=state_of(2.0)))),
    "commit": (before_settling, lambda one: one.commit(RUN, 2)),
    "commit without a state": (before_evaluation, lambda one: one.commit(RUN, 2)),
    "drop": (before_settling, lambda one: one.drop(RUN, 2)),
    "drop what brought a pin": (before_dropping, lambda one: one.drop(RUN, 2)),
    "drop what brought an older pin": (before_dropping_an_older_pin, lambda one: one.drop(RUN, 2)),
    "commit what brought a pin": (before_dropping, lambda one: one.commit(RUN, 2)),
    "pin over a pin": (before_dropping, lambda one: one.pin(RUN, {"head": "c"})),
    "pin": (before_settling, lambda one: one.pin(RUN, {"head": "b"})),
    "forget": (before_settling, lambda one: one.forget(RUN)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_process_killed_at_any_point_leaves_what_was_before_or_what_is_after(name: str, tmp_path: Path):
    prepare, step = STEPS[name]
    ready, done = tmp_path / "ready", tmp_path / "done"
    one = DiskOutbox(ready)
    prepare(one)
    one.close()
    shutil.copytree(ready, done)
    one = DiskOutbox(done)
    one.enter(RUN)
    passed = killing(0)
    step(one)
    failpoints.disarm()
    one.close()
    before, after, hits = stands(ready), stands(done), len(passed)
    assert hits >= 2 or name == "the first entry"
    assert before != after or name == "the first entry"
    for k in range(1, hits + 1):
        for j in range(1, 12):  # and killed again, at any point of the start after it
            folder = tmp_path / f"killed-{k}-{j}"
            shutil.copytree(ready, folder)
            one = DiskOutbox(folder)
            if name != "the first entry":
                one.enter(RUN)
            killing(k)
            with pytest.raises(Killed):
                step(one)
            failpoints.disarm()
            one.close()
            twice = killed_while_starting(folder, j)
            found = stands(folder)
            assert found in (before, after), f"killed at {passed[k - 1]}"
            one = DiskOutbox(folder)
            step(one)
            one.close()
            assert stands(folder) == after
            assert names(folder) == names(done), f"killed at {passed[k - 1]}"
            shutil.rmtree(folder)
            if not twice:
                break


def killed_while_starting(folder: Path, at: int) -> bool:
    """Whether there was an `at`-th point to die at, from the start to what is kept of the run."""
    killing(at)
    try:
        stands(folder)
    except Killed:
        return True
    finally:
        failpoints.disarm()
    return False


def test_a_process_killed_while_it_starts_is_the_same_device_the_next_time(tmp_path: Path):
    for k in (1, 2, 3):
        folder = tmp_path / str(k)
        DiskOutbox(folder).close()
        killing(k)
        with pytest.raises(Killed):
            DiskOutbox(folder)
        failpoints.disarm()
        one = DiskOutbox(folder)
        assert one.boot in (2, 3)  # a number is never used twice
        one.close()
        assert one.instance == _instance(folder)
        new = tmp_path / f"new-{k}"
        killing(k)
        with pytest.raises(Killed):
            DiskOutbox(new)
        failpoints.disarm()
        DiskOutbox(new).close()


def _instance(folder: Path) -> str:
    one = DiskOutbox(folder)
    one.close()
    return one.instance


KILL = """
outbox = DiskOutbox(Path(sys.argv[1]))
t.before_settling(outbox)
left = int(sys.argv[3])
def die(about):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
failpoints.arm(sys.argv[2], die)
outbox.commit(t.RUN, 2)
"""


@pytest.mark.parametrize(
    ("point", "number", "settled"),
    [("outbox.written", 1, 1), ("outbox.named", 1, 2), ("outbox.removed", 1, 2), ("outbox.removed", 2, 2)],
)
def test_sigkill_in_the_middle_of_a_commit(point: str, number: int, settled: int, tmp_path: Path):
    assert python(KILL, tmp_path, point, number).returncode == -signal.SIGKILL
    one = DiskOutbox(tmp_path)
    found = one.enter(RUN)
    assert (found.settled, found.state) == (settled, state_of(settled))
    assert found.sent == (sent_of(2, pending=state_of(2.0)) if settled == 1 else None)
    one.commit(RUN, 2)
    assert one.enter(RUN) == Kept(state=state_of(2.0), settled=2, sent=None, pin={"head": "a"})
    one.close()


def test_every_file_is_synced_before_it_is_named_and_its_folder_after(tmp_path, monkeypatch):
    told: list[tuple[str, object]] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        about = os.fstat(fd)
        told.append(("sync", "folder" if stat.S_ISDIR(about.st_mode) else about.st_ino))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    for point in ("outbox.named", "outbox.removed"):
        failpoints.arm(point, lambda about, point=point: told.append((point, about)))
    one = DiskOutbox(tmp_path / "new")
    assert told[0] == ("sync", "folder")  # its own entry in the folder above
    before_settling(one)
    one.commit(RUN, 2)
    one.drop(RUN, 2)
    one.close()
    changes = [i for i, (what, _) in enumerate(told) if what.startswith("outbox.")]
    assert len(changes) > 10
    for i in changes:
        assert told[i + 1] == ("sync", "folder")
        if told[i][0] == "outbox.named":
            assert told[i - 1][0] == "sync"
            assert told[i - 1][1] != "folder"


class Life(RuleBasedStateMachine):
    """A device's memory against a dictionary that forgets nothing, over starts and kills."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.one, self.boot, self.next = DiskOutbox(self.folder), 1, 1
        self.model: dict[str, Kept] = {}

    def teardown(self) -> None:
        failpoints.disarm()
        self.one.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kept(self, run: str) -> Kept:
        return self.model.get(run, NEW)

    @rule(run=st.sampled_from("ab"), value=st.none() | st.integers(0, 9), die=st.integers(0, 9))
    def keep(self, run: str, value: int | None, die: int) -> None:
        self.next += 1
        held = self.kept(run).sent
        pin = {"sent": value} if value in (1, 2, 3) else {}
        sent = replace(sent_of(self.next, pending=None if value is None else state_of(value)), pin=pin)
        if held is not None:
            with pytest.raises(LocalProtocolError):
                self.one.keep(run, sent)
            self.one.keep(run, held)
        else:
            after = replace(self.kept(run), sent=sent, pin=pin or self.kept(run).pin)
            self.attempt(run, after, die, lambda: self.one.keep(run, sent))

    @rule(run=st.sampled_from("ab"), counted=st.booleans(), die=st.integers(0, 9))
    def settle(self, run: str, counted: bool, die: int) -> None:
        kept = self.kept(run)
        if kept.sent is None:
            self.one.drop(run, self.next)
            return
        number, after = kept.sent.round, replace(kept, sent=None)
        if counted:
            state = kept.state if kept.sent.pending is None else kept.sent.pending
            after = replace(after, settled=number, state=state)
        for at in (die, 0):  # cut short or not, it may be said again
            self.attempt(run, after, at, lambda: (self.one.commit if counted else self.one.drop)(run, number))
        assert self.model[run] == after

    @rule(run=st.sampled_from("ab"), value=st.integers(), die=st.integers(0, 9))
    def pin(self, run: str, value: int, die: int) -> None:
        after = replace(self.kept(run), pin={"value": value})
        self.attempt(run, after, die, lambda: self.one.pin(run, {"value": value}))

    @rule(run=st.sampled_from("ab"), die=st.integers(0, 9))
    def forget(self, run: str, die: int) -> None:
        self.attempt(run, NEW, die, lambda: self.one.forget(run))

    @rule()
    def start_again(self) -> None:
        self.one.close()
        instance = self.one.instance
        self.one = DiskOutbox(self.folder)
        self.boot += 1
        assert (self.one.instance, self.one.boot) == (instance, self.boot)

    def attempt(self, run: str, after: Kept, die: int, do: Callable[[], None]) -> None:
        """Do it, and perhaps die at the `die`-th point of it."""
        before = self.kept(run)
        self.one.enter(run)
        killing(die)
        try:
            do()
            self.model[run] = after
        except Killed:
            failpoints.disarm()
            self.start_again()
            found = self.one.enter(run)
            assert found in (before, after)
            self.model[run] = found
        finally:
            failpoints.disarm()

    @invariant()
    def agrees(self) -> None:
        for run in self.model:
            assert self.one.enter(run) == self.kept(run)


def test_a_memory_is_what_a_dictionary_would_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # its order has a test of its own
    run_state_machine_as_test(
        Life, settings=settings(max_examples=25, stateful_step_count=20, deadline=None, database=None)
    )


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A memory with one file of each kind, and two states."""
    folder = tmp_path / "full"
    one = DiskOutbox(folder)
    before_settling(one)
    one.close()
    assert names(folder) == {"lock", "device", "run", "sent", "state-1", "state-2"}
    return folder


def flips(path: Path) -> Iterator[None]:
    """The file with a bit flipped in every region of it, one at a time; then as it was."""
    whole = path.read_bytes()
    for at in sorted({0, 5, 8, 12, 16, 20, 40, *range(50, len(whole), 61), len(whole) - 32, len(whole) - 1}):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        yield
    path.write_bytes(whole)


def cuts(path: Path) -> Iterator[None]:
    """The file cut short, empty, and with bytes behind it."""
    whole = path.read_bytes()
    for other in (b"", whole[:7], whole[:20], whole[:33], whole[:-1], whole[:-32], whole + b"\0"):
        path.write_bytes(other)
        yield
    path.write_bytes(whole)


@pytest.mark.parametrize("harm", [flips, cuts])
@pytest.mark.parametrize("what", ["device", "run", "state-1"])
def test_a_damaged_memory_is_never_taken_for_a_new_one(full: Path, what: str, harm: Any):
    path = file(full, what)
    listed = sorted(full.iterdir())
    for _ in harm(path):
        with pytest.raises(StoreError, match="this device's memory is damaged") as caught:
            stands(full)
        assert str(path) in str(caught.value)
        assert f"remove {full}" in str(caught.value)
        assert sorted(full.iterdir()) == listed
    assert stands(full).state == state_of(1.0)


@pytest.mark.parametrize("what", ["device", "run", "state-1"])
def test_a_missing_part_of_a_memory_is_damage(full: Path, what: str):
    file(full, what).unlink()
    with pytest.raises(StoreError, match=f"{what} is missing"):
        stands(full)


@pytest.mark.parametrize("harm", [flips, cuts])
@pytest.mark.parametrize("what", ["sent", "state-2"])
def test_a_damaged_update_is_set_aside_and_the_state_stands(
    full: Path, what: str, harm: Any, caplog, tmp_path
):
    copy = tmp_path / "copy"
    shutil.copytree(full, copy)
    for n, _ in enumerate(harm(file(copy, what))):
        caplog.clear()
        damaged = tmp_path / f"damaged-{n}"
        shutil.copytree(copy, damaged)
        with caplog.at_level(logging.ERROR, "koinon"):
            assert stands(damaged) == Kept(state=state_of(1.0), settled=1, sent=None, pin={"head": "a"})
        assert len(caplog.records) == 1
        assert f"{what} cannot be read: its content does not have the SHA-256" in caplog.text
        assert "set aside" in caplog.text
        assert names(damaged) == {"lock", "device", "run", "state-1", "sent.damaged"}
        stands(damaged)
        assert len(caplog.records) == 1
        one = DiskOutbox(damaged)
        one.keep(RUN, sent_of(2, pending=state_of(3.0)))
        one.commit(RUN, 2)
        assert one.enter(RUN).state == state_of(3.0)
        one.forget(RUN)
        assert names(damaged) == {"lock", "device"}
        one.close()
        shutil.rmtree(damaged)


def rewritten(path: Path, **changes: Any) -> None:
    """The file as an honest writer would have made it, with another header."""
    header, *parts = module._parts(path)
    module._write(path, {**json.loads(header), **changes}, parts)


def test_a_file_of_another_run_version_kind_or_round_is_not_taken(full: Path, monkeypatch):
    state = file(full, "state-1")
    whole = state.read_bytes()
    for changes, why in (
        ({"run": "x"}, "run 'x'"),
        ({"kind": "sent"}, "'sent'"),
        ({"round": 7}, "of round 7"),
    ):
        rewritten(state, **changes)
        with pytest.raises(StoreError, match=why):
            stands(full)
        state.write_bytes(whole)
    monkeypatch.setattr(module, "_VERSION", 2)
    rewritten(file(full, "device"))
    monkeypatch.undo()
    with pytest.raises(StoreError, match="of version 2, and this Koinon reads version 1"):
        stands(full)


@pytest.mark.parametrize("length", [1 << 62, 10_000])
def test_a_declared_size_is_checked_before_anything_is_allocated(full: Path, length: int):
    path = file(full, "state-1")
    content = module._MAGIC + module._LENGTH.pack(length) + b"{}"
    path.write_bytes(content + bytes.fromhex(sha256(content)))
    with pytest.raises(StoreError, match="declares more bytes than it has"):
        stands(full)


@pytest.mark.parametrize("content", [b"", b"KOINBOX\n", b"KOINBOX\n\1\0"])
def test_a_file_that_is_whole_and_not_ours_is_not_taken(full: Path, content: bytes):
    file(full, "run").write_bytes(content + bytes.fromhex(sha256(content)))
    with pytest.raises(StoreError, match="memory is damaged"):
        stands(full)


def test_a_file_of_another_program_is_not_taken(full: Path):
    path = file(full, "run")
    whole = path.read_bytes()[: -hashlib.sha256().digest_size].replace(b"KOINBOX\n", b"ANOTHER\n")
    path.write_bytes(whole + hashlib.sha256(whole).digest())
    with pytest.raises(StoreError, match="it is not a file of an outbox"):
        stands(full)


# -- a disk that takes no more ------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", ["keep", "commit", "drop", "pin", "forget"])
def test_a_full_disk_is_said_and_leaves_before_or_after(name: str, point: str, tmp_path: Path):
    prepare, step = STEPS[name]
    one = DiskOutbox(tmp_path / "device")
    prepare(one)
    before = one.enter(RUN)

    def full(about: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    failpoints.arm(point, full)
    comes_by = name != "drop" if point != "outbox.removed" else name not in ("keep", "pin")
    if comes_by:
        with pytest.raises(StoreError, match="No space left on device; free some space") as caught:
            step(one)
        assert str(tmp_path / "device") in str(caught.value)
        failpoints.disarm()
        assert not list((tmp_path / "device").glob("*.new"))
        if point in ("outbox.written", "outbox.synced"):
            assert one.enter(RUN) == before
    failpoints.disarm()
    step(one)
    after = one.enter(RUN)
    one.close()
    assert stands(tmp_path / "device") == after
    shutil.rmtree(tmp_path / "device")
    one = DiskOutbox(tmp_path / "device")
    prepare(one)
    step(one)
    assert one.enter(RUN) == after
    one.close()


LIMIT = """
import resource
outbox = DiskOutbox(Path(sys.argv[1]))
t.before_keep(outbox)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    outbox.keep(t.RUN, t.sent_of(2, pending=t.state_of(2.0), size=200_000))
except t.StoreError as error:
    print(error)
print(sorted(t.names(Path(sys.argv[1]))), outbox.enter(t.RUN).settled)
"""


def test_a_file_that_the_system_lets_grow_no_further(tmp_path: Path):
    done = python(LIMIT, tmp_path)
    assert done.returncode == 0, done.stderr
    said, listed = done.stdout.splitlines()
    assert said.startswith(f"this device cannot keep its memory in {tmp_path}: File too large; ")
    assert listed == "['device', 'lock', 'run', 'state-1', 'state-2'] 1"
    assert stands(tmp_path) == Kept(state=state_of(1.0), settled=1, sent=None, pin={"head": "a"})
    assert names(tmp_path) == {"device", "lock", "run", "state-1"}


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(StoreError, match="cannot keep its memory"):
        DiskOutbox(tmp_path / "plain" / "device")


def test_a_large_update_is_in_memory_once(tmp_path: Path):
    one = DiskOutbox(tmp_path)
    size = 8_000_000
    state = {"c": Tensors({f"w{i}": np.ones(size // 64) for i in range(8)})}
    sent = Sent(round=1, terms=b"", digest="d", blob=b"\1" * size, head=Head(), pending=state)
    tracemalloc.start()
    one.keep(RUN, sent)
    assert tracemalloc.get_traced_memory()[1] < size / 2
    del sent
    one.close()
    tracemalloc.stop()


# -- where it is --------------------------------------------------------------------------------------------------


def place(name: str, folder: Path | None = None) -> Path:
    one = open_outbox(name, folder)
    one.close()
    assert isinstance(one, DiskOutbox)
    return one._folder


def test_the_folder_is_the_one_given_or_the_systems_place_for_it(tmp_path: Path, monkeypatch):
    for name in ("KOINON_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert place("a").parent == tmp_path / "home" / ".local" / "state" / "koinon"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert place("a").parent == tmp_path / "xdg" / "koinon"
    monkeypatch.setenv("KOINON_STATE", str(tmp_path / "state"))
    assert place("a").parent == tmp_path / "state"
    assert place("a", tmp_path / "given").parent == tmp_path / "given"


@pytest.mark.parametrize("name", [None, ""])
def test_a_device_without_a_name_of_its_own_leaves_nothing(name: str | None, tmp_path: Path):
    one = open_outbox(name, tmp_path / "state")
    one.keep(RUN, sent_of(1))
    one.close()
    assert isinstance(one, MemoryOutbox)
    assert not (tmp_path / "state").exists()


NAMES = [
    "..",
    ".",
    "/etc/passwd",
    "../../x",
    "a/b",
    "a\\b",
    "a\0b",
    "Gerät 3",
    "x" * 300,
    "*",
    "\udcff",
    "-rf",
    " ",
]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path):
    found = place(name, tmp_path)
    assert found.parent == tmp_path
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}-[0-9a-f]{16}", found.name)
    one = DiskOutbox(tmp_path / "runs")
    one.keep(name, sent_of(1))
    assert one.enter(name).sent == sent_of(1)
    one.forget(name)
    one.close()
    assert names(tmp_path / "runs") == {"device", "lock"}


def test_a_name_can_be_read_in_its_folder_and_no_two_names_share_one(tmp_path: Path):
    assert place("jetson-3", tmp_path).name.startswith("jetson-3-")
    pairs = [("a/b", "a_b"), ("x" * 60, "x" * 61), ("A", "a"), ("a.b", "a_b")]
    for one, other in pairs:
        assert place(one, tmp_path).name.lower() != place(other, tmp_path).name.lower()
