"""The federation: all runs of this coordinator, and what devices and operators may ask of them.

It knows nothing of gRPC: `service` translates. A run whose strategy is not known here is kept aside, with the
reason, and does not keep the others from going on.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import structlog

from koinon_coordinator.closing import Plan, first_version, open_update
from koinon_coordinator.driver import Driver, Item, restore
from koinon_coordinator.roster import Connection, Roster
from koinon_coordinator.store import Change, Incident, RoundRow, RunRow, Store, UpdateRow
from koinon_core import codec
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.errors import (
    BadBlob,
    Conflict,
    KoinonError,
    NotFound,
    RemoteProtocolError,
    Unavailable,
    UsageError,
)  # fmt: skip
from koinon_core.fold import verify
from koinon_core.round.effects import Verdict
from koinon_core.run import Run
from koinon_core.spec import RunSpec
from koinon_core.update import Head
from koinon_core.wire import convert
from koinon_core.wire.convert import INLINE

__all__ = ["Federation"]

T = TypeVar("T")
_log = structlog.get_logger("koinon.federation")
_WORKERS = 4
_STOPPING = "the coordinator is stopping; when it is back, it goes on where it was"


def _steady_clock() -> Callable[[], float]:
    """Seconds since 1970 that never jump: somebody who sets this machine's clock moves no deadline."""
    offset = time.time() - time.monotonic()
    return lambda: time.monotonic() + offset


