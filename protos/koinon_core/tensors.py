"""Tensors: named arrays with a vector's operators.

A model, an update, a gradient and a strategy's state are all the same thing: arrays with names. `Tensors` lets
the rules of the papers be written as they are printed (`w + lr * mean`), refuses to mix two different sets of
names or shapes (numpy would broadcast them silently), and is immutable, so that nothing is changed by way of
an alias.
"""

import math
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from koinon_core import exact
from koinon_core.errors import UsageError

__all__ = ["Array", "Tensors"]

Array = NDArray[Any]


class Tensors(Mapping[str, Array]):
    """An immutable mapping of names to numpy arrays, in the order given, that adds and scales like a vector.

    The arrays are marked read-only; pass `copy=True` where the caller keeps writing to its own.
    """

    __slots__ = ("_arrays",)
    # numpy leaves `np.float64(2) * tensors` to us, instead of taking the names for elements.
    __array_ufunc__: ClassVar[None] = None
    _array: ClassVar[Callable[..., Array]] = staticmethod(np.asarray)

    def __init__(
        self, arrays: Mapping[str, ArrayLike] | Iterable[tuple[str, ArrayLike]] = (), *, copy: bool = False
    ):
        items = arrays.items() if isinstance(arrays, Mapping) else arrays
        self._arrays: dict[str, Array] = {}
        for name, value in items:
            # A view is made read-only, never the caller's own array.
            array = np.array(value) if copy else self._array(value).view()
            array.flags.writeable = False
            self._arrays[name] = array

    @classmethod
    def own(cls, arrays: dict[str, Any]) -> "Tensors":
        """Of arrays, or views, that were made for this and that nobody else has: without one more view of each, which
        costs as much as an operation on a few thousand elements."""
        made = cls.__new__(cls)
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # numpy makes a scalar of an array without axes
                array = arrays[name] = cls._array(array)
            array.setflags(write=False)
        made._arrays = arrays
        return made

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    # The dict's own, which are several times as fast as those that Mapping would make.
    def keys(self) -> KeysView[str]:
        return self._arrays.keys()

    def values(self) -> ValuesView[Array]:
        return self._arrays.values()

    def items(self) -> ItemsView[str, Array]:
        return self._arrays.items()

    def __repr__(self) -> str:
        inside = ", ".join(f"{n}: {a.dtype}{list(a.shape)}" for n, a in self._arrays.items())
        return f"Tensors({inside})"

    def __eq__(self, other: object) -> bool:
        """Same names in any order, same dtypes, same shapes, same bytes."""
        if not isinstance(other, Tensors):
            return NotImplemented
        return self.keys() == other.keys() and all(
            a.dtype == other[n].dtype and a.shape == other[n].shape and a.tobytes() == other[n].tobytes()
            for n, a in self.items()
        )

    __hash__ = None  # type: ignore[assignment]  # equal by bytes, too large to hash by accident

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self._arrays.values())

    def map(self, function: Callable[[Array], ArrayLike]) -> "Tensors":
        """`function` applied to every array."""
        return Tensors({n: function(a) for n, a in self.items()})

    def zeros(self) -> "Tensors":
        """Zeros of the same names, shapes and dtypes."""
        return self.map(np.zeros_like)

    def select(self, names: Iterable[str]) -> "Tensors":
        """Only `names`, in this one's order; a name that is not here is a UsageError."""
        wanted = set(names)
        if missing := wanted - self.keys():
            raise UsageError(f"no tensor named {min(missing)!r} here; there are {sorted(self)[:8]}")
        return Tensors({n: a for n, a in self.items() if n in wanted})

    def without(self, names: Iterable[str]) -> "Tensors":
        """All but `names`."""
        left_out = set(names)
        return Tensors({n: a for n, a in self.items() if n not in left_out})

    def dot(self, other: "Tensors") -> float:
        """The inner product over all arrays, in float64, the same on every CPU."""
        self._check(other)
        return exact.join(exact.dot(a, other[n]) for n, a in self.items())

    def norm(self) -> float:
        """The Euclidean norm over all arrays, in float64, the same on every CPU."""
        return math.sqrt(self.dot(self))

    def _check(self, other: "Tensors") -> None:
        if self.keys() != other.keys():
            differing = min(self.keys() ^ other.keys())
            raise UsageError(f"the two sets of tensors differ: {differing!r} is in only one of them")
        for name, array in self.items():
            if array.shape != other[name].shape:
                raise UsageError(
                    f"{name!r} has shape {array.shape} on one side and {other[name].shape} on the other; "
                    "shapes are never broadcast"
                )

    def _with(self, other: "Tensors | float", function: Callable[[Any, Any], Any]) -> "Tensors":
        if type(other) is Tensors or isinstance(other, Tensors):  # what an abstract class asks takes longer
            self._check(other)
            return self.own({n: function(a, other._arrays[n]) for n, a in self._arrays.items()})
        # A Python float keeps each array's own dtype (NEP 50); a numpy scalar or a 0-d array would not.
        scalar = float(other)
        return self.own({n: function(a, scalar) for n, a in self._arrays.items()})

    def __add__(self, other: "Tensors | float") -> "Tensors":
        return self._with(other, np.add)

    def __sub__(self, other: "Tensors | float") -> "Tensors":
        return self._with(other, np.subtract)

    def __mul__(self, other: "Tensors | float") -> "Tensors":
        return self._with(other, np.multiply)

    def __truediv__(self, other: "Tensors | float") -> "Tensors":
        return self._with(other, np.divide)

    def __rmul__(self, other: float) -> "Tensors":
        return self * other

    def __neg__(self) -> "Tensors":
        return self.own({n: np.negative(a) for n, a in self._arrays.items()})

    def blend(self, mine: float, other: "Tensors", its: float) -> "Tensors":
        """`self * mine + other * its`, and the same bytes, with an array less on the way."""
        self._check(other)
        made: dict[str, Array] = {}
        for name, array in self._arrays.items():
            left, right = np.multiply(array, float(mine)), np.multiply(other._arrays[name], float(its))
            made[name] = np.add(left, right, out=left if left.ndim and left.dtype == right.dtype else None)
        return self.own(made)

    def sqrt(self) -> "Tensors":
        """The elementwise square root."""
        return self.own({n: np.sqrt(a) for n, a in self._arrays.items()})
