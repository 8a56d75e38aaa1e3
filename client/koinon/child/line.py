"""The line to the worker: JSON, one object a line, over a local socket, and the thread that hears it.

What answers or asks something waits in order until the program's own thread takes it. What may come at any time (a
round that is over, a stop, an outcome, the end of the line) is seen at once, by way of the task's `Signals`.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from .errors import KoinonError, RemoteProtocolError, Unavailable, UsageError

__all__ = ["LONGEST", "Line", "Signals", "Understood"]

LONGEST = 1 << 20
"""Bytes of the longest line."""
_ASKED = ("welcome", "accepted", "refused", "evaluate", "load", "task", "taken", "error", "ended")
_GONE = "the worker of koinon-edge is gone: this program ends too, and koinon-edge starts it again when there is work"
_LEFT = "this program has left the loop of session.tasks: it takes no more work"
_open: WeakSet[socket.socket] = WeakSet()


def _let_go() -> None:
    for end in _open:
        end.close()


# A forked data loader would hold the line for its dead parent, and the worker would go on waiting.
os.register_at_fork(after_in_child=_let_go)


class Signals:
    """What has been heard of one task. `until` is when its round no longer waits, by the line's clock."""

    def __init__(self, round_: int, until: float | None = None):
        self.round, self.until = round_, until
        self.late = self.stop = self.outcome = ""


class Line:
    """One end of the socket at `path`. Anyone may say something; one thread waits."""

    def __init__(self, end: socket.socket, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.signals: dict[int, Signals] = {}
        """Of the tasks of the latest round."""
        self._end, self._lock = end, threading.Lock()
        self._heard: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._ended: Any = None
        self._broken: KoinonError | None = None
        self._closed = False
        _open.add(end)
        self._thread = threading.Thread(target=self._listen, name="koinon-line", daemon=True)
        self._thread.start()

    @classmethod
    def to(cls, path: str, clock: Callable[[], float] = time.monotonic) -> Line:
        """The line to who listens at `path`. Unavailable if nobody does."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.connect(path)
        except OSError as error:
            end.close()
            raise Unavailable(
                f"no worker of koinon-edge answers at {path} ({error.strerror or error}); let koinon-edge start this "
                "program, which says in KOINON_SOCKET where it listens"
            ) from error
        return cls(end, clock)

    def say(self, kind: str, said: Any) -> None:
        """Unavailable if the worker is gone, UsageError for more than a line holds."""
        data = json.dumps({kind: said}).encode() + b"\n"
        if len(data) > LONGEST:
            raise UsageError(
                f"what this program would say ({kind!r}) has {len(data)} bytes, and a line takes {LONGEST}; use fewer "
                "tensors or metrics, or shorter names"
            )
        with self._lock:
            try:
                self._end.sendall(data)
            except OSError:
                raise self._why() from None

    def tell(self, kind: str, said: Any) -> None:
        """Say it, if somebody is there to hear it."""
        with suppress(Unavailable):
            self.say(kind, said)

    def wait(self, *kinds: str, timeout: float | None = None) -> tuple[str, Any]:
        """The next message, which is to be of one of these kinds. RemoteProtocolError if it is of another, Unavailable
        if the worker is gone or says nothing for `timeout` seconds."""
        if self._ended is not None and "ended" in kinds:
            return "ended", self._ended
        while True:
            try:
                kind, said = self._heard.get(timeout=timeout)
            except queue.Empty:
                raise Unavailable(f"the worker of koinon-edge says nothing for {timeout:g} s") from None
            if not kind:
                self._heard.put((kind, said))  # and so it is for whoever waits next
                raise self._why()
            if kind == "ended":
                self._ended = said
            if kind in kinds:
                return kind, said
            if kind != "ended":
                raise RemoteProtocolError(
                    f"the worker of koinon-edge said {kind!r} where {' or '.join(kinds)} was awaited; is its "
                    "koinon_child of another version?"
                )

    def close(self) -> None:
        """Say and hear no more."""
        self._closed = True
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        # A thread that Python has stopped at its own end would never be over; and a session that nobody has any more
        # may be cleared away on any thread.
        if not sys.is_finalizing() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._end.close()

    def _why(self) -> KoinonError:
        if self._broken is None:
            return Unavailable(_LEFT if self._closed else _GONE)
        return type(self._broken)(*self._broken.args)  # a new one each time: it gets a traceback

    # -- the thread -------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        rest = b""
        try:
            while True:
                while b"\n" not in rest:
                    if len(rest) > LONGEST:
                        raise RemoteProtocolError(
                            "a line of more than 1 MiB came over the socket of koinon-edge: something else writes there"
                        )
                    piece = self._end.recv(1 << 16)
                    if not piece:
                        return
                    rest += piece
                line, _, rest = rest.partition(b"\n")
                self._take(*_decoded(line))
        except OSError:
            return
        except KoinonError as error:
            self._broken = error
            with suppress(OSError):
                self._end.shutdown(socket.SHUT_RDWR)
        finally:
            if not self._closed:
                self._broken = self._broken or Unavailable(_GONE)
                for signals in self.signals.values():
                    signals.late = signals.late or str(self._broken)
            self._heard.put(("", None))

    def _take(self, kind: str, said: Any) -> None:
        with Understood(kind):
            if kind == "task":
                self._begin(said)
            if kind in _ASKED:
                self._heard.put((kind, said))
            else:
                self._signal(kind, said)

    def _begin(self, said: Any) -> None:
        left, round_ = said.get("remaining"), int(said["round"])
        until = None if left is None else self.clock() + float(left)
        older = {n: s for n, s in self.signals.items() if s.round == round_}
        self.signals = {**older, int(said["id"]): Signals(round_, until)}

    def _signal(self, kind: str, said: Any) -> None:
        if kind == "outcome":
            for signals in self.signals.values():
                if signals.round == said["round"]:
                    signals.outcome = str(said["outcome"])
            return
        if kind not in ("cancel", "stop"):
            raise ValueError("which is unknown")
        meant = self.signals.get(said["task"], Signals(0))  # one that is over hears nothing
        reason = str(said["reason"]) or "nobody waits for this work any more"
        if kind == "stop":
            meant.stop = reason
        else:
            meant.late = meant.outcome = reason


def _decoded(line: bytes) -> tuple[str, Any]:
    try:
        ((kind, said),) = json.loads(line).items()
    except (ValueError, AttributeError, RecursionError):
        raise RemoteProtocolError(
            f"{line[:40]!r} came over the socket of koinon-edge and is no message: something else writes there"
        ) from None
    return kind, said


class Understood:
    """Where a message of this kind is read: what it lacks is the worker's fault."""

    def __init__(self, kind: str):
        self._kind = kind

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (KeyError, TypeError, ValueError, AttributeError, OverflowError)):
            raise RemoteProtocolError(
                f"the worker of koinon-edge said {self._kind!r:.40} in a way that this program does not understand "
                f"({error!r:.80}); is its koinon_child of another version?"
            ) from None
