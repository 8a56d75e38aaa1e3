"""Keeping a child alive: the owner's command runs until it ends well, and is started again when it does not.

A child that dies young is started again ever later (full jitter up to a cap, so that a fleet that fails together
does not come back together); one that ran for a while starts over with the shortest pause. The child has a process
group of its own, so that what it started goes with it.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Keeper"]

_GRACE = 20.0


@dataclass(slots=True)
class Keeper:
    """Runs `command`. Times are in seconds; `tell` gets one sentence for everything that happens."""

    command: Sequence[str]
    tell: Callable[[str], None]
    first_pause: float = 1.0
    longest_pause: float = 300.0
    settled: float = 60.0
    grace: float = _GRACE
    _stopping: bool = field(default=False)
    _child: subprocess.Popen[bytes] | None = None
    _failures: int = field(default=0)

    def keep(self) -> int:
        """Until the child ends with status 0, or `stop` is called; returns the status of its last run."""
        status = 0
        while not self._stopping:
            status, ran = self._run()
            if self._stopping or status == 0:
                break
            self._failures = 1 if ran >= self.settled else self._failures + 1
            ceiling = min(self.longest_pause, self.first_pause * 2**self._failures)
            pause = random.uniform(0, ceiling)  # noqa: S311 - jitter, not a secret
            self.tell(f"{self.command[0]} {_end(status)} after {ran:.1f} s; it starts again in {pause:.1f} s")
            self._sleep(pause)
        return status

    def stop(self) -> None:
        """Ask the child to end, and start it no more; safe in a signal handler."""
        self._stopping = True
        if self._child is not None:
            self._signal(signal.SIGTERM)

    def _run(self) -> tuple[int, float]:
        started = time.monotonic()
        self._child = subprocess.Popen(self.command, start_new_session=True)
        try:
            if self._stopping:
                self._signal(signal.SIGTERM)
            status = self._wait()
        finally:
            self._signal(signal.SIGKILL)  # whatever it left behind in its group
            self._child = None
        return status, time.monotonic() - started

    def _wait(self) -> int:
        assert self._child is not None
        asked = 0.0
        while True:
            try:
                return self._child.wait(0.2)
            except subprocess.TimeoutExpired:
                if not self._stopping:
                    continue
                asked = asked or time.monotonic()
                if time.monotonic() - asked > self.grace:
                    self.tell(f"{self.command[0]} did not end within {self.grace:g} s and is killed")
                    self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        assert self._child is not None
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            return  # all of the group is gone already

    def _sleep(self, pause: float) -> None:
        until = time.monotonic() + pause
        while not self._stopping and time.monotonic() < until:
            time.sleep(min(0.2, max(0.0, until - time.monotonic())))


def _end(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        return f"was ended by {name}" + (" (perhaps out of memory)" if name == "SIGKILL" else "")
    return f"ended with status {status}"
