"""`koinon-edge`: the device owner's command line.

keeping.py  one command kept alive, without a daemon
living.py   the daemon: run, enrol, status, remove
looking.py  sensors, doctor
"""

import sys
from typing import Annotated

import typer

from koinon_core import __version__
from koinon_core.errors import KoinonError
from koinon_edge.cli import keeping, living, looking

__all__ = ["app", "main"]

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


for part in (living, looking, keeping):
    part.add(app)


def main() -> None:
    """The entry point."""
    try:
        app()
    except KoinonError as error:
        print(f"koinon-edge: {error}", file=sys.stderr)
        raise SystemExit(error.exit) from None
