"""A session: this program in one run, between the owner's loop and the worker of koinon-edge.

The loop runs on the program's own thread, which says what it has done and waits for what comes next. If the worker
dies, whatever waits is told so: the program ends, and the daemon starts it again when there is work.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from .adapt import adapt
from .errors import UsageError, named
from .files import TensorFile, write
from .line import Line, Understood
from .task import Task

__all__ = ["Session", "join"]

PROTOCOL = 1
_WELCOME = 60.0  # seconds: the worker listens before this program is started
_EVERY = 1.0  # seconds between two words about progress


def join(run: str | None = None) -> Session:
    """Take part in the run for which koinon-edge has started this program, through the socket at $KOINON_SOCKET.

    Raises UsageError if koinon-edge did not start it or it is to take part in another `run`, and Unavailable if nobody
    answers.
    """
    path = os.environ.get("KOINON_SOCKET")
    if not path:
        raise UsageError(
            "KOINON_SOCKET is not set: this program takes part through koinon-edge, which is to start it"
        )
    if sys.byteorder != "little":
        raise UsageError(
            "koinon_child exchanges tensors on little-endian machines only; install Koinon itself here"
        )
    session = Session(Line.to(path))
    try:
        session.open(run)
    except BaseException:
        session.close()
        raise
    return session


class Session:
    """This program in one run. Made by `join`; a context manager, so that what goes wrong is reported."""

    def __init__(self, line: Line):
        self.status, self.reason = "", ""
        """How the run ended, once it has: "finished", "failed" or "cancelled", and why."""
        self.run, self.client = "", ""
        """The run's name, and this device's."""
        self._line = line
        self._over = False
        self._task: Task | None = None  # the one that the loop has
        self._asked: int | None = None  # the worker's number of what is being done
        self._said = -math.inf
        # Held here: a loop that an exception leaves is not to end before the session has seen the exception.
        self._tasks: Generator[Task, None, None] | None = None

    def open(self, run: str | None) -> None:
        """Say hello; called by `join`."""
        hello = {"protocol": PROTOCOL, "python": platform.python_version(), "pid": os.getpid()}
        self._line.say("hello", hello)
        _, said = self._line.wait("welcome", timeout=_WELCOME)
        with Understood("welcome"):
            self.run, self.client = str(said["run"]), str(said["client"])
        if run and run != self.run:
            raise UsageError(
                f"koinon-edge has started this program for run {self.run!r}, and it joins {run!r}; name the run in "
                "edge.toml only"
            )

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._report(error)
        self.close()

    def close(self) -> None:
        """Leave the run. What was submitted is with the worker; open work is declined."""
        self._left()
        self._line.close()

    # -- the loop ---------------------------------------------------------------------------------------------

    def tasks(
        self,
        model: Any,
        evaluate: Callable[[Any], Mapping[str, float]] | None = None,
        keep_optimizer: bool = False,
    ) -> Iterator[Task]:
        """Work, round by round, until the run is over. Each time the round's weights are in `model`.

        `model` is a torch module or a dict of numpy arrays; it must have the run's schema. With `evaluate`, every
        round's weights are evaluated on this device before they are trained: the model in, metrics out, of which
        "examples" says over how many (default 1). An optimizer that was made outside of the loop begins every task
        without momentum and moments, which were about other weights; with `keep_optimizer` it keeps them, and
        strategies that need the length of its steps refuse momentum.
        """
        self._left()
        self._tasks = self._loop(model, evaluate, keep_optimizer)
        return self._tasks

    def _loop(self, owned: Any, evaluate: Any, keep: bool) -> Generator[Task, None, None]:
        if self._over:
            return
        model = adapt(owned)
        self._line.say("ready", {
            "schema": [[f.name, list(f.shape), f.dtype, f.role] for f in model.fields], "tied": dict(model.tied),
            "rounds": model.rounds, "evaluates": evaluate is not None, "keep_optimizer": bool(keep),
        })  # fmt: skip
        kind, said = self._line.wait("accepted", "refused")
        if kind == "refused":
            with Understood(kind):
                error = named(str(said["error"]), str(said["message"]))
            raise error
        while True:
            kind, said = self._line.wait("evaluate", "load", "task", "ended")
            with Understood(kind):
                if kind == "ended":
                    self._over, self.status, self.reason = True, str(said["status"]), str(said["reason"])
                    return
                self._asked = int(said["id"])
            try:
                if kind == "task":
                    yield from self._work(model, said, keep)
                else:
                    self._answer(kind, model, said, owned, evaluate)
            except GeneratorExit:
                self._decline()
                raise
            except BaseException as error:
                self._report(error)
                raise
            self._asked = None

    def _answer(self, kind: str, model: Any, said: Any, owned: Any, evaluate: Any) -> None:
        """Between tasks: evaluate these weights, or say what of them the model holds."""
        with Understood(kind):
            load, save = said.get("load"), said["save"] if kind == "load" else ""
        if load is not None:
            model.load(TensorFile(str(load)))
        if kind == "load":
            write(str(save), model.fields, model.pieces)
            self._line.say("loaded", {"id": self._asked})
            return
        if evaluate is None:
            raise UsageError("the worker of koinon-edge asks for an evaluation, and tasks() was given none")
        metrics = {str(k): float(v) for k, v in evaluate(owned).items()}
        self._line.say("evaluated", {"id": self._asked, "metrics": metrics})

    def _work(self, model: Any, said: Any, keep: bool) -> Generator[Task, None, None]:
        """One task: weights in, the loop's body under the optimizer hook, and what it was."""
        with Understood("task"):
            paths = {name: said.get(name) for name in ("load", "anchor", "shift")}
            kind, mu, save = str(said["kind"]), float(said.get("mu") or 0.0), str(said["save"])
            names = said.get("train")
            train = None if names is None else frozenset(map(str, names))
        files = {name: None if path is None else TensorFile(str(path)) for name, path in paths.items()}
        if files["load"] is not None:
            model.load(files["load"])
        steering = model.steer(
            mu, files["anchor"], files["shift"], measure=kind == "measure", train=train, keep_optimizer=keep,
            stepped=self._progress,
        )  # fmt: skip
        with Understood("task"):
            task = Task(
                said, self._line.signals[int(said["id"])], self._line, model, steering,
                lambda task, examples, metrics: self._hand_in(task, model, save, examples, metrics), self._progress,
            )  # fmt: skip
        self._task = task
        with steering:
            yield task
        params = [f for f in model.fields if f.role == "param"]
        if kind == "measure":
            write(save, params, lambda field: model.mean(field, steering))
        elif kind == "personal":
            write(save, model.fields, model.pieces)
        done = {"task": task.id, "submitted": task.submitted, **_record(task)}
        if task.declined is not None:
            done["code"], done["declined"] = task.declined
        self._task = None
        self._line.say("done", done)

    def _hand_in(
        self, task: Task, model: Any, save: str, examples: int, metrics: Mapping[str, float]
    ) -> None:
        """Save what the model has become, tell the worker, and wait for what it says of it."""
        if task is not self._task:
            raise UsageError(f"the loop has gone on from round {task.round}; submit within its body")
        if task.kind == "train":
            write(save, model.fields, model.pieces)
        # A metric may be NaN, which the worker refuses by its own rules: it is told as Python's json has it.
        self._line.say("submit", {
            "task": task.id, "examples": examples, "metrics": metrics, "partial": bool(task.partial), **_record(task),
        })  # fmt: skip
        kind, said = self._line.wait("taken", "error")
        if kind == "error":
            with Understood(kind):
                error = named(str(said["error"]), str(said["message"]))
            raise error

    # -- what the worker is told ------------------------------------------------------------------------------

    def _progress(self) -> None:
        """The loop lives: at most once a second."""
        task, now = self._task, self._line.clock()
        if task is not None and now - self._said >= _EVERY:
            self._said = now
            self._line.tell("progress", {"task": task.id, "steps": task.steps})

    def _report(self, error: BaseException) -> None:
        """The work under way ends without an update, because of `error`."""
        if self._asked is not None:
            said = {"task": self._asked, "error": type(error).__name__, "message": str(error)[:2000]}
            self._line.tell("failed", said)
        self._hang_up()

    def _left(self) -> None:
        """The loop, if there is one, is over; the work under way in it is not done."""
        loop, self._tasks = self._tasks, None
        if loop is not None:
            with suppress(ValueError):  # it is in this loop, in the owner's evaluation, that it is left
                loop.close()

    def _decline(self) -> None:
        if self._asked is not None:
            self._line.tell("declined", {"task": self._asked, "reason": "the loop was left"})
            self._hang_up()

    def _hang_up(self) -> None:
        """The worker asks no more of a program whose loop was left."""
        self._asked = self._task = None
        self._line.close()


def _record(task: Task) -> dict[str, Any]:
    done = task.steering.recorded
    displacement = None if math.isnan(done.displacement) else done.displacement
    return {"steps": done.steps, "lr": done.lr, "displacement": displacement, "why": done.why}
