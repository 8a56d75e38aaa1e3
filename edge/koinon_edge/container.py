"""A task in a container: the command that starts it, and the one that ends it.

The engine is docker or podman, whichever is there. What the program exchanges with its worker (the socket's folder and
that of the tensors) is mounted at the same paths, so that a path means the same on both sides.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from koinon_core.errors import UsageError
from koinon_edge.settings import TaskSettings

__all__ = ["ENGINES", "commands"]

ENGINES = ("docker", "podman")


def commands(
    task: TaskSettings,
    name: str,
    environment: Mapping[str, str],
    mounts: Sequence[Path],
    path: str | None = None,
) -> tuple[list[str], list[str]]:
    """How to start the task's program in its container, and how to end that. `environment` is what the program gets of
    it, by name. UsageError where there is no engine."""
    inside = task.container
    assert inside is not None
    engine = next((found for one in ENGINES if (found := shutil.which(one, path=path))), None)
    if engine is None:
        raise UsageError(
            f"task {task.name!r} wants a container, and there is neither docker nor podman on this device; install "
            "one, or give the task a command without a container"
        )
    command = [engine, "run", "--rm", "--name", name, "--user", f"{os.getuid()}:{os.getgid()}"]
    if not any(option.startswith(("--network", "--net=")) for option in inside.options):
        command += ["--network", "none"]  # data stays here, whatever the image does
    if inside.runtime:
        command += ["--runtime", inside.runtime]
    if task.memory is not None:
        command += ["--memory", str(task.memory), "--memory-swap", str(task.memory)]
    if task.cpus is not None:
        command += ["--cpus", str(task.cpus)]
    for folder in mounts:
        command += ["--volume", f"{folder}:{folder}"]
    for mount in inside.mounts:
        command += ["--volume", mount]
    for variable in environment:
        command += ["--env", variable]  # by name alone: a value is nobody's to read in the list of processes
    return [*command, *inside.options, inside.image, *task.command], [engine, "rm", "--force", name]
