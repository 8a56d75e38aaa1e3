"""Which network a device is on, and whether its bytes cost money, from files and from what two programs answer."""

import time
from pathlib import Path

import pytest

from koinon_edge.gate import Network, Networks, network
from koinon_edge.gate import networks as asking
from koinon_edge.gate.networks import run
from koinon_edge.probe import Files, Unreadable
from koinon_edge.settings import NetworkSettings
from sysfs import Tree

_LTE = """modem.generic.ports.length   : 3
modem.generic.ports.value[1] : cdc-wdm0 (qmi)
modem.generic.ports.value[2] : wwan0 (net)
modem.3gpp.registration-state : {}
"""


@pytest.fixture
def tree(tmp_path):
    one = Tree(tmp_path)
    yield one
    one.close()


class Answers:
    """NetworkManager's and ModemManager's, or None: they take too long."""

    def __init__(self, metered: str | None = "", modem: str | None = ""):
        self.by = {"nmcli": metered, "mmcli": modem}
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, command, seconds):
        assert 0 < seconds <= 2.0
        self.asked.append(tuple(command))
        if (answer := self.by[command[0]]) is None:
            raise TimeoutError
        return answer


def found(tree: Tree, metered: str | None = "", modem: str | None = "") -> Network:
    answer = f"GENERAL.METERED:{metered}\n" if metered else metered
    return network(Files(tree.root, deadline=0.2), ask=Answers(answer, modem))


# -- routes ---------------------------------------------------------------------------------------------------


def test_the_interface_is_that_of_the_default_route_with_the_lowest_metric(tree):
    tree.routes("wlan0", "eth0")
    assert found(tree) == Network("wlan0", False, False, True, "wlan0 has no metered name")
    tree.routes("eth0", "wwan0")
    assert found(tree).interface == "eth0"


def test_without_a_default_route_there_is_no_network(tree):
    tree.routes()
    assert found(tree) == Network("", None, None, False, "there is no route to anywhere")
    down = "eth0\t00000000\t0102A8C0\t0002\t0\t0\t0\t00000000\t0\t0\t0"
    unreachable = "*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0"
    tree.write({"proc/net/route": f"Iface\n{down}\n{unreachable}\nnonsense\neth0\tx\ty\tz\t0\t0\t0\t0"})
    assert not found(tree).up


def test_of_ipv6_alone_too(tree):
    tree.routes()
    zeros = "0" * 32
    tree.write({
        "proc/net/ipv6_route": "\n".join((
            f"fe80{'0' * 28} 40 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001     eth1",
            f"{zeros} 00 {zeros} 00 fe80{'0' * 27}1 00000400 00000003 00000000 00000003     eth0",
            f"{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo",
        )),
    })  # fmt: skip
    assert found(tree).interface == "eth0"
    tree.write({"proc/net/ipv6_route": f"{zeros} 00 {zeros} 00 {zeros} ffffffff 1 0 00000001 lo"})
    assert not found(tree).up


def test_an_interface_that_is_down_is_no_network_and_a_tunnel_need_not_say_that_it_is_up(tree):
    tree.routes("eth0", state="down")
    assert found(tree) == Network("eth0", None, None, False, "eth0 is down")
    tree.routes("tun0", state="unknown")
    assert found(tree).up
    (tree.root / "sys/class/net/tun0/operstate").unlink()
    assert found(tree).up


def test_routes_that_cannot_be_read_are_unknown_and_not_absent(tree, monkeypatch):
    assert found(tree) == Network("", None, None, True, "the routes cannot be read (absent)")
    tree.routes()

    def text(files, path):
        if path.name == "route":
            raise Unreadable(path, "denied")
        return ""

    monkeypatch.setattr(Files, "text", text)
    assert found(tree) == Network("", None, None, True, "the routes cannot be read (denied)")


