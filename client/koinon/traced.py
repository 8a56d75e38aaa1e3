"""What a strategy's server half does with arrays, found by watching it: for `koinon.testing`.

Arrays are given to it that write down every operation that may differ from one CPU to the next. While it is watched,
what numpy makes or converts keeps on watching, and functions of numpy and of `math` that differ are written down
whatever they are called with, also under the names by which the strategy's own module knows them. What comes back
without having been watched is "unknown": a way was taken that cannot be seen, and it counts as one that differs. What
Python does with its own numbers (`float(a[0]) ** 0.3`) is not seen.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np

from koinon_core.strategy.protocol import State
from koinon_core.tensors import Tensors

__all__ = ["Dice", "look", "traced", "tracing"]

UNKNOWN = "unknown"

_ELEMENTWISE = {
    "add", "subtract", "multiply", "divide", "negative", "positive", "sqrt", "square", "absolute", "fabs", "sign",
    "maximum", "minimum", "fmax", "fmin", "less", "less_equal", "greater", "greater_equal", "equal", "not_equal",
    "logical_and", "logical_or", "logical_not", "logical_xor", "bitwise_and", "bitwise_or", "invert", "isfinite",
    "isnan", "isinf", "floor", "ceil", "trunc", "rint", "copysign", "signbit", "clip", "reciprocal",
}  # fmt: skip
_ORDERLESS = {"maximum", "minimum", "logical_and", "logical_or"}
_MOVES = {
    "zeros_like", "ones_like", "full_like", "empty_like", "where", "clip", "copyto", "concatenate", "stack", "reshape",
    "ravel", "transpose", "sort", "partition", "argsort", "broadcast_to", "array_equal", "shape", "size", "squeeze",
    "tile", "diag", "diagonal", "fill_diagonal", "atleast_1d", "atleast_2d",
}  # fmt: skip
_MAKES = (
    "array", "asarray", "ascontiguousarray", "asfortranarray", "asanyarray", "require", "empty", "zeros", "ones",
    "full", "arange", "eye", "identity", "frombuffer", "fromiter",
)  # fmt: skip
_MATH = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "cbrt", "sin", "cos", "tan", "asin", "acos", "atan",
    "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "gamma", "lgamma", "erf", "erfc",
)  # fmt: skip
_DRAWN_ALIKE = {"integers", "random", "bytes", "permutation", "permuted", "shuffle", "bit_generator"}


class _Traced(np.ndarray[Any, Any]):
    """An array that writes down what is done with it, if that is not the same on every CPU."""

    found: ClassVar[set[str]] = set()

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any
    ) -> Any:
        name = ufunc.__name__
        if name not in _ELEMENTWISE or (method != "__call__" and name not in _ORDERLESS):
            _Traced.found.add(name if method == "__call__" else f"{name}.{method}")
        if out is not None:
            kwargs["out"] = tuple(_plain(a) for a in out)
        made = getattr(ufunc, method)(*(_plain(a) for a in inputs), **kwargs)
        return out[0] if out is not None else _marked(made)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func.__name__ not in _MOVES:
            _Traced.found.add(func.__name__)
        return _marked(func(*map(_bare, args), **{n: _bare(a) for n, a in kwargs.items()}))

    def dot(self, b: Any, out: Any = None) -> Any:
        # The method of arrays asks nobody, where numpy's function of the name does.
        _Traced.found.add("dot")
        made = _marked(np.ndarray.dot(_plain(self), _plain(b)))
        if out is None:
            return made
        out[...] = made
        return out

    def view(self, *args: Any, **kwargs: Any) -> Any:
        made = np.ndarray.view(self, *args, **kwargs)
        if not isinstance(made, _Traced):
            _Traced.found.add(UNKNOWN)
        return made


def _plain(a: Any) -> Any:
    return np.ndarray.view(a, np.ndarray) if isinstance(a, _Traced) else a


def _bare(a: Any) -> Any:
    return type(a)(map(_bare, a)) if isinstance(a, list | tuple) else _plain(a)


def _marked(made: Any) -> Any:
    if isinstance(made, tuple):
        return tuple(map(_marked, made))
    return made.view(_Traced) if isinstance(made, np.ndarray) else made


def traced(tensors: Tensors) -> Tensors:
    """The same, watched; within `tracing`."""
    return Tensors({n: a.view(_Traced) for n, a in tensors.items()})


def look(made: State | Mapping[str, Tensors]) -> None:
    """Write down if something of what was made had not been watched."""
    if not all(isinstance(a, _Traced) for tensors in made.values() for a in tensors.values()):
        _Traced.found.add(UNKNOWN)


class Dice:
    """A generator whose draws are watched; of some of them the last bits come from exponentials and logarithms."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng

    def __getattr__(self, name: str) -> Any:
        drawn = getattr(self._rng, name)
        if not callable(drawn):
            return drawn
        return _watched(drawn, "" if name in _DRAWN_ALIKE else f"rng.{name}")


def _watched(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function; its results are watched, and where it has a `name` that is written down."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if name:
            _Traced.found.add(name)
        return _marked(function(*args, **kwargs))

    return call


@contextmanager
def tracing(modules: Iterable[ModuleType]) -> Iterator[set[str]]:
    """Tensors, and what numpy makes, keep traced arrays as they are; gives the names that were written down. `modules`
    are those of the strategy."""
    _Traced.found = set()
    kept = [(np, name, "") for name in _MAKES]
    ufuncs = [(name, made) for name, made in vars(np).items() if isinstance(made, np.ufunc)]
    told = [(np, name, made.__name__) for name, made in ufuncs if made.__name__ not in _ELEMENTWISE]
    told += [(math, name, name) for name in _MATH if hasattr(math, name)]
    instead = {
        id(getattr(where, name)): _watched(getattr(where, name), said) for where, name, said in (*kept, *told)
    }
    with ExitStack() as patches:
        patches.enter_context(patch.object(Tensors, "_array", staticmethod(np.asanyarray)))
        for module in {np, math, *modules}:
            for name, value in list(vars(module).items()):
                if id(value) in instead:
                    patches.enter_context(patch.object(module, name, instead[id(value)]))
        yield _Traced.found
