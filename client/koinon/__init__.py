"""Koinon: federated learning whose rounds do not hang, do not lose work, and explain themselves.

    import koinon

    with koinon.join(run="digits") as session:                       # a device, once `koinon enrol` was run
        for task in session.tasks(model):
            train(model, loader, epochs=task.epochs)
            task.submit(examples=len(loader.dataset))

    run = koinon.Run("digits", model=model, strategy=koinon.FedAvg(), rounds=10)
    run.create("fl.example.org:8440")                                # an operator
    koinon.simulate(run, client, clients=10)                         # or all of it without a network

Importing this loads numpy only; torch and gRPC are imported when something needs them.
"""

from typing import TYPE_CHECKING

from koinon.lazily import lazily
from koinon_core import __version__

if TYPE_CHECKING:
    from koinon.adapt import load_weights
    from koinon.run import Run, RunHandle
    from koinon.session import Session, join
    from koinon.simulation import Faults, Simulated, simulate
    from koinon.task import Task
    from koinon_core.errors import (
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
        Unavailable,
        UsageError,
    )  # fmt: skip
    from koinon_core.schema import Schema
    from koinon_core.strategy import (
        NNM,
        Agg,
        Base,
        CenteredClipping,
        Clip,
        CoordinateMedian,
        Ditto,
        FedAdagrad,
        FedAdam,
        FedAsync,
        FedAvg,
        FedAvgM,
        FedAvgUniform,
        FedBN,
        FedBuff,
        FedDyn,
        FedExP,
        FedNova,
        FedPer,
        FedProx,
        FedRep,
        FedYogi,
        GeometricMedian,
        Keys,
        Krum,
        LoraProjection,
        MultiKrum,
        Need,
        NormBound,
        Pass,
        Plan,
        Prox,
        Pull,
        QFedAvg,
        Rng,
        Robust,
        Scaffold,
        Staleness,
        State,
        Strategy,
        Trait,
        TrimmedMean,
        Up,
        Work,
        chain,
        register,
    )  # fmt: skip
    from koinon_core.tensors import Tensors

_WHERE = {
    "koinon.run": ("Run", "RunHandle"),
    "koinon.session": ("Session", "join"),
    "koinon.adapt": ("load_weights",),
    "koinon.simulation": ("Faults", "Simulated", "simulate"),
    "koinon.task": ("Task",),
    "koinon_core.errors": (
        "BadUpdate", "Conflict", "Denied", "KoinonError", "LocalProtocolError", "NotFound", "ProtocolError",
        "RemoteProtocolError", "RoundAborted", "RunEnded", "Unavailable", "UsageError",
    ),
    "koinon_core.schema": ("Schema",),
    "koinon_core.strategy": (
        "NNM", "Agg", "Base", "CenteredClipping", "Clip", "CoordinateMedian", "Ditto", "FedAdagrad", "FedAdam",
        "FedAvg", "FedAvgM", "FedAvgUniform", "FedBN", "FedDyn", "FedExP", "FedNova", "FedPer", "FedProx", "FedRep",
        "FedAsync", "FedBuff", "FedYogi", "GeometricMedian", "Keys", "Krum", "Staleness",
        "LoraProjection", "MultiKrum", "Need", "NormBound", "Pass", "Plan", "Prox",
        "Pull", "QFedAvg", "Rng", "Robust", "Scaffold", "State", "Strategy", "Trait", "TrimmedMean", "Up", "Work",
        "chain", "register",
    ),
    "koinon_core.tensors": ("Tensors",),
}  # fmt: skip

__all__ = [
    "NNM",
    "Agg",
    "BadUpdate",
    "Base",
    "CenteredClipping",
    "Clip",
    "Conflict",
    "CoordinateMedian",
    "Denied",
    "Ditto",
    "Faults",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedAvgUniform",
    "FedBN",
    "FedBuff",
    "FedDyn",
    "FedExP",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedYogi",
    "GeometricMedian",
    "Keys",
    "KoinonError",
    "Krum",
    "LocalProtocolError",
    "LoraProjection",
    "MultiKrum",
    "Need",
    "NormBound",
    "NotFound",
    "Pass",
    "Plan",
    "ProtocolError",
    "Prox",
    "Pull",
    "QFedAvg",
    "RemoteProtocolError",
    "Rng",
    "Robust",
    "RoundAborted",
    "Run",
    "RunEnded",
    "RunHandle",
    "Scaffold",
    "Schema",
    "Session",
    "Simulated",
    "Staleness",
    "State",
    "Strategy",
    "Task",
    "Tensors",
    "Trait",
    "TrimmedMean",
    "Unavailable",
    "Up",
    "UsageError",
    "Work",
    "__version__",
    "chain",
    "join",
    "load_weights",
    "register",
    "simulate",
]  # fmt: skip


__getattr__ = lazily(__name__, _WHERE)


def __dir__() -> list[str]:
    return sorted(__all__)
