"""What is examined, and the ways to ask it that nothing can hold up: programs are killed, threads are left behind."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

__all__ = ["Patient", "Ran", "Runner", "run", "within"]

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended: its exit status (negative: by that signal; None: it was killed for taking too long, or does
    not exist where `error` says so), and what it wrote."""

    status: int | None
    out: str = ""
    error: str = ""


Runner = Callable[[Sequence[str], float], Ran]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A device. `root` is the tree of its kernel's files; `state` where it keeps its memory, `credentials` the folder
    of its credentials (None: it has none), `address` its coordinator's HOST:PORT ("": what the credentials say),
    `proxy` the HTTP proxy that its owner named ("": what the environment says), `python` the interpreter of the task.
    `settings` reads edge.toml and raises where it is wrong; `disk_min` is how many bytes it wants to see free."""

    root: Path = Path("/")
    state: Path | None = None
    credentials: Path | None = None
    address: str = ""
    proxy: str = ""
    python: str = sys.executable
    settings: Callable[[], object] | None = None
    disk_min: int = 1_000_000_000
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def run(command: Sequence[str], seconds: float) -> Ran:
    """The program's end, after `seconds` at the latest: then it is killed, with whatever it has started."""
    try:
        program = subprocess.Popen(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return Ran(None, error=f"{command[0]} cannot be started: {error.strerror}")
    try:
        out, said = program.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        # One that hangs in a driver does not even die; it is not waited for.
        with suppress(subprocess.TimeoutExpired):
            program.communicate(timeout=2.0)
        return Ran(None)
    return Ran(program.returncode, out, said)


def within(seconds: float, what: Callable[[], _Found]) -> _Found:
    """What `what` returns or raises; TimeoutError where it takes longer, and then its thread is left behind."""
    answers: queue.SimpleQueue[tuple[_Found | None, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((what(), None))
        except Exception as error:  # it is raised again below
            answers.put((None, error))

    threading.Thread(target=work, name="koinon-doctor", daemon=True).start()
    try:
        found, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return found  # type: ignore[return-value] # without an error it is the answer
