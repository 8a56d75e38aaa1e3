"""Names of a package that are imported when they are first used, so that who needs one part of it pays for no other.

__getattr__ = lazily(__name__, {"koinon.outbox.disk": ("DiskOutbox",)})
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["lazily"]


def lazily(package: str, where: Mapping[str, Iterable[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`: its names by the modules in which they are."""
    found = {name: module for module, names in where.items() for name in names}

    def get(name: str) -> Any:
        if name not in found:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(found[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
