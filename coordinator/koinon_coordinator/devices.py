"""What devices may ask of a federation: to enter a run, to be heard, to hand over bytes.

Every message is checked against who sent it and what its run waits for; what one device says wrong costs its own part.
"""

import asyncio
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial

import structlog

from koinon_coordinator.admission import Answer, Voice, admit, check_upload, hear
from koinon_coordinator.book import Item
from koinon_coordinator.driver import Driver
from koinon_coordinator.federation import Federation, passing
from koinon_coordinator.roster import Connection
from koinon_coordinator.store import Incident, Part, RunRow
from koinon_coordinator.visits import Visits
from koinon_core import run as runs
from koinon_core.condition import Condition
from koinon_core.costs import Spent
from koinon_core.errors import Conflict, RemoteProtocolError, StoreError, Unavailable
from koinon_core.round.effects import Verdict
from koinon_core.run import Run
from koinon_core.run.pace import Pace
from koinon_core.selection.traits import labels_in
from koinon_core.strategy.protocol import Need
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["Devices"]

_log = structlog.get_logger("koinon.devices")
_MOST = (1 << 63) - 1  # what a database can hold
_FAR = 1 << 20  # rounds by which a backup may be behind; what a device says beyond that is no round number
_SOON = 16 << 10  # bytes that are checked before a worker thread would have woken up
_EVERY = 10.0  # seconds between two times that a device's condition is written


