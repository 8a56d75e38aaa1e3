"""The strategies that this process knows, by name.

A run's strategy is stored and sent as a name and fields, never as code. Both ends look the name up here; an
owner adds their own with `@koinon.register` in a module that they load themselves (`--plugin MODULE`), or in a package
that says so when it is installed, by an entry point of the group `koinon.strategies` (NAME = "PACKAGE.MODULE:CLASS").
Its strategies are then called PACKAGE.MODULE.CLASS, or NAME for short. It is imported when its name is first asked for.
"""

import importlib
from collections.abc import Iterable
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from koinon_core.errors import NotFound, UsageError

__all__ = ["GROUP", "known", "load_plugins", "lookup", "name_of", "register"]

GROUP = "koinon.strategies"
"""The group of entry points by which an installed package adds strategies."""
_BUILT_IN = "koinon"
_KNOWN: dict[str, type[Any]] = {}
Kind = TypeVar("Kind", bound=type)


def register(kind: Kind) -> Kind:
    """Class decorator: make a strategy known, as `koinon.NAME` if it is ours, as `MODULE.NAME` otherwise."""
    if not is_dataclass(kind) or not getattr(kind, "__dataclass_params__").frozen:  # noqa: B009 - not in its stubs
        raise UsageError(f"{kind.__name__} must be a frozen dataclass: its fields are its recipe")
    ours = kind.__module__.split(".")[0] == "koinon_core"
    name = f"{_BUILT_IN if ours else kind.__module__}.{kind.__name__}"
    _KNOWN[name] = kind
    return kind


def name_of(kind: type[Any]) -> str:
    """The name that `kind` was registered under."""
    for name, known_kind in _KNOWN.items():
        if known_kind is kind:
            return name
    raise UsageError(f"{kind.__name__} is not registered: put @koinon.register above it")


def lookup(name: str) -> type[Any]:
    """The strategy class called `name`; a bare name is one of ours."""
    full = name if "." in name else f"{_BUILT_IN}.{name}"
    if full in _KNOWN:
        return _KNOWN[full]
    found = [p for p in _installed() if name in (p.name, _full(p))]
    if len({p.value for p in found}) > 1:
        raise UsageError(
            f"two installed packages have a strategy {name!r}: write {' or '.join(sorted(_full(p) for p in found))}"
        )
    if found:
        return _imported(found[0])
    near = get_close_matches(full, known(), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise NotFound(
        f"there is no strategy {full!r} here{hint} (there are {', '.join(known())}); if it is the owner's own, install "
        "its package at both ends, or start them with --plugin MODULE"
    )


def known() -> list[str]:
    """All names, sorted; of what is installed and not imported yet, too."""
    return sorted(_KNOWN.keys() | {_full(point) for point in _installed()})


def _installed() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _full(point: EntryPoint) -> str:
    """What recipes call it."""
    return point.value.replace(":", ".")


def _imported(point: EntryPoint) -> type[Any]:
    try:
        kind = point.load()
    except Exception as error:  # whatever another's module does when it is imported
        raise UsageError(
            f"the strategy {point.name!r} of an installed package cannot be imported ({point.value}: {error!r}); its "
            "author must mend that, or uninstall it"
        ) from error
    if kind not in _KNOWN.values():
        raise UsageError(
            f"{point.value} is no registered strategy: its author must put @koinon.register above it"
        )
    if name_of(kind) != _full(point):
        # Recipes have the name that it was registered by: elsewhere nobody would find it.
        raise UsageError(
            f"the strategy {point.name!r} is registered as {name_of(kind)}: its author must let the entry point say "
            "where it is defined, not where it is imported again"
        )
    return kind  # type: ignore[no-any-return]  # it is among those that were registered


def load_plugins(modules: Iterable[str]) -> None:
    """Import the owner's modules, whose strategies register themselves."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f"the plugin {module!r} cannot be imported ({error}); it must be on this side's PYTHONPATH"
            ) from error
