"""Makes this folder's archive: the database of a coordinator 0.1.0 that was killed in the middle of its work.

    PYTHONPATH=protos:client:coordinator:tests python tests/archive/0.1.0/make.py

in a source tree of 0.1.0 writes `database.tar.xz` and `expected.json` beside this file. Every device function here
is deterministic and may be imported by a test that finishes what the archive left open.
"""

import base64
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import koinon
import toy
from koinon.operator import Operator
from koinon_core import __version__

HERE = Path(__file__).parent
SIZE = 33_000
"""Values of the big run's model: 132 kB as float32, so that models, updates and the strategy's state are files."""
BIG_NAMES = ["big-0", "big-1"]
HELD = {"toy": (3, ["client-2", "client-3"]), "big": (2, ["big-1"])}
"""In which round of a run which devices were still at work when the coordinator was killed."""
# A deadline counts seconds since 1970, and the database does not say until when its coordinator lived: with a deadline
# in an archive's future, what is awaited stays awaited.
_DEADLINE = 1e9

Hold = Callable[[str, int], None]


def go_on(client: str, round_: int) -> None:
    """The hold that holds nobody."""


# -- the runs -------------------------------------------------------------------------------------------------


def toy_run() -> koinon.Run:
    """Toy Q under SCAFFOLD: small contents in rows, state on the server and on the devices."""
    return toy.toy_run(koinon.Scaffold(option=2), 6, evaluate=False, deadline=_DEADLINE)


def big_run() -> koinon.Run:
    """Contents in files, and a strategy whose state (a velocity) lies in files too; devices have none."""
    return koinon.Run(
        "big", model={"w": np.zeros(SIZE, np.float32)}, strategy=koinon.FedAvgM(lr=0.5, beta=0.9), rounds=3,
        min_clients=2, clients=2, codec="raw", max_examples=16, evaluate=False, deadline=_DEADLINE,
    )  # fmt: skip


def done_run() -> koinon.Run:
    """A run that was over before: two rounds, and the devices' evaluation of what came of them."""
    return koinon.Run(
        "done", model={"x": np.array([toy.START])}, strategy=koinon.FedAvg(), rounds=2, min_clients=2, clients=2,
        max_examples=128,
    )  # fmt: skip


# -- the devices ----------------------------------------------------------------------------------------------


def toy_device(session: koinon.Session, hold: Hold = go_on) -> None:
    """A device of toy Q; `hold(client, round)` is called before it trains."""
    i = int(session.client[-1])
    model = {"x": np.zeros(1)}
    for task in session.tasks(model):
        hold(session.client, task.round)
        for _ in range(toy.TAU[i]):
            task.descend({"x": np.array([toy.gradient(i, float(model["x"][0]))])}, lr=toy.ETA)
        task.submit(examples=toy.N[i])


def noise() -> Any:
    """Made by hand (no library's dice, which may fall otherwise in another version), and exact in float32."""
    mixed = np.arange(1, SIZE + 1, dtype=np.uint64) * 2_654_435_761 % 2**32
    mixed = (mixed ^ mixed >> 15) * 739_982_445 % 2**32 >> 16
    return (mixed.astype(np.float32) - np.float32(2**15)) / np.float32(2**17)


def big_device(session: koinon.Session, hold: Hold = go_on) -> None:
    """Its update is noise, so that nothing made of it is compressed below the size of a file; in other rounds and on
    other devices it is the same noise, moved on, so that the archive is still small."""
    i = int(session.client[-1])
    model = {"w": np.zeros(SIZE, np.float32)}
    for task in session.tasks(model):
        hold(session.client, task.round)
        model["w"] += np.roll(noise(), 64 * (2 * task.round + i))
        task.submit(examples=i + 1)


