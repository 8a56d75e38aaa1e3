"""What systemd hears of the daemon, over real sockets."""

import os
import socket
import time

import pytest

from koinon_edge.notify import Notifier, Watch


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    """Its end of the socket, and what it puts into $NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@koinon-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(name.replace("@", "\0"))
        end.settimeout(2)
        yield end, {"NOTIFY_SOCKET": name}


def heard(end: socket.socket) -> str:
    return end.recv(4096).decode()


def test_systemd_hears_how_the_daemon_is(systemd):
    end, environment = systemd
    notifier = Notifier.from_environment(environment)
    assert notifier.heard
    notifier.ready("waits to be asked")
    notifier.status("round 7: trains")
    notifier.watchdog()
    notifier.stopping()
    assert [heard(end) for _ in range(4)] == [
        "READY=1\nSTATUS=waits to be asked", "STATUS=round 7: trains", "WATCHDOG=1", "STOPPING=1",
    ]  # fmt: skip


def test_a_status_stays_one_line_whatever_is_in_it(systemd):
    end, environment = systemd
    notifier = Notifier.from_environment(environment)
    notifier.status("a run called\nREADY=1\n\udcff")
    notifier.status("")
    notifier.watchdog()
    assert heard(end) == "STATUS=a run called READY=1 ?"
    assert heard(end) == "WATCHDOG=1", "and an empty one is none"


def waiting(end: socket.socket) -> list[str]:
    """What has come and was not heard yet."""
    end.settimeout(0)
    found = []
    try:
        while True:
            found.append(heard(end))
    except BlockingIOError:
        return found


@pytest.mark.parametrize("address", ["", "relative/path", "vsock:2:1234"])
def test_without_a_socket_nothing_is_said(address):
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"})
    assert (notifier.heard, notifier.watchdog_every) == (False, None)
    notifier.ready("nobody hears this")
    assert not Notifier.from_environment({}).heard


def test_a_socket_that_is_gone_or_full_stops_nobody(tmp_path):
    Notifier(str(tmp_path / "gone")).ready()
    Notifier("/" + "x" * 200).ready()
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(path)
        notifier, began = Notifier(path), time.monotonic()
        for _ in range(5000):  # more than a queue of datagrams takes
            notifier.watchdog()
        assert time.monotonic() - began < 2.0
        assert 0 < len(waiting(end)) < 5000, "the rest was dropped"


@pytest.mark.parametrize(
    ("said", "every"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "me"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_must_be(said, every):
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "@nobody", **said}, process=42)
    assert notifier.watchdog_every == every


def test_the_watchdog_goes_hungry_when_one_of_two_hangs(systemd):
    end, environment = systemd
    now = [100.0]
    watch = Watch(Notifier.from_environment(environment), ("loop", "child"), lambda: now[0], limit=10.0)
    assert (watch.feed(), watch.late()) == (False, ("loop", "child")), "nobody has ticked yet"
    watch.tick("loop")
    watch.tick("child")
    assert watch.feed()
    assert heard(end) == "WATCHDOG=1"
    now[0] += 10.5
    watch.tick("loop")  # the loop goes on; what looks after the child does not
    assert (watch.feed(), watch.late()) == (False, ("child",))
    assert waiting(end) == []
    watch.tick("child")
    assert watch.feed()
    with pytest.raises(ValueError, match="nobody watches 'chlid'"):
        watch.tick("chlid")
