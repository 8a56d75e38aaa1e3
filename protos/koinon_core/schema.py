"""The schema: which tensors a run is about, in one order, with one digest.

The coordinator's schema is the only one: what a device sends is compared with it, never trusted, so that a
wrong shape is refused before a byte is allocated for it and nothing is ever broadcast.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import index
from typing import Any, Literal, get_args

import numpy as np

from koinon_core.canonical import digest_of
from koinon_core.errors import UsageError
from koinon_core.tensors import Tensors

__all__ = ["TILE", "Field", "Role", "Rule", "Schema", "schema_of"]

Role = Literal["param", "buffer"]
"""`param` is trained; `buffer` goes along (BatchNorm statistics, counters)."""
Rule = Literal["mean", "max", "equal", "local"]
"""How the federation joins it (koinon_core.sections): the weighted mean of changes, the largest value (counters), what
all have alike, or nothing because it stays on the device."""

FLOATS = ("float64", "float32", "float16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")
TILE = 1 << 20
"""Elements: the unit in which models and updates are encoded, staged, folded and written."""
_MAX_ELEMENTS = 1 << 40
_MAX_DIMENSIONS = 32  # more than any model has, fewer than any numpy allows


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor: its name, shape, dtype (numpy's name) and role."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role = "param"

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 512:
            raise UsageError(f"a tensor's name must have 1 to 512 characters, not {len(self.name)}")
        if self.dtype not in FLOATS + INTEGERS:
            raise UsageError(
                f"{self.name!r} is {self.dtype}, which cannot be federated; "
                f"use one of {', '.join(FLOATS + INTEGERS)}"
            )
        if self.role not in get_args(Role):
            raise UsageError(f"{self.name!r} has role {self.role!r}; it is 'param' or 'buffer'")
        if self.role == "param" and self.rule == "max":
            raise UsageError(f"{self.name!r} is {self.dtype} and cannot be trained; make it a buffer")
        if len(self.shape) > _MAX_DIMENSIONS:
            raise UsageError(
                f"{self.name!r} has {len(self.shape)} dimensions; {_MAX_DIMENSIONS} are the most"
            )
        if any(n < 0 for n in self.shape) or self.size > _MAX_ELEMENTS:
            raise UsageError(f"{self.name!r} has shape {self.shape}, which is no size")

    @property
    def rule(self) -> Rule:
        """Floats are averaged; integers take the largest value, because half a counter means nothing."""
        return "mean" if self.dtype in FLOATS else "max"

    @property
    def size(self) -> int:
        """Elements."""
        n = 1
        for length in self.shape:
            n *= length
        return n

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in memory."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Schema:
    """The fields of a model, in order. Two schemas are the same when their digests are."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        if len(self.by_name) != len(self.fields):
            raise UsageError("two tensors of the model have the same name")

    @cached_property
    def by_name(self) -> Mapping[str, Field]:
        return {f.name: f for f in self.fields}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical form, in hex."""
        return digest_of(self.to_json())

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The number of each field."""
        return {f.name: number for number, f in enumerate(self.fields)}

    @cached_property
    def first_tiles(self) -> tuple[int, ...]:
        """How many tiles come before each field's, and last how many there are."""
        return tuple(accumulate((-(-f.size // TILE) for f in self.fields), initial=0))

    @property
    def nbytes(self) -> int:
        return sum(f.nbytes for f in self.fields)

    @property
    def size(self) -> int:
        """Elements of all fields."""
        return sum(f.size for f in self.fields)

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def names(self, *, role: Role | None = None, rule: Rule | None = None) -> tuple[str, ...]:
        """Names of the fields that match, in order."""
        return tuple(f.name for f in self.fields if role in (None, f.role) and rule in (None, f.rule))

    def without(self, names: Iterable[str]) -> "Schema":
        left_out = set(names)
        return Schema(tuple(f for f in self.fields if f.name not in left_out))

    def only(self, names: Iterable[str]) -> "Schema":
        kept = set(names)
        return Schema(tuple(f for f in self.fields if f.name in kept))

    def batchnorm(self) -> frozenset[str]:
        """Names that belong to normalisation layers with running statistics: a layer is known by its
        `running_mean` and `running_var`, so that a file of weights tells as much as a module does."""
        layers = {
            n.removesuffix("running_mean")
            for n in self.by_name
            if n.endswith("running_mean") and n.removesuffix("running_mean") + "running_var" in self.by_name
        }
        return frozenset(n for n in self.by_name if n[: n.rfind(".") + 1] in layers)

    def zeros(self) -> Tensors:
        return Tensors({f.name: np.zeros(f.shape, f.dtype) for f in self.fields})

    def check(self, tensors: Tensors, whose: str) -> None:
        """Raise UsageError unless `tensors` has exactly these names, shapes and dtypes."""
        same = tensors.keys() == self.by_name.keys() and all(
            f.shape == tensors[f.name].shape and f.dtype == tensors[f.name].dtype.name for f in self.fields
        )
        if not same:
            schema_of(tensors, like=self).must_equal(self, whose)

    def must_equal(self, wanted: "Schema", whose: str) -> None:
        """Raise UsageError with the first difference; `whose` names the side that this schema is from."""
        for field in wanted:
            mine = self.by_name.get(field.name)
            if mine is None:
                raise UsageError(f"{whose} has no tensor {field.name!r}, which the run's model has")
            if (mine.shape, mine.dtype) != (field.shape, field.dtype):
                raise UsageError(
                    f"{whose} has {field.name!r} as {mine.dtype}{list(mine.shape)}; "
                    f"the run's model has {field.dtype}{list(field.shape)}"
                )
        if extra := self.by_name.keys() - wanted.by_name.keys():
            raise UsageError(f"{whose} has a tensor {min(extra)!r}, which the run's model does not have")

    def to_json(self) -> list[list[Any]]:
        return [[f.name, list(f.shape), f.dtype, f.role] for f in self.fields]

    @classmethod
    def from_json(cls, value: Any) -> "Schema":
        try:
            return cls(tuple(Field(str(n), tuple(index(i) for i in s), str(d), r) for n, s, d, r in value))
        except (TypeError, ValueError) as error:
            raise UsageError(f"not a schema: {error}") from error


def schema_of(
    tensors: Mapping[str, Any], *, buffers: Iterable[str] = (), like: Schema | None = None
) -> Schema:
    """The schema of `tensors`. Integers, `buffers` and running statistics are buffers, the rest parameters;
    with `like`, the roles of floats are taken from there."""
    named = set(buffers)

    def role(name: str, dtype: str) -> Role:
        if like is not None and name in like.by_name and dtype in FLOATS:
            return like.by_name[name].role
        statistic = name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
        return "buffer" if name in named or dtype not in FLOATS or statistic else "param"

    return Schema(
        tuple(
            Field(n, tuple(a.shape), str(a.dtype), role(n, str(a.dtype)))
            for n, a in ((n, np.asarray(a)) for n, a in tensors.items())
        )
    )
