"""The driver: one run's machine, given a clock, a database and devices to talk to.

Everything that happens to a run comes through one queue. A turn takes what has gathered there, steps the
machine on a copy, commits what came of it in one transaction, and only then makes the copy the run and carries
out the orders. So nothing is said that is not durable, and events that arrive together share one commit.

If a commit fails, nobody can know what of it is there: the run is dropped from memory and rebuilt from the
store, and the devices whose messages were in the turn are cut off, so that they say them again.
"""

import asyncio
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog

from koinon_coordinator.closing import Closed, Plan, close_round
from koinon_coordinator.roster import Roster
from koinon_coordinator.store import Change, Incident, ModelVersion, RunRow, Store, UpdateRow
from koinon_core import run as runs
from koinon_core.errors import KoinonError, StoreError
from koinon_core.round import effects, events
from koinon_core.round.machine import Round, rebuild, step
from koinon_core.run import Fact, Order, Run
from koinon_core.spec import RunSpec
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Driver", "Item", "restore"]

T = TypeVar("T")
_log = structlog.get_logger("koinon.run")
_GATHER = 0.002
_INCIDENTS_EACH = 100  # kept of one device, from one start of the coordinator to the next
_QUICK = 1 << 20  # bytes of an update whose sum takes milliseconds


@dataclass(frozen=True, slots=True)
class Item:
    """A fact on its way into the machine, with what must be written if it changes anything."""

    fact: Fact
    update: UpdateRow | None = None
    incident: Incident | None = None
    closed: Closed | None = None


def restore(store: Store, row: RunRow) -> Run:
    """The run as its stored events left it."""
    version = store.latest_model(row.id)
    spec = RunSpec.decode(row.spec)
    # The row's status and kind are text to the type checker; they were written from a Run.
    return Run(
        id=row.id, spec=spec, model=version.digest, down=version.down, status=row.status,  # type: ignore[arg-type]
        reason=row.reason, kind=row.kind, number=row.number, closed=row.closed, streak=row.streak,  # type: ignore[arg-type]
        round=rebuild(store.events(row.id, row.number)) if row.number else None,
    )  # fmt: skip


def _folding(run: Run) -> Round | None:
    """The round, if it waits for its sum."""
    return run.round if run.round is not None and run.round.stage == "folding" else None


