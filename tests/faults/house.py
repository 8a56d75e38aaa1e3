"""A coordinator process in the simulation: real but for gRPC, and it can be killed at any of its failpoints."""

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from sqlalchemy import URL, event
from sqlalchemy.engine import Engine

from koinon_coordinator.federation import Federation
from koinon_coordinator.roster import Connection
from koinon_coordinator.service.fleet import Fleet
from koinon_coordinator.store import Store, engines, schema, tx
from koinon_core import __version__
from koinon_core.errors import KoinonError, StoreError
from koinon_core.wire.v1 import fleet_pb2 as pb

from .loop import settle

if TYPE_CHECKING:
    from .world import World

__all__ = ["House", "Killed", "open_store", "template"]


_APART = 1e-6  # what is due at one moment comes in no order


class Killed(BaseException):
    """kill -9: nothing after this line happens in that process."""


def template(folder: Path) -> Path:
    """An empty, migrated run database, to be copied for every world."""
    url = f"sqlite:///{folder / 'template.db'}"
    Store(url).close()
    return folder / "template.db"


class _OneEngine:
    """The engine of every store in every world, which holds the statements that it has compiled: thousands of short
    lives would each compile them anew. A pool is emptied whenever a store closes, so no connection leaves its world."""

    def __init__(self) -> None:
        self._made: tuple[str, Engine, dict[str, Any]] | None = None
        self._file = ""

    def make(self, url: URL) -> tuple[str, Engine, dict[str, Any]]:
        assert url.database
        self._file = url.database
        if self._made is None:
            self._made = engines.make(url)
            event.listen(self._made[1], "do_connect", self._connect)
        return self._made

    def _connect(self, _dialect: Any, _record: Any, arguments: list[Any], _named: Any) -> None:
        arguments[0] = self._file


_one = _OneEngine()


def open_store(db: Path, data: Path) -> Store:
    """A store on a copy of the template, which needs no migration."""
    with patch.object(tx, "make", _one.make), patch.object(schema, "upgrade"):
        return Store(f"sqlite:///{db}", data, alone=False)


class House:
    """One process. `skew` is what its clock is off by, in seconds."""

    def __init__(self, world: "World", db: Path, data: Path, skew: float = 0.0):
        self.world, self.skew = world, skew
        self.alive, self.frozen = True, False
        self.streams: list[Stream] = []
        self._held: list[Any] = []
        self.store = open_store(db, data)
        self.federation = Federation(self.store, clock=lambda: world.loop.now + self.skew)
        self.fleet = Fleet(self.federation)
        self.stop = asyncio.Event()
        self.started = asyncio.Event()
        world.by_pool[id(self.federation.pool)] = self
        self.task = world.loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self.federation.run(self.started, self.stop)
        except* StoreError:
            self.die("by an error at its start")
        except* (Killed, asyncio.CancelledError):
            assert not self.alive

    # -- what it does in worker threads -----------------------------------------------------------------------

    def work(self, job: Any, future: asyncio.Future[Any]) -> None:
        """A job for a thread: it takes a while, and the process may die in it."""
        delay = self.world.job_takes()
        self.world.loop.call_later(delay, self._work, job, future)

    def _work(self, job: Any, future: asyncio.Future[Any]) -> None:
        if self.frozen:
            self._held.append((job, future))
            return
        if not self.alive:
            self.world.keepsakes.append(future)  # whoever awaits it died with the process
            return
        self.world.acting = self
        try:
            settle(job, future)
        except Killed:
            self.world.keepsakes.append(future)
            self.die("in a transaction")
        finally:
            self.world.acting = None

    def freeze(self) -> None:
        """The process is stopped (SIGSTOP, a paused machine): it does nothing until it thaws."""
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        held, self._held = self._held, []
        for job, future in held:  # it does not know yet what it has missed
            self.world.loop.call_later(self.world.dice.uniform(0, 2.0), self._work, job, future)

    def die(self, how: str) -> None:
        """kill -9."""
        if not self.alive:
            return
        self.world.tell(f"the coordinator is killed {how}")
        self.alive = False
        self.store.database.engine.dispose()
        self.store.folder.close()
        for stream in list(self.streams):
            stream.cut("the coordinator died")
        self.task.cancel()
        for task in list(self.federation._driving.values()):
            task.cancel()
        self.world.house_died(self)

    # -- streams ----------------------------------------------------------------------------------------------

    def attach(self, gadget: Any) -> "Stream":
        """A device's stream; raises what the roster refuses it with."""
        connection = self.federation.roster.attach(gadget.name, gadget.outbox.instance, gadget.outbox.boot)
        stream = Stream(self, gadget, connection)
        self.streams.append(stream)
        return stream

    def copy_to(self, folder: Path) -> None:
        """A backup, as an operator makes one who knows no better: the files."""
        self.store.database.engine.dispose()
        for path in (self.world.db, Path(f"{self.world.db}-wal")):
            if path.exists():
                shutil.copy(path, folder / path.name)


class Stream:
    """Both ends of one Attend. What is under way when it is cut is lost, or arrives although the other end is gone."""

    def __init__(self, house: House, gadget: Any, connection: Connection):
        self.house, self.gadget, self.connection = house, gadget, connection
        self.open = True
        self._up: asyncio.Queue[pb.DeviceMessage | None] = asyncio.Queue()
        self._last_up = self._last_down = 0.0
        self._broken = False
        world = house.world
        for end in (self._read(), self._write()):
            task = world.loop.create_task(end)
            task.add_done_callback(world.ended)
            world.keepsakes.append(task)

    def say(self, message: pb.DeviceMessage) -> None:
        """From the device. In order, each after the network's delay."""
        world = self.house.world
        at = max(world.loop.now + world.delay(), self._last_up + _APART)
        self._last_up = at
        world.loop.call_at(at, self._arrive, message)

    def _arrive(self, message: pb.DeviceMessage) -> None:
        # In order: once something is lost, nothing behind it arrives.
        self._broken = self._broken or not (self.open or self.house.world.late_arrivals())
        if self.house.alive and not self._broken:
            self._up.put_nowait(message)

    async def _read(self) -> None:
        house = self.house
        try:
            await house.fleet.devices.see(self.connection, __version__)
            while (message := await self._up.get()) is not None:
                if not house.alive:
                    return
                house.world.laws.spoke(self.gadget.name)
                await house.fleet._hear_one(self.connection, message)
        except KoinonError:
            self.cut("the coordinator could not note the device")

    async def _write(self) -> None:
        world = self.house.world
        while data := await self.connection.next():
            if not self.house.alive or self.house.frozen:
                return
            for message in pb.AttendResponse.FromString(data).messages:
                world.laws.said(self, message)
                at = max(world.loop.now + world.delay(), self._last_down + _APART)
                self._last_down = at
                world.loop.call_at(at, self._deliver, message)
        self.cut("the coordinator hung up")

    def _deliver(self, message: pb.CoordinatorMessage) -> None:
        if self.open and self.gadget.stream is self:
            self.gadget.hear(message)

    def cut(self, why: str) -> None:
        """The link is gone; each end notices when it does."""
        if not self.open:
            return
        self.open = False
        world = self.house.world
        world.tell(f"the stream of {self.gadget.name} is cut: {why}")
        if self in self.house.streams:
            self.house.streams.remove(self)
        world.loop.call_later(world.notices(), self.gadget.lost, self)
        world.loop.call_later(world.notices(), self._gone)

    def _gone(self) -> None:
        house = self.house
        self._up.put_nowait(None)
        self.connection.cut()
        if house.alive and house.federation.roster.detach(self.connection):
            house.fleet.devices.gone(self.connection)
