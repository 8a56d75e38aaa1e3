"""The socket at which the owner's program speaks with the worker: one program at a time.

The messages are those of `koinon.child`, which is the program's end of it.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from koinon_core.errors import KoinonError, RemoteProtocolError
from koinon_core.schema import Schema
from koinon_edge.line import Line

__all__ = ["Door", "Lost", "Ready"]

_PROTOCOL = 1
_LOOK = 0.25  # seconds: how often one who waits looks whether there is still something to wait for


class Lost(Exception):
    """The program is gone, or speaks nonsense; str() is why, as far as its socket tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What the program says of its model before its first task."""

    schema: Schema
    tied: Mapping[str, str] = field(default_factory=dict)
    rounds: bool = False
    evaluates: bool = False
    keep_optimizer: bool = False

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Ready":
        try:
            return cls(
                schema=Schema.from_json(said["schema"]),
                tied={str(k): str(v) for k, v in dict(said.get("tied") or {}).items()},
                rounds=bool(said.get("rounds")), evaluates=bool(said.get("evaluates")),
                keep_optimizer=bool(said.get("keep_optimizer")),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Lost(
                f"the training program described its model in a way that is none: {error!r}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """As the program would say it."""
        return {
            "schema": self.schema.to_json(), "tied": dict(self.tied), "rounds": self.rounds,
            "evaluates": self.evaluates, "keep_optimizer": self.keep_optimizer,
        }  # fmt: skip


class Door:
    """Listens at `path`. `wanted` is looked at while it waits: a sentence there ends the waiting (Lost)."""

    def __init__(self, path: Path, run: str, client: str, wanted: Callable[[], str]):
        self._path, self._welcome, self._wanted = path, {"run": run, "client": client}, wanted
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        path.chmod(0o600)
        self._listening.listen(4)
        self._line: Line | None = None
        self._end: socket.socket | None = None
        self._numbers = 0

    @property
    def open(self) -> bool:
        """Whether a program is there."""
        return self._line is not None

    def number(self) -> int:
        """One for the next thing that is asked of the program."""
        self._numbers += 1
        return self._numbers

    def admit(self, timeout: float) -> Ready:
        """Wait for a program, and what it says of its model. Lost if none comes within `timeout` seconds."""
        self.drop()
        until = time.monotonic() + timeout
        self._listening.settimeout(_LOOK)
        while True:
            try:
                self._end, _ = self._listening.accept()
                break
            except TimeoutError:
                self._check(until, "did not join within {:g} s; does it call koinon.join()?", timeout)
        self._end.settimeout(_LOOK)
        self._line = Line(self._end)
        hello = self.hear("hello", until=until)
        if hello.get("protocol") != _PROTOCOL:
            raise Lost(
                f"the training program's koinon_child speaks protocol {hello.get('protocol')!r:.20}, not 1"
            )
        self.say("welcome", self._welcome)
        return Ready.of(self.hear("ready", until=until))

    def say(self, kind: str, said: Any) -> None:
        if self._line is None:
            raise Lost("the training program is gone")
        try:
            self._line.say(kind, said)
        except OSError:
            raise self._gone() from None

    def tell(self, kind: str, said: Any) -> None:
        """Say it, if somebody is there."""
        with suppress(Lost):
            self.say(kind, said)

    def next(self, look: Callable[[], None] = lambda: None, until: float | None = None) -> tuple[str, Any]:
        """The next message; `look` is called while there is none. Lost if the program is gone."""
        while self._line is not None:
            look()
            try:
                heard = self._line.hear()
            except TimeoutError:
                self._check(until, "said nothing for too long")
                continue
            except RemoteProtocolError as error:
                raise self._gone(str(error)) from None
            if heard is None:
                break
            kind, said = heard
            if not isinstance(said, dict):
                raise self._gone(f"the training program said {kind!r:.40} in a way that is none")
            return kind, said
        raise self._gone()

    def hear(self, wanted: str, look: Callable[[], None] = lambda: None, until: float | None = None) -> Any:
        """The next message, which is to be of this kind."""
        kind, said = self.next(look, until)
        if kind == "failed":
            raise Lost(f"the training program failed: {said.get('error')}: {said.get('message')}"[:500])
        if kind != wanted:
            raise self._gone(f"the training program said {kind!r:.40} where {wanted!r} was awaited")
        return said

    def _check(self, until: float | None, late: str, *values: Any) -> None:
        if why := self._wanted():
            raise Lost(why)
        if until is not None and time.monotonic() > until:
            raise self._gone("the training program " + late.format(*values))

    def _gone(self, why: str = "") -> Lost:
        self.drop()
        return Lost(why or self._wanted() or "the training program closed its end")

    def drop(self) -> None:
        """Whoever is there is listened to no more."""
        if self._line is not None:
            self._line.close()
        self._line = self._end = None

    def close(self) -> None:
        self.drop()
        self._listening.close()
        with suppress(OSError):
            os.unlink(self._path)


def error_line(task: int, error: KoinonError) -> dict[str, Any]:
    """An error that is raised in the program's `submit`."""
    return {"task": task, "error": type(error).__name__, "message": str(error)}
