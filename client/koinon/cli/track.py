"""`koinon run track`: a run's rounds, told to trackers while it goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from koinon.cli.output import Address, Credentials, Insecure, console
from koinon.operator import Operator
from koinon.run import RunHandle
from koinon.tracking import Tracker, follow
from koinon_core.errors import RunEnded, UsageError

__all__ = ["track"]


def track(
    name: Annotated[str, typer.Argument(help="The run's name or id.")],
    to: Annotated[
        list[str],
        typer.Option(help="jsonl:PATH, tensorboard:DIR or mlflow:URI; may be repeated."),
    ],
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
) -> None:
    """Tell a run's rounds to trackers until it is over, those first that are over already. Started again, it goes on
    where it was. Exits with 6 if the run did not finish."""
    trackers = [_tracker(text) for text in to]
    with Operator(address, credentials, insecure=insecure) as operator:
        info = operator.get(name).run
        handle = RunHandle(operator.address, info.id, info.name, credentials, insecure)
    status = follow(handle, trackers)
    if status != "finished":
        raise RunEnded(
            f"run {info.name!r} {status}; `koinon run why {info.name}` says why, and all of it is tracked"
        )
    console().print(f"run {info.name} is finished, and all of it is tracked")


def _tracker(text: str) -> Tracker:
    kind, colon, where = text.partition(":")
    make = _KINDS.get(kind)
    if make is None or not colon or not where:
        raise UsageError(f"--to {text!r} is no tracker; write jsonl:PATH, tensorboard:DIR or mlflow:URI")
    return make(where)


def _jsonl(path: str) -> Tracker:
    from koinon.tracking.jsonl import JsonLines

    return JsonLines(Path(path))


def _tensorboard(folder: str) -> Tracker:
    from koinon.tracking.tensorboard import TensorBoard

    return TensorBoard(Path(folder))


def _mlflow(uri: str) -> Tracker:
    from koinon.tracking.mlflow import MLflow

    return MLflow(uri)


_KINDS: dict[str, Callable[[str], Tracker]] = {
    "jsonl": _jsonl,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}
