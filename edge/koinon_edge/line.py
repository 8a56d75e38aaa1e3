"""Lines of JSON over a local socket: how the daemon, its worker and the owner's program speak with each other.

Each line is one object with one key, which says what it is. What is larger than a line (tensors) is a file that a line
names.
"""

import json
import socket
import threading
from typing import Any

from koinon_core.errors import RemoteProtocolError

__all__ = ["LONGEST", "Line", "decoded", "encoded"]

LONGEST = 1 << 20
"""Bytes of the longest line."""


def encoded(kind: str, said: Any) -> bytes:
    """A line; UsageError's place is the caller's: what is said here is always JSON."""
    return json.dumps({kind: said}, allow_nan=False).encode() + b"\n"


def decoded(line: bytes) -> tuple[str, Any]:
    """What a line says. RemoteProtocolError for what is none."""
    try:
        said = json.loads(line)
        ((kind, content),) = said.items()
    except (ValueError, AttributeError, RecursionError):
        raise RemoteProtocolError(
            f"{line[:40]!r} came over the daemon's socket and is no message of Koinon's: something else writes there"
        ) from None
    return kind, content


class Line:
    """One end, for threads: anyone may say, one reads."""

    def __init__(self, end: socket.socket):
        self._end, self._lock, self._rest = end, threading.Lock(), b""

    def say(self, kind: str, said: Any) -> None:
        """OSError where nobody is at the other end."""
        with self._lock:
            self._end.sendall(encoded(kind, said))

    def hear(self) -> tuple[str, Any] | None:
        """The next message; None where the other end is closed. RemoteProtocolError for what is no message,
        TimeoutError where the socket has a timeout and nothing comes."""
        while b"\n" not in self._rest:
            if len(self._rest) > LONGEST:
                raise RemoteProtocolError("a line of more than 1 MiB came over the daemon's socket")
            try:
                piece = self._end.recv(1 << 16)
            except ConnectionError:
                return None
            if not piece:
                return None
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return decoded(line)

    def close(self) -> None:
        try:
            self._end.shutdown(socket.SHUT_RDWR)
        except OSError:
            self._end.close()
            return
        self._end.close()
