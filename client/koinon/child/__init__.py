"""The owner's end of a device that koinon-edge keeps: a training program that takes part through the daemon.

    import koinon_child as koinon            # or `import koinon`, where Koinon itself is installed

    with koinon.join() as session:
        for task in session.tasks(model):
            train(model, loader, epochs=task.epochs)
            task.submit(examples=len(loader.dataset))

The daemon's worker has the network, the keys and the conversation with the coordinator; this end has the model, the
data and the optimizer hook. They speak over a local socket ($KOINON_SOCKET), and exchange tensors as safetensors files.
The package is whole by itself: the standard library, Python 3.9 or newer, and torch or numpy only where the program has
them. The daemon puts it on PYTHONPATH as `koinon_child`; as `koinon.child` it is the part of Koinon that both share.

    session.py, task.py    what the program sees
    line.py                lines of JSON, and the thread that hears them
    files.py               safetensors files
    module.py, arrays.py   torch modules and dicts of numpy arrays as models; adapt.py finds which
    hook.py, length.py     the optimizer hook: what goes into the gradient, and what the steps were
    recorded.py            the same, as numbers
    errors.py, own.py      the map of errors
"""

from __future__ import annotations

from .errors import (
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
from .session import Session, join
from .task import Task

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
    "Session",
    "StoreError",
    "Task",
    "Unavailable",
    "UsageError",
    "join",
]
