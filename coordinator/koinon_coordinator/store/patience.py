"""A connection to PostgreSQL that gives up on a server which says nothing any more.

The server's own timeouts do not help where it hangs itself: its disk stands still, it is stopped, or its COMMIT waits
for a standby that never comes back. Nor does TCP, as long as the server's kernel answers.
"""

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

__all__ = ["PatientConnection"]

T = TypeVar("T")


class PatientConnection(psycopg.Connection[Any]):
    """Closes itself, with an OperationalError, where an answer takes longer than `patience` seconds."""

    patience: float = 60.0  # more than statement_timeout: a server that can speak speaks first

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        # All that the driver waits for on an open connection passes here: statements, pings, COMMIT.
        try:
            return super().wait(self._limited(gen), *args, **kwargs)
        except _NoAnswerError:
            self.close()
            raise

    def _limited(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """`gen`, which is sent nothing ten times a second as long as there is nothing to read."""
        end = time.monotonic() + self.patience
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > end:
                    raise _NoAnswerError(f"the server has not answered for {self.patience:g} s")
                wanted = gen.send(ready)
        except StopIteration as done:
            value: T = done.value
            return value


class _NoAnswerError(psycopg.OperationalError):
    pass
