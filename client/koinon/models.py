"""What the session needs of a model, whatever it is made of.

A `Model` reads its weights out as `Tensors`, takes a round's weights in, and steers the owner's training loop
(`Steering`): adds the strategy's gradient term and records what the steps were. Here it is done for plain numpy
arrays, in `koinon.torch` for torch modules; `koinon.adapt` finds the one that fits.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from koinon.child.arrays import Descent
from koinon.child.recorded import Recorded
from koinon_core.schema import Schema, schema_of
from koinon_core.strategy.protocol import Keys, Pull
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import TILE

__all__ = ["ArrayModel", "ArraySteering", "Evaluate", "Model", "Recorded", "Steering"]

Evaluate = Callable[[Any], Mapping[str, float]]
"""The owner's evaluation: the model in, metrics out. The key "examples" says over how many (default 1)."""


class Steering(Protocol):
    """One run of the owner's loop, steered. Use as a context manager; `recorded` and `gradient` afterwards."""

    recorded: Recorded

    def __enter__(self) -> "Steering": ...
    def __exit__(self, *exc: object) -> None: ...
    def gradient(self) -> Tensors:
        """The mean gradient of a measuring pass."""
        ...


class Model(Protocol):
    """A model that the session can federate."""

    @property
    def schema(self) -> Schema: ...
    def read(self) -> Tensors:
        """A copy of the weights."""
        ...

    def load(self, weights: Tensors) -> None:
        """Put these weights in, in place."""
        ...

    def values(self, name: str, offset: int) -> Array:
        """A tile of the weights as they are now (koinon_core.tiles.Source); it may change when training goes on."""
        ...

    def put(self, name: str, offset: int, values: Array) -> None:
        """Put a tile of weights in, in place (koinon_core.tiles.Sink)."""
        ...

    @property
    def rounds(self) -> bool:
        """Whether weights lose digits when they are put in, because the model holds them in fewer bits than its
        schema."""
        ...

    def steer(self, pull: Pull, start: Tensors, *, measure: bool, train: Keys | None) -> Steering: ...
    def descend(self, gradients: Mapping[str, Array], lr: float, steering: Any) -> None:
        """One plain SGD step for owners without an optimizer."""
        ...


class ArraySteering(Descent):
    """Steers `task.descend` on arrays."""

    def __init__(self, pull: Pull, start: Tensors, measure: bool, train: Keys | None = None):
        super().__init__(pull.mu, pull.shift, start, measure=measure, train=train)

    def gradient(self) -> Tensors:
        return Tensors({n: a / max(1, self.recorded.steps) for n, a in self.sums.items()})


class ArrayModel:
    """A dict of numpy arrays, which are changed in place. `task.descend(gradients, lr)` takes a step."""

    def __init__(self, arrays: dict[str, Array]):
        self._arrays = arrays
        self.schema = schema_of(arrays)

    def read(self) -> Tensors:
        return Tensors(self._arrays, copy=True)

    def load(self, weights: Tensors) -> None:
        for name, array in self._arrays.items():
            np.copyto(array, weights[name])

    def values(self, name: str, offset: int) -> Array:
        return self._arrays[name].reshape(-1)[offset : offset + TILE]

    def put(self, name: str, offset: int, values: Array) -> None:
        array = self._arrays[name]
        # A view where there can be one: writing through `flat` is ten times slower.
        flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
        flat[offset : offset + values.size] = values

    @property
    def rounds(self) -> bool:
        return False

    def steer(self, pull: Pull, start: Tensors, *, measure: bool, train: Keys | None) -> ArraySteering:
        return ArraySteering(pull, start, measure, train)

    def descend(self, gradients: Mapping[str, Array], lr: float, steering: ArraySteering) -> None:
        steering.step(self._arrays, gradients, lr)