class Devices:
    """The devices' side of a federation."""

    def __init__(self, federation: Federation):
        self._fed = federation
        self._awaiting: list[tuple[Connection, str]] = []
        self._noted: set[Part] = set()
        self._visits = Visits(federation.period)
        federation.created.append(self.call_in)

    def call_in(self, name: str) -> None:
        """The run that some devices wait for is there."""
        called = [c for c, awaited in self._awaiting if fnmatchcase(name, awaited)]
        self._awaiting = [(c, awaited) for c, awaited in self._awaiting if not fnmatchcase(name, awaited)]
        for connection in called:
            row = self.join(connection, name)
            assert row is not None
            connection.send(convert.joined(row.id, row.spec))

    async def see(self, connection: Connection, version: str, condition: Condition | None = None) -> None:
        """A device attends, and may say how it is."""
        now = self._fed.clock()
        await self._fed.db(self._fed.store.see_device, connection.client, version[:32], now, condition)
        if condition is not None:
            connection.condition, connection.noted = (condition, now), now

    def condition(self, connection: Connection, condition: Condition) -> None:
        """A device says how it is. It may do so as often as it likes: what it says last in ten seconds is kept."""
        connection.condition = condition, self._fed.clock()
        if connection.noting is None:
            connection.noting = asyncio.create_task(self._note(connection))

    async def _note(self, connection: Connection) -> None:
        """Write how a device is: ten seconds after that was last written, or when it leaves."""
        with suppress(TimeoutError):
            async with asyncio.timeout(connection.noted + _EVERY - self._fed.clock()):
                await connection.left.wait()
        connection.noting = None
        assert connection.condition is not None
        said, at = connection.condition
        connection.noted = at
        try:
            await self._fed.db(self._fed.store.people.note_condition, connection.client, said, at)
        except (StoreError, Unavailable) as error:
            _log.warning(
                "the condition of a device was not written", client=connection.client, reason=str(error)
            )

    async def spent(self, connection: Connection, run: str, round_: int, spent: Spent) -> None:
        """What a device's part in a round has cost; also of a run that is over."""
        if run not in connection.runs:
            raise RemoteProtocolError("join a run before speaking of it")
        kept = await self._fed.db(
            self._fed.store.keep_costs, run, round_, connection.client, spent, self._fed.clock()
        )
        if not kept:
            raise RemoteProtocolError(
                f"this device has no part in round {round_}, which could have cost anything"
            )

    def pace(self, connection: Connection, run: str) -> Pace | None:
        """When a device that visits shall come back; None where the run does not go on here."""
        driver = self._driver(connection, run)
        if driver is None or driver.run.over:
            self._visits.forget(run)
            return None
        return self._visits.told(driver.run, connection.client, self._fed.clock())

    def join(self, connection: Connection, name: str, wait: bool = False) -> RunRow | None:
        """A device enters a run, by its name, its id, or a pattern of names ("ward-*"): that is the newest run which is
        not over. None if there is none yet and it waits for it."""
        if any(sign in name for sign in "*?["):  # which no run has in its name
            matching = [row for row in self._fed.rows.values() if fnmatchcase(row.name, name)]
            open_ = [row for row in matching if not self._fed.ended(row.id)]
            if open_:
                name = max(open_, key=lambda row: row.created_at).id
        if wait and not any(name in (row.name, row.id) for row in self._fed.rows.values()):
            if (connection, name) not in self._awaiting:
                self._awaiting.append((connection, name))
            return None
        row = self._fed.find(name)
        connection.runs.add(row.id)
        self._driver(connection, row.id)
        return row

    async def recall(
        self, connection: Connection, run: str, pinned: int, settled: int, owes: int
    ) -> pb.CoordinatorMessage:
        """What a device remembers is compared with what the run knows; returns the run's standing. `pinned` is the
        last round that it was asked in, `settled` the last that it knows to have counted it, and `owes` one of which
        it does not know. Conflict if it has lost what this run cannot go on without."""
        driver = self._driver(connection, run)
        if driver is not None:
            await self._remembers(driver, connection, max(settled, owes))
        return convert.standing(run, *await self._fed.db(self._fed.store.standing, run, min(pinned, _MOST)))

    async def _remembers(self, driver: Driver, connection: Connection, known: int) -> None:
        """Whether the device knows of every update of its that was counted."""
        client, now = connection.client, self._fed.clock()
        counted = await self._fed.db(self._fed.store.last_counted, driver.run.id, client)
        r = driver.run.round
        mine = r is not None and client in r.update.heard and r.stage != "abandoned"
        if r is not None and mine and r.round_of(client) > driver.run.remembered:
            counted = max(counted, r.round_of(client))  # or it is about to be
        if counted <= known:
            return
        vital = Need.MEMORY in driver.plan.strategy.needs
        if not (vital or connection.boot):
            return  # it keeps no memory, and this run needs none
        if not await self._fed.db(self._fed.store.owns, driver.run.id, driver.ledger.epoch):
            raise Unavailable("the run went on elsewhere; it may be over, and its devices have forgotten it")
        lost = f"{client!r} was counted in round {counted} and knows of {known}: its memory was lost or is a copy"
        driver.tell(
            Item(runs.Progressed(now, client), incident=Incident(now, client, counted, "FORGOT", lost))
        )
        if vital:
            raise Conflict(
                f"{lost}, and this run's strategy cannot go on without it; bring the folder back (KOINON_STATE), or "
                "let the device join under a new name"
            )

    def ahead(self, connection: Connection, run: str, round_: int, reason: str) -> None:
        """A device knows more of the run than this database does, and stays away."""
        driver = self._driver(connection, run)
        if driver is not None:
            if round_ > driver.run.number + _FAR:
                raise RemoteProtocolError(f"no device can have seen round {round_} of this run")
            now, client = self._fed.clock(), connection.client
            incident = Incident(now, client, driver.run.number, "AHEAD", f"stays away: {reason}")
            driver.tell(Item(runs.Ahead(now, client, round_), incident=incident))

    async def offer(
        self, connection: Connection, run: str, evaluates: bool, engaged: int, held: str | None = None
    ) -> None:
        driver = self._driver(connection, run)
        if driver is None:
            return
        client, labels = connection.client, dict[str, str]()
        if driver.run.spec.selecting.reads_labels:
            # Read anew with every offer: an operator may have written others since, at any coordinator.
            labels = labels_in((await self._fed.db(self._fed.store.people.device, client)).label)
        driver.tell(
            runs.Offered(self._fed.clock(), client, evaluates, engaged, held, labels, connection.able)
        )

    def progress(self, connection: Connection, run: str) -> None:
        driver = self._driver(connection, run)
        if driver is not None:
            driver.tell(runs.Progressed(self._fed.clock(), connection.client))

    def leave(self, connection: Connection, run: str, round_: int, code: str, detail: str) -> None:
        """A device declines or fails; the operator sees it."""
        driver = self._driver(connection, run)
        if driver is None:
            return
        now, client = self._fed.clock(), connection.client
        fact = runs.Resigned(now, client, round_, code, detail) if round_ else runs.Gone(now, client)
        driver.tell(Item(fact, incident=Incident(now, client, round_, code, detail) if detail else None))

    def gone(self, connection: Connection) -> None:
        """A device's stream ended."""
        connection.left.set()
        self._awaiting = [(c, name) for c, name in self._awaiting if c is not connection]
        for run in connection.runs:
            if run in self._fed.drivers:
                self._fed.drivers[run].tell(runs.Gone(self._fed.clock(), connection.client))

    async def answer(self, connection: Connection, run: str, answer: Answer) -> tuple[Verdict, str] | None:
        """A device's update: verified here, staged by the run's next turn. Returns the verdict where the round is
        over already, None where the turn will say it."""
        row = self._fed.find(run)
        driver = self._driver(connection, row.id)
        if driver is not None and answer.round > driver.run.number:
            if answer.round <= (await self._fed.db(self._fed.store.run, row.id)).number:
                raise Unavailable("the run went on elsewhere; this coordinator does not know that round")
            return "NOT_COUNTED", f"round {answer.round} has not begun"
        if driver is None or driver.run.over or not driver.run.takes(answer.client, answer.round):
            return await self._fed.db(self._fed.store.verdict, row.id, answer.round, answer.client)
        job = partial(admit, self._fed.store, driver.plan, driver.run, answer, self._fed.clock())
        # A small one is done before a worker thread would have woken up.
        item = job() if len(answer.data) == answer.size else await self._fed.db(job)
        if self._fed.ended(row.id):  # meanwhile; nobody reads its queue any more
            return await self._fed.db(self._fed.store.verdict, row.id, answer.round, answer.client)
        driver.tell(item)
        return None

    async def voice(self, connection: Connection, run: str, voice: Voice) -> tuple[Verdict, str] | None:
        """What a device says in a secure round; as `answer`."""
        row = self._fed.find(run)
        driver = self._driver(connection, row.id)
        if driver is not None and voice.round > driver.run.number:
            if voice.round <= (await self._fed.db(self._fed.store.run, row.id)).number:
                raise Unavailable("the run went on elsewhere; this coordinator does not know that round")
            return "NOT_COUNTED", f"round {voice.round} has not begun"
        if driver is None or driver.run.over or not driver.run.takes(voice.client, voice.round):
            return await self._fed.db(self._fed.store.verdict, row.id, voice.round, voice.client)
        r = driver.run.round
        sessions = driver.ledger.sessions if r is not None and r.secure and not r.over else None
        job = partial(hear, self._fed.store, driver.run, sessions, voice, self._fed.trust, self._fed.clock())
        # Who advertises is looked up in the database, where that device was never met.
        quick = len(voice.payload) <= _SOON and voice.collection != "keys"
        driver.tell(job() if quick else await self._fed.db(job))
        return None

    def no_room(self, connection: Connection, part: Part, reason: str) -> None:
        """An upload could not be taken, for a reason of this machine's: the operator sees it, once a round and device;
        the device keeps its update and tries again."""
        driver = self._fed.drivers.get(part.run)
        if driver is None or part in self._noted:
            return
        self._noted = {p for p in self._noted if (p.run, p.round) == (part.run, part.round)} | {part}
        now, client = self._fed.clock(), connection.client
        incident = Incident(now, client, part.round, "STORE", f"its upload waits: {reason}")
        driver.tell(Item(runs.Progressed(now, client), incident=incident))

    def may_download(self, connection: Connection, digest: str) -> Driver | None:
        """The live run, among the device's, whose open round names this content."""
        for run in connection.runs:
            driver = self._fed.drivers.get(run)
            r = driver.run.round if driver else None
            if driver and r and digest in (r.terms.model, r.terms.down, driver.ledger.version.delta):
                return driver
            work = r.taken.get(connection.client) if r is not None else None
            if work is not None and digest in (work.model, work.down):
                return driver
        return None

    def may_upload(self, connection: Connection, run: str, round_: int, size: int) -> None:
        """Raise RemoteProtocolError unless this device's update of that round and size is awaited."""
        driver = self._fed.drivers.get(run)
        if driver is None or not _wants_bytes(driver.run, connection.client, round_):
            raise RemoteProtocolError(f"no update of round {round_} is awaited from this device")
        check_upload(driver.plan, size, driver.ledger.terms_of(connection.client))
        driver.tell(runs.Progressed(self._fed.clock(), connection.client))

    def _driver(self, connection: Connection, run: str) -> Driver | None:
        if run not in connection.runs:
            raise RemoteProtocolError("join a run before speaking of it")
        if run in self._fed.aside:
            told = f"run {self._fed.find(run).name!r} is set aside: {self._fed.aside[run]}"
            raise Unavailable(told) if passing(self._fed.aside[run]) else Conflict(told)
        return self._fed.drivers.get(run)


def _wants_bytes(run: Run, client: str, round_: int) -> bool:
    """Whether an update of this device, masked or not, is awaited."""
    r = run.round
    return r is not None and any(
        run.wants(client, round_, collection, r.masking.attempt) for collection in ("update", "masked")
    )
