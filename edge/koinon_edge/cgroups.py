"""Limits for what the owner's program may take, where the kernel lets this user set them: control groups.

Version 2 (one tree; the service's part of it is ours when systemd delegates it) and version 1 (a tree for each
resource). Where neither can be used there are no limits, and that is said: the program runs all the same.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Limits", "make"]

_ROOT = Path("/sys/fs/cgroup")
_PERIOD = 100_000  # microseconds in which a share of the processors is counted
_GOING = 2.0  # seconds that the kernel may need to empty a group whose processes were killed


@dataclass(frozen=True, slots=True)
class Limits:
    """The groups of one program: `places` are their folders (none: no limits can be set, `why` says why), `counter` the
    file that counts what was killed for memory."""

    places: tuple[Path, ...] = ()
    counter: Path | None = None
    why: str = ""

    def enter(self, pid: int) -> None:
        """Put a process, and all that it will start, into them."""
        for place in self.places:
            with suppress(OSError):  # it is over already
                (place / "cgroup.procs").write_text(str(pid))

    def killed(self) -> int:
        """How many processes were killed in them for want of memory."""
        if self.counter is None:
            return 0
        with suppress(OSError, ValueError, IndexError):
            for line in self.counter.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def pids(self) -> list[int]:
        """Who is in them, wherever they have moved their process group to."""
        for place in self.places[:1]:
            with suppress(OSError, ValueError):
                return [int(word) for word in (place / "cgroup.procs").read_text().split()]
        return []

    def remove(self) -> None:
        """They are empty: take them away."""
        until = time.monotonic() + _GOING
        for place in self.places:
            while place.exists():
                try:
                    place.rmdir()
                except OSError:
                    if time.monotonic() > until:
                        break  # somebody in there cannot be killed; it goes with the machine
                    time.sleep(0.05)


def make(name: str, memory: int | None, cpus: float | None, root: Path = _ROOT) -> Limits:
    """Groups called `name` with at most `memory` bytes and `cpus` processors."""
    try:
        if (root / "cgroup.controllers").exists():
            return _second(name, memory, cpus, root)
        return _first(name, memory, cpus, root)
    except OSError as error:
        return Limits(why=f"control groups cannot be used here ({error.strerror})")


def _second(name: str, memory: int | None, cpus: float | None, root: Path) -> Limits:
    mine = root / _mine("").lstrip("/")
    # A group that hands controllers down may have no processes itself: the daemon goes one below.
    daemon = mine if mine.name == "koinon-daemon" else mine / "koinon-daemon"
    parent = daemon.parent
    if daemon != mine:
        daemon.mkdir(exist_ok=True)
        for pid in (mine / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (daemon / "cgroup.procs").write_text(pid)
    (parent / "cgroup.subtree_control").write_text("+memory +cpu")
    place = parent / name
    place.mkdir(exist_ok=True)
    if memory is not None:
        (place / "memory.max").write_text(str(memory))
        with suppress(OSError):
            (place / "memory.swap.max").write_text("0")
    with suppress(OSError):
        (place / "memory.oom.group").write_text("1")  # half a program is of no use to anybody
    if cpus is not None:
        (place / "cpu.max").write_text(f"{int(cpus * _PERIOD)} {_PERIOD}")
    return Limits((place,), place / "memory.events")


def _first(name: str, memory: int | None, cpus: float | None, root: Path) -> Limits:
    places = []
    own = root / "memory" / _mine("memory").lstrip("/")
    place = (own if own.is_dir() else root / "memory") / name
    place.mkdir(exist_ok=True)
    places.append(place)
    if memory is not None:
        (place / "memory.limit_in_bytes").write_text(str(memory))
    if cpus is not None:
        own = root / "cpu" / _mine("cpu").lstrip("/")
        share = (own if own.is_dir() else root / "cpu") / name
        share.mkdir(exist_ok=True)
        places.append(share)
        (share / "cpu.cfs_period_us").write_text(str(_PERIOD))
        (share / "cpu.cfs_quota_us").write_text(str(int(cpus * _PERIOD)))
    return Limits(tuple(places), place / "memory.oom_control")


def _mine(controller: str) -> str:
    """The path of this process's group."""
    for line in Path(f"/proc/{os.getpid()}/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") if controller else number == "0":
            return path
    return "/"
