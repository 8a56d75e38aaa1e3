"""`koinon-edge`: the device owner's command line."""

import signal
import sys
from typing import Annotated

import typer

from koinon_core import __version__
from koinon_edge.keep import Keeper

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


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