# -- metered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interface", "answer", "metered", "why"),
    [
        ("eth0", "yes", True, "NetworkManager says yes"),
        ("wlan0", "yes (guessed)", True, "NetworkManager says yes (guessed)"),
        ("wlan0", "no (guessed)", False, "NetworkManager says no (guessed)"),
        ("eth0", "no", False, "NetworkManager says no"),
        ("eth0", "unknown", False, "NetworkManager says unknown"),
        ("eth0", "", False, "eth0 has no metered name"),
        ("eth0", None, None, "NetworkManager did not answer in time"),
        ("wwan0", "", True, "wwan0 is one of wwan*"),
        ("wwan0", None, True, "wwan0 is one of wwan*"),
        ("usb0", "unknown", True, "usb0 is one of usb*"),
        ("ppp0", "no (guessed)", True, "ppp0 is one of ppp*"),
        ("wwan0", "no", False, "NetworkManager says no"),
    ],
)
def test_it_is_metered_where_its_owner_or_a_guess_says_yes_or_its_name_does(
    tree, interface, answer, metered, why
):
    tree.routes(interface)
    one = found(tree, answer)
    assert (one.metered, one.why) == (metered, why)


def test_the_owner_names_what_is_metered(tree):
    tree.routes("lte0")
    asked = NetworkSettings(metered_interfaces=("lte*",))
    assert network(Files(tree.root), asked.metered_interfaces, Answers()).metered is True
    assert Networks(Files(tree.root), asked.metered_interfaces, Answers())().metered is True


# -- roaming --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interface", "modem", "roaming"),
    [
        ("wwan0", _LTE.format("roaming"), True),
        ("wwan0", _LTE.format("home"), False),
        ("wwan0", _LTE.format("searching"), None),
        ("wwan0", "", None),
        ("wwan0", None, None),
        ("ppp0", _LTE.format("roaming"), True),
        ("eth0", _LTE.format("roaming"), False),  # the modem is not what it is on
        ("enx7", _LTE.format("roaming").replace("wwan0", "enx7"), True),
        ("eth0", "", False),
        ("eth0", None, False),
    ],
)
def test_a_modem_roams_where_it_says_so_and_a_cable_never(tree, interface, modem, roaming):
    tree.routes(interface)
    assert found(tree, modem=modem).roaming is roaming


# -- in time --------------------------------------------------------------------------------------------------


def test_what_others_know_of_a_network_is_asked_once_a_minute(tree):
    tree.routes("eth0")
    now, answers = [0.0], Answers("GENERAL.METERED:no")
    networks = Networks(Files(tree.root), ask=answers, clock=lambda: now[0])
    assert networks().metered is False
    answers.by["nmcli"] = "GENERAL.METERED:yes"
    now[0] = 59.9
    assert networks().metered is False
    now[0] = 60.0
    assert networks().metered is True
    assert answers.asked == 2 * [
        ("nmcli", "-t", "-f", "GENERAL.METERED", "device", "show", "eth0"), ("mmcli", "-m", "any", "-K"),
    ]  # fmt: skip
    tree.routes("wwan0")
    assert networks().interface == "wwan0", "another network is seen at once"


def program(path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_programs_are_run_and_what_fails_or_is_not_there_answers_nothing(tmp_path, monkeypatch):
    program(tmp_path / "nmcli", 'echo "GENERAL.METERED:$LC_ALL $*"')
    program(tmp_path / "mmcli", "echo half; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert run(("nmcli", "show", "eth0"), 2.0) == "GENERAL.METERED:C show eth0\n"
    assert run(("mmcli",), 2.0) == ""
    assert run(("no-such-program",), 2.0) == ""


def test_programs_that_hang_do_not_hold_up_the_answer_and_leave_nothing_behind(tree, tmp_path, monkeypatch):
    tree.routes("eth0")
    for name in ("nmcli", "mmcli"):
        program(tmp_path / name, f"sleep 60 & echo $! > {tmp_path}/{name}.pid; sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(asking, "_PATIENCE", 0.3)
    began = time.monotonic()
    assert network(Files(tree.root)) == Network(
        "eth0", None, False, True, "NetworkManager did not answer in time"
    )
    assert time.monotonic() - began < 3.0
    for name in ("nmcli", "mmcli"):
        pid = int((tmp_path / f"{name}.pid").read_text())
        deadline = time.monotonic() + 5
        while lives(pid):
            assert time.monotonic() < deadline, f"what {name} has started lives on"
            time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_network_without_a_way_out_is_one_all_the_same(tree):
    tree.write({
        "proc/net/route": "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
        "eth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF",
        "proc/net/ipv6_route": "",
        "sys/class/net/eth0/operstate": "up",
    })  # fmt: skip
    assert found(tree).interface == "eth0"
    assert found(tree).up
