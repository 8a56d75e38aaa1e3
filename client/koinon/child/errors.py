"""What is raised in the owner's program: Koinon's own classes where it is installed, the same map of ours elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from koinon_core.errors import (
        BadBlob,
        BadUpdate,
        Conflict,
        Denied,
        KoinonError,
        LocalProtocolError,
        NotFound,
        ProtocolError,
        RemoteProtocolError,
        RoundAborted,
        RunEnded,
        StoreError,
        Unavailable,
        UsageError,
    )
else:
    try:
        from koinon_core.errors import (
            BadBlob,
            BadUpdate,
            Conflict,
            Denied,
            KoinonError,
            LocalProtocolError,
            NotFound,
            ProtocolError,
            RemoteProtocolError,
            RoundAborted,
            RunEnded,
            StoreError,
            Unavailable,
            UsageError,
        )
    except (ImportError, SyntaxError):  # not installed, or for a newer Python than this one
        from .own import (
            BadBlob,
            BadUpdate,
            Conflict,
            Denied,
            KoinonError,
            LocalProtocolError,
            NotFound,
            ProtocolError,
            RemoteProtocolError,
            RoundAborted,
            RunEnded,
            StoreError,
            Unavailable,
            UsageError,
        )

__all__ = [
    "BadBlob", "BadUpdate", "Conflict", "Denied", "KoinonError", "LocalProtocolError", "NotFound", "ProtocolError",
    "RemoteProtocolError", "RoundAborted", "RunEnded", "StoreError", "Unavailable", "UsageError", "named",
]  # fmt: skip

_BY_NAME = {
    kind.__name__: kind
    for kind in (
        KoinonError, UsageError, NotFound, Conflict, ProtocolError, LocalProtocolError, BadUpdate,
        RemoteProtocolError, BadBlob, RoundAborted, RunEnded, Denied, Unavailable, StoreError,
    )
}  # fmt: skip


def named(name: str, message: str) -> KoinonError:
    """The error of that class, as it came over the socket; of an unknown class it is a plain KoinonError."""
    return _BY_NAME.get(name, KoinonError)(message)
