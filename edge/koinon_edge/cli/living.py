"""`koinon-edge run`, `enrol`, `status` and `remove`: the life of a device's daemon."""

import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from koinon_core.errors import Conflict, UsageError
from koinon_edge.settings import load

__all__ = ["add"]

Config = Annotated[
    Path, typer.Option(envvar="KOINON_EDGE_CONFIG", help="What this device's owner has decided.")
]
_CONFIG = Path("/etc/koinon/edge.toml")


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: koinon-edge run --config /etc/koinon/edge.toml")(run)
    app.command(epilog="Example: koinon-edge enrol --name line-4 < token")(enrol)
    app.command(epilog="Example: koinon-edge status --explain")(status)
    app.command(epilog="Example: koinon-edge remove --yes")(remove)


def run(config: Config = _CONFIG) -> None:
    """Take part, for as long as this device runs: the daemon, as systemd starts it."""
    load(config)  # what is wrong in it is said before anything else
    # The daemon replaces this process: what reads a command line need not be in memory for months.
    os.execv(sys.executable, [sys.executable, "-m", "koinon_edge.run", str(config)])  # noqa: S606 - ours, without a shell


def enrol(
    config: Config = _CONFIG,
    name: Annotated[
        str | None, typer.Option(help="This device's name; default: that in edge.toml, or the machine's.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="The file with the token; default: systemd's credential koinon-token, or standard input."
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Enrol anew over what is there; the key for life stays.")
    ] = False,
) -> None:
    """Make this device one of a federation. The token pins who is believed to be its coordinator; it is never an
    argument, because every user of the machine can read those."""
    from koinon.cli.enrol import enrol as enrol_device

    settings = load(config) if config.exists() else None
    if settings is not None and settings.name and name and name != settings.name:
        raise UsageError(
            f"{config} says that this device is {settings.name!r}, and it is to enrol as {name!r}; leave --name out, "
            "or change it there"
        )
    if settings is not None and settings.state is not None:
        os.environ["KOINON_STATE"] = str(settings.state)
    enrol_device(
        name or (settings.name if settings is not None else None), token_file, again, None,
        settings.credentials if settings is not None else None,
    )  # fmt: skip


def status(
    config: Config = _CONFIG,
    explained: Annotated[
        bool, typer.Option("--explain", help="Say for every condition what was found and what is asked for.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    root: Annotated[Path, typer.Option(hidden=True)] = Path("/"),
) -> None:
    """Print where this device stands, and whether it may work now; the daemon need not run for that."""
    from koinon_edge.gate import explain
    from koinon_edge.place import found
    from koinon_edge.run import assemble

    settings = load(config)
    place = found(settings)
    daemon = assemble(settings, place, root)
    life = daemon.life.now
    verdict = daemon.gate.look(datetime.now(UTC), working=life.works)
    runs = place.occupied
    if as_json:
        print(
            json.dumps({"name": place.name, "runs": runs, **asdict(life), "gate": asdict(verdict)}, indent=2)
        )
        return
    reason = f" ({life.reason})" if life.reason else ""
    if runs:
        print(f"{place.name}: {life.state} for {_ago(time.time() - life.since)}{reason}")
        print("The daemon runs.")
    else:
        print(f"{place.name}: it was {life.state} when its daemon ended{reason}")
        print("The daemon does not run; systemctl start koinon-edge, or koinon-edge run.")
    if not settings.tasks:
        print(f"{config} has no task: nothing is ever run that is not there.")
    if life.works:
        print(f"Task {life.task}, round {life.round}.")
    print(
        f"It may work now{f': {verdict.note}' if verdict.note else '.'}"
        if verdict.open
        else f"It may not work now: {verdict.reason}."
    )
    if explained:
        print("\n".join(explain(verdict)))


def remove(
    config: Config = _CONFIG,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take this device out of its federation: its keys, its memory and what it was about to send are deleted here."""
    from koinon_edge.place import found

    place = found(load(config))
    if place.occupied:
        raise Conflict(
            f"the daemon of {place.name!r} runs; stop it first (systemctl disable --now koinon-edge)"
        )
    if not yes:
        typer.confirm(
            f"Delete {place.folder}, with the device's keys, and take no part any more?", abort=True
        )
    for folder in (place.folder, place.runtime.parent):
        shutil.rmtree(folder, ignore_errors=True)
    if place.folder.exists():
        raise UsageError(f"{place.folder} cannot be deleted whole; see that this user may, and try again")
    print(
        f"{place.name} is removed from this machine; its operator may run: koinon device revoke {place.name}"
    )


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
