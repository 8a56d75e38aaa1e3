"""Telling systemd how the daemon is: ready, what it does, still alive, about to end (the protocol of sd_notify(3)).

systemd names a datagram socket in $NOTIFY_SOCKET and, where it guards against hanging, in $WATCHDOG_USEC how often it
wants to hear. Without a socket nothing is said; what cannot be said is dropped, for no daemon may stop because of who
watches it. A watchdog that is fed from a timer watches the timer alone: `Watch` feeds it only while everything that
must be alive has said so lately.
"""

import os
import socket
from collections.abc import Callable, Iterable, Mapping

__all__ = ["Notifier", "Watch"]


class Notifier:
    """Says it to the socket at `address` (a path, or "@NAME" for an abstract one; empty: to nobody).
    `watchdog_every` is in seconds, None where nobody guards. For any thread; nothing here raises or waits."""

    def __init__(self, address: str = "", watchdog_every: float | None = None):
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_every = watchdog_every

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ, process: int | None = None
    ) -> "Notifier":
        """As systemd has started this process (or the one with that number)."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        return cls(address, _every(environment, os.getpid() if process is None else process))

    @property
    def heard(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._address)

    def ready(self, status: str = "") -> None:
        """The daemon has started: whoever waits for it may go on."""
        self._say("READY=1", *_status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._say(*_status(text))

    def watchdog(self) -> None:
        """It is alive. To be called by what would not be reached if it were not: see Watch."""
        self._say("WATCHDOG=1")

    def stopping(self, status: str = "") -> None:
        """It is about to end, as it should."""
        self._say("STOPPING=1", *_status(status))

    def _say(self, *lines: str) -> None:
        if not self._address or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.setblocking(False)
                to.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError:  # nobody listens any more, or its queue is full
            return


def _status(text: str) -> tuple[str, ...]:
    """A status is one line: a second one would be read as another assignment."""
    line = " ".join(text.split())
    return (f"STATUS={line}",) if line else ()


def _every(environment: Mapping[str, str], process: int) -> float | None:
    """Half of what systemd allows between two words, as sd_watchdog_enabled(3) advises. None where it waits for none,
    or for another process's."""
    try:
        allowed = int(environment.get("WATCHDOG_USEC", ""))
        meant = int(environment.get("WATCHDOG_PID", process))
    except ValueError:
        return None
    return allowed / 1e6 / 2 if allowed > 0 and meant == process else None


class Watch:
    """Feeds the watchdog while every one of `names` has ticked in the last `limit` seconds of `clock`."""

    def __init__(
        self, notifier: Notifier, names: Iterable[str], clock: Callable[[], float], limit: float
    ) -> None:
        self._notifier, self._clock, self._limit = notifier, clock, limit
        self._ticked: dict[str, float | None] = dict.fromkeys(names)

    def tick(self, name: str) -> None:
        """It is alive."""
        if name not in self._ticked:
            raise ValueError(f"nobody watches {name!r}; it is {', '.join(self._ticked)} that tick")
        self._ticked[name] = self._clock()

    def late(self) -> tuple[str, ...]:
        """Those that have not ticked in time, or never."""
        now = self._clock()
        return tuple(n for n, at in self._ticked.items() if at is None or now - at > self._limit)

    def feed(self) -> bool:
        """Tells systemd that all is alive; False, and not a word, where it is not."""
        if self.late():
            return False
        self._notifier.watchdog()
        return True
