"""`koinon demo`."""

import itertools
import time
from pathlib import Path
from typing import Annotated

import typer

from koinon.cli.output import console
from koinon_core.errors import UsageError

__all__ = ["demo"]


def _fresh(path: Path) -> Path:
    """`path`, or `path-2` and so on where it is taken."""
    names = itertools.chain([path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2)))
    return next(p for p in names if not p.exists())


def demo(
    clients: Annotated[
        int,
        typer.Option(min=3, max=100, help="Devices: at least three, of whose updates only sums are seen."),
    ] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="For the split, the model and the training.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
    directory: Annotated[
        Path | None, typer.Option(help="Keep the run here; default: runs/demo-TIME.")
    ] = None,
) -> None:
    """Train a CNN on real digits by a federation of processes on this machine."""
    started = time.monotonic()
    from koinon.demo.processes import Team, coordinator, preload
    from koinon.demo.show import Scene

    folder = directory or _fresh(Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S"))
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "koinon.db").exists():
        raise UsageError(f"{folder} holds a run already; name another --directory")
    context = preload()
    scene = Scene(folder, started)
    with (
        coordinator(folder) as address,
        Team(context, address, folder, clients, rounds, seed) as team,
    ):
        scene.follow(team.reports(), console())
    scene.conclude(console(markup=True))
    if json is not None:
        scene.write(json)
