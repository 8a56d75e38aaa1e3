"""Dicts of numpy arrays as models, and plain descent on them: `task.descend(gradients, lr)` takes a step."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

from .errors import UsageError
from .files import CODES, Field, TensorFile, check_dtype, check_steering
from .recorded import Recorded

__all__ = ["Arrays", "Descent"]

Array = Any  # numpy.typing is younger than some of the numpys that this meets
_PIECE = 1 << 20


class Descent:
    """Steers plain descent on arrays: a step goes along g + mu (y - w) + shift, with w the arrays in `start`. `train`
    names what is trained (None: all)."""

    def __init__(
        self, mu: float, shift: Mapping[str, Array] | None, start: Mapping[str, Array], *, measure: bool,
        train: Container[str] | None,
    ):  # fmt: skip
        self.recorded = Recorded()
        self._mu, self._shift, self._start = mu, shift, start
        self._measure, self._train = measure, train
        self.sums: dict[str, Array] = {}
        """What a measuring pass has summed up."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def step(self, arrays: MutableMapping[str, Array], gradients: Mapping[str, Array], lr: float) -> None:
        """One step of `arrays`, in place. UsageError for a learning rate that is none."""
        if not (math.isfinite(lr) and lr > 0):
            raise UsageError(f"a learning rate must be above 0, it is {lr}")
        # What has no gradient has a zero one, and is shifted all the same: see hook.py.
        shifted = {n: np.zeros_like(a) for n, a in (self._shift or {}).items() if n not in gradients}
        for name, gradient in {**gradients, **shifted}.items():
            if self._train is not None and name not in self._train:
                continue
            if self._measure:
                self.sums[name] = self.sums.get(name, 0.0) + gradient
                continue
            term = gradient
            if self._mu:
                term = term + self._mu * (arrays[name] - self._start[name])
            if self._shift is not None and name in self._shift:
                term = term + self._shift[name]
            arrays[name] -= lr * term
        done = self.recorded
        done.steps += 1
        done.lr = done.lr or lr
        done.displacement += lr * (1 - self._mu * done.displacement)


class Arrays:
    """A dict of numpy arrays, which are changed in place."""

    tied: Mapping[str, str] = {}
    rounds = False

    def __init__(self, arrays: dict[str, Array]):
        self._arrays = arrays
        self.fields = [Field(n, a.shape, str(a.dtype), _role(n, str(a.dtype))) for n, a in arrays.items()]
        for field in self.fields:
            check_dtype(field)

    def load(self, file: TensorFile) -> None:
        file.check(self.fields)
        for name, array in self._arrays.items():
            np.copyto(array, _read(file, name).astype(array.dtype, copy=False))

    def pieces(self, field: Field) -> Iterator[Any]:
        return _pieces(self._arrays[field.name], field.dtype)

    def steer(
        self, mu: float, anchor: TensorFile | None, shift: TensorFile | None, *, measure: bool,
        train: Container[str] | None, **_: Any,
    ) -> Descent:  # fmt: skip
        check_steering(self.fields, anchor, shift)
        start: dict[str, Array] = {}
        if mu:
            params = [f.name for f in self.fields if f.role == "param"]
            start = {n: np.array(self._arrays[n] if anchor is None else _read(anchor, n)) for n in params}
        shifts = None if shift is None else {n: _read(shift, n) for n in shift.entries}
        return Descent(mu, shifts, start, measure=measure, train=train)

    def mean(self, field: Field, steering: Descent) -> Iterator[Any]:
        """The mean gradient of a measuring pass; zero for what had none."""
        total = steering.sums.get(field.name)
        array = np.zeros(field.shape) if total is None else total / max(1, steering.recorded.steps)
        return _pieces(array, field.dtype)

    def descend(self, gradients: Mapping[str, Array], lr: float, steering: Descent) -> None:
        steering.step(self._arrays, gradients, lr)


def _role(name: str, dtype: str) -> str:
    """As koinon_core.schema.schema_of has it: integers and running statistics are buffers."""
    statistic = name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
    return "buffer" if statistic or not dtype.startswith("float") else "param"


def _pieces(array: Array, dtype: str) -> Iterator[Any]:
    flat = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).reshape(-1)
    for at in range(0, flat.size, _PIECE):
        yield flat[at : at + _PIECE].view(np.uint8).data


def _read(file: TensorFile, name: str) -> Array:
    entry = file.entries[name]
    data = bytearray(entry.nbytes)
    file.read(name, 0, memoryview(data))
    if entry.code == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)
        return wide.view("<f4").reshape(entry.shape)
    dtype = next(kind for kind, code in CODES.items() if code == entry.code)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(entry.shape)