def done_device(session: koinon.Session, hold: Hold = go_on) -> None:
    """Toy Q without a shift, evaluated."""
    i = int(session.client[-1])
    model = {"x": np.zeros(1)}

    def evaluate(now: dict[str, Any]) -> dict[str, float]:
        return {"loss": toy.A[i] / 2 * (float(now["x"][0]) - toy.B[i]) ** 2, "examples": toy.N[i]}

    for task in session.tasks(model, evaluate=evaluate):
        for _ in range(5):
            task.descend({"x": np.array([toy.gradient(i, float(model["x"][0]))])}, lr=toy.ETA)
        task.submit(examples=toy.N[i])


RUNS: dict[str, tuple[Callable[[], koinon.Run], list[str], Callable[..., None]]] = {
    "done": (done_run, ["client-0", "client-1"], done_device),
    "toy": (toy_run, toy.NAMES, toy_device),
    "big": (big_run, BIG_NAMES, big_device),
}


def tensors_digest(tensors: Any) -> str:
    """SHA-256 of the tensors' bytes, little-endian, in the order of their names."""
    parts = (np.ascontiguousarray(tensors[name]).tobytes() for name in sorted(tensors))
    return hashlib.sha256(b"".join(parts)).hexdigest()


# -- making it ------------------------------------------------------------------------------------------------


