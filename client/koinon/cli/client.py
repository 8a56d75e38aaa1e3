"""`koinon client`: run an owner's script as a device."""

import logging
import os
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from koinon import progress
from koinon.cli.output import Address

__all__ = ["client"]


def client(
    context: typer.Context,
    script: Annotated[
        Path, typer.Argument(help="Your training script; it calls koinon.join().", exists=True)
    ],
    address: Address = "127.0.0.1:8440",
    run: Annotated[str | None, typer.Option(help="The run to join.", envvar="KOINON_RUN")] = None,
    name: Annotated[str | None, typer.Option(help="This device's name.", envvar="KOINON_NAME")] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a run that does not exist yet.")
    ] = 86400,
    plugin: Annotated[
        list[str] | None, typer.Option(help="A module with your own strategies; may be repeated.")
    ] = None,
) -> None:
    """Run SCRIPT so that its `koinon.join()` finds the coordinator, the run and your plugins by itself.

    What the script names itself (koinon.join(run=...)) goes before. Other arguments are the script's.
    """
    _speak()
    given = {"KOINON_ADDRESS": address, "KOINON_RUN": run, "KOINON_NAME": name, "KOINON_WAIT": str(wait)}
    os.environ.update({key: value for key, value in given.items() if value})
    if plugin:
        os.environ["KOINON_PLUGINS"] = ",".join(plugin)
    sys.argv = [str(script), *context.args]
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")


def _speak() -> None:
    """What happens, as lines on standard error; and where that is a terminal, transfers as bars below them."""
    if not sys.stderr.isatty():
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        return
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(stderr=True, highlight=False)
    lines = RichHandler(console=console, show_level=False, show_path=False, log_time_format="%X")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[lines])
    progress.use(progress.Bars(console).of)
