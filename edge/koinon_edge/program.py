"""The owner's program: started as a child of its own, watched, and ended with all that it has started.

It has a process group of its own, a low priority, limits where the kernel lets us set them, and is the first that the
kernel takes when memory runs out. How it ended has a name: whoever was killed for memory is told from whoever failed.
What leaves its group to live on is found by its control group, and by a mark in its environment.
"""

import asyncio
import os
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from koinon_edge import cgroups
from koinon_edge.cgroups import Limits

__all__ = ["End", "Program", "sweep"]

Kind = Literal["ENDED", "FAILED", "OOM_KILLED", "STOPPED", "NOT_STARTED"]
_MARK = "KOINON_PROGRAM"
_FIRST_TO_GO = "500"
_NO_MEMORY = 137  # what container engines make of SIGKILL


@dataclass(frozen=True, slots=True)
class End:
    """How a program ended: `STOPPED` by us, `OOM_KILLED` for memory, `FAILED` by itself. `detail` is a sentence."""

    kind: Kind
    detail: str


@dataclass(slots=True)
class Program:
    """One run of `command` in `directory`. `memory` is in bytes, `grace` the seconds between asking it to end and
    killing it. `name` is that of its control group, and `ending` a command that ends what ours only started elsewhere
    (a container)."""

    name: str
    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    memory: int | None = None
    cpus: float | None = None
    nice: int = 10
    grace: float = 20.0
    ending: Sequence[str] = ()
    process: asyncio.subprocess.Process | None = None
    limits: Limits = field(default_factory=Limits)
    _stopped: str = ""
    _killed: bool = False
    _before: int = 0
    _paused: bool = False
    _mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    async def start(self) -> End | None:
        """Start it; an End if that cannot be."""
        self.limits = cgroups.make(self.name, self.memory, self.cpus)
        self._before = self.limits.killed()  # in a group that a daemon before this one left
        try:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, cwd=self.directory, env={**self.environment, _MARK: self._mark},
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self.limits.remove()
            return End("NOT_STARTED", f"{self.command[0]!r} cannot be started: {_why(error, self)}")
        pid = self.process.pid
        self.limits.enter(pid)
        with suppress(OSError):
            os.setpriority(os.PRIO_PGRP, pid, self.nice)
        _let_go_first(pid)
        return None

    async def wait(self) -> End:
        """Until it is over, with all that it has started."""
        assert self.process is not None
        status = await self.process.wait()
        end = self._end(status)
        await self._sweep()
        return end

    async def stop(self, reason: str) -> None:
        """Ask it to end, and kill it after its grace. `wait` says when it is over."""
        if self.process is None or self.process.returncode is not None:
            return
        self._stopped = self._stopped or reason
        self.go_on()
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.grace):
                await self.process.wait()
        except TimeoutError:
            self._stopped = f"{reason}; it did not end within {self.grace:g} s and was killed"
            self._killed = True
            self._signal(signal.SIGKILL)
            for pid in self.limits.pids():
                _kill(pid)

    def pause(self) -> None:
        """Let it stand still, with all that it has in memory."""
        if not self._paused:
            self._paused = True
            self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        if self._paused:
            self._paused = False
            self._signal(signal.SIGCONT)

    @property
    def paused(self) -> bool:
        return self._paused

    def _signal(self, number: int) -> None:
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _end(self, status: int) -> End:
        what = Path(self.command[0]).name
        killed = self.limits.killed() > self._before
        if killed or (status in (-signal.SIGKILL, _NO_MEMORY) and not self._killed):
            sure = "was killed by the kernel for memory" if killed else "was killed, most likely for memory"
            limit = f" (it may have {self.memory / 1e6:.0f} MB)" if self.memory else ""
            return End("OOM_KILLED", f"{what} {sure}{limit}")
        if self._stopped:
            return End("STOPPED", self._stopped)
        if status == 0:
            return End("ENDED", f"{what} ended by itself")
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return End("FAILED", f"{what} {how}; what it printed is in the device's log")

    async def _sweep(self) -> None:
        """What it has left behind goes too."""
        assert self.process is not None
        self._signal(signal.SIGKILL)
        for pid in {*self.limits.pids(), *_marked(self._mark)}:
            _kill(pid)
        if self.ending:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(self.grace):
                    done = await asyncio.create_subprocess_exec(
                        *self.ending, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                    )
                    await done.wait()
        await asyncio.to_thread(self.limits.remove)


def _why(error: OSError, program: Program) -> str:
    if isinstance(error, FileNotFoundError):
        missing = program.directory if not program.directory.is_dir() else program.command[0]
        return f"there is no {missing} on this device; mend its command or directory in edge.toml"
    return f"{error.strerror}; see that this daemon's user may run it"


def _let_go_first(pid: int) -> None:
    """When memory runs out, the kernel is to take this one first."""
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(_FIRST_TO_GO)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def sweep(runtime: Path) -> None:
    """End what a daemon before this one left when it was killed: programs that speak to a socket in `runtime`."""
    wanted = f"KOINON_SOCKET={runtime}/".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(one.startswith(wanted) for one in (folder / "environ").read_bytes().split(b"\0")):
                _kill(int(folder.name))


def _marked(mark: str) -> list[int]:
    """Processes with this mark in their environment, wherever they have gone."""
    wanted, found = f"{_MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found
