"""Programs that a test may kill at a place of its choice, and what must be the same afterwards.

As a script it is a coordinator or a device whose failpoints are armed, which no installed program's can be:

    python tests/system/killing.py --kill store.written 7 FILE coordinator serve --db ...
    python tests/system/killing.py --kill outbox.synced 2 FILE device ADDRESS NAME FOLDER KIND REPORT

`--kill POINT K FILE` ends the process (status 137, nothing flushed, nothing said) when it passes the point for the
K-th time, and leaves FILE behind, so that the same command, started again, goes on. `--pause` leaves FILE and waits
there until FILE.go is. `--hits FILE` writes down every point that is passed.

As a module it runs a federation of four devices under such a program, starts again what died, and says what came of
it.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import koinon
import toy
from koinon.cli import audit
from koinon.operator import Operator
from koinon_core import failpoints
from koinon_core.errors import Conflict, Unavailable

KILLED = 137
STORE = ("store.begun", "store.written", "store.committed")
BLOB = ("blob.written", "blob.synced", "blob.named", "blob.removed")
RPC = ("rpc.heard", "rpc.said", "rpc.upload", "rpc.download")
JOURNAL = ("journal.written", "journal.named", "journal.masked")
OUTBOX = ("outbox.written", "outbox.synced", "outbox.named", "outbox.removed")
LINK = ("link.attend", "link.said", "link.heard", "link.upload")
PATIENCE = 60.0
"""Seconds for anything that is waited for; a run takes one or two."""


# -- the run and its devices ----------------------------------------------------------------------------------

RUN = "counted"
KINDS = {"small": 1, "large": 66_000}
"""How many float64 the model has. Small: it is in the messages and in rows, and summed before the last updates'
commit. Large: it is in files, and its sum is a turn of its own."""
SECURE = {"secure": 1, "secure-large": 10_000, "secure-spare": 1}
"""The same for runs whose sums are secure; the last one can spare a device."""
_SIZES = {**KINDS, **SECURE}
_STEPS = (1, 2, 3, 4)


def _scale(kind: str) -> Any:
    """The first value is toy Q; the others are not alike, or they would be compressed into a message."""
    return np.concatenate([[1.0], np.random.default_rng(7).normal(size=_SIZES[kind] - 1)])


def the_run(kind: str) -> koinon.Run:
    """SCAFFOLD on toy Q: whoever loses, doubles or invents a device's state ends with another model. Every round waits
    for all four, so that who is accepted does not depend on who is fastest. A secure one rounds alike in every
    run: the dither of other codecs is the round's own."""
    if kind in SECURE:
        return koinon.Run(
            RUN, model={"x": toy.START * _scale(kind)}, strategy=koinon.Scaffold(), rounds=3, clients=4,
            min_clients=3 if kind == "secure-spare" else 4, aggregation="secure", codec="exact", max_examples=128,
            population=4, join_wait=PATIENCE, phase=PATIENCE,
        )  # fmt: skip
    return koinon.Run(
        RUN, model={"x": toy.START * _scale(kind)}, strategy=koinon.Scaffold(), rounds=3, min_clients=4, clients=4,
        aggregation="open",
        codec="raw", max_examples=128, population=4, join_wait=PATIENCE,
        retention={"small": "keep", "large": "2 rounds"}[kind],
    )  # fmt: skip


def train(session: koinon.Session, kind: str) -> list[koinon.Task]:
    """A device's part in the run; which device, its name says. Returns the tasks that it got."""
    i, scale = int(session.client[-1]), _scale(kind)
    model = {"x": np.zeros(_SIZES[kind])}

    def evaluate(now: Mapping[str, Any]) -> dict[str, float]:
        return {
            "loss": float(toy.A[i] / 2 * np.mean((now["x"] - toy.B[i] * scale) ** 2)),
            "examples": toy.N[i],
        }

    tasks = []
    for task in session.tasks(model, evaluate=evaluate):
        tasks.append(task)
        for _ in range(_STEPS[i]):
            task.descend({"x": toy.A[i] * (model["x"] - toy.B[i] * scale)}, lr=toy.ETA)
        task.submit(examples=toy.N[i])
    return tasks


def digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of the tensors' bytes in the order of their names."""
    parts = (np.ascontiguousarray(tensors[name]).tobytes() for name in sorted(tensors))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def device(address: str, name: str, folder: Path, kind: str) -> dict[str, Any]:
    """Take part as `name`, with a memory in `folder`. Returns how the run ended, in which rounds the device trained,
    what became of that, the digest of the state that the strategy keeps on it, and what it keeps on disk."""
    with koinon.join(address, run=RUN, name=name, state=folder, timeout=PATIENCE) as session:
        tasks = train(session, kind)
    state = {f"{part}/{key}": value for part, t in session._talk.state.items() for key, value in t.items()}
    return {
        "status": session.status, "rounds": [task.round for task in tasks],
        "outcomes": sorted({task.outcome for task in tasks}), "state": digest(state),
        "kept": sorted(path.suffix for path in folder.glob(f"{name}-*/*.*")),
    }  # fmt: skip


# -- processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kill:
    """`whom` ("coordinator", "server" for its database's, or a device's name) is killed where it passes `point` for the
    `number`-th time; "server" where the coordinator does."""

    point: str
    number: int
    whom: str = "coordinator"
    wipe: Path | None = None
    """What is gone when it is started again, as after a power cut."""

    def __str__(self) -> str:
        return f"{self.whom}-{self.point}-{self.number}"

    def flags(self, mark: Path) -> list[str | Path]:
        wipe = ["--wipe", self.wipe] if self.wipe else []
        return ["--pause" if self.whom == "server" else "--kill", self.point, str(self.number), mark, *wipe]


class Program:
    """A process of this file's, started again with the same command for as long as it ends by being killed."""

    def __init__(self, command: list[str | Path], log: Path, failed: list[BaseException] | None = None):
        self.failed = failed if failed is not None else []
        self.command = [sys.executable, __file__, *command]
        self.log = log
        self.started: list[float] = []
        self.problem = ""
        self._stopping = False
        self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> None:
        self.started.append(time.time())
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self._begun()

    def _begun(self) -> None:
        """It was started."""

    def _keep(self) -> None:
        while (code := self.process.wait()) == KILLED:
            self._start()
        if code and not self._stopping:
            self.problem = f"it ended with status {code}: {self.log.read_text()[-3000:]}"
            self.failed.append(AssertionError(self.problem))

    @property
    def over(self) -> bool:
        return not self._keeper.is_alive()

    def join(self, timeout: float) -> None:
        """Wait for its end; AssertionError if it is a wrong one, or none."""
        self._keeper.join(timeout)
        assert not self._keeper.is_alive(), f"it still runs: {self.log.read_text()[-3000:]}"
        assert not self.problem, self.problem

    def kill(self) -> None:
        """SIGKILL, for good; nothing if it has ended."""
        self._stopping = True
        self.process.kill()

    def end(self) -> None:
        """SIGTERM, and wait."""
        self._stopping = True
        self.process.terminate()
        try:
            self.join(20)
            assert self.process.returncode in (0, -15), self.process.returncode
        finally:
            self.process.kill()


