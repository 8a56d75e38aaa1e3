"""The owner's program as a child: how it ends has a name, and nothing of it outlives that."""

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from koinon_edge.program import Program

LIMITED = os.geteuid() == 0 and Path("/sys/fs/cgroup").exists()


def program(tmp_path, code, **settings):
    given = {"grace": 0.3, "environment": dict(os.environ), **settings}
    return Program("koinon-test", [sys.executable, "-c", code], tmp_path, **given)


def run(one, *, during=None):
    async def go():
        failed = await one.start()
        if failed is not None:
            return failed
        waiting = asyncio.create_task(one.wait())
        if during is not None:
            await during(one)
        return await waiting

    return asyncio.run(go())


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def lives(pid):
    try:
        return state(pid) != "Z"
    except OSError:
        return False


async def _there(path):
    until = time.monotonic() + 10
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


def test_one_that_ends_well_has_ended(tmp_path):
    end = run(program(tmp_path, "print('rubbish on stdout')"))
    assert end.kind == "ENDED"


def test_one_that_fails_is_named_with_its_status(tmp_path):
    end = run(program(tmp_path, "raise SystemExit(3)"))
    assert (end.kind, "status 3" in end.detail) == ("FAILED", True)


def test_one_that_cannot_be_started_says_what_is_missing(tmp_path):
    missing = Program("koinon-test", ["no-such-command"], tmp_path, dict(os.environ))
    assert "there is no no-such-command on this device" in run(missing).detail
    nowhere = Program("koinon-test", [sys.executable], tmp_path / "gone", dict(os.environ))
    assert f"there is no {tmp_path / 'gone'} on this device" in run(nowhere).detail


def test_one_that_is_killed_by_nobody_here_was_killed_for_memory(tmp_path):
    end = run(program(tmp_path, "import os; os.kill(os.getpid(), 9)"))
    assert end.kind == "OOM_KILLED"
    assert "most likely for memory" in end.detail


@pytest.mark.skipif(not LIMITED, reason="control groups need root here")
def test_the_kernel_kills_one_above_its_limit_and_that_is_seen(tmp_path):
    one = program(tmp_path, "x = bytearray(400 << 20); import time; time.sleep(60)", memory=100 << 20)
    end = run(one)
    if one.limits.why:
        pytest.skip(one.limits.why)
    assert end.kind == "OOM_KILLED"
    assert "was killed by the kernel for memory (it may have 105 MB)" in end.detail
    assert not any(place.exists() for place in one.limits.places)


def test_one_that_is_asked_to_end_was_stopped(tmp_path):
    async def stop(one):
        await _there(tmp_path / "up")
        await one.stop("the daemon ends")

    code = (
        "import time, signal, sys; signal.signal(15, lambda *_: sys.exit(0))\n"
        "open('up', 'w').write('x'); time.sleep(60)"
    )
    end = run(program(tmp_path, code), during=stop)
    assert (end.kind, end.detail) == ("STOPPED", "the daemon ends")


def test_one_that_does_not_listen_is_killed_after_its_grace(tmp_path):
    async def stop(one):
        await _there(tmp_path / "up")
        await one.stop("too hot")

    code = "import time, signal; signal.signal(15, signal.SIG_IGN); open('up','w').write('x'); time.sleep(60)"
    end = run(program(tmp_path, code), during=stop)
    assert end.detail == "too hot; it did not end within 0.3 s and was killed"


def test_what_forks_away_goes_with_it(tmp_path):
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        open('up', 'w').write(str(os.getpid()))\n"
        "        time.sleep(60)\n"
        "    os._exit(0)\n"
        "while not os.path.exists('up') or not open('up').read(): time.sleep(0.01)\n"
    )
    assert run(program(tmp_path, code)).kind == "ENDED"
    assert not lives(int((tmp_path / "up").read_text()))


def test_one_that_pauses_stands_still_and_goes_on(tmp_path):
    async def pause(one):
        await _there(tmp_path / "up")
        one.pause()
        await asyncio.sleep(0.1)
        assert state(one.process.pid) == "T"
        one.go_on()

    assert (
        run(program(tmp_path, "open('up','w').write('x'); import time; time.sleep(0.3)"), during=pause).kind
        == "ENDED"
    )


def test_it_is_the_first_that_the_kernel_takes_and_the_last_that_it_runs(tmp_path):
    code = (
        "import os, time; time.sleep(0.2)\n"
        "open('nice', 'w').write(f\"{os.nice(0)} {open('/proc/self/oom_score_adj').read()}\")"
    )
    run(program(tmp_path, code, nice=7))
    assert (tmp_path / "nice").read_text().split() == ["7", "500"]