class Coordinator:
    """A `koinon-coordinator serve` process over the database in `folder`."""

    def __init__(self, folder: Path):
        command = [
            sys.executable, "-m", "koinon_coordinator", "serve", "--db", f"sqlite:///{folder / 'koinon.db'}",
            "--listen", "127.0.0.1:0",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.address = "127.0.0.1:" + self.process.stdout.readline().strip().rsplit(":", 1)[1]

    def end(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(20)


class Devices:
    """The devices of one run, on threads; `sessions` by name."""

    def __init__(self, address: str, run: str, hold: Hold = go_on):
        _, names, function = RUNS[run]
        self.sessions: dict[str, koinon.Session] = {}
        self._errors: list[BaseException] = []

        def device(name: str) -> None:
            try:
                with koinon.join(address, run=run, name=name) as session:
                    self.sessions[name] = session
                    function(session, hold)
            except BaseException as error:
                self._errors.append(error)

        self._threads = [threading.Thread(target=device, args=(name,), daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self._errors, self._errors


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.05)


def statuses(seen: Any, number: int) -> dict[str, str]:
    return {p.client: p.status for r in seen.rounds if r.number == number for p in r.participants}


def facts(operator: Operator, name: str) -> dict[str, Any]:
    """What the coordinator says of a run."""
    seen = operator.get(name)
    closed = [r.number for r in seen.rounds if r.model_digest]
    open_ = [r for r in seen.rounds if r.status not in ("closed", "abandoned")]
    return {
        "id": seen.run.id, "status": seen.run.status, "reason": seen.run.reason,
        "rounds_closed": seen.run.rounds_closed,
        "open_round": open_[0].number if open_ else None,
        "participants": {
            str(r.number): {p.client: p.status for p in r.participants} for r in seen.rounds
        },
        "metrics": {str(r.number): dict(r.metrics) for r in seen.rounds if r.metrics},
        "model_digests": {
            "0": None if closed else seen.model_digest,
            **{str(r.number): r.model_digest for r in seen.rounds if r.model_digest},
        },
        "tensors_digests": {
            str(n): tensors_digest(operator.model(name, n)[1]) for n in [0, *closed]
        },
    }  # fmt: skip


def device_facts(session: Any) -> dict[str, Any]:
    """What a device of 0.1.0 has in memory: its committed state, and the update whose receipt is still out."""

    def plain(state: Any) -> dict[str, Any]:
        return {k: {n: np.asarray(a).tolist() for n, a in t.items()} for k, t in state.items()}

    kept = {"stage": session._member.stage, "round": session._member.round, "state": plain(session._state)}
    if session._pending is not None:
        kept["update_digest"] = session._pending.digest
        kept["update"] = base64.b64encode(session._pending.blob).decode()
        kept["pending_state"] = plain(session._pending.pending)
    return kept


def interrupted(folder: Path) -> dict[str, Any]:
    """Leave the archive's database in `folder`; what is in it."""
    coordinator = Coordinator(folder)
    address, never = coordinator.address, threading.Event()

    def hold(client: str, round_: int) -> None:
        for number, names in HELD.values():
            if client in names and round_ == number:
                never.wait()  # a daemon thread: it ends with this process

    RUNS["done"][0]().create(address)
    Devices(address, "done").join()
    devices = {}
    for name in ("toy", "big"):
        RUNS[name][0]().create(address)
        devices[name] = Devices(address, name, hold)
    with Operator(address) as operator:
        for name, (number, held) in HELD.items():
            wanted = {c: "asked" if c in held else "staged" for c in RUNS[name][1]}
            until(lambda wanted=wanted, n=name, r=number: statuses(operator.get(n), r) == wanted)
            sessions = devices[name].sessions
            until(
                lambda s=sessions, w=wanted: all(
                    s[c]._member.stage == "staged" for c in w if w[c] == "staged"
                )
            )
        known = {name: facts(operator, name) for name in RUNS}
        known["toy"]["model_of_round_2"] = float(operator.model("toy", 2)[1]["x"][0])
        known["big"]["model_of_round_1"] = operator.model("big", 1)[1]["w"][:7].tolist()
        known["done"]["model_of_round_2"] = float(operator.model("done", 2)[1]["x"][0])
    for name, (number, _) in HELD.items():
        there = known[name]["participants"][str(number)]
        known[name]["staged"] = sorted(c for c, status in there.items() if status == "staged")
        known[name]["awaited"] = sorted(c for c, status in there.items() if status == "asked")
    known["toy"]["devices"] = {c: device_facts(s) for c, s in sorted(devices["toy"].sessions.items())}
    coordinator.end(signal.SIGKILL)
    with sqlite3.connect(folder / "koinon.db") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for name in RUNS:
            first = db.execute(
                "SELECT digest FROM models WHERE run = ? AND round = 0", [known[name]["id"]]
            ).fetchone()
            known[name]["model_digests"]["0"] = first[0]
    db.close()
    return known


def finals(address: str, *, create: bool) -> dict[str, Any]:
    """Finish all runs with devices that were just started; the models' digests."""
    final = {}
    with Operator(address) as operator:
        for name, (make, _, _) in RUNS.items():
            if create:
                make().create(address)
            if operator.get(name).run.status == "running":
                Devices(address, name).join()
            number, model = operator.model(name)
            final[name] = {
                "round": number,
                "tensors": tensors_digest(model),
                "head": model[min(model)][:7].tolist(),
            }
    return final


def pack(folder: Path, archive: Path) -> None:
    def bare(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for name in ("koinon.db", "koinon.db.blobs"):
            tar.add(folder / name, name, filter=bare)


def main() -> None:
    assert __version__ == "0.1.0", f"this tree is version {__version__}"
    with tempfile.TemporaryDirectory() as temporary:
        left, whole, back = (Path(temporary) / name for name in ("left", "whole", "back"))
        for folder in (left, whole, back):
            folder.mkdir()
        known = interrupted(left)
        assert not (left / "koinon.db-wal").exists()
        pack(left, HERE / "database.tar.xz")

        coordinator = Coordinator(whole)
        final = finals(coordinator.address, create=True)
        coordinator.end()
        with tarfile.open(HERE / "database.tar.xz") as tar:
            tar.extractall(back, filter="data")
        coordinator = Coordinator(back)
        with Operator(coordinator.address) as operator:
            for name in RUNS:
                assert operator.get(name).run.status == known[name]["status"]
        forgetful = finals(coordinator.address, create=False)
        coordinator.end()
    for name in RUNS:
        known[name]["final"] = final[name]
        known[name]["final_with_restarted_devices"] = forgetful[name]
    assert final["done"] == forgetful["done"]
    assert final["big"] == forgetful["big"], "devices without a state end where they would have"
    text = json.dumps({"version": __version__, "runs": known}, indent=1, sort_keys=True)
    (HERE / "expected.json").write_text(text + "\n")
    sys.stdout.flush()
    os._exit(0)  # the devices that are held have nothing more to say


if __name__ == "__main__":
    main()