class Federation:
    """Owns the store, the roster and a driver for every live run."""

    def __init__(self, store: Store, clock: Callable[[], float] | None = None):
        self.store, self.roster, self.clock = store, Roster(), clock or _steady_clock()
        self.pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="koinon-store")
        self.drivers: dict[str, Driver] = {}
        self.rows: dict[str, RunRow] = {}
        self.aside: dict[str, KoinonError] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._awaiting: list[tuple[Connection, str]] = []
        self._stopped = False
        self._driving: dict[str, asyncio.Task[None]] = {}

    async def run(self, started: asyncio.Event, stop: asyncio.Event) -> None:
        """Take up every live run and drive them until `stop` is set."""
        await self._read_rows()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for row in self.rows.values():
                if row.status in ("running", "paused"):
                    await self._take_up(row)
            started.set()
            await stop.wait()
            for task in list(self._driving.values()):
                task.cancel()
        self._stopped = True
        self.pool.shutdown()

    async def db(self, function: Callable[..., T], *args: object) -> T:
        """Call the store from a worker thread."""
        if self._stopped:
            raise Unavailable(_STOPPING)
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *args)

    async def _read_rows(self) -> None:
        self.rows = {row.id: row for row in await self.db(self.store.runs)}

    async def _take_up(self, row: RunRow) -> None:
        try:
            run = await self.db(restore, self.store, row)
            plan = Plan.of(run.spec)
        except KoinonError as error:
            self.aside[row.id] = error
            _log.error("a run is set aside", run=row.name, reason=str(error))
            return
        await self._drive(run, plan)

    async def _drive(self, run: Run, plan: Plan) -> None:
        version = await self.db(self.store.latest_model, run.id)
        driver = Driver(self.store, plan, run, version, self.roster, self.pool, self.clock)
        self.drivers[run.id] = driver
        assert self._tasks is not None
        self._driving[run.id] = self._tasks.create_task(self._until_over(driver))

    async def _until_over(self, driver: Driver) -> None:
        try:
            await driver.drive()
        except Exception as error:
            # One run's bug must not end the others: it is set aside, by name, until the next start.
            _log.exception("a run is set aside", run=driver.run.spec.name)
            reason = KoinonError(f"the run stopped on an error of the coordinator: {error!r}")
            self.aside[driver.run.id] = reason
            driver.set_aside(reason)
        finally:
            if driver.run.over:
                await self._read_rows()  # before the driver goes: nobody may see the run as it was created
            del self.drivers[driver.run.id], self._driving[driver.run.id]
            driver.wake()

    # -- operators --------------------------------------------------------------------------------------------

    async def create(self, spec: RunSpec, model: bytes) -> Run:
        """Submit a run. UsageError or Conflict if it cannot be."""
        plan = Plan.of(spec)
        if any(row.name == spec.name for row in self.rows.values()):
            raise Conflict(f"there is a run named {spec.name!r} already; choose another name")
        try:
            tensors = codec.decode(model, spec.model, "the first model")
        except BadBlob as error:
            raise UsageError(str(error)) from error
        version, contents = await self.db(first_version, self.store, plan, tensors)
        run = Run(id=uuid.uuid4().hex, spec=spec, model=version.digest, down=version.down)
        change = Change(run, models=[version], contents=contents)
        await self.db(self.store.create_run, change, self.clock())
        await self._drive(run, plan)
        await self._read_rows()  # only now can devices find it: their offers need its driver
        self._call_in(spec.name)
        _log.info("run created", run=spec.name, id=run.id)
        return run

    def _call_in(self, name: str) -> None:
        """The run that some devices wait for is there."""
        called = [c for c, awaited in self._awaiting if awaited == name]
        self._awaiting = [(c, awaited) for c, awaited in self._awaiting if awaited != name]
        for connection in called:
            row = self.join(connection, name)
            assert row is not None
            connection.send(convert.joined(row.id, row.spec))

    def find(self, name: str) -> RunRow:
        """The run by its name or its id; NotFound lists those there are."""
        for row in self.rows.values():
            if name in (row.name, row.id):
                return row
        names = ", ".join(sorted(r.name for r in self.rows.values())) or "none yet"
        raise NotFound(f"this coordinator has no run {name[:80]!r} (there are: {names})")

    def current(self, row: RunRow) -> RunRow:
        """The row as it stands now: from the driver where the run lives."""
        driver = self.drivers.get(row.id)
        if driver is None:
            return row
        run = driver.run
        return replace(
            row, status=run.status, reason=run.reason, kind=run.kind, number=run.number, closed=run.closed,
            streak=run.streak,
        )  # fmt: skip

    def ended(self, run: str) -> RunRow | None:
        """The run, if it is over."""
        row = self.current(self.find(run))
        return row if row.status in ("finished", "failed", "cancelled") else None

    def lives(self, run: str) -> bool:
        """Whether more will happen to the run; Unavailable if it will, but not here and now."""
        if self.ended(run) or run in self.aside:
            return False
        if run not in self.drivers:
            raise Unavailable(_STOPPING)
        return True

    def waiting_for(self, run: str) -> str:
        """One sentence: what the run waits for."""
        if run in self.aside:
            return f"set aside: {self.aside[run]}"
        driver = self.drivers.get(run)
        return driver.run.waiting_for if driver else ""

    def attached(self, run: str) -> list[str]:
        """Devices that are attached to the run now."""
        driver = self.drivers.get(run)
        return sorted(driver.run.devices) if driver else []

    async def rounds(self, run: str, since: int = 0) -> list[RoundRow]:
        return await self.db(self.store.rounds, run, since)

    async def control(self, name: str, verb: str, reason: str) -> RunRow:
        """Pause, resume or cancel a run."""
        row = self.find(name)
        driver = self.drivers.get(row.id)
        if driver is None:
            if row.id in self.aside:
                raise Conflict(str(self.aside[row.id]))
            raise Conflict(f"run {row.name!r} is {row.status} already; there is nothing to {verb}")
        now = self.clock()
        facts: dict[str, runs.Fact] = {
            "pause": runs.Paused(now),
            "resume": runs.Resumed(now),
            "cancel": runs.Cancelled(now, reason or "cancelled by the operator"),
        }
        if verb not in facts:
            raise UsageError(f"a run can be paused, resumed or cancelled, not {verb[:20]!r}")
        wanted = {"pause": ("paused",), "resume": ("running", "finished"), "cancel": ("cancelled",)}[verb]
        if driver.run.status not in wanted:
            changed = driver.watch()
            try:
                driver.tell(facts[verb])
                async with asyncio.timeout(30):
                    while driver.run.status not in wanted:
                        changed.clear()
                        await changed.wait()
            finally:
                driver.unwatch(changed)
        return self.current(row)

    # -- devices ----------------------------------------------------------------------------------------------

    async def see(self, connection: Connection, version: str) -> None:
        await self.db(self.store.see_device, connection.client, version[:32], self.clock())

    def join(self, connection: Connection, name: str, wait: bool = False) -> RunRow | None:
        """A device enters a run; None if there is none yet and it waits for it."""
        if wait and not any(name in (row.name, row.id) for row in self.rows.values()):
            self._awaiting.append((connection, name))
            return None
        row = self.find(name)
        connection.runs.add(row.id)
        self._driver(connection, row.id)
        return row

    def offer(self, connection: Connection, run: str, evaluates: bool, engaged: int) -> None:
        driver = self._driver(connection, run)
        if driver is not None:
            driver.tell(runs.Offered(self.clock(), connection.client, evaluates, engaged))

    def progress(self, connection: Connection, run: str) -> None:
        driver = self._driver(connection, run)
        if driver is not None:
            driver.tell(runs.Progressed(self.clock(), connection.client))

    def leave(self, connection: Connection, run: str, round_: int, code: str, detail: str) -> None:
        """A device declines or fails; the operator sees it."""
        driver = self._driver(connection, run)
        if driver is None:
            return
        now, client = self.clock(), connection.client
        fact = runs.Resigned(now, client, round_, code, detail) if round_ else runs.Gone(now, client)
        driver.tell(Item(fact, incident=Incident(now, client, round_, code, detail) if detail else None))

    def gone(self, connection: Connection) -> None:
        """A device's stream ended."""
        self._awaiting = [(c, name) for c, name in self._awaiting if c is not connection]
        for run in connection.runs:
            if run in self.drivers:
                self.drivers[run].tell(runs.Gone(self.clock(), connection.client))

    async def answer(
        self, connection: Connection, run: str, round_: int, terms: str, digest: str, data: bytes, size: int,
        head: Head,
    ) -> tuple[Verdict, str] | None:  # fmt: skip
        """A device's update: verified here, staged by the run's next turn. Returns the verdict where the round
        is over already, None where the turn will say it. BadBlob is an incident, and costs only this device."""
        row = self.find(run)
        client, now = connection.client, self.clock()
        driver = self._driver(connection, row.id)
        if driver is not None and round_ > driver.run.number:
            return "NOT_COUNTED", f"round {round_} has not begun"
        if driver is None or driver.run.over or round_ < driver.run.number:
            return await self.db(self.store.verdict, row.id, round_, client)
        if not driver.run.wants(client, round_):
            fact, odd = runs.Answered(now, client, round_, digest), _odd(driver.run, client, digest)
            incident = Incident(now, client, round_, "REFUSED", f"refused: {odd}") if odd else None
            driver.tell(Item(fact, incident=incident))
            return None
        try:
            update = await self._admit(driver, client, round_, terms, digest, data, size, head)
        except (BadBlob, RemoteProtocolError) as error:
            reason = f"refused: {error}"
            incident = Incident(now, client, round_, error.code, reason)
            driver.tell(Item(runs.Resigned(now, client, round_, "REFUSED", reason), incident=incident))
            return None
        driver.tell(Item(runs.Answered(now, client, round_, digest), update=update))
        return None

    async def _admit(
        self, driver: Driver, client: str, round_: int, terms_digest: str, digest: str, data: bytes, size: int,
        head: Head,
    ) -> UpdateRow:  # fmt: skip
        r, plan = driver.run.round, driver.plan
        assert r is not None
        if terms_digest != r.terms.digest:
            raise RemoteProtocolError("the update was made under other terms than this round's")
        trained = r.terms.kind == "train"
        head.check(trained=trained, max_examples=r.terms.max_examples, totals=plan.strategy.totals())
        if not trained and (digest or size or data):
            raise BadBlob("an evaluation has numbers only, and this one came with bytes")
        if len(data) > INLINE:
            raise BadBlob(f"an update of {len(data)} bytes must be uploaded, not sent in the message")
        inline = data if size and len(data) == size else None
        if trained:
            if size > codec.size_limit(plan.layout.update):
                raise BadBlob(f"an update of {size} bytes is larger than this run's model can need")
            if inline is None and not await self.db(self.store.blobs.has, digest):
                raise BadBlob("the update's bytes never arrived; upload them before they are handed in")
            if inline is not None:  # small: done before a worker thread would have woken up
                _verify(plan, self.store, digest, size, inline)
            else:
                await self.db(_verify, plan, self.store, digest, size, None)
        return UpdateRow(client, round_, digest, size, r.terms.codec, head, self.clock(), inline)

    def may_download(self, connection: Connection, digest: str) -> Driver | None:
        """The live run, among the device's, whose open round names this content."""
        for run in connection.runs:
            driver = self.drivers.get(run)
            r = driver.run.round if driver else None
            if r is not None and digest in (r.terms.model, r.terms.down):
                return driver
        return None

    def may_upload(self, connection: Connection, run: str, round_: int, size: int) -> None:
        """Raise RemoteProtocolError unless this device's update of that round and size is awaited."""
        driver = self.drivers.get(run)
        if driver is None or not driver.run.wants(connection.client, round_):
            raise RemoteProtocolError(f"no update of round {round_} is awaited from this device")
        limit = codec.size_limit(driver.plan.layout.update)
        if size > limit:
            raise BadBlob(f"an update of {size} bytes is refused: this run's model needs at most {limit}")
        driver.tell(runs.Progressed(self.clock(), connection.client))

    def _driver(self, connection: Connection, run: str) -> Driver | None:
        if run not in connection.runs:
            raise RemoteProtocolError("join a run before speaking of it")
        if run in self.aside:
            raise Conflict(f"run {self.find(run).name!r} is set aside: {self.aside[run]}")
        return self.drivers.get(run)


def _odd(run: Run, client: str, digest: str) -> str:
    """What the operator should know of an answer that the open round did not wait for; an honest device's second
    try is nothing odd."""
    r = run.round
    if r is None or not r.update.asked:
        return ""
    if client not in r.update.asked:
        return "an update came from this device, which was not asked in this round"
    return "" if r.update.heard.get(client, digest) == digest else "a second, different update for this round"


def _verify(plan: Plan, store: Store, digest: str, size: int, data: bytes | None) -> None:
    if data is not None and sha256(data) != digest:
        raise BadBlob("the update's bytes are not what its digest says; send them again")
    spec = plan.spec
    verify(open_update(plan, store, digest, size, data), plan.layout.update, spec.grid, spec.bound)
