"""`koinon-edge keep`: one training command kept alive, for whoever needs no daemon."""

import signal
import sys
from typing import Annotated

import typer

from koinon_edge.keep import Keeper

__all__ = ["add"]


def add(app: typer.Typer) -> None:
    app.command(
        epilog="Example: koinon-edge keep -- koinon client train.py --run cifar",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(keep)


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
