"""How far a transfer is, for people: bars where there is a terminal for them, lines in the log elsewhere.

A transfer that is over within a few seconds is not worth a word.
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["Bars", "LogLines", "Progress", "reporter", "use"]

Progress = Callable[[str, int, int], None]
"""`progress(direction, done, total)`: so many bytes of an "upload" or a "download". Called on the link's thread."""

_log = logging.getLogger("koinon")
_FIRST_LINE, _LINE_EVERY = 3.0, 10.0
_FIRST_BAR = 0.5


class LogLines:
    """Lines in the log, every ten seconds. One for each device; `clock` is in seconds."""

    def __init__(self, client: str, clock: Callable[[], float] = time.monotonic):
        self._client, self._clock = client, clock
        self._begun: dict[str, tuple[float, int]] = {}
        self._said: dict[str, float] = {}

    def __call__(self, direction: str, done: int, total: int) -> None:
        now = self._clock()
        since, first = self._begun.setdefault(direction, (now, done))
        if done >= total:
            del self._begun[direction]
            if self._said.pop(direction, None) is not None:
                _log.info("%s: %s of %s is over", self._client, direction, _megabytes(total))
            return
        if now - self._said.get(direction, since + _FIRST_LINE - _LINE_EVERY) < _LINE_EVERY:
            return
        self._said[direction] = now
        rate = (done - first) / (now - since) if now > since else 0.0
        left = f"{(total - done) / rate:.0f} s left" if rate else "standing still"
        _log.info(
            "%s: %s, %s of %s (%d %%), %s/s, %s", self._client, direction, _megabytes(done), _megabytes(total),
            100 * done // total, _megabytes(rate), left,
        )  # fmt: skip


class Bars:
    """A bar for each transfer, on `console`, while there are any."""

    def __init__(self, console: "Console"):
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Display

        columns = (
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(),
        )  # fmt: skip
        self._display = Display(*columns, console=console, transient=True)
        self._begun: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}

    def of(self, client: str) -> Progress:
        """The progress of one device."""
        return lambda direction, done, total: self._show(f"{client} {direction}", done, total)

    def _show(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        since = self._begun.setdefault(what, now)
        if done >= total:
            del self._begun[what]
            if what in self._bars:
                self._display.remove_task(self._bars.pop(what))
            if not self._bars:
                self._display.stop()
        elif what in self._bars:
            self._display.update(self._bars[what], completed=done)
        elif now - since >= _FIRST_BAR:
            self._bars[what] = self._display.add_task(what, total=total, completed=done)
            self._display.start()


def _megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:.1f} MB"


_of: list[Callable[[str], Progress]] = [LogLines]


def use(of: Callable[[str], Progress]) -> None:
    """From now on, this process's links report to what `of` gives for their device's name."""
    _of[0] = of


def reporter(client: str) -> Progress:
    """What a device's link reports to, if nobody says otherwise."""
    return _of[0](client)
