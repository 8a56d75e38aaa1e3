"""A TCP proxy between devices and a coordinator, with the faults that a network has.

    with Proxy(coordinator.port) as proxy:
        proxy.fault = Fault(drop="down")  # from here on nothing comes back, and nobody is told
        ...
        proxy.heal()

A fault holds for every connection, from when it is set until `heal`. A connection that lost bytes never works again,
as in a network that forgot it; a new one does.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = ["Fault", "Proxy"]

_PIECE, _TRAVELLING = 16 * 1024, 16  # a network that holds 256 KiB, whatever its rate
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what is not sent yet is thrown away, and the peer gets an RST


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with the network. "up" is towards the coordinator, "down" towards the device.

    delay, jitter   seconds that a piece travels each way, and up to how many more; the order is kept
    rate            bytes a second, each way and connection
    cut_up          bytes after which a connection is cut, counted from its first; so cut_down
    every           every connection is cut there, not only the first that gets so far
    reset           it is cut with an RST, not a FIN
    drop            "up", "down" or "both": bytes that go there are lost, and so are FINs; nobody is told
    refuse          nobody listens: new connections are refused
    """

    delay: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    cut_up: int = 0
    cut_down: int = 0
    every: bool = False
    reset: bool = True
    drop: str = ""
    refuse: bool = False

    def drops(self, way: str) -> bool:
        return self.drop in (way, "both")


@dataclass(eq=False)
class _Connection:
    """One device's connection and the proxy's own to the coordinator: its writers, and what has passed."""

    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    passed: Counter[str] = field(default_factory=Counter)
    lost: set[str] = field(default_factory=set)

    def cut(self, reset: bool) -> None:
        for end in self.ends:
            if reset and (raw := end.get_extra_info("socket")) is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.transport.abort()
            else:
                end.close()


class Proxy:
    """Listens on `port` and forwards to `target`, another port of this machine. It counts `connections`, `cuts`, and
    what it has `carried` and `lost` each way, in bytes."""

    def __init__(self, target: int, fault: Fault | None = None):
        self._target, self._fault = target, fault or Fault()
        self._spent: Fault | None = None
        self._open: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self.connections = self.cuts = 0
        self.carried: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        # Bound all the time, so that the port stays ours while nobody listens.
        self._holder = self._socket(0)
        self.port = self._holder.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        self._do(self._listen())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        self._do(self._listen())

    def heal(self) -> None:
        """No fault from now on."""
        self.fault = Fault()

    def cut(self, *, reset: bool = True) -> None:
        """End every connection that there is now."""
        self._do(self._cut_all(reset))

    def close(self) -> None:
        if self._thread.is_alive():
            self._fault = Fault(refuse=True)
            self._do(self._listen())
            self.cut()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._holder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- on the proxy's thread ----------------------------------------------------------------------------------

    def _do(self, coroutine: Any) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a fault is set from another thread than the proxy's own")
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    @staticmethod
    def _socket(port: int) -> socket.socket:
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", port))
        return one

    async def _listen(self) -> None:
        """Listen, or stop listening, as the fault says."""
        if self._fault.refuse and self._server is not None:
            self._server.close()
            self._server = None
        elif not self._fault.refuse and self._server is None:
            self._server = await asyncio.start_server(self._accept, sock=self._socket(self.port))

    async def _cut_all(self, reset: bool) -> None:
        for connection in list(self._open):
            self.cuts += 1
            connection.cut(reset)

    async def _accept(self, source: asyncio.StreamReader, device: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            answers, coordinator = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            device.close()
            return
        connection = _Connection((device, coordinator))
        self._open.add(connection)
        ways = (("up", source, coordinator), ("down", answers, device))
        tasks = [asyncio.ensure_future(self._pump(connection, *way)) for way in ways]
        try:
            # The end of one way is the end of both, unless it was lost on its way.
            with contextlib.suppress(asyncio.CancelledError):  # as the proxy closes
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._open.discard(connection)
            connection.cut(reset=False)

    async def _pump(
        self, connection: _Connection, way: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        """Carry bytes one way, until they end."""
        travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=_TRAVELLING)
        arriving = asyncio.ensure_future(self._deliver(connection, way, travelling, sink))
        due = 0.0
        try:
            while True:
                try:
                    data = await source.read(_PIECE)
                except OSError:
                    data = b""
                fault = self._fault
                due = max(due, time.monotonic() + fault.delay + random.uniform(0, fault.jitter))
                full = asyncio.ensure_future(travelling.put((due, data)))
                await asyncio.wait((full, arriving), return_when=asyncio.FIRST_COMPLETED)
                if not data or arriving.done():
                    full.cancel()
                    await arriving
                    return
        finally:
            arriving.cancel()

    async def _deliver(
        self, connection: _Connection, way: str, travelling: "asyncio.Queue[tuple[float, bytes]]",
        sink: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        while True:
            due, data = await travelling.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            fault = self._fault
            if data and fault.rate:
                await asyncio.sleep(len(data) / fault.rate)
            if fault.drops(way):
                connection.lost.add(way)
            if way in connection.lost:
                self.lost[way] += len(data)
                if not data:
                    await asyncio.Event().wait()  # a FIN is lost like anything else
                continue
            left = self._left(connection, way, fault)
            sink.write(data[:left])
            connection.passed[way] += len(data)
            self.carried[way] += len(data[:left])
            try:
                await sink.drain()
            except OSError:
                return
            if left is not None and len(data) >= left:
                self._spent = fault
                self.cuts += 1
                connection.cut(fault.reset)
                return
            if not data:
                return

    def _left(self, connection: _Connection, way: str, fault: Fault) -> int | None:
        """Bytes that may still pass this way before the connection is cut."""
        limit = fault.cut_up if way == "up" else fault.cut_down
        if not limit or (fault is self._spent and not fault.every):
            return None
        return max(0, limit - connection.passed[way])