class Driver:
    """Drives one run. `clock` gives seconds since 1970."""

    def __init__(
        self, store: Store, plan: Plan, run: Run, version: ModelVersion, roster: Roster, pool: Executor,
        clock: Callable[[], float],
    ):  # fmt: skip
        self.run = run
        self.plan = plan
        self.version = version
        self._store, self._roster, self._pool, self._clock = store, roster, pool, clock
        self._quick = plan.layout.update.nbytes <= _QUICK
        self._queue: asyncio.Queue[Item] = asyncio.Queue()
        self._staged: dict[str, UpdateRow] = {}
        self._incidents: Counter[str] = Counter()
        self._ask: tuple[int, bytes] | None = None
        self._bytes_down: dict[int, int] = {}
        self._watchers: set[asyncio.Event] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._log = _log.bind(run=run.spec.name)

    # -- what others call -------------------------------------------------------------------------------------

    def tell(self, item: Item | Fact) -> None:
        """Queue a fact."""
        self._queue.put_nowait(item if isinstance(item, Item) else Item(item))

    def count_down(self, round_: int, nbytes: int) -> None:
        """Note bytes that a device fetched for a round."""
        self._bytes_down[round_] = self._bytes_down.get(round_, 0) + nbytes

    def watch(self) -> asyncio.Event:
        """An event that is set whenever something the operator sees has changed; give it back to `unwatch`."""
        event = asyncio.Event()
        self._watchers.add(event)
        return event

    def unwatch(self, event: asyncio.Event) -> None:
        self._watchers.discard(event)

    async def db(self, function: Callable[..., T], *args: object) -> T:
        """Call the store from a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def drive(self) -> None:
        """Run until the run is over or the task is cancelled."""
        self._begin()
        while not self.run.over:
            items = [await self._queue.get()]
            if self._awaits_several:
                # Nobody waits for this answer alone: let those right behind it share its commit.
                await asyncio.sleep(_GATHER)
            while not self._queue.empty():
                items.append(self._queue.get_nowait())
            try:
                await self._turn(items)
            except StoreError as error:
                await self._refold(items, error)
        self._answer_belated()
        if self._timer:
            self._timer.cancel()

    def _answer_belated(self) -> None:
        """Those who spoke while the run ended are told so too."""
        r = self.run.round
        while not self._queue.empty():
            fact = self._queue.get_nowait().fact
            if isinstance(fact, runs.Answered) and r is not None and fact.round == r.terms.round:
                self._perform(step(r, events.Heard(fact.at, fact.client, "update", fact.digest))[1])
            elif isinstance(fact, runs.Offered) and fact.client not in self.run.devices:
                self._send(fact.client, self._ended())

    def _ended(self) -> bytes:
        ended = pb.Ended(run=self.run.id, status=self.run.status, reason=self.run.reason)
        return convert.envelope(pb.CoordinatorMessage(ended=ended))

    def set_aside(self, error: KoinonError) -> None:
        """The run cannot go on here: tell everyone who waits for it."""
        for client in self.run.devices:
            self._send(client, convert.envelope(convert.trouble(self.run.id, error)))

    def wake(self) -> None:
        """Let those who watch look again."""
        for event in self._watchers:
            event.set()

    @property
    def _awaits_several(self) -> bool:
        r = self.run.round
        return r is not None and r.stage == "update" and len(r.update.awaited) > 1

    def _begin(self) -> None:
        """Take up the run where its events left it."""
        r = self.run.round
        if r is not None and not r.over:
            now = self._clock()
            leases = dict.fromkeys(r.update.awaited, now + self.run.spec.lease) if r.stage == "update" else {}
            self.run = replace(self.run, leases=leases)
            self._log.info("round taken up again", round=r.terms.round, stage=r.stage)
        self.tell(runs.Tick(self._clock()))

    # -- a turn -----------------------------------------------------------------------------------------------

    async def _turn(self, items: Iterable[Item]) -> None:
        change = Change(self.run, before=self.run)
        orders = self._step(change, items)
        while True:
            # A small sum is taken before the commit, so that the last updates and the next model share one; a
            # large one after it, because its updates should not wait that long to be durable.
            if self._quick and _folding(change.run) is not None:
                orders += self._step(change, [await self._fold(change.run)])
            if not change.empty:
                await self.db(self._store.write, change)
            self.run = change.run
            if any(isinstance(order, effects.Ask) for order in orders):
                await self._prepare_ask()
            self._perform(orders)
            for order in orders:
                if isinstance(order, runs.Recall):
                    said = await self.db(self._store.verdict, self.run.id, order.round, order.client)
                    self._send(
                        order.client, convert.envelope(convert.receipt(self.run.id, order.round, *said))
                    )
            if _folding(self.run) is None:
                break
            change = Change(self.run, before=self.run)
            orders = self._step(change, [await self._fold(self.run)])
        self._set_timer()

    def _step(self, change: Change, items: Iterable[Item]) -> list[Order]:
        """The machine's moves for these items, on the copy that `change` holds."""
        orders: list[Order] = []
        waiting = deque(items)
        first = runs.start(change.run)  # a new run's first round; nothing while a round is open
        if any(isinstance(order, runs.Open) for order in first.orders):
            change.run = first.run
            waiting.appendleft(self._opening())
        while waiting:
            item = waiting.popleft()
            moved = runs.step(change.run, item.fact)
            change.run = moved.run
            if moved.records:
                number = moved.run.number
                change.events += ((number, event) for event in moved.records)
                if moved.run.round is not None:
                    change.rounds[number] = moved.run.round
                    change.bytes_down[number] = self._bytes_down.get(number, 0)
                self._attach(change, item)
            if item.incident is not None and self._worth_keeping(item.incident):
                change.incidents.append(item.incident)
            for order in moved.orders:
                if isinstance(order, runs.Open):
                    waiting.appendleft(self._opening())
                else:
                    orders.append(order)
                if isinstance(order, runs.Finish):
                    change.ended_at = self._clock()
        return orders

    def _worth_keeping(self, incident: Incident) -> bool:
        """One device cannot fill the database with its mistakes."""
        self._incidents[incident.client] += 1
        return self._incidents[incident.client] <= _INCIDENTS_EACH

    def _opening(self) -> Item:
        return Item(runs.Opening(self._clock(), os.urandom(16).hex()))

    def _attach(self, change: Change, item: Item) -> None:
        """What must be durable together with the events of an item."""
        if item.update is not None:
            change.updates.append(item.update)
            self._staged[item.update.client] = item.update
        if item.closed is not None:
            version, number = item.closed.version, change.run.number
            change.contents += item.closed.contents
            measured = self.version.round
            change.metrics += (
                (measured if name.startswith("eval.") else number, name, value)
                for name, value in item.closed.metrics.items()
            )
            if version is not self.version:
                change.models.append(version)
                self.version = version

    async def _fold(self, run: Run) -> Item:
        """Take the sum in a worker thread; the answer is a fact like any other. That the round waits for it is
        seen from its stage, so that a restarted coordinator takes it too."""
        r = run.round
        assert r is not None
        try:
            staged = [await self._update(client) for client in r.accepted]
            rows = [(u.client, u.head, u.digest, u.size, u.data) for u in staged]
            closed = await self.db(close_round, self._store, self.plan, r.terms, self.version, rows)
        except KoinonError as error:
            if isinstance(error, StoreError):
                raise
            incident = Incident(self._clock(), "", r.terms.round, error.code, str(error))
            fact = runs.Unfoldable(self._clock(), r.terms.round, f"made no model: {error}")
            return Item(fact, incident=incident)
        version = closed.version
        return Item(runs.Folded(self._clock(), r.terms.round, version.digest, version.down), closed=closed)

    async def _update(self, client: str) -> UpdateRow:
        """A staged update: from memory, or, after a restart, from the store."""
        if client not in self._staged:
            number, codec = self.run.number, self.run.spec.codec
            for name, (digest, size, head) in (await self.db(self._store.heads, self.run.id, number)).items():
                small = size <= convert.INLINE and bool(digest)
                data = await self.db(self._store.bytes, digest) if small else None
                self._staged[name] = UpdateRow(name, number, digest, size, codec, head, 0.0, data)
        return self._staged[client]

    async def _refold(self, items: Iterable[Item], error: StoreError) -> None:
        self._log.error("a turn was not stored; the run is rebuilt from the database", error=str(error))
        # Whoever is attached may have missed what that turn would have told them: they come back and say where they
        # are. What the operator wanted is not said again by itself.
        told = set(self.run.devices) | {getattr(item.fact, "client", "") for item in items}
        wanted = [i for i in items if isinstance(i.fact, runs.Paused | runs.Resumed | runs.Cancelled)]
        self.run, self.version = await self._read_again()
        self._staged.clear()
        self._ask = None
        for client in told:
            connection = self._roster.get(client)
            if connection is not None:
                connection.cut()
        for item in wanted:
            self.tell(item)
        self._begin()

    async def _read_again(self) -> tuple[Run, ModelVersion]:
        """The run as the database has it, as soon as the database answers."""
        pause = 1.0
        while True:
            await asyncio.sleep(pause)
            try:
                row = next(r for r in await self.db(self._store.runs) if r.id == self.run.id)
                return await self.db(restore, self._store, row), await self.db(
                    self._store.latest_model, row.id
                )
            except StoreError as error:
                pause = min(30.0, pause * 2)
                self._log.error("the run database does not answer", error=str(error), again_in_s=pause)

    # -- orders -----------------------------------------------------------------------------------------------

    def _perform(self, orders: Iterable[Order]) -> None:
        """Carry out what the machine wants, but for a Fold, which takes time and has its own place in a turn."""
        for order in orders:
            match order:
                case effects.Ask(client):
                    if self._ask is not None and self._send(client, self._ask[1]):
                        self.count_down(self._ask[0], len(self._ask[1]))
                case effects.Receipt(client, number, verdict, reason):
                    receipt = convert.receipt(self.run.id, number, verdict, reason)
                    self._send(client, convert.envelope(receipt))
                case effects.Cancel(client, number, reason):
                    cancel = pb.Cancel(run=self.run.id, round=number, reason=reason)
                    self._send(client, convert.envelope(pb.CoordinatorMessage(cancel=cancel)))
                case effects.Close(number, counted, reason):
                    self._staged.clear()
                    self._bytes_down.pop(number, None)
                    kept = {"reason": reason} if reason else {}
                    self._log.info("round closed" if counted else "round abandoned", round=number, **kept)
                case runs.Finish(status, reason):
                    self._log.info("run ended", status=status, reason=reason)
                    ended = self._ended()
                    for client in self.run.devices:
                        self._send(client, ended)
        self.wake()

    def _send(self, client: str, message: bytes) -> bool:
        connection = self._roster.get(client)
        if connection is None:
            return False
        connection.send(message)
        return True

    async def _prepare_ask(self) -> None:
        """The Ask of the open round: the same bytes for every device, made once."""
        r = self.run.round
        if r is None or (self._ask is not None and self._ask[0] == r.terms.round):
            return
        ask = pb.Ask(run=self.run.id, round=r.terms.round, terms=r.terms.encoded)
        ask.model.CopyFrom(await self.db(self._content, r.terms.model))
        if r.terms.down:
            ask.down.CopyFrom(await self.db(self._content, r.terms.down))
        self._ask = (r.terms.round, convert.envelope(pb.CoordinatorMessage(ask=ask)))

    def _content(self, digest: str) -> pb.Content:
        window, size = self._store.window(digest)
        small = bytes(window(0, size)) if size <= convert.INLINE else b""
        return pb.Content(digest=digest, size=size, inline=small)

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
