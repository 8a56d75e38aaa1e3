"""The map of errors of koinon_core.errors, for a Python in which Koinon is not installed."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BadBlob", "BadUpdate", "Conflict", "Denied", "KoinonError", "LocalProtocolError", "NotFound", "ProtocolError",
    "RemoteProtocolError", "RoundAborted", "RunEnded", "StoreError", "Unavailable", "UsageError",
]  # fmt: skip


class KoinonError(Exception):
    """The root of the map. `str(error)` is one sentence fit for a person."""

    code: ClassVar[str] = "ERROR"
    exit: ClassVar[int] = 1


class UsageError(KoinonError):
    code = "USAGE"
    exit = 2


class NotFound(UsageError):
    code = "NOT_FOUND"
    exit = 3


class Conflict(UsageError):
    code = "CONFLICT"
    exit = 1


class ProtocolError(KoinonError):
    code = "PROTOCOL"


class LocalProtocolError(ProtocolError):
    code = "LOCAL_PROTOCOL"


class BadUpdate(LocalProtocolError):
    code = "BAD_UPDATE"


class RemoteProtocolError(ProtocolError):
    code = "REMOTE_PROTOCOL"


class BadBlob(RemoteProtocolError):
    code = "BAD_BLOB"


class RoundAborted(KoinonError):
    code = "ROUND_ABORTED"
    exit = 6


class RunEnded(KoinonError):
    code = "RUN_ENDED"
    exit = 6


class Denied(KoinonError):
    code = "DENIED"
    exit = 4


class Unavailable(KoinonError):
    code = "UNAVAILABLE"
    exit = 5


class StoreError(KoinonError):
    code = "STORE"
