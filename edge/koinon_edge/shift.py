"""A shift: one worker's life, with the owner's program beside it, from the bell to the fate of what was handed in.

The daemon's loop only listens here: to the worker (what it is doing, and when it needs the program), to the program's
end, and to the gate, which may close meanwhile. Losing it pauses the program, and after a while asks it to hand in what
it has; whoever is killed for memory is started once more.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from koinon.outbox import files
from koinon_core.errors import KoinonError
from koinon_edge import container
from koinon_edge.life import LifeFile
from koinon_edge.line import LONGEST, decoded, encoded
from koinon_edge.place import Place
from koinon_edge.program import End, Program
from koinon_edge.settings import NetworkSettings, TaskSettings

__all__ = ["Outcome", "Shift", "Watcher"]

_KEPT = ("KOINON_", "NOTIFY_", "WATCHDOG_", "CREDENTIALS_")  # the daemon's own, which no program is told
_QUIET = 30.0  # seconds that a worker may take to end once it is told to
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


class Watcher:
    """Who is told what a shift does: the daemon's meter and budget."""

    def rest(self) -> None:
        """Nothing is done now: a good moment to see what that costs. May take some seconds."""

    def close(self) -> None:
        """The daemon ends."""

    def phase(self, state: str, round_: int) -> None:
        """The work of this round is there now."""

    def moved(self, up: int, down: int) -> None:
        """So many bytes went over the network."""

    def costs(self, round_: int) -> Mapping[str, Any] | None:
        """What the round has cost, once its fate is known; None if nobody measured."""
        return None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a shift ended. `over` says that the run is, and why; `trouble` what the worker could not go on for, with its
    code; `crashed` that it died, `left` that it was ended with its work under way, `failed` that the owner's program
    went wrong, and no round was counted after that."""

    over: str = ""
    trouble: tuple[str, str] | None = None
    crashed: str = ""
    failed: bool = False
    left: bool = False


@dataclass(slots=True)
class Shift:
    """Of `task`, for the run `run`. With `settle`, nothing new is begun: what is owed is brought to its end."""

    place: Place
    task: TaskSettings
    run: str
    network: NetworkSettings
    life: LifeFile
    watcher: Watcher
    say: Callable[[str], None]
    settle: bool = False
    _program: Program | None = None
    _waiting: "asyncio.Task[None] | None" = None
    _writer: asyncio.StreamWriter | None = None
    _worker: asyncio.subprocess.Process | None = None
    _over: str = ""
    _failed: bool = False
    _trouble: tuple[str, str] | None = None
    _idle_since: float | None = None
    _training_since: float | None = None
    _ending: bool = False
    _paused: bool = False
    _beside: set["asyncio.Future[None]"] = field(default_factory=set)

    # -- its life ---------------------------------------------------------------------------------------------

    async def work(self) -> Outcome:
        """Until the worker has ended, whatever ends it."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._worker = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "koinon_edge.worker", str(theirs.fileno()), pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL, start_new_session=True, env=self._worker_environment(),
            )  # fmt: skip
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=LONGEST)
        self._say("work", self._order())
        try:
            with suppress(ConnectionError):  # it ended with something unread: that is an end, too
                while line := await reader.readline():
                    await self._heard(*decoded(line))
            status = await self._worker.wait()
        except (KoinonError, ValueError) as error:
            self._kill_worker()
            status = await self._worker.wait()
            return Outcome(crashed=f"the worker spoke nonsense: {error}")
        finally:
            self._writer.close()
            self._kill_worker()
            await self._end_program("the shift is over")
        crashed = (
            "" if status in (0, 1) and (status == 0 or self._trouble) else f"it ended with status {status}"
        )
        return Outcome(self._over, self._trouble, crashed, self._failed, self._ending)

    async def end(self, grace: float) -> None:
        """Leave everything as it is, for a later shift to take up. The program may save what it likes."""
        self._ending = True
        # The worker first: it is not to give up the round for a program that was asked to end.
        self._say("end", "")
        if self._program is not None:
            self._program.grace = min(self._program.grace, grace)
            await self._end_program("the daemon ends")
        if self._worker is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_QUIET / 3):
                    await self._worker.wait()
            self._kill_worker()

    def note(self, condition: Mapping[str, Any]) -> None:
        """The operator is to know how the device is."""
        self._say("condition", dict(condition))

    def rest(self, reason: str) -> None:
        """Begin nothing new, and end as soon as nothing is owed."""
        self._say("rest", reason)

    def pause(self) -> None:
        """The program stands still, also one that is started meanwhile."""
        self._paused = True
        if self._program is not None:
            self._program.pause()

    def go_on(self) -> None:
        self._paused = False
        if self._program is not None:
            self._program.go_on()
        self._say("go on", "")

    def hand_in(self, reason: str) -> None:
        """The work under way ends with what there is; without that, it is given up after the program's grace."""
        self._paused = False
        if self._program is not None:
            self._program.go_on()
        self._say("stop", reason)

    async def give_up(self, reason: str) -> None:
        """The program is ended, and with it the round's work."""
        await self._end_program(reason)

    def tick(self, now: float) -> None:
        """Every few seconds: ends a program that has worked for too long, or that has had nothing to do for a while."""
        if self._training_since is not None and now - self._training_since > self.task.timeout:
            self._training_since = None
            reason = f"TIMEOUT: {self.task.name} worked for more than {self.task.timeout:g} s"
            self._begin(self._end_program(reason))
        if (
            self._idle_since is not None
            and now - self._idle_since > self.task.linger
            and self._program is not None
        ):
            self._idle_since = None
            self._begin(self._end_program("it has nothing to do", code="RESTED"))

    # -- what the worker says ---------------------------------------------------------------------------------

    async def _heard(self, kind: str, said: Any) -> None:
        match kind:
            case "phase":
                self._phase(said)
            case "need":
                await self._start_program(int(said["number"]))
            case "lost":
                self._failed = True
                if self._program is not None and not self._ending:  # else its end was told already
                    self._begin(
                        self._end_program(str(said.get("why") or "it stopped speaking with its worker"))
                    )
            case "moved":
                self.watcher.moved(int(said["up"]), int(said["down"]))
            case "evaluates":
                self.life.evaluates(self.task.name, bool(said))
            case "over":
                self._over = f"{said['status']}: {said['reason']}"
            case "trouble":
                self._trouble = str(said["code"]), str(said["message"])

    def _phase(self, said: Mapping[str, Any]) -> None:
        state, now = str(said["state"]), asyncio.get_running_loop().time()
        round_ = int(said.get("round") or self.life.now.round)
        if state in ("DONE", "ABORTED"):
            self._settled(round_, str(said.get("reason")))
            if round_ != self.life.now.round and self.life.now.works:
                return  # of a round before the one that is worked for now
        if state == "DOWNLOADING":
            round_ = 0
        self._training_since = now if state == "TRAINING" else None
        self._idle_since = None if state in ("TRAINING", "PACKING", "DOWNLOADING") else now
        reason = str(said.get("reason") or "")
        self.life.move(state, reason, task=self.task.name, round=round_)  # type: ignore[arg-type] # the worker's word
        self.watcher.phase(state, round_)

    def _settled(self, round_: int, outcome: str) -> None:
        """A round's fate is known: what it has cost is the operator's to know, too."""
        self.say(f"round {round_} of {self.run}: {outcome}")
        self._failed = self._failed and outcome != "counted"
        costs = self.watcher.costs(round_)
        if costs is not None:
            self._say("costs", {"round": round_, "costs": costs})

    def _say(self, kind: str, said: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encoded(kind, said))

    def _order(self) -> dict[str, Any]:
        place = self.place
        access = place.access
        return {
            "task": self.task.name, "run": self.run, "name": place.name, "address": access.address,
            "credentials": str(access.credentials.folder) if access.credentials is not None else None,
            "insecure": access.credentials is None or None, "state": str(place.folder.parent),
            "folder": str(place.work(self.task)), "socket": str(place.socket(self.task)), "settle": self.settle,
            "linger": self.task.linger, "bandwidth": self.network.bandwidth,
        }  # fmt: skip

    def _worker_environment(self) -> dict[str, str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("NOTIFY_", "WATCHDOG_"))
        }
        return environment | proxied(self.network)

    def _kill_worker(self) -> None:
        if self._worker is not None and self._worker.returncode is None:
            with suppress(ProcessLookupError):
                self._worker.kill()

    # -- the program ------------------------------------------------------------------------------------------

    async def _start_program(self, number: int) -> None:
        if self._program is not None:
            await self._end_program("another is started in its place")
        place, task = self.place, self.task
        given = {
            **task.environment, "KOINON_SOCKET": str(place.socket(task)), "KOINON_RUN": self.run,
            "PYTHONPATH": os.pathsep.join(filter(None, (task.environment.get("PYTHONPATH"), str(place.child)))),
        }  # fmt: skip
        name = f"koinon-{files.safe(f'{place.name}-{task.name}-{place.folder}')}"
        command, memory, cpus = list(task.command), task.memory, task.cpus
        ending: list[str] = []
        if task.container is not None:
            try:
                mounts = [place.socket(task).parent, place.work(task)]
                command, ending = container.commands(task, name, given, mounts)
            except KoinonError as error:
                self._died(End("NOT_STARTED", str(error)), number)
                return
            memory = cpus = None  # the engine's to keep
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(_KEPT)}
        program = Program(
            name, command, task.directory, inherited | given, memory, cpus, task.nice, task.grace, ending
        )  # fmt: skip
        failed = await program.start()
        if failed is not None:
            self._died(failed, number)
            return
        self.say(f"{task.name} is started for run {self.run}")
        if program.limits.why and (task.memory or task.cpus):
            self.say(f"{task.name} runs without its limits: {program.limits.why}")
        self._program = program
        if self._paused:
            program.pause()
        self._training_since = asyncio.get_running_loop().time()  # joining is part of what it may take
        self._waiting = asyncio.create_task(self._wait_for(program, number), name="koinon-program")

    async def _wait_for(self, program: Program, number: int) -> None:
        end = await program.wait()
        if self._program is program:
            self._program = None
        self._died(end, number)

    def _died(self, end: End, number: int) -> None:
        late = end.detail.startswith("TIMEOUT")
        if end.kind not in ("ENDED", "STOPPED") or late:
            self.say(f"{self.task.name}: {end.kind}: {end.detail}")
        self._failed = self._failed or end.kind not in ("ENDED", "STOPPED") or late
        named, _, detail = end.detail.partition(": ")
        code, detail = (named, detail) if named in ("RESTED", "TIMEOUT") else (end.kind, end.detail)
        self._say("died", {"number": number, "code": code, "detail": detail})

    async def _end_program(self, reason: str, code: str = "") -> None:
        if self._program is None:
            return
        waiting = self._waiting
        await self._program.stop(f"{code}: {reason}" if code else reason)
        if waiting is not None:
            await asyncio.wait({waiting})

    def _begin(self, what: Any) -> None:
        """Do it beside the rest; the shift outlives it."""
        task = asyncio.ensure_future(what)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)


def proxied(network: NetworkSettings) -> dict[str, str]:
    """The environment in which gRPC goes through the owner's proxy."""
    return dict.fromkeys(_PROXIES, network.proxy) if network.proxy else {}
