"""The outbox: whatever moment a device dies at, what it had said it kept is there, and nothing is there by halves."""

import errno
import hashlib
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
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

from koinon.outbox import DiskOutbox, Kept, MemoryOutbox, Outbox, Sent, files, open_outbox
from koinon_core import failpoints
from koinon_core.blob import NO_BYTES, Blob
from koinon_core.canonical import sha256
from koinon_core.errors import Conflict, LocalProtocolError, StoreError
from koinon_core.strategy.protocol import State
from koinon_core.tensors import Tensors
from koinon_core.update import Head
from koinon_core.wire.convert import INLINE

POINTS = ("outbox.written", "outbox.synced", "outbox.named", "outbox.removed")
RUN = "5f" * 16
NEW = Kept(state={}, settled=0, sent=None, pin={})
LARGE = INLINE + 1
"""Bytes of an update that has a file of its own."""


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
    period = bytes(i * number % 251 for i in range(251))
    head = Head(examples=number, totals={"tau": 1.5}, training={"loss": 0.25}, steps=7)
    return Sent(
        round=number,
        terms=b'{"round":%d}' % number,
        blob=Blob.of((period * (size // 251 + 1))[:size]),
        head=head,
        pending=pending,
    )


def large(number: int) -> Sent:
    return sent_of(number, pending=state_of(number), size=LARGE)


def drafted(one: Outbox, sent: Sent, run: str = RUN) -> Sent:
    """The same, made as devices make it: piece by piece, into what the outbox has for that."""
    draft = one.draft(run)
    for piece in sent.blob.pieces(30_000):
        draft.write(bytes(piece))
    return replace(sent, blob=draft.finish())


def whole(kept: Kept) -> Kept:
    """What is kept, whose update is known to be the bytes that it says it is."""
    if kept.sent is not None and kept.sent.blob.size:
        assert sha256(kept.sent.blob.bytes()) == kept.sent.digest
    return kept


def evaluated(number: int, loss: float = 0.5) -> Sent:
    head = Head(evaluation={"loss": loss}, evaluation_examples=3)
    return Sent(round=number, terms=b"{}", blob=NO_BYTES, head=head, pending=None)


def stands(folder: Path, run: str = RUN) -> Kept:
    """What a process that starts now finds."""
    one = DiskOutbox(folder)
    try:
        return whole(one.enter(run))
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
    one.keep(RUN, Sent(round=1, terms=b"", blob=NO_BYTES, head=head, pending=None))
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
        one.keep(RUN, drafted(one, large(1)))
        one.draft(RUN).write(bytes(LARGE))
        assert names(folder) == {"lock", "device", "run", "sent", "state-2", "update-2", "draft.new"}
        kill(one)
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("size", [40, LARGE])
def test_what_is_settled_takes_no_place(tmp_path: Path, size: int):
    one = DiskOutbox(tmp_path)
    for number in range(1, 6):
        one.keep(RUN, drafted(one, sent_of(number, pending=state_of(number), size=size)))
        (one.drop if number % 2 else one.commit)(RUN, number)
    update = {"update-6"} if size == LARGE else set()
    assert names(tmp_path) == {"lock", "device", "run", "sent", "state-5", "state-6"} | update
    one.close()
    assert names(tmp_path) == {"lock", "device", "run", "state-5"}
    one = DiskOutbox(tmp_path)
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


def kill(one: DiskOutbox) -> None:
    """The process of this memory is gone, and wrote nothing more."""
    failpoints.disarm()
    one._lock.close()


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only processes die, and the system lives, nothing needs a sync: that order has tests of its own."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def nothing(one: DiskOutbox) -> None:
    one.enter(RUN)


def first(one: DiskOutbox) -> None:
    one.keep(RUN, sent_of(1, pending=state_of(1.0)))


def first_large(one: DiskOutbox) -> None:
    one.keep(RUN, drafted(one, large(1)))


def before_keep(one: DiskOutbox) -> None:
    first(one)
    one.commit(RUN, 1)
    one.pin(RUN, {"head": "a"})


def before_settling(one: DiskOutbox) -> None:
    before_keep(one)
    one.keep(RUN, sent_of(2, pending=state_of(2.0)))


def before_settling_large(one: DiskOutbox) -> None:
    before_keep(one)
    one.keep(RUN, drafted(one, large(2)))


def before_evaluation(one: DiskOutbox) -> None:
    before_keep(one)
    one.keep(RUN, evaluated(2))


def before_dropping(one: DiskOutbox) -> None:
    before_keep(one)
    one.keep(RUN, replace(sent_of(2, pending=state_of(2.0)), pin={"head": "b"}))


def before_dropping_an_older_pin(one: DiskOutbox) -> None:
    before_dropping(one)
    one.pin(RUN, {"head": "c"})


def commit(one: DiskOutbox) -> None:
    out = one.enter(RUN).sent
    assert out is not None
    one.commit(RUN, out.round)


def drop(one: DiskOutbox) -> None:
    one.drop(RUN, 2)


def keep(one: DiskOutbox) -> None:
    one.keep(RUN, sent_of(3, pending=state_of(3.0)))


def keep_large(one: DiskOutbox) -> None:
    one.keep(RUN, drafted(one, large(3)))


def keep_large_without_a_state(one: DiskOutbox) -> None:
    one.keep(RUN, drafted(one, replace(large(3), pending=None)))


def keep_large_made_elsewhere(one: DiskOutbox) -> None:
    one.draft(RUN).write(bytes(LARGE))
    one.keep(RUN, large(3))


def keep_evaluation_after_half_an_update(one: DiskOutbox) -> None:
    one.draft(RUN).write(bytes(LARGE))
    keep_evaluation(one)


def keep_evaluation(one: DiskOutbox) -> None:
    one.keep(RUN, replace(evaluated(3), pin={"head": "d"}))


def pin(one: DiskOutbox) -> None:
    one.pin(RUN, {"head": "e"})


def forget(one: DiskOutbox) -> None:
    one.forget(RUN)


def close(one: DiskOutbox) -> None:
    one.close()


Step = Callable[[DiskOutbox], object]
# What was before, the receipt that came (and wrote nothing), what is done then.
STEPS: dict[str, tuple[Step, Step, Step]] = {
    "the first keep": (nothing, nothing, first),
    "keep after a commit": (before_settling, commit, keep),
    "keep after the first commit": (first, commit, keep),
    "keep after a commit without a state": (before_evaluation, commit, keep),
    "keep after a drop": (before_settling, drop, keep),
    "keep after a drop of what brought a pin": (before_dropping, drop, keep),
    "keep without a state": (before_settling, commit, keep_evaluation),
    "keep without a state after a drop": (before_dropping_an_older_pin, drop, keep_evaluation),
    "the first keep of a large one": (nothing, nothing, first_large),
    "keep of a large one after a commit of one": (before_settling_large, commit, keep_large),
    "keep of a large one after a drop of one": (before_settling_large, drop, keep_large),
    "keep of a large one without a state": (before_settling_large, commit, keep_large_without_a_state),
    "keep of a large one made elsewhere": (before_settling_large, commit, keep_large_made_elsewhere),
    "keep after a commit of a large one": (before_settling_large, commit, keep),
    "keep after a drop of a large one": (before_settling_large, drop, keep),
    "keep without an update": (before_settling_large, commit, keep_evaluation_after_half_an_update),
    "pin": (before_settling, nothing, pin),
    "pin with a large one out": (before_settling_large, nothing, pin),
    "pin after a drop of a large one": (before_settling_large, drop, pin),
    "pin over a pin": (before_dropping, nothing, pin),
    "pin after a commit": (before_settling, commit, pin),
    "pin after a drop": (before_dropping, drop, pin),
    "forget": (before_settling, nothing, forget),
    "forget after a commit": (before_settling, commit, forget),
    "forget a large one": (before_settling_large, nothing, forget),
    "close after a commit": (before_settling, commit, close),
    "close after a commit of a large one": (before_settling_large, commit, close),
    "close after a drop of a large one": (before_settling_large, drop, close),
    "close after a commit without a state": (before_evaluation, commit, close),
    "close after a drop": (before_settling, drop, close),
    "close after a drop of what brought a pin": (before_dropping, drop, close),
    "close after a drop of what brought an older pin": (before_dropping_an_older_pin, drop, close),
}


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("name", STEPS)
def test_a_process_killed_at_any_point_finds_the_last_round_unsettled_or_settled(name: str, tmp_path: Path):
    prepare, receipt, step = STEPS[name]
    done = DiskOutbox(tmp_path / "done")
    prepare(done)
    before = stands_after_kill(tmp_path / "done", tmp_path / "before")
    receipt(done)
    known = done.enter(RUN)
    assert stands_after_kill(tmp_path / "done", tmp_path / "lazy") == before
    passed = killing(0)
    step(done)
    failpoints.disarm()
    after = known if step is close else done.enter(RUN)
    kill(done)
    assert stands(tmp_path / "done") == after != before
    hits = len(passed)
    assert hits >= 3
    for k in range(1, hits + 1):
        for j in range(1, 15):  # and killed again, at any point of the start after it
            folder = tmp_path / f"killed-{k}-{j}"
            one = DiskOutbox(folder)
            prepare(one)
            receipt(one)
            killing(k)
            with pytest.raises(Killed):
                step(one)
            kill(one)
            twice = killed_while_starting(folder, j)
            one = DiskOutbox(folder)
            found = whole(one.enter(RUN))
            assert found in (before, after), f"killed at {passed[k - 1]}"
            if found != after:  # the coordinator says it again
                receipt(one)
                assert one.enter(RUN) == known
            step(one)
            kill(one)
            assert stands(folder) == after, f"killed at {passed[k - 1]}"
            assert len(names(folder)) == len(names(tmp_path / "done")), f"killed at {passed[k - 1]}"
            shutil.rmtree(folder)
            if not twice:
                break


def stands_after_kill(folder: Path, copy: Path, run: str = RUN) -> Kept:
    """What a start would find if the process that has `folder` died now."""
    shutil.copytree(folder, copy)
    return stands(copy, run)


def killed_while_starting(folder: Path, at: int) -> bool:
    """Whether there was an `at`-th point to die at, from the start to what is kept of the run."""
    killing(at)
    one = None
    try:
        one = DiskOutbox(folder)
        one.enter(RUN)
    except Killed:
        return True
    finally:
        failpoints.disarm()
        if one is not None:
            kill(one)
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
outbox.commit(t.RUN, 2)
left = int(sys.argv[3])
def die(about):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
failpoints.arm(sys.argv[2], die)
t.keep(outbox)
if sys.argv[2] == "link.said":
    failpoints.hit("link.said")
"""


@pytest.mark.parametrize(
    ("point", "number", "kept"),
    [
        ("outbox.written", 1, False),
        ("outbox.synced", 2, False),
        ("outbox.named", 1, False),
        ("outbox.named", 2, True),
        ("outbox.removed", 1, True),
        ("link.said", 1, True),
    ],
)
def test_sigkill_between_counted_and_the_end_of_the_next_keep(
    point: str, number: int, kept: bool, tmp_path: Path
):
    assert python(KILL, tmp_path, point, number).returncode == -signal.SIGKILL
    one = DiskOutbox(tmp_path)
    if not kept:
        out = sent_of(2, pending=state_of(2.0))
        assert one.enter(RUN) == Kept(state=state_of(1.0), settled=1, sent=out, pin={"head": "a"})
        one.commit(RUN, 2)
        keep(one)
    out = sent_of(3, pending=state_of(3.0))
    assert one.enter(RUN) == Kept(state=state_of(2.0), settled=2, sent=out, pin={"head": "a"})
    one.close()


# -- the power ----------------------------------------------------------------------------------------------------


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Everything that is synced, named and removed, as it happens."""
    told: list[tuple[str, object]] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        about = os.fstat(fd)
        told.append(("folder", "") if stat.S_ISDIR(about.st_mode) else ("file", about.st_ino))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    for point in ("outbox.named", "outbox.removed"):
        failpoints.arm(point, lambda about, point=point: told.append((point, about)))
    return told


FILE, FOLDER = "file", "folder"
STATE, SENT, RECORD = ("outbox.named", "state"), ("outbox.named", "sent"), ("outbox.named", "run")
UPDATE, NO_UPDATE = ("outbox.named", "update"), ("outbox.removed", "update")
NO_STATE, NO_SENT, NO_RECORD = (("outbox.removed", what) for what in ("state", "sent", "run"))


def test_a_round_costs_what_its_update_costs(tmp_path: Path, syncs: list[Any]):
    def told() -> list[Any]:
        said = [what if what in (FILE, FOLDER) else (what, about) for what, about in syncs]
        syncs.clear()
        return said

    one = DiskOutbox(tmp_path / "new")
    assert told() == [FOLDER, FILE, ("outbox.named", "device"), FOLDER]
    one.enter(RUN)
    assert told() == [FILE, RECORD, FOLDER]
    one.keep(RUN, sent_of(1))
    assert told() == [FILE, SENT, FOLDER]
    one.commit(RUN, 1)
    one.keep(RUN, sent_of(2, pending=state_of(2.0)))
    assert told() == [FILE, FILE, STATE, SENT, FOLDER]
    one.keep(RUN, sent_of(2, pending=state_of(2.0)))
    one.commit(RUN, 2)
    one.commit(RUN, 2)
    one.drop(RUN, 2)
    assert told() == []
    one.keep(RUN, sent_of(3, pending=state_of(3.0)))
    assert told() == [FILE, FILE, STATE, SENT, FOLDER]
    one.drop(RUN, 3)
    one.keep(RUN, sent_of(4, pending=state_of(4.0)))
    assert told() == [FILE, FILE, STATE, SENT, FOLDER, NO_STATE]
    one.commit(RUN, 4)
    one.keep(RUN, evaluated(5))
    assert told() == [FILE, SENT, FOLDER, NO_STATE]
    one.pin(RUN, {"head": "a"})
    one.pin(RUN, {"head": "a"})
    assert told() == [FILE, RECORD, FOLDER]
    one.commit(RUN, 5)
    one.close()
    assert told() == [FILE, RECORD, FOLDER, NO_SENT]
    one.close()
    one = DiskOutbox(tmp_path / "new")
    one.enter(RUN)
    one.close()
    one = DiskOutbox(tmp_path / "new")
    told()
    one.forget(RUN)
    assert told() == [FILE, RECORD, FOLDER, NO_STATE, FOLDER, NO_RECORD]
    one.close()
    assert told() == []


class Disk:
    """What the disk has of a folder while its files are changed: the names as they were when the folder was synced
    last, and what was done to them since, of which the power may leave anything."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.safe = folder, {p.name: p.read_bytes() for p in folder.iterdir()}
        self.since: list[tuple[str, bytes | None]] = []
        self.moments: list[tuple[dict[str, bytes], list[tuple[str, bytes | None]]]] = []
        replace_, unlink, fsync = Path.replace, Path.unlink, os.fsync
        synced: set[tuple[int, int]] = set()

        def naming(path: Path, target: Path) -> Path:
            about = path.stat()
            assert (about.st_ino, about.st_size) in synced, f"{path} has a name and no content"
            self._then(target.name, path.read_bytes())
            return replace_(path, target)

        def unlinking(path: Path, missing_ok: bool = False) -> None:
            self._then(path.name, None)
            unlink(path, missing_ok)

        def syncing(fd: int) -> None:
            about = os.fstat(fd)
            synced.add((about.st_ino, about.st_size))
            fsync(fd)
            if stat.S_ISDIR(about.st_mode):
                self.safe = after(self.safe, self.since)
                self.since = []
                self._moment()

        monkeypatch.setattr(Path, "replace", naming)
        monkeypatch.setattr(Path, "unlink", unlinking)
        monkeypatch.setattr(os, "fsync", syncing)

    def _then(self, name: str, content: bytes | None) -> None:
        self.since.append((name, content))
        self._moment()

    def _moment(self) -> None:
        self.moments.append((dict(self.safe), list(self.since)))


def after(names: dict[str, bytes], changes: Iterable[tuple[str, bytes | None]]) -> dict[str, bytes]:
    now: dict[str, bytes | None] = {**names, **dict(changes)}
    return {name: content for name, content in now.items() if content is not None}


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("name", STEPS)
def test_the_power_may_go_at_any_moment(name: str, ordered: bool, tmp_path: Path, monkeypatch):
    """With a file system that keeps the order of what is named and removed, and with one that does not."""
    prepare, receipt, step = STEPS[name]
    folder = tmp_path / "device"
    one = DiskOutbox(folder)
    prepare(one)
    before = stands_after_kill(folder, tmp_path / "before")
    receipt(one)
    known = one.enter(RUN)
    with monkeypatch.context() as patch:
        disk = Disk(folder, patch)
        step(one)
    last = known if step is close else one.enter(RUN)
    kill(one)
    allowed = [before, last]
    out = last.sent
    if not ordered and step is not pin and out is not None and (out.pending or out.blob.size > INLINE):
        allowed.append(replace(last, sent=None))  # its state, or its file, has no name yet
    assert len(disk.moments) >= 2
    for i, (safe, since) in enumerate(disk.moments):
        cuts = [since[:n] for n in range(len(since) + 1)]
        if not ordered:
            cuts = [list(some) for n in range(len(since) + 1) for some in combinations(since, n)]
        for n, changes in enumerate(cuts):
            found = stands_in(tmp_path / f"{i}-{n}", after(safe, changes))
            assert found in allowed, f"{i}: {[(name, content is not None) for name, content in changes]}"
    for n in range(len(disk.since) + 1):  # it has returned
        for some in combinations(disk.since, n):
            assert stands_in(tmp_path / "returned", after(disk.safe, some)) == last


def stands_in(folder: Path, content: dict[str, bytes]) -> Kept:
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    found = stands(folder)
    assert stands(folder) == found
    shutil.rmtree(folder)
    return found


# -- a long life --------------------------------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """A device's memory against one that forgets nothing, over starts and kills. `disk` is what a start would find."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.one, self.boot, self.next = DiskOutbox(self.folder), 1, 1
        self.model, self.disk = MemoryOutbox(), dict.fromkeys("ab", NEW)
        self.fate: dict[str, tuple[int, bool]] = {}

    def teardown(self) -> None:
        failpoints.disarm()
        self.one.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(
        run=st.sampled_from("ab"),
        value=st.none() | st.integers(0, 9),
        size=st.sampled_from([40, LARGE]),
        made_here=st.booleans(),
        die=st.integers(0, 14),
    )
    def keep(self, run: str, value: int | None, size: int, made_here: bool, die: int) -> None:
        self.next += 1
        held = self.model.enter(run).sent
        pin = {"sent": value} if value in (1, 2, 3) else {}
        pending = None if value is None else state_of(value)
        sent = replace(sent_of(self.next, pending=pending, size=size), pin=pin)
        if held is not None:
            with pytest.raises(LocalProtocolError):
                self.one.keep(run, drafted(self.one, sent, run) if made_here else sent)
            self.one.keep(run, drafted(self.one, held, run) if made_here else held)
        else:
            self.attempt(
                run, die, lambda outbox: outbox.keep(run, drafted(outbox, sent, run) if made_here else sent)
            )

    @rule(run=st.sampled_from("ab"), size=st.sampled_from([40, LARGE]), complete=st.booleans())
    def draft(self, run: str, size: int, complete: bool) -> None:
        """An update that nobody hands in."""
        draft = self.one.draft(run)
        draft.write(bytes(size))
        if complete:
            draft.finish()

    @rule(run=st.sampled_from("ab"), counted=st.booleans())
    def settle(self, run: str, counted: bool) -> None:
        sent = self.model.enter(run).sent
        if sent is not None:
            self.fate[run] = sent.round, counted
            self.receipt(run)
        self.receipt(run)

    @rule(run=st.sampled_from("ab"), value=st.integers(0, 3), die=st.integers(0, 9))
    def pin(self, run: str, value: int, die: int) -> None:
        self.attempt(run, die, lambda outbox: outbox.pin(run, {"value": value}))

    @rule(run=st.sampled_from("ab"), die=st.integers(0, 12))
    def forget(self, run: str, die: int) -> None:
        self.attempt(run, die, lambda outbox: outbox.forget(run))

    @rule(die=st.integers(0, 12))
    def close(self, die: int) -> None:
        killing(die)
        with suppress(Killed):
            self.one.close()
            self.disk = {run: self.model.enter(run) for run in "ab"}
        self.start_again()

    @rule()
    def die(self) -> None:
        self.start_again()

    def start_again(self) -> None:
        """A new process, which hears again what became of the update that it finds."""
        kill(self.one)
        instance = self.one.instance
        self.one = DiskOutbox(self.folder)
        self.boot += 1
        assert (self.one.instance, self.one.boot) == (instance, self.boot)
        for run, expected in self.disk.items():
            found, known = whole(self.one.enter(run)), self.model.enter(run)
            assert found in (expected, known)
            if found.sent is not None and found.sent.round == self.fate.get(run, (0, False))[0]:
                self.receipt(run)
            assert self.one.enter(run) == known
            self.disk[run] = found

    def receipt(self, run: str) -> None:
        number, counted = self.fate.get(run, (0, False))
        for outbox in (self.one, self.model):
            (outbox.commit if counted else outbox.drop)(run, number)

    def attempt(self, run: str, die: int, do: Callable[[Outbox], None]) -> None:
        """Do it, and perhaps die at the `die`-th point of it."""
        self.one.enter(run)
        trial = MemoryOutbox()
        trial._runs = dict(self.model._runs)
        do(trial)
        killing(die)
        try:
            do(self.one)
            done = True
        except Killed:
            kill(self.one)
            with tempfile.TemporaryDirectory() as folder:
                done = stands_after_kill(self.folder, Path(folder) / "copy", run) == trial.enter(run)
        failpoints.disarm()
        if done:
            self.model, self.disk[run] = trial, trial.enter(run)
            if trial.enter(run) == NEW:
                self.fate.pop(run, None)
        if self.one._lock.closed:
            self.start_again()

    @invariant()
    def agrees(self) -> None:
        for run in "ab":
            assert whole(self.one.enter(run)) == self.model.enter(run)
            assert len(list(self.folder.glob(f"{files.safe(run)}.update-*"))) <= 1


@pytest.mark.usefixtures("unsynced")
def test_a_memory_is_what_it_would_be_without_a_disk():
    run_state_machine_as_test(
        Life, settings=settings(max_examples=40, stateful_step_count=25, deadline=None, database=None)
    )


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A memory with one file of each kind, and two states."""
    folder = tmp_path / "full"
    one = DiskOutbox(folder)
    before_settling(one)
    one.close()
    assert names(folder) == {"lock", "device", "run", "sent", "state-2", "state-4"}
    return folder


@pytest.fixture
def full_large(tmp_path: Path) -> Path:
    """The same with a large update."""
    folder = tmp_path / "full-large"
    one = DiskOutbox(folder)
    before_settling_large(one)
    one.close()
    assert names(folder) == {"lock", "device", "run", "sent", "state-2", "state-4", "update-4"}
    return folder


def flips(path: Path) -> Iterator[None]:
    """The file with a bit flipped in every region of it, one at a time; then as it was."""
    whole = path.read_bytes()
    regions = range(50, len(whole), max(61, len(whole) // 30))
    for at in sorted({0, 5, 8, 12, 16, 20, 40, *regions, len(whole) - 32, len(whole) - 1}):
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
@pytest.mark.parametrize("what", ["device", "run", "state-2"])
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


@pytest.mark.parametrize("what", ["device", "run", "state-2"])
def test_a_missing_part_of_a_memory_is_damage(full: Path, what: str):
    file(full, what).unlink()
    with pytest.raises(StoreError, match=f"{what} is missing"):
        stands(full)


def head_of(path: Path) -> int:
    """Where a file's header, and its digest, end."""
    (length,) = files._LENGTH.unpack(path.read_bytes()[8:16])
    return 16 + int(length) + 32


@pytest.mark.parametrize("harm", [flips, cuts])
@pytest.mark.parametrize(
    ("what", "size"),
    [("sent", 40), ("state-5", 40), ("sent", LARGE), ("state-5", LARGE), ("update-5", LARGE)],
)
def test_a_damaged_update_is_set_aside_and_where_the_run_stood_is_known(
    tmp_path: Path, what: str, size: int, harm: Any, caplog, monkeypatch
):
    """That round 2 was counted is written in `sent` alone."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    copy = tmp_path / "copy"
    one = DiskOutbox(copy)
    before_settling(one)
    one.commit(RUN, 2)
    one.keep(RUN, drafted(one, sent_of(3, pending=state_of(3.0), size=size)))
    kill(one)
    path = file(copy, what)
    whole, head = path.read_bytes(), head_of(path) if what == "sent" else 0
    aside = {"sent.damaged"} | ({"update.damaged"} if size == LARGE else set())
    why = "its content does not have the SHA-256 that it was written with"
    if what == "update-5" and harm is cuts:
        why = "it has [0-9]+ bytes, and 65537 were written"
    stood, seen = Kept(state=state_of(2.0), settled=2, sent=None, pin={"head": "a"}), set()
    for n, _ in enumerate(harm(path)):
        caplog.clear()
        damaged = tmp_path / f"damaged-{n}"
        shutil.copytree(copy, damaged)
        readable = what != "sent" or path.read_bytes()[:head] == whole[:head]
        seen.add(readable)
        if not readable:
            with pytest.raises(StoreError, match="this device's memory is damaged"):
                stands(damaged)
            assert names(damaged) == names(copy)
            continue
        killing(n % 10)
        with caplog.at_level(logging.ERROR, "koinon"), suppress(Killed):
            one = DiskOutbox(damaged)
            one.enter(RUN)
        kill(one)
        with caplog.at_level(logging.ERROR, "koinon"):
            assert stands(damaged) == stood
        assert len(caplog.records) in (1, 2)
        assert (
            f"run {RUN}: an update whose fate is not known is lost, and set aside as {damaged}" in caplog.text
        )
        assert re.search(f"{what} cannot be read: {why}", caplog.text)
        said = len(caplog.records)
        assert names(damaged) - aside == {"lock", "device", "run", "state-4"}
        if n % 10 == 0:
            assert aside <= names(damaged)
            if what == "update-5":
                assert file(damaged, "update.damaged").read_bytes() == path.read_bytes()
        assert stands(damaged) == stood
        assert len(caplog.records) == said
        one = DiskOutbox(damaged)
        keep(one)
        one.commit(RUN, 3)
        one.close()
        assert stands(damaged).state == state_of(3.0)
        one = DiskOutbox(damaged)
        one.forget(RUN)
        assert names(damaged) == {"lock", "device"}
        one.close()
        shutil.rmtree(damaged)
    assert seen == ({True, False} if what == "sent" else {True})


@pytest.mark.parametrize("what", ["state-4", "update-4"])
def test_an_update_without_its_state_or_its_file_was_never_kept(full_large: Path, what: str, caplog):
    full = full_large
    path, sent = file(full, what), file(full, "sent")
    path.unlink()
    stood = Kept(state=state_of(1.0), settled=1, sent=None, pin={"head": "a"})
    for _ in range(2):
        caplog.clear()
        one = DiskOutbox(full)
        with caplog.at_level(logging.WARNING, "koinon"):
            assert one.enter(RUN) == stood
        kill(one)
        assert f"run {RUN}: {sent} was not kept, for it has no {path.name}" in caplog.text
    assert stands(full) == stood
    assert names(full) == {"lock", "device", "run", "state-2"}
    one = DiskOutbox(full)
    one.keep(RUN, drafted(one, replace(large(2), pending=state_of(4.0))))
    one.close()
    assert stands(full).sent == replace(large(2), pending=state_of(4.0))


def test_a_start_that_could_not_read_may_be_repeated(full: Path, monkeypatch):
    one, read = DiskOutbox(full), files.read

    def broken(path: Path, kind: str, run: str) -> Any:
        if kind == "sent":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path, kind, run)

    monkeypatch.setattr(files, "read", broken)
    for _ in range(2):
        with pytest.raises(StoreError, match="Input/output error"):
            one.enter(RUN)
    monkeypatch.undo()
    assert one.enter(RUN).sent == sent_of(2, pending=state_of(2.0))
    one.close()


def rewritten(path: Path, **changes: Any) -> None:
    """A state as an honest writer would have made it, with another header."""
    header, parts = files.read(path, "state", RUN)
    files.write(files.File(path, {**header, **changes}, list(parts)))


def test_a_file_of_another_run_version_kind_or_round_is_not_taken(full: Path, monkeypatch):
    state = file(full, "state-2")
    whole = state.read_bytes()
    for changes, why in (
        ({"run": "x"}, "run 'x'"),
        ({"kind": "sent"}, "'sent'"),
        ({"turn": 7}, "of turn 7"),
    ):
        rewritten(state, **changes)
        with pytest.raises(StoreError, match=why):
            stands(full)
        state.write_bytes(whole)
    header, _ = files.read(file(full, "device"), "device", "")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_VERSION", 2)
        files.write(files.File(file(full, "device"), header))
    with pytest.raises(StoreError, match="of version 2, and this Koinon reads version 1"):
        stands(full)


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("length", [1 << 62, 10_000])
def test_a_declared_size_is_checked_before_anything_is_allocated(full: Path, length: int, cut: bool):
    path = file(full, "state-2")
    header = path.read_bytes()[: head_of(path)]
    content = (files._MAGIC if cut else header) + files._LENGTH.pack(length) + b"{}"
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


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(("name", "at"), [(n, at) for n in STEPS for at in (1, 2, 3)[: 2 + ("large" in n)]])
def test_a_full_disk_is_said_and_the_call_may_be_repeated(
    name: str, point: str, at: int, tmp_path: Path, caplog
):
    prepare, receipt, step = STEPS[name]
    folder, wanted = tmp_path / "device", DiskOutbox(tmp_path / "wanted")
    prepare(wanted)
    receipt(wanted)
    known = wanted.enter(RUN)
    step(wanted)
    last = known if step is close else wanted.enter(RUN)
    kill(wanted)
    one, passed = DiskOutbox(folder), 0
    prepare(one)
    receipt(one)
    before = stands_after_kill(folder, tmp_path / "before")

    def full(about: str) -> None:
        nonlocal passed
        passed += 1
        if passed >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    failpoints.arm(point, full)
    said = ""
    try:
        step(one)
    except StoreError as error:
        said = str(error)
    failpoints.disarm()
    harmless = point == "outbox.removed" and step is not forget
    if passed >= at and not harmless:
        said = caplog.text if step is close else said
        assert f"in {folder}: No space left on device; free some space" in said
        assert not list(folder.glob("*.new"))
    else:
        assert said == caplog.text == ""
    after_it = stands_after_kill(folder, tmp_path / "after")
    assert after_it in (before, last)
    if step is close:
        return
    if said and step is not forget:
        assert one.enter(RUN) == known  # nothing that was heard is unheard
    step(one)
    assert one.enter(RUN) == last
    one.close()
    assert stands(folder) == last


def torn(one: DiskOutbox, sent: Sent) -> None:
    """A keep that fails once `sent` has its name."""

    def full(about: str) -> None:
        if about == "sent":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    failpoints.arm("outbox.named", full)
    with pytest.raises(StoreError):
        one.keep(RUN, sent)
    failpoints.disarm()


@pytest.mark.parametrize("size", [40, LARGE])
@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("then", ["close", "pin", "keep"])
def test_a_keep_that_failed_may_leave_its_update_and_what_comes_next_takes_it_back(
    tmp_path: Path, size: int, lazy: bool, then: str
):
    one = DiskOutbox(tmp_path)
    before_settling(one) if lazy else before_keep(one)
    if lazy:
        one.commit(RUN, 2)
    known = one.enter(RUN)
    torn(one, replace(drafted(one, sent_of(3, pending=state_of(3.0), size=size)), pin={"head": "z"}))
    one.drop(RUN, 3)
    assert one.enter(RUN) == known
    if then == "close":
        one.close()
    elif then == "pin":
        one.pin(RUN, known.pin)
    else:  # the same round once more, with another result
        other = sent_of(3, pending=state_of(9.0), size=41)
        one.keep(RUN, other)
        known = replace(known, sent=other)
    assert not list(tmp_path.glob("*.update-*"))
    kill(one)
    assert stands(tmp_path) == known


LIMIT = """
import resource
outbox = DiskOutbox(Path(sys.argv[1]))
t.before_keep(outbox)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
sent = t.sent_of(2, pending=t.state_of(2.0), size=200_000)
try:
    outbox.keep(t.RUN, t.drafted(outbox, sent) if sys.argv[2] == "drafted" else sent)
except t.StoreError as error:
    print(error)
print(sorted(t.names(Path(sys.argv[1]))), outbox.enter(t.RUN).settled)
"""


@pytest.mark.parametrize("how", ["drafted", "made elsewhere"])
def test_a_file_that_the_system_lets_grow_no_further(tmp_path: Path, how: str):
    done = python(LIMIT, tmp_path, how)
    assert done.returncode == 0, done.stderr
    said, listed = done.stdout.splitlines()
    assert said.startswith(f"this device cannot keep its memory in {tmp_path}: File too large; ")
    assert listed == "['device', 'lock', 'run', 'state-2'] 1"
    assert stands(tmp_path) == Kept(state=state_of(1.0), settled=1, sent=None, pin={"head": "a"})
    assert names(tmp_path) == {"device", "lock", "run", "state-2"}


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(StoreError, match="cannot keep its memory"):
        DiskOutbox(tmp_path / "plain" / "device")


def test_a_state_is_in_memory_once_and_a_large_update_never(tmp_path: Path):
    one, size, part = DiskOutbox(tmp_path), 16_000_000, bytes(100_000)
    state = {"c": Tensors({f"w{i}": np.ones(size // 128) for i in range(16)})}
    tracemalloc.start()
    draft = one.draft(RUN)
    for _ in range(size // len(part)):
        draft.write(part)
    sent = Sent(round=1, terms=b"", blob=draft.finish(), head=Head(), pending=state)
    one.keep(RUN, sent)
    one.close()
    assert tracemalloc.get_traced_memory()[1] < size / 4
    one = DiskOutbox(tmp_path)
    again = replace(sent, pending=None)
    one.enter("b")
    one.keep("b", again)
    assert tracemalloc.get_traced_memory()[1] < size / 4
    one.close()
    one = DiskOutbox(tmp_path)
    tracemalloc.reset_peak()
    assert one.enter("b").sent == again
    assert tracemalloc.get_traced_memory()[1] < size / 4
    one.close()
    tracemalloc.stop()


# -- large updates ------------------------------------------------------------------------------------------------


def open_files(folder: Path) -> int:
    """How many files of a folder this process has open, those without a name included."""
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += str(fd.readlink()).startswith(f"{folder}/")
    return found


def test_an_update_has_a_file_where_it_no_longer_fits_into_a_message(tmp_path: Path):
    one = DiskOutbox(tmp_path)
    for run, size in (("a", 0), ("b", INLINE), ("c", INLINE + 1)):
        one.keep(run, drafted(one, sent_of(1, size=size), run))
    one.close()
    (path,) = tmp_path.glob("*.update-*")
    assert path == tmp_path / f"{files.safe('c')}.update-2"
    assert path.read_bytes() == sent_of(1, size=INLINE + 1).blob.bytes()
    for run, size in (("a", 0), ("b", INLINE), ("c", INLINE + 1)):
        assert stands(tmp_path, run).sent == sent_of(1, size=size)


@pytest.mark.parametrize("size", [0, 40, INLINE, LARGE, 3_000_000])
def test_an_update_that_version_0_2_0_kept_is_read_whatever_its_size(full: Path, size: int):
    """It wrote all bytes into `sent`, and neither their number nor what was measured."""
    path = file(full, "sent")
    header, _ = files.read(path, "sent", RUN)
    sent = (
        sent_of(2, pending=state_of(2.0), size=size) if size else replace(evaluated(2), pending=state_of(2.0))
    )
    del header["stats"]
    header |= {"digest": sent.digest, "head": sent.head.to_json()}
    files.write(files.File(path, header, [sent.terms, sent.blob.bytes()]))
    assert stands(full) == Kept(state=state_of(1.0), settled=1, sent=sent, pin={"head": "a"})
    one = DiskOutbox(full)
    one.keep(RUN, sent)
    one.commit(RUN, 2)
    keep_large(one)
    one.close()
    assert stands(full) == Kept(state=state_of(2.0), settled=2, sent=large(3), pin={"head": "a"})


def test_an_update_inside_sent_is_the_one_that_its_header_names(full: Path):
    path = file(full, "sent")
    header, parts = files.read(path, "sent", RUN)
    terms, _ = parts
    for content in ([terms, b"another"], [terms], [terms, b"", b""]):
        files.write(files.File(path, header, content))
        copy = full.with_name("copy")
        shutil.copytree(full, copy)
        assert stands(copy).sent is None
        assert "sent.damaged" in names(copy)
        shutil.rmtree(copy)


def test_a_large_update_costs_one_sync_more_and_none_while_it_is_kept(tmp_path: Path, syncs: list[Any]):
    def told() -> list[Any]:
        said = [what if what in (FILE, FOLDER) else (what, about) for what, about in syncs]
        syncs.clear()
        return said

    one = DiskOutbox(tmp_path)
    one.enter(RUN)
    told()
    sent = drafted(one, large(1))
    assert told() == [FILE]
    one.keep(RUN, sent)
    assert told() == [FILE, FILE, STATE, UPDATE, SENT, FOLDER]
    one.commit(RUN, 1)
    one.keep(RUN, drafted(one, replace(large(2), pending=None)))
    assert told() == [FILE, FILE, UPDATE, SENT, FOLDER, NO_UPDATE]
    one.drop(RUN, 2)
    assert told() == []
    one.keep(RUN, sent_of(3))
    assert told() == [FILE, SENT, FOLDER, NO_UPDATE]
    one.close()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("size", [40, LARGE])
def test_a_draft_that_is_not_kept_is_gone_when_the_next_one_begins(tmp_path: Path, size: int, finished: bool):
    one = DiskOutbox(tmp_path)
    one.enter(RUN)
    held = open_files(tmp_path)
    first = one.draft(RUN)
    first.write(bytes(size))
    if finished:
        first.finish()
    second = one.draft(RUN)
    assert names(tmp_path) == {"lock", "device", "run"}
    second.write(bytes(LARGE))
    with pytest.raises(LocalProtocolError, match="given up while it was made"):
        first.write(b"1")
    with pytest.raises(LocalProtocolError, match="given up while it was made"):
        first.finish()
    del first
    sent = replace(large(1), blob=second.finish())
    assert open_files(tmp_path) == held + 1
    one.keep(RUN, sent)
    del second
    one.close()
    assert stands(tmp_path).sent == sent
    assert sent.digest == sha256(bytes(LARGE))


@pytest.mark.parametrize("end", ["close", "kill", "keep of another", "the same again"])
def test_a_draft_that_is_never_kept_leaves_nothing(tmp_path: Path, end: str):
    one = DiskOutbox(tmp_path)
    before_settling_large(one)
    held = open_files(tmp_path)
    one.draft(RUN).write(bytes(2 * LARGE))
    assert "draft.new" in names(tmp_path)
    assert open_files(tmp_path) == held + 1
    if end == "close":
        one.close()
    elif end == "kill":
        kill(one)
        assert "draft.new" in names(tmp_path)
        stands(tmp_path)
    elif end == "the same again":
        one.keep(RUN, large(2))
        assert open_files(tmp_path) == held
    else:
        one.commit(RUN, 2)
        one.keep(RUN, evaluated(3))
        assert stands_after_kill(tmp_path, tmp_path.with_name("copy")).sent == evaluated(3)
        assert open_files(tmp_path) == held - 1
        assert names(tmp_path) == {"lock", "device", "run", "sent", "state-4"}
    assert not list(tmp_path.glob("*.new"))
    one.close()
    del one
    assert open_files(tmp_path) == 0


def test_what_else_is_written_meanwhile_leaves_a_draft_alone(tmp_path: Path):
    one, sent = DiskOutbox(tmp_path), sent_of(3, pending=state_of(3.0), size=70_000)
    draft, pieces = one.draft(RUN), sent.blob.pieces(1000)
    for _ in range(69):  # all but the last
        draft.write(bytes(next(pieces)))
    meanwhile: list[Callable[[], object]] = [
        lambda: one.enter(RUN),
        lambda: one.pin(RUN, {"head": "a"}),
        lambda: one.enter("b"),
        lambda: one.keep("b", drafted(one, large(1), "b")),
        lambda: one.drop("b", 1),
        lambda: one.forget("b"),
        lambda: one.forget(RUN),
        lambda: one.enter(RUN),
        lambda: one.pin(RUN, {"head": "c"}),
    ]
    for do in meanwhile:
        do()
        assert "draft.new" in names(tmp_path)
    draft.write(bytes(next(pieces)))
    one.keep(RUN, replace(sent, blob=draft.finish()))
    kill(one)
    assert stands(tmp_path) == Kept(state={}, settled=0, sent=sent, pin={"head": "c"})


def test_an_update_is_read_on_whatever_becomes_of_its_file(tmp_path: Path):
    one, content = DiskOutbox(tmp_path), large(1).blob.bytes()
    sent = drafted(one, large(1))

    def reads(blob: Blob) -> bool:
        return blob.bytes() == content and bytes(blob.piece(LARGE - 9, 9)) == content[-9:]

    assert reads(sent.blob)
    one.keep(RUN, sent)
    assert reads(sent.blob)
    one.close()
    one = DiskOutbox(tmp_path)
    again = one.enter(RUN).sent
    assert again is not None
    one.commit(RUN, 1)
    keep_large(one)
    assert "update-2" not in names(tmp_path)
    assert reads(sent.blob)
    assert reads(again.blob)
    one.forget(RUN)
    one.close()
    assert reads(again.blob)
    del sent, again
    assert open_files(tmp_path) == 0


def test_what_cannot_be_read_any_more_is_the_disks_fault(full_large: Path, monkeypatch):
    one = DiskOutbox(full_large)
    sent = one.enter(RUN).sent
    assert sent is not None

    def broken(fd: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(
        StoreError, match=f"in {full_large}: Input/output error; free some space there, or see"
    ):
        sent.blob.bytes()
    one.close()
    with pytest.raises(StoreError, match="Input/output error"):  # it is not known to be damaged
        stands(full_large)
    monkeypatch.undo()
    assert stands(full_large).sent == large(2)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_disk_that_is_full_in_the_middle_of_an_update_is_said_and_the_place_given_back(
    tmp_path: Path, at: int, monkeypatch
):
    one, write, left = DiskOutbox(tmp_path), os.write, at
    before_settling_large(one)
    one.commit(RUN, 2)
    held, known = open_files(tmp_path), one.enter(RUN)

    def full(fd: int, data: Any) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[:1000])  # and before that it takes some of it

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match=f"in {tmp_path}: No space left on device; free some space there"):
        keep_large(one)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.new"))
    assert open_files(tmp_path) == held
    assert one.enter(RUN) == known
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1000]))
    keep_large(one)
    one.close()
    assert stands(tmp_path).sent == large(3)


@pytest.mark.parametrize(
    ("point", "about"),
    [
        ("outbox.written", "state"),
        ("outbox.synced", "sent"),
        ("outbox.named", "state"),
        ("outbox.named", "update"),
        ("outbox.named", "sent"),
    ],
)
def test_an_update_whose_keep_failed_is_kept_when_it_is_kept_again(tmp_path: Path, point: str, about: str):
    """Its file is gone, or has a name that nothing leads to; its bytes are not."""
    one = DiskOutbox(tmp_path)
    before_settling_large(one)
    one.commit(RUN, 2)
    sent = drafted(one, large(3))

    def full(kind: str) -> None:
        if kind == about:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    failpoints.arm(point, full)
    for _ in range(2):
        with pytest.raises(StoreError):
            one.keep(RUN, sent)
        assert not list(tmp_path.glob("*.new"))
    failpoints.disarm()
    one.keep(RUN, sent)
    assert len(list(tmp_path.glob("*.update-*"))) == 1
    kill(one)
    assert stands(tmp_path) == Kept(state=state_of(2.0), settled=2, sent=large(3), pin={"head": "a"})


def test_a_declared_size_of_an_update_is_compared_before_a_byte_is_read(full_large: Path, monkeypatch):
    path = file(full_large, "sent")
    header, parts = files.read(path, "sent", RUN)
    content = list(parts)
    monkeypatch.setattr(os, "pread", lambda *about: pytest.fail("it was read"))
    for n, size in enumerate((1 << 62, -1, 0, LARGE - 1, "65537", None)):
        copy = full_large.with_name(f"copy-{n}")
        shutil.copytree(full_large, copy)
        files.write(files.File(file(copy, "sent"), {**header, "size": size}, content))
        assert stands(copy).sent is None
        assert {"sent.damaged", "update.damaged"} <= names(copy)


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
