"""Which network the device is on, and whether its bytes cost money.

The interface of the default route is the one that counts. Whether it is metered NetworkManager knows: from its owner,
or by a guess, of which "yes" counts (a phone's hotspot says that it is one) and "no" does not. Where it does not say,
interfaces of some names are taken to be metered. Whether a modem roams ModemManager knows.
"""

import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase

from koinon_edge.probe import Files, Unreadable
from koinon_edge.settings import NetworkSettings

__all__ = ["Ask", "Network", "Networks", "network", "run"]

Ask = Callable[[Sequence[str], float], str]
"""Runs a command and answers what it prints, empty where it cannot be run; TimeoutError after so many seconds."""

METERED = NetworkSettings().metered_interfaces
_UP, _REJECT = 0x1, 0x200
_LONGEST = 2.6  # seconds: an answer comes within three
_PATIENCE = 2.0  # with NetworkManager, and with ModemManager in what is left
_FRESH = 60.0


@dataclass(frozen=True, slots=True)
class Network:
    """The default route's interface (empty: there is none, or it is not known), and whether it is up, metered and
    roaming; None: nobody knows. `why` says what that is known from, or what is not known."""

    interface: str
    metered: bool | None
    roaming: bool | None
    up: bool
    why: str


def run(command: Sequence[str], seconds: float) -> str:
    """The `Ask` of a device. It does not wait for a command that does not end."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"}, start_new_session=True,
        )  # fmt: skip
    except OSError:
        return ""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
        assert process.stdout is not None
        process.stdout.close()
        raise TimeoutError from None
    return said.decode(errors="replace") if process.returncode == 0 else ""


def network(
    files: Files,
    metered_interfaces: Sequence[str] = METERED,
    ask: Ask = run,
    clock: Callable[[], float] = time.monotonic,
) -> Network:
    """What there is now, within three seconds."""
    until = clock() + _LONGEST
    try:
        interface = _interface(files)
    except Unreadable as error:
        return Network("", None, None, True, f"the routes cannot be read ({error.why})")
    if not interface:
        return Network("", None, None, False, "there is no route to anywhere")
    if not _up(files, interface):
        return Network(interface, None, None, False, f"{interface} is down")
    named = next((glob for glob in metered_interfaces if fnmatchcase(interface, glob)), "")
    metered, why = _metered(interface, named, ask, min(_PATIENCE, until - clock()))
    roaming = _roaming(interface, bool(named), ask, min(_PATIENCE, max(0.1, until - clock())))
    return Network(interface, metered, roaming, True, why)


class Networks:
    """The network. Which one it is, is looked at each time; what others know of it is asked again after a minute, or
    when it has become another one. For any thread."""

    def __init__(
        self,
        files: Files,
        metered_interfaces: Sequence[str] = METERED,
        ask: Ask = run,
        clock: Callable[[], float] = time.monotonic,
    ):
        # Others may be reading with the files that were given, which are for one thread.
        self._files = Files(files.root)
        self._metered, self._ask, self._clock = metered_interfaces, ask, clock
        self._known: Network | None = None
        self._at = -math.inf
        self._asked_of: tuple[str, bool] | None = None
        self._lock = threading.Lock()

    def __call__(self) -> Network:
        with self._lock:
            now, key = self._clock(), self._key()
            if self._known is None or now - self._at >= _FRESH or key != self._asked_of:
                self._known, self._at = network(self._files, self._metered, self._ask, self._clock), now
                self._asked_of = key
            return self._known

    def _key(self) -> tuple[str, bool]:
        try:
            interface = _interface(self._files)
        except Unreadable:
            return "", False
        return interface, _up(self._files, interface)


# -- routes ---------------------------------------------------------------------------------------------------


def _interface(files: Files) -> str:
    """That of the default route with the lowest metric, of IPv4 where there is one; where there is none, in a network
    that has no way out, that of any route. Empty where there is no route, Unreadable where that cannot be told."""
    failed: list[Unreadable] = []
    others: list[tuple[int, str]] = []
    for name, routes in (("route", _routes4), ("ipv6_route", _routes6)):
        try:
            text = files.text(files.root / "proc/net" / name)
        except Unreadable as error:
            failed.append(error)
            continue
        if found := sorted(routes(text)):
            return found[0][1]
        others += routes(text, anywhere=False)
    if others:
        return min(others)[1]
    if len(failed) == 2 or any(error.why != "absent" for error in failed):
        raise failed[0]
    return ""


def _routes4(text: str, anywhere: bool = True) -> Iterator[tuple[int, str]]:
    """Metric and interface of each default route in /proc/net/route, or of each that leads to some place."""
    for line in text.splitlines()[1:]:
        with suppress(ValueError, IndexError):
            name, to, _, flags, _, _, metric, mask = line.split()[:8]
            if (int(to, 16) == int(mask, 16) == 0) is anywhere and int(flags, 16) & (_UP | _REJECT) == _UP:
                yield int(metric), name


def _routes6(text: str, anywhere: bool = True) -> Iterator[tuple[int, str]]:
    """The same of /proc/net/ipv6_route, in which what goes nowhere is on lo, and every interface has routes of its own
    (fe80::/10, ff00::/8)."""
    for line in text.splitlines():
        with suppress(ValueError, IndexError):
            to, length, _, _, _, metric, _, _, flags, name = line.split()
            if (
                (int(to, 16) == int(length, 16) == 0) is anywhere
                and not to.startswith(("fe8", "ff"))
                and int(flags, 16) & (_UP | _REJECT) == _UP
                and name != "lo"
            ):
                yield int(metric, 16), name


def _up(files: Files, interface: str) -> bool:
    """Point-to-point links and tunnels say "unknown" of themselves, and have a route only while they are there."""
    try:
        return files.text(files.root / "sys/class/net" / interface / "operstate") in ("up", "unknown")
    except Unreadable:
        return True


# -- what its bytes cost --------------------------------------------------------------------------------------


def _metered(interface: str, named: str, ask: Ask, seconds: float) -> tuple[bool | None, str]:
    """`named` is the pattern among the metered interfaces that the name fits."""
    late = False
    try:
        said = ask(("nmcli", "-t", "-f", "GENERAL.METERED", "device", "show", interface), seconds)
    except TimeoutError:
        said, late = "", True
    answer = said.strip().partition(":")[2]
    if answer in ("yes", "yes (guessed)", "no"):
        return answer != "no", f"NetworkManager says {answer}"
    if named:
        return True, f"{interface} is one of {named}"
    if late:
        return None, "NetworkManager did not answer in time"
    return False, f"NetworkManager says {answer}" if answer else f"{interface} has no metered name"


def _roaming(interface: str, named: bool, ask: Ask, seconds: float) -> bool | None:
    """What is neither a modem's port nor called like one cannot roam."""
    try:
        said = ask(("mmcli", "-m", "any", "-K"), seconds)
    except TimeoutError:
        said = ""
    pairs = [
        (key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in said.splitlines())
    ]
    port = any(
        key.startswith("modem.generic.ports.") and value == f"{interface} (net)" for key, value in pairs
    )
    if not (named or port):
        return False
    return {"roaming": True, "home": False}.get(dict(pairs).get("modem.3gpp.registration-state", ""))
