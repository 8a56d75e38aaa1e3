"""The roster: which devices are attached now, and the queue in front of each one's stream.

A device has one stream. It may come back, from the same start or a later one (its old stream is dropped); another
memory under the same name is refused, because two devices with one identity would answer for each other. So is an
earlier start of the same memory: then two processes live on one memory, of which one is a copy.
"""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from koinon_core.condition import Condition
from koinon_core.errors import Conflict

__all__ = ["Connection", "Roster"]

_MOST = 64 << 20
"""Bytes that wait for one device at most."""
_JOINED = 256 * 1024
"""No further message is joined to this many bytes."""


@dataclass(eq=False)
class Connection:
    """One device's stream. `outbox` holds encoded messages; None ends the stream. `barred`: nothing that it still says
    is heard. `able` is what the device says of itself, and `condition` how it is, and when it said so: what
    was said since that was written (`noted`) is written by `noting`, and at once when the device has `left`."""

    client: str
    instance: str
    boot: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    outbox: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    runs: set[str] = field(default_factory=set)
    barred: bool = False
    able: Mapping[str, float] = field(default_factory=dict)
    condition: tuple[Condition, float] | None = None
    noted: float = -inf
    noting: asyncio.Task[None] | None = None
    left: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: int = 0

    def send(self, message: bytes) -> None:
        """Queue a message. A device that does not take what it asked for is cut off, not remembered for ever."""
        self._waiting += len(message)
        if self._waiting > _MOST:
            self.cut()
        else:
            self.outbox.put_nowait(message)

    async def next(self) -> bytes:
        """The next bytes for the stream: all messages that wait, joined. Empty where the stream ends."""
        message = await self.outbox.get()
        parts: list[bytes] = []
        length = 0
        while message is not None:
            parts.append(message)
            length += len(message)
            self._waiting -= len(message)
            if self.outbox.empty() or length > _JOINED:
                return b"".join(parts)
            message = self.outbox.get_nowait()
        self.outbox.put_nowait(None)  # the end is found again, behind what is sent before it
        return b"".join(parts)

    def cut(self) -> None:
        """End the stream after what is queued."""
        self.outbox.put_nowait(None)


class Roster:
    """All attached devices."""

    def __init__(self) -> None:
        self._by_client: dict[str, Connection] = {}
        self._by_token: dict[str, Connection] = {}

    def __len__(self) -> int:
        return len(self._by_client)

    def attach(self, client: str, instance: str, boot: int = 0) -> Connection:
        """A new connection; Conflict if another device, or a copy of this one, holds the name."""
        old = self._by_client.get(client)
        if old is not None:
            if old.instance != instance:
                raise Conflict(
                    f"a device named {client!r} is attached already, from another process; give each its own "
                    "name (if that one just crashed, its place is free within a minute)"
                )
            if old.boot > boot:
                raise Conflict(
                    f"{client!r} is attached from a later start ({old.boot}) than this one ({boot}): two processes use "
                    "one device's memory or copies of it; stop one, and give it a name and a memory of its own"
                )
            self.detach(old)
            old.cut()
        connection = Connection(client, instance, boot)
        self._by_client[client] = self._by_token[connection.token] = connection
        return connection

    def detach(self, connection: Connection) -> bool:
        """Forget a connection; False if a newer one has taken its place."""
        self._by_token.pop(connection.token, None)
        if self._by_client.get(connection.client) is not connection:
            return False
        del self._by_client[connection.client]
        return True

    def get(self, client: str) -> Connection | None:
        return self._by_client.get(client)

    def in_run(self, run: str) -> list[Connection]:
        """Everybody who has joined a run."""
        return [c for c in self._by_client.values() if run in c.runs]

    def by_token(self, token: str) -> Connection | None:
        return self._by_token.get(token)

    def bar(self, client: str) -> None:
        """Hear nothing of a device any more, and end its stream."""
        connection = self._by_client.get(client)
        if connection is not None:
            connection.barred = True
            connection.cut()

    def cut_all(self) -> None:
        """End every stream."""
        for connection in list(self._by_client.values()):
            connection.cut()
