"""Virtual time for asyncio: nothing waits, the clock jumps to whatever is due next.

Calls that production makes in a worker thread are made in place, at a moment that the world chooses; so one seed is one
order of events, on every machine.
"""

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["Loop"]


class _NoFiles:
    """A selector for a loop that has no file and no socket: asking the kernel each time would be all it costs."""

    def select(self, timeout: float | None) -> list[Any]:
        return []


class Loop(asyncio.BaseEventLoop):
    """`work(executor, job, settle)` is asked to run every job that is meant for a thread."""

    def __init__(self) -> None:
        self.now = 0.0
        self.work: Callable[[Any, Callable[[], Any], asyncio.Future[Any]], None] = _at_once
        self._selector = _NoFiles()
        super().__init__()

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready:
            while self._scheduled and self._scheduled[0]._cancelled:
                asyncio.base_events.heapq.heappop(self._scheduled)._scheduled = False
                self._timer_cancelled_count -= 1
            assert self._scheduled, "nothing is due, and nothing ever will be"
            self.now = max(self.now, self._scheduled[0]._when)
        super()._run_once()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        self.work(executor, lambda: func(*args), future)
        return future


def _at_once(_executor: Any, job: Callable[[], Any], future: asyncio.Future[Any]) -> None:
    settle(job, future)


def settle(job: Callable[[], Any], future: asyncio.Future[Any]) -> None:
    """Do the job, and let whoever awaits it know."""
    try:
        result = job()
    except Exception as error:
        if not future.done():
            future.set_exception(error)
    else:
        if not future.done():
            future.set_result(result)
