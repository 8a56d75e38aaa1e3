"""Real daemons for tests: `koinon-edge run` as a process, with an edge.toml and a training script of numpy.

As a script it is a daemon that looks around more often, and may stand still where a failpoint of its life is, for a
test to take the power away there:

    python tests/daemons.py POINT STATE FILE CONFIG [ROOT]
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import koinon
from koinon.identity.access import device_folder
from koinon.operator import Operator
from koinon_core import failpoints
from koinon_edge import daemon, run

_NUMBERS = itertools.count(1)
QUIET = """
[gate]
cpu_pressure_max = 100
gpu_load_max = 100
disk_min = 0
memory_min = 0
metered = true
"""
SCRIPT = """
import time
import numpy as np
import koinon_child as koinon

model = {{"x": np.zeros({size})}}
with koinon.join() as session:
    for task in session.tasks(model):
        {before}
        model["x"] += {step}
        task.submit(examples=10, metrics={{"loss": 1.0}})
"""


class Daemon:
    """One device's daemon. `lines` is what edge.toml has besides, `script` the task's program."""

    def __init__(
        self, folder: Path, name: str, address: str, *, run: str = "toy", script: str = "", task: str = "",
        lines: str = QUIET, before: str = "pass", step: float = 1.0, size: int = 5, root: Path | None = None,
        **environment: str,
    ):  # fmt: skip
        self.folder, self.name, self.root = folder / name, name, root
        self.folder.mkdir()
        self.script = self.folder / "train.py"
        self.script.write_text(script or SCRIPT.format(before=before, step=step, size=size))
        self.config = self.folder / "edge.toml"
        self.config.write_text(
            f'name = "{name}"\naddress = "{address}"\nstate = "{self.folder / "state"}"\n'
            f'[tasks.toy]\nrun = "{run}"\ncommand = ["{sys.executable}", "train.py"]\n{task}\n{lines}'
        )
        self.log = self.folder / "log"
        self.environment = environment
        self.stand_still: tuple[str, str] | None = None
        """(failpoint, state) at which the next start stands still."""
        self.wrapper: tuple[str, ...] = ()
        """What starts it, where that is a program of its own."""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Daemon":
        self.stood.unlink(missing_ok=True)
        point, state = self.stand_still or ("life.named", "nowhere")
        command = [sys.executable, __file__, point, state, str(self.stood), str(self.config)]
        if self.root is not None:
            command.append(str(self.root))
        command = [*self.wrapper, *command]
        environment = {**os.environ, "KOINON_INSECURE": "1", **self.environment}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        return self

    @property
    def stood(self) -> Path:
        """There once it stands still."""
        return self.folder / "stood"

    @property
    def state(self) -> Path:
        return device_folder(self.name, self.folder / "state")

    def life(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.state / "edge" / "life.json").read_text())
            return found
        except (OSError, ValueError):
            return {"state": "ENROLLED", "reason": "", "round": 0}

    def wait(self, condition: Callable[[dict[str, Any]], bool], timeout: float = 30.0) -> dict[str, Any]:
        """Until its life is so."""
        until = time.monotonic() + timeout
        while not condition(life := self.life()):
            assert time.monotonic() < until, (life, self.said())
            assert self.process is None or self.process.poll() is None, self.said()
            time.sleep(0.005)
        return life

    def said(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        """kill -9 of all of it, as a power cut leaves it: the daemon, its worker, the program."""
        assert self.process is not None
        for pid in family(self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and its status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def close(self) -> None:
        """At the end of a test: nothing of ours may have failed, whatever the owner's program did."""
        assert not self.log.exists() or "koinon_edge/" not in self.said(), self.said()
        if self.process is not None and self.process.poll() is None:
            self.kill()


class Fleet:
    """The daemons of one test, and its run at a coordinator that other tests have, too."""

    def __init__(self, folder: Path, coordinator: Any, **settings: Any):
        self.run, self._folder, self.coordinator = f"toy-{next(_NUMBERS)}", folder, coordinator
        self._settings = settings
        self._made: list[Daemon] = []

    def __call__(self, name: str = "dev", **settings: Any) -> Daemon:
        """A daemon that runs, with a task for the run."""
        given = {"address": self.coordinator.address, "run": self.run, **self._settings, **settings}
        self._made.append(
            Daemon(self._folder, f"{name}-{self.run.rstrip('-*')}", given.pop("address"), **given)
        )
        return self._made[-1].start()

    def created(self, size: int = 5, **settings: Any) -> tuple[koinon.Run, koinon.RunHandle]:
        """An open run of one device and two rounds, if nothing else is said."""
        given: dict[str, Any] = {
            "rounds": 2, "min_clients": 1, "clients": 1, "aggregation": "open", "codec": "raw", "evaluate": False,
            "deadline": 60, **settings,
        }  # fmt: skip
        given.setdefault("strategy", koinon.FedAvg())
        run = koinon.Run(self.run, model={"x": np.zeros(size)}, **given)
        return run, run.create(self.coordinator.address)

    def close(self) -> None:
        for one in self._made:
            one.close()


def incidents(handle: koinon.RunHandle) -> list[Any]:
    with Operator(handle.address, insecure=True) as operator:
        return list(operator.get(handle.id).incidents)


def before(text: str, **values: Any) -> str:
    """Lines that the script has before it trains."""
    return "\n        ".join(text.format(**values).strip().splitlines())


def family(pid: int) -> list[int]:
    """A process and all below it, the oldest first."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            rest = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(rest[1]), []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def main() -> int:
    point, state, file, *rest = sys.argv[1:]

    def stand(about: str) -> None:
        if about == state and not Path(file).exists():
            Path(file).touch()
            time.sleep(600)

    failpoints.arm(point, stand)
    for module, name, seconds in ((daemon, "_LOOK", 1.0), (daemon, "_WATCH", 0.5)):
        setattr(module, name, seconds)
    return run.main(rest)


if __name__ == "__main__":
    raise SystemExit(main())
