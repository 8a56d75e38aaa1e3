"""The federation: all runs of this coordinator, and what operators may ask of them (`devices` has the other side).

It knows nothing of gRPC: `service` translates. A run whose strategy is not known here is kept aside, with the
reason, and does not keep the others from going on.
"""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import structlog

from koinon_coordinator.closing import Plan, first_version
from koinon_coordinator.driver import Driver
from koinon_coordinator.ledger import Ledger
from koinon_coordinator.roster import Roster
from koinon_coordinator.store import RoundRow, RunRow, Store, Superseded
from koinon_coordinator.telling import Said
from koinon_coordinator.visits import PERIOD
from koinon_core import run as runs
from koinon_core.blob import Window
from koinon_core.codec import Reader
from koinon_core.errors import (
    BadBlob,
    Conflict,
    KoinonError,
    NotFound,
    StoreError,
    Unavailable,
    UsageError,
)  # fmt: skip
from koinon_core.flow.central import central
from koinon_core.identity import Trust
from koinon_core.run import Run
from koinon_core.selection.traits import labels_in
from koinon_core.spec import RunSpec

__all__ = ["Federation", "passing"]

T = TypeVar("T")
_log = structlog.get_logger("koinon.federation")
_WORKERS = 4
_AGAIN = 5.0
_STOPPING = "the coordinator is stopping; when it is back, it goes on where it was"


def _steady_clock() -> Callable[[], float]:
    """Seconds since 1970 that never jump: somebody who sets this machine's clock moves no deadline."""
    offset = time.time() - time.monotonic()
    return lambda: time.monotonic() + offset


