"""The model that the owner's program has, as the session sees it (koinon.models.Model): files that go to and fro.

What the session puts in lies in a file for the program to load; what the program saved is read from its file, tile by
tile. The optimizer hook is the program's own (koinon.child): what steers it goes along with each task.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from koinon.models import Recorded
from koinon_core.errors import BadUpdate, UsageError
from koinon_core.schema import Schema
from koinon_core.strategy.protocol import Keys, Pull
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import Held, copy
from koinon_edge.worker.tensors import TensorFile, write

__all__ = ["RemoteModel", "RemoteSteering"]


@dataclass(slots=True)
class RemoteSteering:
    """What steers one task of the program, as files and values, and what it recorded."""

    pull: Pull
    start: Tensors
    measure: bool
    train: Keys | None
    schema: Schema
    recorded: Recorded = field(default_factory=Recorded)
    measured: Path | None = None
    """Where the program saved the mean gradient."""

    def __enter__(self) -> "RemoteSteering":
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def gradient(self) -> Tensors:
        if self.measured is None:
            raise BadUpdate("the training program saved no gradient of a measuring pass")
        return TensorFile.found(self.measured, self.schema).tensors()

    def record(self, said: Mapping[str, Any]) -> None:
        """What the program says of its steps."""
        displacement = said.get("displacement")
        self.recorded.steps = int(said.get("steps", 0))
        self.recorded.lr = float(said.get("lr") or 0.0)
        self.recorded.displacement = math.nan if displacement is None else float(displacement)
        self.recorded.why = str(said.get("why") or "")[:200]

    def files(self, folder: Path) -> dict[str, Any]:
        """What the program is told of it."""
        shift, anchor = self.pull.shift, None
        if self.pull.mu and self.start:
            anchor = str(
                write(folder / "anchor.safetensors", self.schema, self.start.select(self.schema.by_name))
            )
        return {
            "mu": self.pull.mu,
            "anchor": anchor,
            "shift": str(write(folder / "shift.safetensors", self.schema, shift))
            if shift is not None
            else None,
            "train": sorted(n for n in self.schema.by_name if n in self.train)
            if self.train is not None
            else None,
        }


class RemoteModel:
    """A model with this schema in the owner's program, which exchanges tensors in `folder`. `began` is told when
    weights begin to come; `rounded` asks the program to load a file and save what it has then."""

    def __init__(
        self, schema: Schema, folder: Path, *, rounds: bool = False, tied: Mapping[str, str] | None = None,
        began: Callable[[], None] = lambda: None, rounded: Callable[[Path], Path] | None = None,
    ):  # fmt: skip
        self.schema, self.tied, self._rounds = schema, dict(tied or {}), rounds
        self._folder, self._began, self._rounded = folder, began, rounded
        self._params = schema.only(schema.names(role="param"))
        self._coming: TensorFile | None = None
        self._now: TensorFile | None = None
        self.load_next: Path | None = None
        """What the program must load before it goes on; None where its model is right already."""

    @property
    def rounds(self) -> bool:
        return self._rounds

    def put(self, name: str, offset: int, values: Array) -> None:
        if self._coming is None:
            self._began()
            self._coming = TensorFile.new(self._folder / "load.safetensors", self.schema)
            self._now, self.load_next = self._coming, self._coming.path
        self._coming.put(name, offset, values)

    def load(self, weights: Tensors) -> None:
        self._coming = None
        copy(Held(weights), self.schema, self)

    def saved(self, path: Path) -> None:
        """The program's weights are what it saved there."""
        self._now = TensorFile.found(path, self.schema)
        self._coming, self.load_next = None, None

    def loaded(self) -> None:
        """The program was told to load what was put in."""
        self._coming, self.load_next = None, None

    def again(self) -> None:
        """Another program must load what this one had been told to."""
        if self._now is not None:
            self.load_next = self._now.path

    def values(self, name: str, offset: int) -> Array:
        assert self._now is not None
        return self._now.values(name, offset)

    def read(self) -> Tensors:
        assert self._now is not None
        if self._rounds and self.load_next is not None and self._rounded is not None:
            self.saved(self._rounded(self.load_next))
        return self._now.tensors()

    def steer(self, pull: Pull, start: Tensors, *, measure: bool, train: Keys | None) -> RemoteSteering:
        return RemoteSteering(pull, start, measure, train, self._params)

    def descend(self, gradients: Mapping[str, Array], lr: float, steering: Any) -> None:
        raise UsageError("task.descend is the training program's own")
