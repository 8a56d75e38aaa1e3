"""The driver: one run's ledger, given a queue, a clock and devices to talk to.

Everything that happens to a run comes through one queue. What has gathered there is one turn of the ledger, in a
worker thread; what the turn says is sent when it is done. While nothing happens the driver writes a beat, so that a
successor knows until when the run was owned.

If a turn may be stored or not, nobody can know what of it is there: the run is taken up again from the database, and
the devices are cut off, so that they come back and say where they are. If it certainly is not (a sum for which there is
no room on the disk), it is taken again after a pause, and the operator is told what it waits for.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar

import structlog

from koinon_coordinator.book import Item
from koinon_coordinator.closing import Plan
from koinon_coordinator.ledger import OPERATORS, Ledger
from koinon_coordinator.roster import Roster
from koinon_coordinator.store import BEAT, RefusedWrite, Store, Superseded
from koinon_coordinator.telling import Said
from koinon_core import run as runs
from koinon_core.errors import KoinonError, StoreError
from koinon_core.failpoints import hit
from koinon_core.run import Fact, Run
from koinon_core.wire import convert

__all__ = ["Driver"]

T = TypeVar("T")
_log = structlog.get_logger("koinon.run")
_GATHER = 0.002
_PAUSE = 3.0


class Driver:
    """Drives one run. `clock` gives seconds since 1970."""

    def __init__(
        self, store: Store, ledger: Ledger, roster: Roster, pool: Executor, clock: Callable[[], float],
        said: Iterable[Said] = (),
    ):  # fmt: skip
        self.ledger = ledger
        self._store, self._roster, self._pool, self._clock = store, roster, pool, clock
        self._said = list(said)
        self._queue: asyncio.Queue[Item] = asyncio.Queue()
        self._watchers: set[asyncio.Event] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._lost = False
        self._held: list[Item] = []
        self.trouble = ""
        self._log = _log.bind(run=ledger.run.spec.name)

    @property
    def run(self) -> Run:
        """The run as its last turn left it."""
        return self.ledger.run

    @property
    def waiting_for(self) -> str:
        """One sentence for the operator."""
        return f"waits for this coordinator's disk: {self.trouble}" if self.trouble else self.run.waiting_for

    @property
    def plan(self) -> Plan:
        return self.ledger.plan

    # -- what others call -------------------------------------------------------------------------------------

    def tell(self, item: Item | Fact) -> None:
        """Queue a fact."""
        self._queue.put_nowait(item if isinstance(item, Item) else Item(item))

    def count_down(self, round_: int, nbytes: int) -> None:
        """Note bytes that a device fetched for a round."""
        self.ledger.bytes_down[round_] += nbytes

    def watch(self) -> asyncio.Event:
        """An event that is set whenever something the operator sees has changed; give it back to `unwatch`."""
        event = asyncio.Event()
        self._watchers.add(event)
        return event

    def unwatch(self, event: asyncio.Event) -> None:
        self._watchers.discard(event)

    async def db(self, function: Callable[..., T], *args: object) -> T:
        """Call what may block in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def drive(self) -> None:
        """Run until the run is over or the task is cancelled. Superseded if another coordinator took it."""
        self._send(self._said)
        self.tell(runs.Tick(self._clock()))
        beating = asyncio.create_task(self._beat())
        try:
            while not self.run.over:
                items = await self._gather()
                if self._lost:
                    raise self._superseded()
                try:
                    await self._turn(items)
                except (Superseded, RefusedWrite):
                    raise  # it is another's; or the run itself cannot be stored, and waiting mends nothing
                except StoreError as error:
                    if self.ledger.sound:
                        await self._pause(items, error)
                    else:
                        await self._take_up_again(items, error)
        finally:
            beating.cancel()
        self._send(self.ledger.belated(item.fact for item in self._waiting()))
        if self._timer:
            self._timer.cancel()

    def set_aside(self, error: KoinonError) -> None:
        """The run cannot go on here: tell everyone who waits for it."""
        trouble = convert.envelope(convert.trouble(self.run.id, error))
        self._send(Said(client, trouble) for client in self.run.devices)

    def cut_off(self) -> None:
        """End the streams of all who have joined the run: they come back, here or elsewhere, and say where they are."""
        for connection in self._roster.in_run(self.run.id):
            connection.cut()

    def wake(self) -> None:
        """Let those who watch look again."""
        for event in self._watchers:
            event.set()

    # -- turns ------------------------------------------------------------------------------------------------

    async def _gather(self) -> list[Item]:
        """What has happened: at least one item, and all that wait behind it."""
        items = [*self._held, await self._queue.get()]
        self._held = []
        r = self.run.round
        if r is not None and r.stage != "joined" and r.collecting and len(r.collecting.awaited) > 1:
            # Nobody waits for this answer alone: let those right behind it share its commit.
            await asyncio.sleep(_GATHER)
        return [*items, *self._waiting()]

    def _waiting(self) -> list[Item]:
        """What is in the queue, which is empty then."""
        items = []
        while not self._queue.empty():
            items.append(self._queue.get_nowait())
        return items

    async def _turn(self, items: list[Item]) -> None:
        self._send(await self.db(self.ledger.turn, items))
        items.clear()  # they are stored, whatever becomes of the sum
        self.trouble = ""
        while self.ledger.folding:
            self._send(await self.db(self.ledger.turn, []))
        self._set_timer()

    async def _beat(self) -> None:
        """Write that the run is owned: for whoever could take it over otherwise, and for a deadline that may have to
        be moved by how long it was not."""
        while not self._lost:
            await asyncio.sleep(BEAT)
            if self.run.wakes_at is None and not self._store.shared:
                continue
            try:
                mine = await self.db(self._store.beat, self.run.id, self.ledger.epoch, self._clock())
            except StoreError as error:
                self._log.warning("a beat was not stored", reason=str(error))
                continue
            if not mine:
                self._lost = True
                self.tell(runs.Tick(self._clock()))

    def _superseded(self) -> Superseded:
        return Superseded(f"run {self.run.spec.name!r} was taken over by another coordinator")

    async def _pause(self, items: list[Item], error: StoreError) -> None:
        """Nothing of the turn is stored: what was in it is held, and taken again."""
        self._log.error("a turn waits", reason=str(error), again_in_s=_PAUSE)
        self.trouble = str(error)
        self.wake()
        await asyncio.sleep(_PAUSE)
        self._held = items
        self.tell(runs.Tick(self._clock()))

    async def _take_up_again(self, items: Iterable[Item], error: StoreError) -> None:
        self._log.error("a turn was not stored; the run is rebuilt from the database", error=str(error))
        # Whoever is attached may have missed what that turn would have told them: they come back and say where they
        # are. What the operator wanted is not said again by itself.
        bytes_down = self.ledger.bytes_down
        self.ledger, said = await self._read_again()
        self.ledger.bytes_down = bytes_down
        # What devices said before the take-up is older than it, and they say it again: it must not count from then.
        wanted = [item for item in (*items, *self._waiting()) if isinstance(item.fact, OPERATORS)]
        self.cut_off()
        self._send(said)
        for item in wanted:
            self.tell(item)
        self.tell(runs.Tick(self._clock()))

    async def _read_again(self) -> tuple[Ledger, list[Said]]:
        """The run as the database has it, as soon as the database answers."""
        pause = 1.0
        while True:
            await asyncio.sleep(pause)
            try:
                row = await self.db(self._store.run, self.run.id)
                if row.owner != self._store.owner:
                    raise self._superseded()
                return await self.db(Ledger.take_up, self._store, row, self._clock)
            except Superseded:
                raise
            except StoreError as error:
                pause = min(5.0, pause * 2)
                self._log.error("the run database does not answer", error=str(error), again_in_s=pause)

    # -- what is said -----------------------------------------------------------------------------------------

    def _send(self, said: Iterable[Said]) -> None:
        for one in said:
            connection = self._roster.get(one.client)
            if connection is None or self.run.id not in connection.runs:
                continue  # whoever has not joined yet says where it is when it does
            hit("rpc.said", one.client)
            connection.send(one.message)
            if one.round:
                self.count_down(one.round, len(one.message))
        self.wake()

    def _set_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        at = self.run.wakes_at
        self._timer = None
        if at is not None:
            loop = asyncio.get_running_loop()
            # A millisecond late rather than early: an early Tick would change nothing and be asked for again.
            delay = max(0.0, at - self._clock()) + 0.001
            self._timer = loop.call_later(delay, lambda: self.tell(runs.Tick(self._clock())))
