"""The rounds: each task of the session is done by the owner's program, and what it made is handed in.

Before an update is packed, what the program saved is durable and noted: a worker that is killed then finds it, and the
same work is not done again. A program that was killed for memory is asked once more, to take half as much at a time.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from koinon.outbox.files import sync
from koinon.session import Session
from koinon.task import Task
from koinon_core.errors import KoinonError
from koinon_edge.worker.door import Door, Lost, Ready, error_line
from koinon_edge.worker.remote import RemoteModel, RemoteSteering

__all__ = ["Desk", "Orders", "forget"]

_SEEN = 60.0  # seconds within which the daemon has ended a program that speaks nonsense


@dataclass(slots=True)
class Orders:
    """What the daemon wants, set by its thread: `stop` a reason to hand in what there is, `died` what became of the
    program (a name, a sentence), `rest` a reason to begin nothing new."""

    stop: str = ""
    died: tuple[str, str] | None = None
    wanted: int = 0
    """The number of the program that was asked for last: of others' ends nobody need hear."""
    rest: str = ""


@dataclass(slots=True)
class Desk:
    """`need` asks the daemon for a program, `tell` says to it what is being done. `wait` is how many seconds a program
    may take until it has joined."""

    session: Session
    door: Door
    folder: Path
    orders: Orders
    need: Callable[[], None]
    tell: Callable[[str, Any], None]
    wait: float = 600.0
    ready: Ready | None = None
    model: RemoteModel | None = None
    shrink: int = 0
    failed: bool = False
    admitting: bool = False
    """Whether a program is awaited, which may take it a while."""
    _cancelled: set[int] = field(default_factory=set)

    def run(self) -> None:
        """Rounds, until the run is over or the session is told to rest."""
        self.ready = self._remembered() or self._admitted()
        self.model = RemoteModel(
            self.ready.schema, self.folder, rounds=self.ready.rounds, tied=self.ready.tied,
            began=lambda: self.tell("phase", {"state": "DOWNLOADING"}), rounded=self._rounded,
        )  # fmt: skip
        evaluate = self._evaluate if self.ready.evaluates else None
        for task in self.session.tasks(
            self.model, evaluate=evaluate, keep_optimizer=self.ready.keep_optimizer
        ):
            self.tell("phase", {"state": "TRAINING", "round": task.round})
            if not self._handed_over(task):
                self._work(task)
            if self.failed:  # the daemon says when it is tried again
                return

    # -- the program ------------------------------------------------------------------------------------------

    def _admitted(self) -> Ready:
        """A program that has joined, started if there is none. It must have the same model as the one before it."""
        self.orders.wanted += 1
        self.orders.died = None
        self.admitting = True
        try:
            self.need()
            ready = self.door.admit(self.wait)
        finally:
            self.admitting = False
        try:
            ready.schema.must_equal(self.session.spec.model, "your model")
            if self.ready is not None and ready.schema != self.ready.schema:
                raise Lost("the training program came back with another model")
        except KoinonError as error:
            self.door.tell("refused", {"error": type(error).__name__, "message": str(error)})
            raise
        self.door.say("accepted", {})
        _keep(self.folder, ready.to_json(), "ready.json")
        self.tell("evaluates", ready.evaluates)
        if self.model is not None:
            self.model.again()
        return ready

    def _present(self) -> None:
        if self.orders.died is not None or not self.door.open:
            self._admitted()

    def _evaluate(self, _: Any) -> Mapping[str, float]:
        """What the program's own `evaluate` says of the round's weights."""
        assert self.model is not None
        for attempt in (0, 1):
            try:
                self._present()
                said = {"id": self.door.number(), "load": _text(self.model.load_next)}
                self.door.say("evaluate", said)
                heard = self.door.hear("evaluated", self._look)
                self.model.loaded()
                return {str(name): float(value) for name, value in heard["metrics"].items()}
            except Lost:
                if attempt or not self._again():
                    raise
        raise AssertionError

    def _rounded(self, path: Path) -> Path:
        """What the program has of these weights, once they are in its model of fewer bits."""
        self._present()
        saved = self.folder / "rounded.safetensors"
        self.door.say("load", {"id": self.door.number(), "load": str(path), "save": str(saved)})
        self.door.hear("loaded", self._look)
        return saved

    def _look(self) -> None:
        """While the program works: what has it to be told?"""
        task = self.session.task
        number = self.door._numbers
        if task is None or number in self._cancelled:
            return
        if task.cancelled:
            self._cancelled.add(number)
            self.door.tell("cancel", {"task": number, "reason": task.outcome})
        elif self.orders.stop:
            self._cancelled.add(number)
            self.door.tell("stop", {"task": number, "reason": self.orders.stop})

    # -- one task ---------------------------------------------------------------------------------------------

    def _work(self, task: Task) -> None:
        for attempt in (0, 1):
            try:
                self._present()
                self._ask_of(task)
                return
            except Lost as lost:
                again = self._again()
                if task.submitted or task.declined is not None:
                    return
                if attempt or not again:
                    code, detail = self.orders.died or ("FAILED", str(lost))
                    self._decline(task, code, detail)
                    return

    def _again(self) -> bool:
        """Whether another program may try the same: after an end for memory, with half as much at a time; and where
        this one had been let go just then, because there was nothing to do."""
        self.door.drop()
        self.tell("lost", {})  # the daemon says what became of it, or ends it
        died = self._seen()
        if died is None or died[0] not in ("OOM_KILLED", "RESTED"):
            return False
        self.shrink += died[0] == "OOM_KILLED"
        return True

    def _seen(self) -> tuple[str, str] | None:
        """What the daemon saw of the program's end; None where it saw none."""
        until = time.monotonic() + _SEEN
        while self.orders.died is None and time.monotonic() < until and not self.orders.rest:
            time.sleep(0.05)
        return self.orders.died

    def _ask_of(self, task: Task) -> None:
        """Ask the program; Lost for an answer that is none."""
        try:
            self._ask(task)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise Lost(f"the training program answered in a way that is none ({error!r:.80})") from error

    def _ask(self, task: Task) -> None:
        model, steering = self.model, task.steering
        assert model is not None
        assert isinstance(steering, RemoteSteering)
        number = self.door.number()
        save = self.folder / f"save-{task.kind}.safetensors"
        self.door.say("task", {
            "id": number, "round": task.round, "kind": task.kind, "config": dict(task.config), "seed": task.seed,
            "epochs": task.epochs, "whole": task.whole, "remaining": task.remaining, "shrink": self.shrink,
            "load": _text(model.load_next), "save": str(save), **steering.files(self.folder),
        })  # fmt: skip
        while True:
            kind, said = self.door.next(self._look)
            match kind:
                case "progress":
                    steering.recorded.steps = int(said.get("steps", 0))
                case "submit":
                    self._submit(task, number, save, said)
                case "done":
                    steering.record(said)
                    if said.get("declined") is not None:
                        task.decline(
                            str(said["declined"])[:500], code=str(said.get("code") or "DECLINED")[:32]
                        )
                    if task.kind == "measure":
                        steering.measured = save
                        model.loaded()
                    elif task.kind == "personal":
                        model.saved(save)
                    else:
                        model.loaded()
                    return
                case "failed":
                    self._decline(task, "FAILED", self._words(said))
                    raise Lost("the training program failed")
                case "declined":
                    task.decline(str(said.get("reason") or "the loop was left")[:500])
                    self.door.drop()
                    return
                case _:
                    raise Lost(f"the training program said {kind!r:.40} in the middle of a task")

    def _submit(self, task: Task, number: int, save: Path, said: Mapping[str, Any]) -> None:
        """The program handed in: keep it, pack it, and say what became of that."""
        assert self.model is not None
        assert isinstance(task.steering, RemoteSteering)
        try:
            self.tell("phase", {"state": "PACKING"})
            if task.kind == "train":
                self.model.saved(save)
                _keep(self.folder, {"work": self._work_of(task), "said": dict(said), "shrink": self.shrink})
            self._hand_in(task, said)
        except KoinonError as error:
            self.door.tell("error", error_line(number, error))
            self.tell("phase", {"state": "TRAINING"})
            return
        self.door.tell("taken", {"task": number})

    def _hand_in(self, task: Task, said: Mapping[str, Any]) -> None:
        assert isinstance(task.steering, RemoteSteering)
        task.steering.record(said)
        task.submit(
            examples=said.get("examples", 0),
            metrics=said.get("metrics") or {},
            partial=bool(said.get("partial")),
        )
        if task.kind == "train":
            self.tell("phase", {"state": "UPLOADING"})

    def _words(self, said: Mapping[str, Any]) -> str:
        """What an operator may hear of an error: in a secure run its words may hold what the device's data holds."""
        kind = f"{said.get('error')}"[:80]
        if self.session.secure:
            return f"{kind} (its words are in the device's own log)"
        return f"{kind}: {said.get('message')}"[:500]

    def _decline(self, task: Task, code: str, detail: str) -> None:
        """No update of this round, by the program's fault: the operator hears the name of it, and its owner."""
        said = detail if code == "FAILED" else f"{code}: {detail}"
        task.decline(said, code=code)
        self.tell("phase", {"state": "ABORTED", "round": task.round, "reason": said})
        self.failed = True

    # -- after a kill -----------------------------------------------------------------------------------------

    def _work_of(self, task: Task) -> str:
        """Which work this is: of another round, or of the same one opened anew, nothing may be taken."""
        return f"{task.terms.digest} {task.kind}"

    def _handed_over(self, task: Task) -> bool:
        """Hand in what a program had handed over before this worker's forerunner was killed, if it did."""
        kept = _kept(self.folder / "handed-over.json")
        if task.kind != "train" or kept is None or kept.get("work") != self._work_of(task):
            return False
        assert self.model is not None
        try:
            self.tell("phase", {"state": "PACKING"})
            self.model.saved(self.folder / "save-train.safetensors")
            self._hand_in(task, kept["said"])
        except (KoinonError, KeyError, TypeError):
            (self.folder / "handed-over.json").unlink(missing_ok=True)
            self.model.again()
            self.tell("phase", {"state": "TRAINING"})
            return task.submitted
        return True

    def _remembered(self) -> Ready | None:
        """What the program said of its model, where all that it was to do is done: it need not be started for that."""
        kept, ready = _kept(self.folder / "handed-over.json"), _kept(self.folder / "ready.json")
        if kept is None or ready is None:
            return None
        with suppress(Lost, KoinonError):
            found = Ready.of(ready)
            if found.schema == self.session.spec.model:
                return found
        return None  # of another run, whose model was another one

    def forget(self, round_: int) -> None:
        """The round is settled: nothing of the program's work for it is needed any more."""
        if self.session.task is not None and self.session.task.round > round_:
            return
        forget(self.folder)


def forget(folder: Path) -> None:
    """Nothing of what a program handed over in `folder` is needed any more."""
    (folder / "handed-over.json").unlink(missing_ok=True)
    for path in folder.glob("*.safetensors"):
        path.unlink(missing_ok=True)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _keep(folder: Path, content: Mapping[str, Any], name: str = "handed-over.json") -> None:
    new = folder / f"{name}.new"
    with new.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / name)
    sync(folder)


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
