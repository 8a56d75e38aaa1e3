"""Reading what the kernel says of itself, without being held up by it.

A sensor that is offline answers EAGAIN, or not at all (the cv zones of an Orin Nano do either), and what waits for it
waits for ever. So files are read by descriptors that do not block, in a thread of their own and with a deadline; a
sensor that has kept one waiting is not asked again before that thread is free.
"""

import os
import queue
import threading
from pathlib import Path
from typing import Literal

__all__ = ["Files", "Unreadable", "Why"]

Why = Literal["absent", "denied", "offline", "late", "odd"]
_MOST = 64 * 1024  # bytes: no file that is read here is longer
_PAGE = 2048  # bytes: what is shorter came whole


class Unreadable(Exception):
    """`why` a file says nothing: "absent", "denied", "offline" (the sensor is switched off), "late" (it did not answer
    in time), "odd" (it says something else than it should)."""

    def __init__(self, path: Path, why: Why):
        super().__init__(f"{path} cannot be read: {why}")
        self.path, self.why = path, why


class _Worker:
    """A thread that reads one file after the other. It is left behind when one of them keeps it waiting."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="koinon-probe", daemon=True).start()
        self.busy = False

    def _run(self) -> None:
        while (path := self._asked.get()) is not None:
            try:
                answer: bytes | OSError = _bytes_of(path)
            except OSError as error:
                answer = error
            self.busy = False
            self._answers.put(answer)

    def end(self) -> None:
        """Nothing more will be asked of it."""
        self._asked.put(None)

    def read(self, path: Path, deadline: float) -> bytes:
        """TimeoutError where it takes longer; the worker is `busy` then, until it is not."""
        self.busy = True
        self._asked.put(path)
        try:
            answer = self._answers.get(timeout=deadline)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(answer, OSError):
            raise answer
        return answer


def _bytes_of(path: Path) -> bytes:
    # Not open(path).read(): Python's buffered reader has no answer to EAGAIN but a TypeError.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.read(file, _MOST)
        # Of a table in /proc one read gives a page at most; a sensor's file ends with its first.
        while len(found) >= _PAGE and len(found) < _MOST and (more := os.read(file, _MOST - len(found))):
            found += more
        return found
    finally:
        os.close(file)


class Files:
    """Files below `root` ("/" on a device, a folder in tests). Nothing takes longer than `deadline` seconds. For one
    thread at a time."""

    def __init__(self, root: Path = Path("/"), deadline: float = 0.5):
        self.root, self._deadline = root, deadline
        self._worker = _Worker()
        self._stuck: dict[Path, _Worker] = {}

    def glob(self, pattern: str) -> list[Path]:
        """Paths below the root, by name; none where the folder cannot be listed."""
        try:
            return sorted(self.root.glob(pattern))
        except OSError:
            return []

    def text(self, path: Path) -> str:
        """What a file says, without white space around it. Unreadable if it says nothing."""
        waiting = self._stuck.get(path)
        if waiting is not None:
            if waiting.busy:
                raise Unreadable(path, "late")
            waiting.end()
            del self._stuck[path]
        try:
            found = self._worker.read(path, self._deadline)
        except TimeoutError:
            self._stuck[path], self._worker = self._worker, _Worker()
            raise Unreadable(path, "late") from None
        except FileNotFoundError:
            raise Unreadable(path, "absent") from None
        except PermissionError:
            raise Unreadable(path, "denied") from None
        except OSError:  # EAGAIN, EIO, ENODATA, ENXIO: the sensor is there, and has nothing to say
            raise Unreadable(path, "offline") from None
        try:
            return found.decode().strip("\0 \n\t")
        except UnicodeDecodeError:
            raise Unreadable(path, "odd") from None

    def number(self, path: Path) -> float:
        """The same, where it is a whole number."""
        said = self.text(path)
        try:
            return float(int(said, 0))
        except ValueError:
            raise Unreadable(path, "offline" if not said else "odd") from None
