"""`koinon-edge sensors` and `koinon-edge doctor`: what the device can say of itself, and what is wrong with it."""

import json
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from koinon_core.errors import KoinonError, UsageError
from koinon_edge.probe import Files, survey
from koinon_edge.probe.nvml import gpus_of
from koinon_edge.settings import Settings, load

if TYPE_CHECKING:
    from koinon_edge.doctor import Extra, Patient

__all__ = ["add"]

_CONFIG = Path("/etc/koinon/edge.toml")
_LOG = 256 * 1024  # bytes of a log's end that go into a report


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: koinon-edge sensors --json")(sensors)
    app.command(epilog="Example: koinon-edge doctor --report bundle.zip")(doctor)


def sensors(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    root: Annotated[Path, typer.Option(help="Read another machine's tree of files.")] = Path("/"),
) -> None:
    """Print what this device can say of itself: heat, power, load, memory, battery, wear; or why it cannot."""
    files = Files(root)
    board, found, about = survey(files, gpus_of(files))
    if as_json:
        values = {name: asdict(reading) for name, reading in found.items()}
        print(json.dumps({"model": board, "about": about, "readings": values}, indent=2))
        return
    width = max(map(len, found))
    print(board or "This device does not say what it is.")
    for name, reading in found.items():
        print(f"  {name:<{width}}  {reading}")
    print(f"{about[0].upper()}{about[1:]}.")


def doctor(
    config: Annotated[
        Path, typer.Option(envvar="KOINON_EDGE_CONFIG", help="What this device's owner has decided.")
    ] = _CONFIG,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Also write a bundle for whoever helps: names, addresses and secrets are taken out of it."
        ),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="A log whose end goes into the bundle, for example of journalctl.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    root: Annotated[Path, typer.Option(hidden=True)] = Path("/"),
) -> None:
    """Say what is wrong with this device, and how to mend it; nothing is changed. Status 1 if something is bad."""
    from koinon_edge.doctor import examine, lines, worst
    from koinon_edge.doctor import report as bundle_of

    patient, extra = _patient(config, root, log)
    findings = examine(patient)
    if report is not None:
        try:
            report.write_bytes(bundle_of(findings, extra))
        except OSError as error:
            raise UsageError(f"{report} cannot be written: {error.strerror}") from error
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print("\n".join(lines(findings)))
        if report is not None:
            print(f"The bundle is {report}; look into it before you send it.")
    if worst(findings) == "bad":
        raise typer.Exit(1)


def _patient(config: Path, root: Path, log: Path | None) -> "tuple[Patient, Extra]":
    """Who is examined, as far as edge.toml says, and what of it must not be in a report."""
    from koinon_edge.doctor import Extra, Patient
    from koinon_edge.place import found

    settings, place = None, None
    with suppress(
        KoinonError
    ):  # what is wrong with edge.toml, or with the credentials, is among the findings
        settings = load(config)
        place = found(settings)
    files = Files(root)
    board, read, _ = survey(files, gpus_of(files))
    identity = place.access.credentials if place is not None else None
    patient = Patient(
        root=root, state=place.folder if place is not None else None,
        credentials=identity.folder if identity is not None else None,
        address=place.access.address if place is not None else (settings.address or "") if settings else "",
        proxy=settings.network.proxy if settings is not None else "", python=_interpreter(settings),
        settings=lambda: _checked(config), disk_min=settings.gate.disk_min if settings is not None else 1_000_000_000,
    )  # fmt: skip
    tasks = list(settings.tasks.values()) if settings is not None else []
    extra = Extra(
        board=board, sensors=read, log=_end_of(log), arguments=sys.argv,
        task_environment={name: value for task in tasks for name, value in task.environment.items()},
        hosts=[patient.address, patient.proxy],
        names=[*filter(None, [place.name if place else ""]), *(t.run for t in tasks), *(t.name for t in tasks)],
    )  # fmt: skip
    return patient, extra


def _checked(config: Path) -> None:
    """edge.toml makes sense, and so does what it names."""
    settings = load(config)
    if not settings.tasks:
        raise UsageError(
            f"{config} has no task, and nothing else is ever run: add [tasks.NAME] with its command"
        )
    for task in settings.tasks.values():
        if not task.directory.is_dir():
            raise UsageError(
                f"there is no folder {task.directory} for task {task.name!r}; make it, or mend directory"
            )
        command = task.command[0]
        if task.container is None and shutil.which(command, path=_path_in(task.directory, command)) is None:
            raise UsageError(
                f"there is no command {command!r} for task {task.name!r}; install it, or mend command"
            )


def _path_in(directory: Path, command: str) -> str | None:
    """Where a command is looked for: a relative path is one of the task's folder."""
    return str(directory) if "/" in command and not command.startswith("/") else None


def _interpreter(settings: Settings | None) -> str:
    """The Python of the first task that has one of its own."""
    for task in settings.tasks.values() if settings is not None else ():
        if task.container is None and Path(task.command[0]).name.startswith("python"):
            return task.command[0]
    return sys.executable


def _end_of(log: Path | None) -> str:
    if log is None:
        return ""
    try:
        return log.read_bytes()[-_LOG:].decode(errors="replace")
    except OSError as error:
        raise UsageError(f"{log} cannot be read: {error.strerror}") from error
