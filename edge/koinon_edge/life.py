"""Where the device stands, on disk: power may go at any instruction, and the daemon goes on from here.

    ENROLLED     it has credentials, and has not looked around yet
    IDLE         it may not train now (the gate says why), or nothing may be asked of it
    ELIGIBLE     it may, and waits to be asked
    CHECKED_IN   it was asked
    DOWNLOADING  the round's model comes
    TRAINING     the owner's program works
    PACKING      what it made becomes an update
    UPLOADING    the update is handed in; its fate is not known yet
    DONE         it is; ABORTED: there was none, for a reason

Whoever starts while work is under way takes it up again: a download goes on at its last durable byte, work whose result
was handed over is packed and not done again, and an update that was handed in is sent with the same bytes.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from koinon.outbox.files import sync
from koinon.outbox.folder import disk
from koinon_core.failpoints import hit

__all__ = ["WORKING", "Life", "LifeFile", "State"]

State = Literal[
    "ENROLLED",
    "IDLE",
    "ELIGIBLE",
    "CHECKED_IN",
    "DOWNLOADING",
    "TRAINING",
    "PACKING",
    "UPLOADING",
    "DONE",
    "ABORTED",
]
WORKING: tuple[State, ...] = ("CHECKED_IN", "DOWNLOADING", "TRAINING", "PACKING", "UPLOADING")
"""States in which there is work that a new start takes up again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One moment of it. `task`, `run` and `round` are of the work under way or the last one, `since` is in seconds
    since 1970. `evaluates` says of each task whether its program evaluated models when it ran last."""

    state: State = "ENROLLED"
    task: str = ""
    run: str = ""
    round: int = 0
    reason: str = ""
    since: float = 0.0
    evaluates: tuple[str, ...] = ()

    @property
    def works(self) -> bool:
        return self.state in WORKING


class LifeFile:
    """The file at `path`. `now` moves on with `move`; nothing is written where nothing changes."""

    def __init__(self, path: Path, clock: Callable[[], float]):
        self._path, self._clock = path, clock
        self.now = self._read()
        self.told: list[Callable[[Life], None]] = []

    def move(self, state: State, reason: str = "", **values: Any) -> Life:
        """It is like this now, durably. StoreError if the disk does not keep it."""
        after = replace(self.now, state=state, reason=reason, **values)
        if after != self.now:
            self.now = replace(after, since=self._clock())
            self._write()
            for tell in self.told:
                tell(self.now)
        return self.now

    def evaluates(self, task: str, whether: bool) -> None:
        """The program of `task` evaluates models, or does not."""
        others = tuple(name for name in self.now.evaluates if name != task)
        after = tuple(sorted((*others, task))) if whether else others
        if after != self.now.evaluates:
            self.now = replace(self.now, evaluates=after)
            self._write()

    def _read(self) -> Life:
        try:
            found = json.loads(self._path.read_bytes())
            life = Life(**{**found, "evaluates": tuple(found.get("evaluates", ()))})
        except FileNotFoundError:
            return Life()
        except (OSError, ValueError, TypeError, AttributeError):
            # What is under way is in the outbox, which has a memory of its own: nothing is lost with this.
            return Life(state="UPLOADING", reason="where the device stood could not be read")
        known = life.state in get_args(State) and isinstance(life.round, int)
        return life if known else Life(state="UPLOADING", reason="where the device stood could not be read")

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        with disk(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with new.open("w") as file:
                json.dump(asdict(self.now), file)
                file.flush()
                os.fsync(file.fileno())
            hit("life.written", self.now.state)
            new.replace(self._path)
            sync(self._path.parent)
            hit("life.named", self.now.state)
