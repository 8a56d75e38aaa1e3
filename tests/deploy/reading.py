"""The files below deploy/ as values, and the command lines in them as the programs take them."""

import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

import koinon.cli
import koinon_coordinator.cli
import koinon_edge.cli

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROGRAMS = {
    "koinon": koinon.cli.app,
    "koinon-coordinator": koinon_coordinator.cli.app,
    "koinon-edge": koinon_edge.cli.app,
}


def tool(name: str) -> str:
    """The path of a program, beside this Python or on the machine; without it the test is skipped."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on this machine")
    return found


def run(*command: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


# -- command lines ----------------------------------------------------------------------------------------------


def taken(line: list[str]) -> dict[str, Any]:
    """What a command makes of its arguments, by its own parser; an error if it has no such command or option."""
    program = Path(line[0]).name
    command: Any = typer.main.get_command(PROGRAMS[program])
    context = command.make_context(program, line[1:])
    words = list(line[1:])
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"{context.info_name} has no command {name!r}"
        command = command.commands[name]
        context = command.make_context(name, list(words), parent=context)
    return dict(context.params)


def variables(program: str) -> set[str]:
    """The environment variables that stand for options of a program."""

    def of(command: Any) -> Iterator[str]:
        for one in getattr(command, "commands", {}).values():
            yield from of(one)
        for parameter in command.params:
            given = parameter.envvar or ()
            yield from [given] if isinstance(given, str) else given

    return set(of(typer.main.get_command(PROGRAMS[program])))


# -- units and Dockerfiles ------------------------------------------------------------------------------------


class Line(NamedTuple):
    word: str
    """A key of a unit, or an instruction of a Dockerfile."""
    value: str


def _whole(text: str) -> Iterator[str]:
    """Lines without comments, each with those that continue it."""
    held = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        held += line.rstrip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            if held.strip():
                yield " ".join(held.split())
            held = ""


def unit(file: Path) -> list[Line]:
    """Its keys with their values, in order; sections are left out, for no key is in two."""
    lines = [line for line in _whole(file.read_text()) if not line.startswith("[")]
    return [Line(*line.split("=", 1)) for line in lines]


def dockerfile(file: Path) -> list[Line]:
    return [Line(*line.split(" ", 1)) for line in _whole(file.read_text())]


def values(lines: list[Line], word: str) -> list[str]:
    return [line.value for line in lines if line.word == word]


def commands(value: str) -> list[str]:
    """The words of an ExecStart, with its variables left out (they are empty unless somebody fills them)."""
    return [word for word in shlex.split(value.lstrip("+-@!")) if not word.startswith("$")]


# -- coordinators ---------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the kernel gives to outgoing connections."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randint(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return list(found)


class Elsewhere:
    """Turns a command line that was written for another place into one for this machine: `folders` are moved below a
    folder of the test's own, the usual ports become free ones, and `also` is replaced as it says."""

    def __init__(self, folder: Path, *folders: str, also: Mapping[str, str] | None = None):
        self.ports = dict(zip((8440, 8441, 8442), free_ports(3), strict=True))
        self._replaced = {name: str(folder / name.strip("/").replace("/", "-")) for name in folders}
        self._replaced |= {f":{old}": f":{new}" for old, new in self.ports.items()} | dict(also or {})

    def __call__(self, word: str) -> str:
        for old, new in self._replaced.items():
            word = word.replace(old, new)
        return word

    @property
    def health(self) -> str:
        return f"127.0.0.1:{self.ports[8442]}"


# Memory that is both written and executed is refused to a process and to what it executes, if the kernel can.
_WITHOUT_CODE = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    print("not refused", file=sys.stderr)
os.execv(sys.executable, [sys.executable, "-m", "koinon_coordinator", *sys.argv[1:]])
"""


@contextmanager
def serving(line: list[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """A coordinator started as `line` says (without its first word), until the end of the block, where it must stop on
    SIGTERM with status 0; gives the line that it prints."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("KOINON_", "PG"))}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _WITHOUT_CODE, *line], stdout=subprocess.PIPE, stderr=errors, text=True,
            cwd=log.parent, env={**ours, **(environment or {})},
        )  # fmt: skip
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert "listens on" in said, log.read_text()
        yield said
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
