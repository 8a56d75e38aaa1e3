"""Every error that Koinon raises on purpose, under one map.

    KoinonError                        one sentence: what happened, who is at fault, what to do
    |-- UsageError                     the caller asked for something that does not exist or cannot be
    |   |-- NotFound                   ... a run, a round, a strategy by that name
    |   `-- Conflict                   ... what is there already says otherwise (a name taken, a run that ended)
    |-- ProtocolError                  the conversation broke its rules
    |   |-- LocalProtocolError         ... by us: nothing was sent
    |   |   `-- BadUpdate              ... by this update: NaN, wrong shape, no examples
    |   `-- RemoteProtocolError        ... by them: the message is dropped, the round goes on without it
    |       `-- BadBlob                ... by these bytes: truncated, oversized, not what was declared
    |-- RoundAborted                   a round ended without a model; carries the reason by name
    |-- RunEnded                       the run is over (finished, cancelled, failed)
    |-- Denied                         who asked is not known here, or may not do that
    |-- Unavailable                    nobody answers; trying again may help
    `-- StoreError                     the run database or its blobs cannot be used as they are

Each class has a stable `code` (for programs) and an `exit` (for shells): 1 failed, 2 usage, 3 not found,
4 not allowed, 5 unavailable, 6 a round or run ended without its quorum.
"""

from typing import ClassVar

__all__ = [
    "BadBlob",
    "BadUpdate",
    "Conflict",
    "Denied",
    "KoinonError",
    "LocalProtocolError",
    "NotFound",
    "ProtocolError",
    "RemoteProtocolError",
    "RoundAborted",
    "RunEnded",
    "StoreError",
    "Unavailable",
    "UsageError",
    "from_code",
]


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


_BY_CODE = {
    kind.code: kind
    for kind in (
        KoinonError, UsageError, NotFound, Conflict, ProtocolError, LocalProtocolError, BadUpdate,
        RemoteProtocolError, BadBlob, RoundAborted, RunEnded, Denied, Unavailable, StoreError,
    )
}  # fmt: skip


def from_code(code: str, message: str) -> KoinonError:
    """The error that `code` names, as it came over the wire; an unknown code is a plain KoinonError."""
    return _BY_CODE.get(code, KoinonError)(message)
