"""`koinon run create`: a run from its settings and its first model, a file, another run's, or both."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from koinon.best import best_of
from koinon.cli.output import Address, AsJson, Credentials, Insecure, console, print_json
from koinon.operator import Operator
from koinon.starting import Initial
from koinon_core.errors import UsageError
from koinon_core.spec import RunSpec
from koinon_core.strategy.registry import load_plugins

__all__ = ["create"]


def create(
    name: Annotated[str, typer.Argument(help="A name for the run.")],
    model: Annotated[
        Path | None,
        typer.Option(help="The first model: a safetensors file, a folder of its shards, a torch checkpoint."),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN[@ROUND|@best]", help="Begin with the model of another run."),
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Weights for --model, from another file.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="--model keeps what --from or --start does not have.")
    ] = False,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Do not take tensors that match, for example 'head.*'.")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(help="OLD=NEW: names that begin with OLD there begin with NEW.")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="For example 'koinon.chain(koinon.FedAdam(lr=0.01), koinon.Clip(1.0))'."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds that make a model.")] = None,
    min_clients: Annotated[int | None, typer.Option(help="The quorum of a round.")] = None,
    clients: Annotated[
        int | None, typer.Option(help="Devices that a round waits for; default: all attached.")
    ] = None,
    aggregation: Annotated[
        str | None,
        typer.Option(help="'secure': only sums of updates are seen; 'open': the coordinator sees each."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings as TOML; your own for the devices under \\[config].")
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option(help="A module with your own strategies.")] = None,
    address: Address = None,
    credentials: Credentials = None,
    insecure: Insecure = None,
    json: AsJson = False,
) -> None:
    """Submit a run. It starts as soon as enough devices have joined."""
    from koinon.run import Run

    load_plugins(plugin or [])
    settings = _settings(config)
    flags = {
        "strategy": strategy, "rounds": rounds, "min_clients": min_clients, "clients": clients,
        "aggregation": aggregation,
    }  # fmt: skip
    settings.update({key: value for key, value in flags.items() if value is not None})
    given, where = _first_model(
        model, other, start, allow_missing=allow_missing, ignore=ignore or [], rename=rename or [], address=address,
        credentials=credentials, insecure=insecure,
    )  # fmt: skip
    run = Run(name, **given, **settings)
    handle = run.create(address, credentials=credentials, insecure=insecure)
    fresh = run.started or "the strategy's state, and what devices keep, start afresh"
    began = f"it begins with {where}: {fresh}" if where else ""
    if json:
        print_json({"id": handle.id, "name": handle.name, **({"started": began} if began else {})})
    else:
        console().print(
            f"run {handle.name} is created (id {handle.id}); `koinon run watch {handle.name}` follows it"
        )
        if began:
            console().print(began)


def _settings(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        settings = tomllib.loads(config.read_text())
    except FileNotFoundError:
        raise UsageError(f"there is no config file {config}") from None
    except OSError as error:
        raise UsageError(f"the config file {config} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{config} is not TOML: {error}") from error
    for key in ("name", "model", "schema", "start", "allow_missing", "ignore", "rename"):
        if key in settings:
            raise UsageError(f"{key!r} does not belong in {config}: flags of the command say it")
    if not isinstance(settings.get("strategy", ""), str):
        raise UsageError(f"strategy in {config} must be text, for example 'koinon.FedAvg()'")
    if not isinstance(settings.get("config", {}), dict):
        raise UsageError(f"config in {config} must be a table, [config], with your own settings")
    return settings


def _first_model(
    model: Path | None, other: str | None, start: Path | None, *, allow_missing: bool, ignore: Sequence[str],
    rename: Sequence[str], address: str | None, credentials: Path | None, insecure: bool | None,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Arguments of `koinon.Run`, and where its weights come from, in a word ("" for its own)."""
    if other is not None and start is not None:
        raise UsageError("--from and --start both name the first weights; keep one of them")
    how = {"allow_missing": allow_missing, "ignore": tuple(ignore), "rename": dict(map(_pair, rename))}
    where = str(start or "")
    weights: Path | Initial | None = start
    if other is not None:
        with Operator(address, credentials, insecure=insecure) as operator:
            where, weights = _of_run(operator, other)
    if model is None:
        if not isinstance(weights, Initial):
            raise UsageError(
                "say what model the run has: --model FILE, or --from RUN for that of another run"
            )
        if any(how.values()):
            raise UsageError(
                "--allow-missing, --ignore and --rename are about what a --model takes; name one"
            )
        return {"model": weights}, where
    return {"model": model, **({"start": weights} if weights is not None else {}), **how}, where


def _of_run(operator: Operator, text: str) -> tuple[str, Initial]:
    """RUN, RUN@ROUND or RUN@best."""
    name, at, which = text.partition("@")
    if at and which != "best" and not (which.isdecimal() and len(which) < 19):
        raise UsageError(f"--from {text!r} names no model of a run; write RUN, RUN@ROUND or RUN@best")
    got = operator.get(name)
    wanted = best_of(got).round if which == "best" else int(which) if which else None
    number, model = operator.model(name, wanted)
    return f"round {number} of run {got.run.name}", Initial(model, RunSpec.decode(got.spec).model)


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals):
        raise UsageError(f"--rename {text!r} must be OLD=NEW: how names begin there, and here")
    return old, new
