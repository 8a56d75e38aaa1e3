"""The worker's end of koinon.child's socket, played by a test: real lines, real files, a program beside it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from koinon import child

__all__ = ["PlayedWorker", "loop", "model", "one_step", "same", "start", "until"]


class PlayedWorker:
    """Listens in `folder`. `run` starts a program on a thread, which may be a function; `hear` is what it says next."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "s"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen()
        self._patience = 5.0
        self._listening.settimeout(self._patience)
        self._end: socket.socket | None = None
        self._rest, self._number = b"", 0
        self._thread: threading.Thread | None = None
        self.raised: BaseException | None = None

    # -- the program ------------------------------------------------------------------------------------------

    def run(self, script: Callable[[], None]) -> "PlayedWorker":
        def work() -> None:
            try:
                script()
            except BaseException as error:
                self.raised = error

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        return self

    def end(self) -> BaseException | None:
        """Wait until the program has ended, and give what it raised."""
        assert self._thread is not None
        self._thread.join(5)
        assert not self._thread.is_alive()
        return self.raised

    def welcome(self) -> dict[str, Any]:
        """Let the program in, and hear what its model is."""
        self.greet()
        ready = self.hear("ready")
        self.say("accepted")
        return ready

    def greet(self) -> dict[str, Any]:
        self._end, _ = self._listening.accept()
        self._end.settimeout(self._patience)
        hello = self.hear("hello")
        self.say("welcome", run="defects", client="line-4")
        return hello

    def wait_longer(self, seconds: float) -> None:
        """For a program that is long in coming."""
        self._patience = seconds
        self._listening.settimeout(seconds)

    def finish(self) -> None:
        """The run is over; the program ends well."""
        self.say("ended", status="finished", reason="all rounds")
        error = self.end()
        if error is not None:
            raise error

    # -- lines ------------------------------------------------------------------------------------------------

    def say(self, what: str, /, **said: Any) -> None:
        self.send(json.dumps({what: said}).encode() + b"\n")

    def send(self, data: bytes) -> None:
        assert self._end is not None
        self._end.sendall(data)

    def hear(self, wanted: str) -> dict[str, Any]:
        """The next message, but for progress, which must be of this kind."""
        while True:
            kind, said = self.next()
            if kind == wanted:
                return said
            assert kind == "progress", f"{kind} {said} in place of {wanted}"

    def next(self) -> tuple[str, Any]:
        assert self._end is not None
        while b"\n" not in self._rest:
            piece = self._end.recv(1 << 16)
            if not piece:
                return "", None
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        ((kind, said),) = json.loads(line).items()
        return kind, said

    def task(self, **given: Any) -> int:
        """Hand out work; its number."""
        self._number += 1
        said = {
            "id": self._number, "round": 1, "kind": "train", "config": {}, "seed": 7, "epochs": 1, "whole": "",
            "remaining": None, "shrink": 0, "load": None, "save": str(self.saves(self._number)), "mu": 0.0,
            "anchor": None, "shift": None, "train": None, **given,
        }  # fmt: skip
        self.say("task", **said)
        return self._number

    def take(self, task: int) -> dict[str, Any]:
        """The program hands in, and hears that it was taken; what it said with it."""
        said = self.hear("submit")
        assert said["task"] == task
        self.say("taken", task=task)
        return said

    def work(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """One task from its beginning to its end: what was said at the end, and the tensors that were saved."""
        task = self.task(**given)
        self.take(task)
        done = self.hear("done")
        assert done["task"] == task
        return done, self.saved(task)

    def die(self) -> None:
        assert self._end is not None
        self._end.close()

    def close(self) -> None:
        self._listening.close()
        if self._end is not None:
            self._end.close()

    # -- files ------------------------------------------------------------------------------------------------

    def file(self, name: str, **tensors: Any) -> str:
        path = self.folder / f"{name}.safetensors"
        save_file({n: np.array(a, order="C") for n, a in tensors.items()}, path)
        return str(path)

    def saves(self, task: int) -> Path:
        return self.folder / f"save-{task}.safetensors"

    def saved(self, task: int) -> dict[str, Any]:
        """What the program saved; nothing if it did not."""
        return load_file(self.saves(task)) if self.saves(task).exists() else {}


# -- programs -------------------------------------------------------------------------------------------------


def model() -> dict[str, Any]:
    return {"x": np.array([1.0, 2.0]), "steps": np.array([3])}


def loop(body: Callable[[child.Task, Any], Any], **options: Any) -> Callable[[], None]:
    """A program whose loop does this with each task."""

    def script() -> None:
        with child.join() as session:
            arrays = model()
            for task in session.tasks(arrays, **options):
                body(task, arrays)

    return script


def one_step(task: child.Task, arrays: Any) -> None:
    task.descend({"x": np.ones(2)}, lr=0.5)
    task.submit(examples=4, metrics={"loss": 0.25})


def start(code: str, folder: Path, worker: PlayedWorker) -> subprocess.Popen[str]:
    """A program in a process of its own, for which koinon_child lies in a folder as the daemon puts it there."""
    put = folder / "child"
    put.mkdir()
    (put / "koinon_child").symlink_to(Path(child.__file__).parent)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(put), "KOINON_SOCKET": str(worker.path)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def same(saved: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """These are the same names, dtypes, shapes and bits."""
    assert saved.keys() == dict(tensors).keys()
    for name, array in tensors.items():
        assert (saved[name].dtype, saved[name].shape) == (array.dtype, array.shape)
        assert saved[name].tobytes() == array.tobytes()
