"""`koinon client`: run an owner's script as a device."""

import logging
import os
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from koinon import progress
from koinon.cli.output import Address, Insecure
from koinon_core.errors import UsageError

__all__ = ["client"]


def client(
    context: typer.Context,
    script: Annotated[
        Path, typer.Argument(help="Your training script; it calls koinon.join().", exists=True)
    ],
    address: Address = None,
    run: Annotated[str | None, typer.Option(help="The run to join.", envvar="KOINON_RUN")] = None,
    name: Annotated[
        str | None, typer.Option(help="This device's name; default: the enrolled one.", envvar="KOINON_NAME")
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option(help="This device's credentials, a folder; default: where `koinon enrol` put them."),
    ] = None,
    insecure: Insecure = None,
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
    if credentials and insecure:
        raise UsageError("say either --credentials or --insecure, not both")
    if credentials or insecure:  # what is said here goes before what stands in the environment
        os.environ.pop("KOINON_CREDENTIALS" if insecure else "KOINON_INSECURE", None)
    given = {
        "KOINON_ADDRESS": address, "KOINON_RUN": run, "KOINON_NAME": name, "KOINON_WAIT": str(wait),
        "KOINON_CREDENTIALS": str(credentials or ""), "KOINON_INSECURE": "1" if insecure else "",
    }  # fmt: skip
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
