"""Starting a run from weights that there are: which of them a model takes, by name and shape, and what does not fit.

Strict unless it is told otherwise: every tensor of the model must be there in its shape, and nothing may be left over.
What does not fit is listed, all of it, with the names that come nearest. A run that starts so starts afresh in all the
rest: the strategy's state at the coordinator, and what devices keep.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from koinon.stored import read_weights
from koinon_core.errors import UsageError
from koinon_core.schema import Schema
from koinon_core.tensors import Array, Tensors

__all__ = ["Initial", "Start", "fitted"]

_MOST_LISTED = 200


class Initial(NamedTuple):
    """A first model that knows its schema: another run's."""

    weights: Tensors
    schema: Schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a model's first weights come from: a path, or names to arrays (also torch tensors). `rename` says how names
    begin there and here; names that match `ignore` (shell patterns) are not taken, and keep what the model has; with
    `allow_missing` so do others that are not there."""

    weights: Any
    allow_missing: bool = False
    ignore: Sequence[str] = ()
    rename: Mapping[str, str] | None = None

    def read(self) -> dict[str, Array]:
        """The tensors, under the model's names, without those that are ignored."""
        if isinstance(self.ignore, str):
            raise UsageError(f"ignore = {self.ignore!r} must be a list of patterns: [{self.ignore!r}]")
        if self.rename is not None and not isinstance(self.rename, Mapping):
            raise UsageError("rename must say for each beginning of a name what it becomes: {'old.': 'new.'}")
        found = _arrays(self.weights)
        named: dict[str, Array] = {}
        for old, array in found.items():
            name = _renamed(old, self.rename or {})
            if name in named:
                raise UsageError(
                    f"{old!r} and another tensor would both be called {name!r} by rename; rename them apart"
                )
            if not self.ignores(name):
                named[name] = array
        return named

    def ignores(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.ignore)


def fitted(model: Tensors, start: Start, unsent: Set[str] = frozenset()) -> tuple[Tensors, str]:
    """The model with what it takes of `start`, and a sentence about that. UsageError that lists what does not fit.

    `unsent`: names that the owner's module knows too and the run does not send (frozen, or tied to one that it does).
    """
    read = start.read()
    passed = [name for name in read if name in unsent and name not in model]
    found = {name: array for name, array in read.items() if name not in passed}
    wrong = [_differs(name, found[name], array) for name, array in model.items() if name in found]
    missing = [name for name in model if name not in found and not start.ignores(name)]
    left = [name for name in found if name not in model]
    problems = [problem for problem in wrong if problem]
    if not start.allow_missing:
        problems += [f"{name!r} is missing{_near(name, left)}" for name in missing]
    problems += [f"{name!r} is not the model's{_near(name, missing or list(model))}" for name in left]
    if problems:
        listed = problems[:_MOST_LISTED]
        more = f"; and {len(problems) - len(listed)} more" if len(problems) > len(listed) else ""
        raise UsageError(
            f"these weights do not fit the model: {'; '.join(listed)}{more} (rename says how names begin, ignore "
            "leaves names out, allow_missing lets the model keep what is not there)"
        )
    with np.errstate(over="ignore"):  # what overflows is named
        taken = {name: found[name].astype(a.dtype) if name in found else a for name, a in model.items()}
    ill = [name for name in found if not np.isfinite(taken[name]).all()]
    if ill:
        raise UsageError(
            f"{ill[0]!r}{f' and {len(ill) - 1} more' if ill[1:] else ''} of these weights have values that are not "
            "finite in the model's precision; a run cannot start from them"
        )
    kept = [name for name in model if name not in found]
    if len(kept) == len(model):
        raise UsageError("no tensor of these weights is one of the model's; nothing would be taken")
    own = (
        f", and the model keeps its own values of {', '.join(kept[:8])}{', ...' if kept[8:] else ''}"
        if kept
        else ""
    )
    home = f"; {len(passed)} are frozen or tied, and not sent: each device has its own" if passed else ""
    return Tensors(taken), f"{len(model) - len(kept)} of {len(model)} tensors are taken{own}{home}"


def _arrays(weights: Any) -> dict[str, Array]:
    if isinstance(weights, str | Path):
        return dict(read_weights(Path(weights)))
    if isinstance(weights, Initial):
        return dict(weights.weights)
    if not isinstance(weights, Mapping):
        raise UsageError(
            f"a run cannot start from a {type(weights).__name__}; name a file, or give names with their arrays"
        )
    return {str(name): _array(value) for name, value in weights.items()}


def _array(value: Any) -> Array:
    if hasattr(value, "detach"):  # a torch tensor; numpy has no bfloat16
        value = value.detach().cpu()
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    array: Array = np.asarray(value)
    return array


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    """A name by the first beginning that it has."""
    for old, new in rename.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _differs(name: str, found: Array, wanted: Array) -> str:
    if found.shape != wanted.shape:
        return f"{name!r} has shape {found.shape}, the model's has {wanted.shape}"
    if (found.dtype.kind == "f") != (wanted.dtype.kind == "f"):
        return f"{name!r} is {found.dtype}, the model's is {wanted.dtype}"
    return ""


def _near(name: str, others: Iterable[str]) -> str:
    """The names among these that come nearest: by their ends too, since prefixes are what differs most often."""
    names = list(others)
    ends = [other for other in names if other.endswith(f".{name}") or name.endswith(f".{other}")]
    near = ends[:2] or get_close_matches(name, names, n=2)
    return f" (nearest: {', '.join(map(repr, near))})" if near else ""