class Coordinator(Program):
    """`koinon-coordinator serve`, on the port that it had the first time."""

    def __init__(self, folder: Path, arm: list[str | Path], url: str | None = None):
        self.port, self.listening = 0, threading.Event()
        self.beside: list[Program] = []
        """Devices that must not outlive it."""
        self._arguments = [*arm, "coordinator", "serve", "--insecure", "--data", folder / "blobs"]
        self._arguments += ["--db", url or f"sqlite:///{folder / 'koinon.db'}"]
        super().__init__([], folder / "coordinator.log")
        assert self.listening.wait(PATIENCE), self.problem or self.log.read_text()

    def _start(self) -> None:
        self.command = [sys.executable, __file__, *self._arguments, "--listen", f"127.0.0.1:{self.port}"]
        super()._start()

    def _begun(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "listens on" in line:
            self.port = int(line.rsplit(":", 1)[1])
            self.listening.set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


# -- a federation, and what came of it ------------------------------------------------------------------------


@dataclass(kw_only=True)
class Ran:
    """What came of a run: `facts` are the rounds' as the audit log has them, `people` what the operator sees of their
    devices, `devices` what these say themselves, `replayed` how the sums come out when they are taken again."""

    status: str
    head: str
    model: str
    facts: dict[int, dict[str, Any]]
    people: dict[int, dict[str, str]]
    metrics: dict[int, dict[str, float]]
    devices: dict[str, dict[str, Any]]
    replayed: dict[int, str]
    ended_at: dict[int, float] = field(default_factory=dict)
    """When each round was over, in seconds since 1970."""
    started: list[float] = field(default_factory=list)
    """When the coordinator was started, and started again."""
    killed: bool = False
    hits: Counter[str] = field(default_factory=Counter)

    def unlike(self, whole: "Ran", kill: Kill | None = None) -> list[str]:
        """What is not as in a run that nobody disturbed, a sentence each."""
        found = [
            f"{name}: {getattr(self, name)} instead of {getattr(whole, name)}"
            for name in ("status", "head", "model", "people", "metrics", "replayed")
            if getattr(self, name) != getattr(whole, name)
        ]
        found += [
            f"round {number}: {self.facts.get(number)} instead of {whole.facts.get(number)}"
            for number in sorted({*self.facts, *whole.facts})
            if self.facts.get(number) != whole.facts.get(number)
        ]
        for name, said in self.devices.items():
            expected = dict(whole.devices[name])
            if kill is not None and kill.whom == name:
                # A new process is not told again of what the old one had handed in.
                expected["rounds"] = [n for n in expected["rounds"] if n in said["rounds"]]
                expected["outcomes"] = expected["outcomes"] if said["rounds"] else []
                if not said["rounds"] and said["state"] == digest({}):
                    expected["state"] = said[
                        "state"
                    ]  # the run was over, and what was kept of it on its way out
            if said != expected:
                found.append(f"{name}: {said} instead of {expected}")
        return found


def federate(
    folder: Path,
    kind: str,
    kill: Kill | None = None,
    *,
    url: str | None = None,
    server: Any = None,
    hits: bool = False,
) -> Ran:
    """The run on a fresh database (a file in `folder`, or the one at `url`, of `server`), with that one kill."""
    folder.mkdir(parents=True, exist_ok=True)
    mark, noted = folder / "killed", folder / "hits"
    arm = kill.flags(mark) if kill else []
    ours = arm if kill and kill.whom in ("coordinator", "server") else []
    coordinator = Coordinator(folder, ["--hits", noted, *ours] if hits else ours, url)
    try:
        watcher = _restarting(server, mark) if kill and kill.whom == "server" else None
        _create(coordinator.address, kind)
        devices = _devices(folder, coordinator, kind, {kill.whom: arm} if kill else {}, hits)
        ran = _outcome(coordinator, devices)
        if watcher is not None:
            mark.touch()  # or it would wait for what never came
            watcher.join(PATIENCE)
        coordinator.end()
    finally:
        for program in (coordinator, *coordinator.beside):
            program.kill()
    assert "Traceback" not in coordinator.log.read_text(), coordinator.log.read_text()
    ran.started = coordinator.started
    ran.killed = (folder / "killed").exists() and (watcher is None or (folder / "killed.go").exists())
    for file in folder.glob("hits*"):
        ran.hits += Counter(line.split("\t")[0] for line in file.read_text().splitlines())
    return ran


def _patiently(what: Callable[[], Any]) -> Any:
    """What an operator does whose call got no answer: it is made again."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return what()
        except Unavailable:
            assert time.monotonic() < end, "the coordinator does not come back"
            time.sleep(0.05)


def _create(address: str, kind: str) -> None:
    def create() -> None:
        with suppress(Conflict):  # it is there: the answer was lost, not the run
            the_run(kind).create(address)

    _patiently(create)


def _devices(
    folder: Path, coordinator: Coordinator, kind: str, arms: dict[str, list[str | Path]], hits: bool
) -> dict[str, Callable[[], dict[str, Any]]]:
    """All four, started: on threads, and the one to be killed as a process. Each is a function that waits for its end
    and returns what it says."""

    failed: list[BaseException] = []

    def until(ended: Callable[[], bool], name: str) -> None:
        """Wait, but no longer than until one of them has failed: the others would wait for it."""
        end = time.monotonic() + PATIENCE
        while not ended():
            if failed or coordinator.failed:
                raise [*failed, *coordinator.failed][0]
            assert time.monotonic() < end, f"{name} still waits: {_waiting_for(coordinator)}"
            time.sleep(0.02)

    def on_a_thread(name: str) -> Callable[[], dict[str, Any]]:
        said: list[dict[str, Any]] = []

        def run() -> None:
            try:
                said.append(device(coordinator.address, name, folder / "state", kind))
            except BaseException as error:
                failed.append(error)

        threading.Thread(target=run, name=name, daemon=True).start()

        def join() -> dict[str, Any]:
            until(lambda: bool(said), name)
            return said[0]

        return join

    def as_a_process(name: str, arm: list[str | Path]) -> Callable[[], dict[str, Any]]:
        report = folder / f"{name}.json"
        program = Program(
            [*arm, "device", coordinator.address, name, folder / "state", kind, report],
            folder / f"{name}.log",
            failed,
        )
        coordinator.beside.append(program)

        def join() -> dict[str, Any]:
            until(lambda: program.over, name)
            program.join(1)
            return dict(json.loads(report.read_text()))

        return join

    if hits:
        arms = {toy.NAMES[0]: ["--hits", folder / "hits-of-a-device"]}
    return {n: as_a_process(n, arms[n]) if n in arms else on_a_thread(n) for n in toy.NAMES}


def _waiting_for(coordinator: Coordinator) -> str:
    with suppress(Exception), Operator(coordinator.address) as operator:
        return str(operator.get(RUN).run.waiting_for)
    return coordinator.problem or coordinator.log.read_text()[-3000:]


def _outcome(coordinator: Coordinator, devices: dict[str, Callable[[], dict[str, Any]]]) -> Ran:
    said = {name: join() for name, join in devices.items()}

    def look() -> Ran:
        with Operator(coordinator.address) as operator:
            seen = operator.get(RUN)
            entries = [entry.value for entry in operator.audit(RUN)]
            ran = Ran(
                status=f"{seen.run.status}: {seen.run.reason}",
                head=seen.head,
                model=digest(operator.model(RUN)[1]),
                facts={e["facts"]["round"]: e["facts"] for e in entries if e["kind"] == "ended"},
                people={r.number: {p.client: p.status for p in r.participants} for r in seen.rounds},
                metrics={r.number: dict(r.metrics) for r in seen.rounds},
                devices=said,
                ended_at={e["facts"]["round"]: e["at"] for e in entries if e["kind"] == "ended"},
                replayed={r.round: r.verdict for r in operator.replay(RUN)},
            )
        assert sum(e["kind"] == "ended" for e in entries) == len(ran.facts), "a round ended twice"
        audit.verify(RUN, coordinator.address)
        audit.replay(RUN, None, coordinator.address)
        return ran

    return _patiently(look)


def _restarting(server: Any, mark: Path) -> threading.Thread:
    """Kill the database's server when the coordinator has come to the point, and start it again."""

    def watch() -> None:
        end = time.monotonic() + PATIENCE
        while not mark.exists() and time.monotonic() < end:
            time.sleep(0.005)
        server.kill()
        server.start()
        mark.with_name(f"{mark.name}.go").touch()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


# -- the script -----------------------------------------------------------------------------------------------


def _arm(given: argparse.Namespace) -> None:
    """Let happen at the failpoints what the command line says."""
    actions: dict[str, list[Callable[[str], None]]] = {}
    if given.hits:
        file = os.open(given.hits, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for point in failpoints.NAMES:
            actions[point] = [lambda about, point=point: os.write(file, f"{point}\t{about}\n".encode())]  # type: ignore[misc]
    for wanted, act in ((given.kill, partial(_kill, wipe=given.wipe)), (given.pause, _pause)):
        if wanted and not os.path.exists(wanted[2]):
            point, number, mark = wanted[0], int(wanted[1]), Path(wanted[2])
            actions.setdefault(point, []).append(_at(number, act, mark))
    for point, them in actions.items():
        failpoints.arm(point, lambda about, them=them: [act(about) for act in them])  # type: ignore[misc]


def _at(number: int, act: Callable[[Path], None], mark: Path) -> Callable[[str], None]:
    passed = itertools.count(1)  # of all threads: it is atomic

    def action(about: str) -> None:
        if next(passed) == number:
            act(mark)

    return action


def _kill(mark: Path, wipe: Path | None) -> None:
    mark.touch()
    if wipe is not None:
        shutil.rmtree(wipe)
    os._exit(KILLED)


def _pause(mark: Path) -> None:
    mark.touch()
    end = time.monotonic() + PATIENCE
    while not mark.with_name(f"{mark.name}.go").exists() and time.monotonic() < end:
        time.sleep(0.005)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--kill", "--pause"):
        parser.add_argument(name, nargs=3)
    parser.add_argument("--hits")
    parser.add_argument("--wipe", type=Path)
    parser.add_argument("role", choices=("coordinator", "device"))
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    _arm(given)
    if given.role == "coordinator":
        from koinon_coordinator.cli import main as serve

        sys.argv = ["koinon-coordinator", *given.rest]
        serve()
        return
    address, name, folder, kind, report = given.rest
    Path(report).write_text(json.dumps(device(address, name, Path(folder), kind)))


if __name__ == "__main__":
    main()
