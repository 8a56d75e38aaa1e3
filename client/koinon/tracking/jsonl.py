"""A run as a file of JSON: a line for its start, one for each round that is over, one for its end; and
one for what its owner measured of a model after its round was written."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from koinon.tracking.told import RoundEnd, RunStart
from koinon_core.canonical import canonical
from koinon_core.errors import UsageError
from koinon_core.flow.central import is_central

__all__ = ["JsonLines"]

_OPENING = b'{"aggregation":'  # of our first line, whose keys are sorted


class JsonLines:
    """Appends to the file `path`, one canonical JSON object a line; every line is on its way to the disk before the
    next event. A file that is there is gone on with: what is in it is not written again, and a last line that a crash
    tore is cut off. A number that is not finite is null.

    UsageError if the file is of another run, is something else, or cannot be written.
    """

    def __init__(self, path: Path):
        self._path = path
        self._rounds: set[int] = set()
        self._central: dict[int, dict[str, Any]] = {}
        self._ended = False

    def on_run_start(self, start: RunStart) -> None:
        try:
            lines = self._read()
        except OSError as error:
            raise UsageError(f"the file {self._path} cannot be used: {error.strerror or error}") from error
        if lines and lines[0].get("id") != start.id:
            raise UsageError(
                f"{self._path} holds run {lines[0].get('name')!r} with id {lines[0].get('id')}, and run {start.name!r} "
                f"has id {start.id}; name another file for it"
            )
        self._rounds = {line["number"] for line in lines if line["event"] == "round"}
        for line in lines:
            if line["event"] in ("round", "measured"):
                self._central.setdefault(line["number"], {}).update(_central(line["metrics"]))
        self._ended = any(line["event"] == "end" for line in lines)
        if not lines:
            self._append({"event": "run", **asdict(start)})

    def on_round(self, round_: RoundEnd) -> None:
        if round_.number not in self._rounds:
            self._append({"event": "round", **asdict(round_)})
            self._rounds.add(round_.number)
            self._central[round_.number] = _central(round_.metrics)
        else:
            self.on_measured(round_.number, _central(round_.metrics))

    def on_measured(self, number: int, metrics: Mapping[str, float]) -> None:
        """What the run's owner measured of a round's model since it was written."""
        known = self._central.setdefault(number, {})
        if any(known.get(name) != value for name, value in metrics.items()):
            self._append({"event": "measured", "number": number, "metrics": dict(metrics)})
            known.update(metrics)

    def on_end(self, status: str, reason: str) -> None:
        if not self._ended:
            self._append({"event": "end", "status": status, "reason": reason})
            self._ended = True

    def _append(self, event: dict[str, Any]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(canonical(_plain(event)) + b"\n")
                file.flush()
        except OSError as error:
            raise UsageError(f"the file {self._path} cannot be written: {error.strerror or error}") from error

    def _read(self) -> list[dict[str, Any]]:
        """What is in the file, without what a crash left of a last line."""
        if not self._path.exists():
            return []
        data = self._path.read_bytes()
        whole, newline, torn = data.rpartition(b"\n")
        # A file that is not ours must not lose anything: look at all of it before something is cut off.
        lines = (
            [self._line(number, text) for number, text in enumerate(whole.split(b"\n"), 1)] if newline else []
        )
        if lines and lines[0]["event"] != "run":
            raise self._foreign(1)
        if torn:
            if not lines and torn[: len(_OPENING)] != _OPENING[: len(torn)]:
                raise self._foreign(1)
            os.truncate(self._path, len(data) - len(torn))
        return lines

    def _line(self, number: int, text: bytes) -> dict[str, Any]:
        try:
            line = json.loads(text)
        except ValueError:
            raise self._foreign(number) from None
        events = {"run": "id", "round": "number", "measured": "number", "end": "status"}
        if not isinstance(line, dict) or events.get(str(line.get("event"))) not in line:
            raise self._foreign(number)
        return line

    def _foreign(self, number: int) -> UsageError:
        return UsageError(
            f"line {number} of {self._path} is not what this tracker writes; name another file, or remove this one"
        )


def _central(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if is_central(name)}


def _plain(value: Any) -> Any:
    """`value` with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
