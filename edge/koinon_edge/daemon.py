"""The daemon: a device that takes part for months without being watched.

One loop: look whether the device may work (the gate), wait to be asked (the bell), let a shift do what was asked, and
begin again. Whatever fails has a name, a pause and another try; nothing of it ends the daemon. Where it stands is on
disk (life.py), and a start takes up what was under way.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from koinon_core.errors import KoinonError, StoreError
from koinon_edge.bell import Back, Bell, Ended, Rung
from koinon_edge.gate import Gate, Verdict
from koinon_edge.life import LifeFile
from koinon_edge.notify import Notifier, Watch
from koinon_edge.place import Place
from koinon_edge.settings import Settings, TaskSettings
from koinon_edge.shift import Outcome, Shift, Watcher
from koinon_edge.spool import tidy

__all__ = ["Daemon"]

_log = logging.getLogger("koinon.edge")
_LOOK = 15.0  # seconds between two looks at the gate while nothing is done
_WATCH = 2.0  # and while something is
_TICK = 2.0
# Nobody answers, the last worker still ends, the disk is full.
_PASSING = ("UNAVAILABLE", "CONFLICT", "STORE")
_MOVING = ("CHECKED_IN", "DOWNLOADING", "UPLOADING")  # states in which bytes are moved
_NOTE = 30.0  # seconds between two words about the device's condition while it works
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0
_FAILING_PAUSE = 10.0  # the first after a program, or a run, has gone wrong
_PATIENT = 3600.0  # the longest pause after what will not mend itself soon
_TRIES = 5  # how often work that kills its worker is taken up again
_STARVED = 60.0  # seconds without a tick of the loop: the watchdog is fed no more


@dataclass(slots=True)
class _Pauses:
    """Full jitter up to a ceiling that doubles, and begins anew once something worked."""

    first: float = _FIRST_PAUSE
    longest: float = _LONGEST_PAUSE
    least: float = 0.0
    """The share of the ceiling that is always waited."""
    failures: int = 0

    def next(self) -> float:
        self.failures += 1
        ceiling = min(self.longest, self.first * 2.0 ** min(self.failures, 16))
        return random.uniform(self.least * ceiling, ceiling)  # noqa: S311 - jitter, not a secret

    def over(self) -> None:
        self.failures = 0


@dataclass(slots=True)
class Daemon:
    """The device at `place`, as its owner has settled it. `look` asks the gate (in a thread: sensors may be slow),
    `condition` is what the device says of itself; `clock` is in seconds since 1970."""

    settings: Settings
    place: Place
    life: LifeFile
    gate: Gate
    watcher: Watcher
    notifier: Notifier
    able: Mapping[str, int] | None = None
    condition: Callable[[], Mapping[str, Any]] | None = None
    visits: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.time
    verdict: Verdict | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _shift: Shift | None = None
    _pauses: _Pauses = field(default_factory=_Pauses)
    _failing: _Pauses = field(default_factory=lambda: _Pauses(_FAILING_PAUSE, _PATIENT, 0.5))
    _tries: int = 0
    _said: str = ""
    _watch: Watch | None = None

    def stop(self) -> None:
        """End soon; safe in a signal handler of the loop."""
        self._stopping.set()

    async def run(self, grace: float = 15.0) -> None:
        """Until `stop`, and at most 30 seconds longer."""
        self._watch = Watch(self.notifier, ("loop", "supervisor"), time.monotonic, _STARVED)
        ticking = asyncio.create_task(self._tick(), name="koinon-tick")
        living = asyncio.create_task(self._live(), name="koinon-live")
        self.notifier.ready(self._status())
        try:
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({living, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if living.done():
                living.result()
            self.notifier.stopping()
            if self._shift is not None:
                await self._shift.end(grace)
        finally:
            for task in (living, ticking, stopping):
                task.cancel()
            await asyncio.gather(living, ticking, stopping, return_exceptions=True)
            self.watcher.close()

    # -- the loop ---------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        while True:
            try:
                pause = await self._once()
            except StoreError as error:  # a full or broken disk: everything waits until that is mended
                self._tell(str(error))
                pause = self._pauses.next()
            except KoinonError as error:
                self._tell(str(error))
                if not self.life.now.works:
                    with suppress(StoreError):
                        self.life.move("IDLE", str(error))
                pause = self._pauses.next()
            except OSError as error:
                self._tell(
                    f"this machine refuses something that the daemon needs ({error}); it is tried again"
                )
                pause = self._pauses.next()
            except Exception:
                # A fault of ours: it is seen, and the device takes part all the same.
                _log.exception("the daemon failed, and goes on")
                pause = self._pauses.next()
            if pause:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)
                if self._stopping.is_set():
                    return

    async def _once(self) -> float:
        """One thing that is to be done now; returns how long to wait before the next."""
        life = self.life.now
        if life.works:
            return await self._take_up()
        room = await asyncio.to_thread(tidy, self.place.folder, self.settings.spool.quota, working=False)
        if room.full:
            return self._stand_still(
                f"the spool has {room.taken / 1e6:.0f} MB, more than its quota of {room.quota / 1e6:.0f} MB, and "
                "nothing of it may go; raise [spool] quota"
            )
        if not self.settings.tasks:
            return self._stand_still(
                f"{self.settings.path} has no task: nothing is ever run that is not there"
            )
        verdict = await self._look(working=False)
        if not verdict.open:
            return self._stand_still(verdict.reason)
        self.life.move("ELIGIBLE")
        return await self._wait_for_work()

    def _stand_still(self, reason: str) -> float:
        self.life.move("IDLE", reason)
        self._tell(reason)
        return _LOOK

    async def _look(self, *, working: bool) -> Verdict:
        now = datetime.fromtimestamp(self.clock(), UTC)
        self.verdict = await asyncio.to_thread(self.gate.look, now, working=working)
        return self.verdict

    async def _wait_for_work(self) -> float:
        """Listen until somebody asks, or the gate closes."""
        runs = {task.run: task.name in self.life.now.evaluates for task in self.settings.tasks.values()}
        access = self.place.access
        bell = Bell(
            access.address, self.place.name, self.place.folder, access.credentials, runs,
            self.settings.network.keepalive, await asyncio.to_thread(self.visits), self.able, self.condition,
        )  # fmt: skip
        listening = asyncio.create_task(bell.listen(), name="koinon-bell")
        try:
            while not listening.done():
                await asyncio.wait({listening}, timeout=_LOOK)
                if not listening.done():
                    self._pauses.over()  # it stands
                    await asyncio.to_thread(self.watcher.rest)
                    if not (verdict := await self._look(working=False)).open:
                        return self._stand_still(verdict.reason)
            heard = listening.result()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        self._pauses.over()
        match heard:
            case Rung(run):
                return await self._work(self.settings.task_of(run), run)
            case Back(after):
                self.life.move(
                    "IDLE", f"the coordinator has nothing to do; it is asked again in {after:.0f} s"
                )
                return after
            case Ended(why):
                gone = "; ".join(f"run {run}: {reason}" for run, reason in why.items())
                self._stand_still(f'{gone} (a task for runs to come says so in edge.toml, as run = "NAME-*")')
                return self._failing.next() + _LOOK

    # -- work -------------------------------------------------------------------------------------------------

    async def _take_up(self) -> float:
        """What was under way when the daemon was stopped, or when its worker died."""
        life = self.life.now
        task = self.settings.tasks.get(life.task)
        if task is None:
            names = [life.task] if life.task else list(self.settings.tasks)
            self.life.move("ABORTED", f"task {life.task!r} is not in {self.settings.path} any more")
            self._tell(
                f"what was under way for {', '.join(names) or 'no task'} is not taken up: it is no task any more"
            )
            return 0.0
        if self._tries >= _TRIES:
            self._tries = 0
            self.life.move("ABORTED", f"the worker died {_TRIES} times over it")
            return self._failing.next()
        settle = life.state == "UPLOADING"
        verdict = await self._look(working=True)
        if not (verdict.sends if settle else verdict.open):
            self._tell(f"what is under way waits: {verdict.reason}")
            return _LOOK
        return await self._work(task, life.run or task.run, settle=settle)

    async def _work(self, task: TaskSettings, run: str, *, settle: bool = False) -> float:
        """A shift; returns how long to wait after it."""
        if not self.life.now.works:
            self.life.move("CHECKED_IN", task=task.name, run=run, round=0)
        self._shift = shift = Shift(
            self.place, task, run, self.settings.network, self.life, self.watcher, self._tell, settle
        )
        watching = asyncio.create_task(self._watch_over(shift), name="koinon-gate")
        try:
            outcome = await shift.work()
        finally:
            self._shift = None
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return self._after(outcome)

    def _after(self, outcome: Outcome) -> float:
        if outcome.left:
            return _LOOK
        if outcome.crashed:
            self._tries += 1
            self._tell(f"the worker died: {outcome.crashed}; what was under way is taken up again")
            return self._pauses.next()
        if outcome.trouble is not None:
            code, message = outcome.trouble
            self._tell(message)
            if code in _PASSING and self.life.now.works:  # what is under way waits
                return self._pauses.next()
            self.life.move("ABORTED", message)
        elif self.life.now.works:
            self.life.move("ABORTED", outcome.over or "the round went on without this device")
        self._tries = 0
        if outcome.failed or outcome.trouble is not None:
            # Whatever is wrong: a device that came back at once would be asked for the same again and again.
            return self._failing.next()
        self._failing.over()
        return 0.0

    async def _watch_over(self, shift: Shift) -> None:
        """The gate, while there is work: losing it pauses the program, and after the owner's patience ends its work."""
        closed_at: float | None = None
        loop = asyncio.get_running_loop()
        asked, noted, told = False, loop.time(), ""
        while True:
            await asyncio.sleep(_WATCH)
            verdict = await self._look(working=True)
            shift.tick(loop.time())
            state = self.life.now.state
            if self.condition is not None and (loop.time() - noted > _NOTE or state != told):
                noted, told = loop.time(), state
                shift.note(await asyncio.to_thread(self.condition))
            if self._watch is not None:
                self._watch.tick("supervisor")
            if not verdict.sends and self.life.now.state in _MOVING:
                self._tell(f"nothing is sent or fetched now: {verdict.reason}")
                await shift.end(shift.task.grace)
                return
            if verdict.open:
                if closed_at is not None:
                    closed_at, asked = None, False
                    self._tell("the device may work again")
                    shift.go_on()
                continue
            if closed_at is None:
                closed_at = loop.time()
                self._tell(f"the work pauses: {verdict.reason}")
                shift.pause()
            elif not asked and loop.time() - closed_at > self.settings.gate.patience:
                asked = True
                shift.hand_in(verdict.reason)
                await asyncio.sleep(shift.task.grace)
                await shift.give_up(verdict.reason)
                shift.rest(verdict.reason)

    # -- telling ----------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """The loop lives. Whether who supervises the program does, is for that one to say."""
        assert self._watch is not None
        said = ""
        while True:
            self._watch.tick("loop")
            if self._shift is None:  # or it is `_watch_over` that says so
                self._watch.tick("supervisor")
            self._watch.feed()
            if said != (status := self._status()):
                self.notifier.status(status)
                said = status
            await asyncio.sleep(_TICK)

    def _status(self) -> str:
        life = self.life.now
        return " ".join(filter(None, (life.state, life.task, f"({life.reason})" if life.reason else "")))

    def _tell(self, said: str) -> None:
        """Once, until something else is said."""
        if said and said != self._said:
            self._said = said
            _log.info(said)
