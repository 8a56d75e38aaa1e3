"""What the worker moves over the network, told to the daemon, who counts it for the owner."""

import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Network"]

_EVERY = 1.0


class Network:
    """A koinon.progress.Progress. `tell` gets ("moved", {"up": bytes, "down": bytes}) every second."""

    def __init__(self, tell: Callable[[str, Any], None], clock: Callable[[], float] = time.monotonic):
        self._tell, self._clock, self._lock = tell, clock, threading.Lock()
        self._at: dict[str, int] = {}
        self._waiting = {"upload": 0, "download": 0}
        self._said = clock()

    def moved(self, direction: str, done: int, total: int) -> None:
        """So far it is; what was there when a transfer went on was not moved now."""
        with self._lock:
            before = self._at.get(direction)
            if before is not None and done > before:
                self._waiting[direction] += done - before
            self._at[direction] = done
            if done >= total:
                self._at.pop(direction)
            now = self._clock()
            if now - self._said < _EVERY and done < total:
                return
            said, self._waiting = self._waiting, {"upload": 0, "download": 0}
            self._said = now
        if any(said.values()):
            self._tell("moved", {"up": said["upload"], "down": said["download"]})
