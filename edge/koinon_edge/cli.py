"""`koinon-edge`: the device owner's command line."""

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from koinon_core import __version__
from koinon_edge.keep import Keeper
from koinon_edge.probe import Files, survey

__all__ = ["main"]

app = typer.Typer(
    help="Koinon on a small device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"koinon-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Example: koinon-edge keep -- koinon client train.py --run cifar",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def keep(
    context: typer.Context,
    longest_pause: Annotated[
        float, typer.Option(min=1, help="Longest pause between two starts, in seconds.")
    ] = 300,
) -> None:
    """Run a training command, and start it again whenever it dies, until it ends well."""
    if not context.args:
        raise typer.BadParameter("name the command to keep alive, after --")
    keeper = Keeper(
        context.args, lambda said: print(f"koinon-edge: {said}", file=sys.stderr), longest_pause=longest_pause
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: keeper.stop())
    try:
        status = keeper.keep()
    except FileNotFoundError:
        print(f"koinon-edge: there is no command {context.args[0]!r} on this device", file=sys.stderr)
        raise typer.Exit(3) from None
    except OSError as error:
        print(f"koinon-edge: {context.args[0]!r} cannot be started: {error.strerror}", file=sys.stderr)
        raise typer.Exit(1) from None
    raise typer.Exit(status if status >= 0 else 1)


@app.command(epilog="Example: koinon-edge sensors --json")
def sensors(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    root: Annotated[Path, typer.Option(help="Read another machine's tree of files.")] = Path("/"),
) -> None:
    """Print what this device can say of itself: heat, power, load, memory, battery, wear; or why it cannot."""
    board, found, about = survey(Files(root))
    if as_json:
        values = {name: asdict(reading) for name, reading in found.items()}
        print(json.dumps({"model": board, "about": about, "readings": values}, indent=2))
        return
    width = max(map(len, found))
    print(board or "This device does not say what it is.")
    for name, reading in found.items():
        print(f"  {name:<{width}}  {reading}")
    print(f"{about[0].upper()}{about[1:]}.")


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