class Federation:
    """Owns the store, the roster and a driver for every live run. `period` is how often devices that do not stay
    attached come by, in seconds."""

    def __init__(self, store: Store, clock: Callable[[], float] | None = None, *, period: float = PERIOD):
        self.store, self.roster, self.clock = store, Roster(), clock or _steady_clock()
        self.period = period
        self.pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="koinon-store")
        self.drivers: dict[str, Driver] = {}
        self.rows: dict[str, RunRow] = {}
        self.aside: dict[str, KoinonError] = {}
        self.measured: defaultdict[str, list[int]] = defaultdict(list)
        """Rounds that their run's owner measured since this coordinator started, in the order in which that came."""
        self._tasks: asyncio.TaskGroup | None = None
        self._stopped = False
        self._driving: dict[str, asyncio.Task[None]] = {}
        self._later: dict[str, asyncio.Task[None]] = {}
        self.trust: Callable[[bytes], tuple[str, bytes]] = Trust.loose()
        """Whose signatures devices believe: anybody's, where nobody is enrolled (plain text on a loopback address)."""
        self.created: list[Callable[[str], None]] = []
        """Called with the name of every new run, once devices may join it."""

    async def run(self, started: asyncio.Event, stop: asyncio.Event) -> None:
        """Take up every live run and drive them until `stop` is set."""
        try:
            _log.info("the folder is in order", files_removed=await self.db(self.store.sweep))
        except StoreError as error:
            _log.warning("the folder was not put in order; the next start does that", reason=str(error))
        await self._read_rows()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            if self.store.shared:
                self._later[""] = tasks.create_task(self._look_around())
            for row in self.rows.values():
                if row.status in ("running", "paused"):
                    await self._take_up(row)
            started.set()
            await stop.wait()
            left = list(self.drivers.values())
            for task in [*self._driving.values(), *self._later.values()]:
                task.cancel()
            await asyncio.gather(*self._driving.values(), return_exceptions=True)
        for driver in left:
            await self._release(driver)
        self._stopped = True
        self.pool.shutdown()

    async def _release(self, driver: Driver) -> None:
        """Leave a live run to whoever comes next, as of now."""
        try:
            await self.db(self.store.release, driver.run.id, driver.ledger.epoch, self.clock())
        except StoreError as error:
            _log.warning("a run was not released", run=driver.run.spec.name, reason=str(error))

    async def db(self, function: Callable[..., T], *args: object) -> T:
        """Call the store from a worker thread."""
        if self._stopped:
            raise Unavailable(_STOPPING)
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *args)

    async def _read_rows(self) -> None:
        self.rows = {row.id: row for row in await self.db(self.store.runs)}

    async def _take_up(self, row: RunRow) -> None:
        """Drive a stored run. Where it cannot be now (another coordinator drives it, the database does not answer) it
        is tried again, and does not keep the others waiting."""
        try:
            ledger, said = await self.db(Ledger.take_up, self.store, row, self.clock)
        except KoinonError as error:
            self._set_aside(row, error)
            return
        except Exception as error:
            _log.exception("a run cannot be read", run=row.name)
            self._set_aside(
                row, KoinonError(f"the run cannot be read: {error!r}; `koinon-coordinator db check`")
            )
            return
        self.aside.pop(row.id, None)
        self._drive(ledger, said)

    def _set_aside(self, row: RunRow, error: KoinonError) -> None:
        """A run that cannot be driven here: for good, or until another coordinator or the database lets go of it."""
        if row.id not in self.aside:
            _log.error("a run is set aside", run=row.name, reason=str(error), tried_again=passing(error))
        self.aside[row.id] = error
        if passing(error):
            assert self._tasks is not None
            self._later[row.id] = self._tasks.create_task(self._try_again(row))

    async def _look_around(self) -> None:
        """On a database that several coordinators share, runs appear that others created, and may be left to us."""
        while True:
            await asyncio.sleep(_AGAIN)
            try:
                found = await self.db(self.store.runs)
            except StoreError:
                continue  # its drivers say so already
            for row in found:
                if row.id in self.drivers or row.id in self.aside:
                    continue
                self.rows[row.id] = row
                if row.status in ("running", "paused"):
                    await self._take_up(row)

    async def _try_again(self, row: RunRow) -> None:
        await asyncio.sleep(_AGAIN)
        self._later.pop(row.id, None)
        try:
            row = self.rows[row.id] = await self.db(self.store.run, row.id)
        except StoreError as error:
            self._set_aside(row, error)
            return
        if row.status in ("running", "paused"):
            await self._take_up(row)
        else:
            self.aside.pop(row.id, None)  # whoever drove it brought it to its end

    def _drive(self, ledger: Ledger, said: Iterable[Said] = ()) -> None:
        driver = Driver(self.store, ledger, self.roster, self.pool, self.clock, said)
        self.drivers[ledger.run.id] = driver
        assert self._tasks is not None
        self._driving[ledger.run.id] = self._tasks.create_task(self._until_over(driver))

    async def _until_over(self, driver: Driver) -> None:
        try:
            await driver.drive()
        except Superseded as error:
            _log.error("a run is left to its new owner", run=driver.run.spec.name, reason=str(error))
            self._set_aside(self.rows[driver.run.id], error)
            driver.cut_off()
            await self.db(self.store.forget_sessions, driver.run.id)
        except Exception as error:
            # One run's bug must not end the others: it is set aside, by name, until the next start.
            _log.exception("a run is set aside", run=driver.run.spec.name)
            reason = KoinonError(f"the run stopped on an error of the coordinator: {error!r}")
            self.aside[driver.run.id] = reason
            driver.set_aside(reason)
        finally:
            # Before the driver goes, and without the database: nobody may see the run as it was created.
            ended = self.clock() if driver.run.over else None
            self.rows[driver.run.id] = replace(self.current(self.rows[driver.run.id]), ended_at=ended)
            del self.drivers[driver.run.id], self._driving[driver.run.id]
            driver.wake()

    # -- operators --------------------------------------------------------------------------------------------

    async def create(self, spec: RunSpec, model: Window, size: int, operator: str = "") -> Run:
        """Submit a run, which is that operator's, with its first model, a container of `size` bytes. UsageError or
        Conflict if it cannot be."""
        plan = Plan.of(spec)
        if any(row.name == spec.name for row in self.rows.values()):
            raise Conflict(f"there is a run named {spec.name!r} already; choose another name")
        try:
            reader = await self.db(Reader, model, size, spec.model, "the first model")
            version, contents = await self.db(first_version, self.store, plan, reader)
        except BadBlob as error:
            raise UsageError(str(error)) from error
        try:
            ledger = await self.db(
                Ledger.create, self.store, plan, self.clock, uuid.uuid4().hex, version, contents, operator
            )
        except BaseException:
            self.store.unpin(contents)
            raise
        self._drive(ledger)
        self.rows[ledger.run.id] = row_of(
            ledger.run, self.clock(), operator
        )  # devices find it now: its driver is there
        for told in self.created:
            told(spec.name)
        _log.info("run created", run=spec.name, id=ledger.run.id)
        return ledger.run

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
        run, (audit_number, audit_hash) = driver.run, driver.ledger.log_end
        return replace(
            row, status=run.status, reason=run.reason, kind=run.kind, number=run.number, closed=run.closed,
            streak=run.streak, head=run.head, recovery=run.recovery, beyond=run.beyond, remembered=run.remembered,
            audit_number=audit_number, audit_hash=audit_hash,
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
        return driver.waiting_for if driver else ""

    def labelled(self, device: str, words: str) -> None:
        """An operator wrote these words on a device: the runs that it waits in here know at once. (Those of another
        coordinator learn it with the device's next offer.)"""
        for driver in self.drivers.values():
            if driver.run.spec.selecting.reads_labels and device in driver.run.devices:
                driver.tell(runs.Labelled(self.clock(), device, labels_in(words)))

    def attached(self, run: str) -> list[str]:
        """Devices that are attached to the run now."""
        driver = self.drivers.get(run)
        return sorted(driver.run.devices) if driver else []

    async def rounds(self, run: str, since: int = 0) -> list[RoundRow]:
        return await self.db(self.store.rounds, run, since)

    async def control(self, name: str, verb: str, reason: str, beyond: int = 0) -> RunRow:
        """Pause, resume, cancel or recover a run. `beyond`: recovered, it uses no round number up to this."""
        row = self.find(name)
        driver = self.drivers.get(row.id)
        if driver is None:
            if row.id in self.aside:
                raise Conflict(str(self.aside[row.id]))
            raise Conflict(f"run {row.name!r} is {row.status} already; there is nothing to {verb}")
        now = self.clock()
        if verb == "recover":
            return await self._recover(driver, row, beyond)
        facts: dict[str, runs.Fact] = {
            "pause": runs.Paused(now),
            "resume": runs.Resumed(now),
            "cancel": runs.Cancelled(now, reason or "cancelled by the operator"),
        }
        if verb not in facts:
            raise UsageError(f"a run can be paused, resumed, cancelled or recovered, not {verb[:20]!r}")
        wanted = {"pause": ("paused",), "resume": ("running", "finished"), "cancel": ("cancelled",)}[verb]
        if driver.run.status not in wanted:
            await self._until(driver, facts[verb], lambda run: run.status in wanted)
        return self.current(self.rows[row.id])

    async def measure(self, name: str, round_: int, measured: Mapping[str, float]) -> None:
        """Keep what a run's owner measured of the model that a round made; the best model is known by it, where the run
        says so. Also of a run that is over, whose last model is measured then."""
        row = self.find(name)
        if row.id in self.aside:
            raise Conflict(str(self.aside[row.id]))
        metrics = central(measured)
        watch = RunSpec.decode(row.spec).watch
        if watch is not None and watch.metric in metrics:
            await self.db(self.store.model_at, row.id, round_)  # the best one must be one that is kept
        await self.db(self.store.measure, row.id, round_, metrics)
        self.measured[row.id].append(round_)
        driver = self.drivers.get(row.id)
        if driver is None:
            return
        if watch is not None and watch.metric in metrics:
            # It is stored: whoever takes the run up finds it, whether or not this is still told.
            driver.tell(runs.Measured(self.clock(), round_, metrics[watch.metric]))
        driver.wake()

    async def _recover(self, driver: Driver, row: RunRow, beyond: int) -> RunRow:
        run = driver.run
        if not run.ahead and beyond <= run.number:
            raise Conflict(
                f"no device has seen more of run {row.name!r} than this database knows (round {run.number}); there is "
                "nothing to recover (--beyond ROUND goes on above a number that you know of)"
            )
        recovery = run.recovery + 1
        await self._until(driver, runs.Recovered(self.clock(), beyond), lambda run: run.recovery >= recovery)
        # Whoever stayed away hears of it when it comes back.
        for client in run.ahead:
            connection = self.roster.get(client)
            if connection is not None:
                connection.cut()
        return self.current(self.rows[row.id])

    async def _until(self, driver: Driver, fact: runs.Fact, done: Callable[[Run], bool]) -> None:
        """Tell the driver, and wait until that is stored."""
        changed = driver.watch()
        try:
            driver.tell(fact)
            async with asyncio.timeout(30):
                while not done(driver.run):
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            raise Unavailable(
                "the run did not answer within 30 s; `koinon run why` says what it waits for"
            ) from None
        finally:
            driver.unwatch(changed)


def row_of(run: Run, created_at: float, operator: str = "") -> RunRow:
    """The row of a run that was just created."""
    return RunRow(
        id=run.id, name=run.spec.name, spec=run.spec.encoded, status=run.status, reason=run.reason, kind=run.kind,
        number=run.number, closed=run.closed, streak=run.streak, created_at=created_at, ended_at=None, head=run.head,
        recovery=run.recovery, beyond=run.beyond, owner="", epoch=1, beat=created_at, audit_number=0, audit_hash="",
        remembered=run.remembered, operator=operator,
    )  # fmt: skip


def passing(error: KoinonError) -> bool:
    """Whether a run that is set aside for this may be taken up later."""
    return isinstance(error, StoreError | Conflict)
