"""`koinon run evaluate`: a run's models, measured here by its owner's function."""

import importlib
from typing import Annotated, Any

import typer

from koinon.central import Central
from koinon.central import evaluate as evaluated
from koinon.cli.output import Address, Credentials, Insecure, console
from koinon.operator import Operator
from koinon_core.errors import UsageError

__all__ = ["evaluate"]


def evaluate(
    name: Annotated[str, typer.Argument(help="The run's name or id.")],
    function: Annotated[
        str,
        typer.Option(
            "--with", help="MODULE:FUNCTION; it gets a model (names to arrays), and returns metrics."
        ),
    ],
    every: Annotated[int, typer.Option(min=1, help="Rounds from one measured model to the next.")] = 1,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run is over.")] = False,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
) -> None:
    """Measure a run's models on data of your own, on this machine: kept as the metrics central.NAME of their rounds.

    Rounds that were measured already are left out, so it may be stopped and started again.
    """
    out, found = console(), _function(function)
    with Operator(address, credentials, insecure=insecure) as operator:
        many = 0
        for one in evaluated(operator, name, found, every=every, follow=follow):
            said = "  ".join(f"central.{k} {v:.4g}" for k, v in sorted(one.metrics.items()))
            out.print(f"round {one.round}  {said or f'is left out: {one.missing}'}")
            many += 1
    if not many:
        out.print(f"run {name} has no model that was not measured already")


def _function(text: str) -> Central:
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise UsageError(f"--with {text!r} names no function; write MODULE:FUNCTION")
    try:
        found: Any = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UsageError(
            f"the module {module!r} cannot be imported ({error}); it must lie here, or on PYTHONPATH"
        ) from error
    if not callable(found):
        raise UsageError(f"the module {module!r} has no function {name!r}")
    return found  # type: ignore[no-any-return]  # it is called with a model, and says what is wrong then
