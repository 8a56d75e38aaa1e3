"""The strategies that this process knows, by name.

A run's strategy is stored and sent as a name and fields, never as code. Both ends look the name up here; an
owner adds their own with `@koinon.register` in a module that they load themselves (`--plugin MODULE`).
"""

import importlib
from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any, TypeVar

from koinon_core.errors import NotFound, UsageError

__all__ = ["known", "load_plugins", "lookup", "name_of", "register"]

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
    if full not in _KNOWN:
        raise NotFound(
            f"there is no strategy {full!r} here (there are {', '.join(known())}); if it is the owner's own, "
            "start both ends with --plugin MODULE"
        )
    return _KNOWN[full]


def known() -> list[str]:
    """All names, sorted."""
    return sorted(_KNOWN)


def load_plugins(modules: Iterable[str]) -> None:
    """Import the owner's modules, whose strategies register themselves."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f"the plugin {module!r} cannot be imported ({error}); it must be on this side's PYTHONPATH"
            ) from error
