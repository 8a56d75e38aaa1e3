"""The keeper: a child that dies is started again, one that ends well is not."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from koinon_edge.keep import Keeper


def keeper(code, **settings):
    told: list[str] = []
    command = [sys.executable, "-c", code]
    return Keeper(command, told.append, **{"first_pause": 0.01, "longest_pause": 0.05, **settings}), told


def test_a_child_that_ends_well_is_not_started_again():
    one, told = keeper("print('done')")
    assert one.keep() == 0
    assert told == []


def test_a_child_that_dies_is_started_again_until_it_ends_well(tmp_path):
    marks = tmp_path / "starts"
    code = (
        f"import os; marks = {str(marks)!r}; open(marks, 'a').write('x')\n"
        "os._exit(0 if os.path.getsize(marks) == 4 else 3)"
    )
    one, told = keeper(code)
    assert one.keep() == 0
    assert marks.read_text() == "xxxx"
    assert len(told) == 3
    assert "ended with status 3" in told[0]


def test_a_child_that_is_killed_is_named_as_such(tmp_path):
    mark = tmp_path / "once"
    code = (
        f"import os, signal; first = not os.path.exists({str(mark)!r}); open({str(mark)!r}, 'w')\n"
        "if first: os.kill(os.getpid(), signal.SIGKILL)"
    )
    one, told = keeper(code)
    assert one.keep() == 0
    assert "SIGKILL (perhaps out of memory)" in told[0]


def test_stop_ends_the_child_and_what_it_started(tmp_path):
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)"
    )
    one, _ = keeper(code)
    thread = threading.Thread(target=one.keep)
    thread.start()
    deadline = time.monotonic() + 10
    while not (pids.exists() and pids.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    grandchild = int(pids.read_text())
    one.stop()
    thread.join(10)
    assert not thread.is_alive()
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{grandchild}") and time.monotonic() < deadline:
        state = Path(f"/proc/{grandchild}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":
            break
        time.sleep(0.02)
    else:
        assert not os.path.exists(f"/proc/{grandchild}")


def test_a_child_that_does_not_listen_is_killed_after_its_grace():
    one, told = keeper(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", grace=0.3
    )
    threading.Timer(1.0, one.stop).start()
    assert one.keep() == -signal.SIGKILL
    assert "is killed" in told[-1]


def test_the_command_line_says_what_is_missing():
    run = [sys.executable, "-m", "koinon_edge.cli", "keep"]
    out = subprocess.run(
        [*run, "--", "no-such-command"], capture_output=True, text=True, timeout=30, check=False
    )
    assert out.returncode == 3
    assert "there is no command 'no-such-command'" in out.stderr
    assert subprocess.run(run, capture_output=True, timeout=30, check=False).returncode == 2


def test_the_edge_imports_neither_torch_nor_the_database():
    code = (
        "import koinon_edge.cli, sys; print([m for m in ('torch', 'sqlalchemy', 'grpc') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
