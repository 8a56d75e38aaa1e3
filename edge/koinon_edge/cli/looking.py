"""`koinon-edge sensors` and `koinon-edge doctor`: what the device can say of itself, and what is wrong with it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from koinon_edge.probe import Files, survey

__all__ = ["add"]


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: koinon-edge sensors --json")(sensors)


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
