"""The tasks of edge.toml: programs of the owner's that train, each for a run."""

import difflib
import re
from pathlib import Path

from koinon_edge.settings.kinds import Container, TaskSettings
from koinon_edge.settings.table import Table

__all__ = ["tasks"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OURS = "KOINON_"
_USUAL = TaskSettings(name="", command=(), run="", directory=Path())


def tasks(table: Table) -> dict[str, TaskSettings]:
    """By name, from the table [tasks]. UsageError for what is wrong in it."""
    found: dict[str, TaskSettings] = {}
    for name in table.values:
        if not _NAME.fullmatch(name):
            table.wrong(
                name, f"a task cannot be called {name!r}; use letters, digits, '.', '_' and '-', at most 64"
            )
        task = _task(name, table.table(name))
        for other in found.values():
            if other.run == task.run:
                table.wrong(
                    name, f"the tasks {other.name} and {name} both train for run {task.run!r}; keep one"
                )
        found[name] = task
    return found


def _task(name: str, table: Table) -> TaskSettings:
    if not table.has("command"):
        if near := difflib.get_close_matches("command", table.values, n=1):
            table.wrong(near[0], f"[tasks.{name}] has no key {near[0]!r}; did you mean command?")
        table.wrong(
            "command", f"[tasks.{name}] has no command; add one, as command = ['python3', 'train.py']"
        )
    command = table.values["command"]
    if (
        not isinstance(command, list)
        or not command
        or not all(isinstance(c, str) for c in command)
        or not command[0]
    ):
        table.must("command", "a list of texts that begins with a program, as ['python3', 'train.py']")
    task = TaskSettings(
        name=name,
        command=tuple(command),
        run=table.text("run") or name,
        directory=table.place("directory") or table.file.absolute().parent,
        environment=_environment(table.table("environment")),
        timeout=table.duration("timeout", _USUAL.timeout, least=1),
        memory=table.size("memory", least=1_000_000),
        cpus=table.number("cpus", 0.0, 0.01, 4096) or None,
        nice=table.whole("nice", _USUAL.nice, -20, 19),
        linger=table.duration("linger", _USUAL.linger),
        grace=table.duration("grace", _USUAL.grace),
        container=_container(table.table("container")) if table.has("container") else None,
    )
    table.done()
    return task


def _environment(table: Table) -> dict[str, str]:
    for name, value in table.values.items():
        if not isinstance(value, str) or "\0" in value:
            table.must(name, "a text")
        if name.startswith(_OURS):
            table.wrong(name, f"{name} is set by the daemon; names that begin with {_OURS} are its own")
        if not name or "=" in name or "\0" in name:
            table.wrong(name, f"no variable can be called {name!r}")
    return dict(table.values)


def _container(table: Table) -> Container:
    image = table.text("image")
    if image is None:
        table.wrong("image", f"[{'.'.join(table.path)}] has no image; add the name of one")
    if re.search(r"\s", image) or image.startswith("-"):
        table.must("image", "the name of an image, as 'site/defects:3'")
    mounts = table.texts("mounts")
    if not all(re.fullmatch(r"[^:]+:/[^:]*(:ro|:rw)?", mount) for mount in mounts):
        table.must("mounts", "a list of SOURCE:TARGET or SOURCE:TARGET:ro, each target an absolute path")
    runtime = table.text("runtime", empty=True) or ""
    found = Container(image=image, runtime=runtime, mounts=mounts, options=table.texts("options"))
    table.done()
    return found
