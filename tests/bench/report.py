"""What every bench shares: a machine's description, figures with targets, a table and a JSON file."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("koinon", "numpy", "grpcio", "protobuf", "sqlalchemy")


def arguments(description: str, **values: int | str) -> argparse.Namespace:
    """The command line of a bench: --json FILE, and its own counts and words."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    for name, value in values.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def machine() -> dict[str, Any]:
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory": memory,
        "python": platform.python_version(), "versions": {p: version(p) for p in PACKAGES},
    }  # fmt: skip


def figure(runs: list[float], unit: str, target: float | None = None) -> dict[str, Any]:
    """The median of `runs`, which must be at most `target` (None: only reported)."""
    value = statistics.median(runs)
    return {
        "value": value,
        "unit": unit,
        "target": target,
        "ok": target is None or value <= target,
        "runs": runs,
    }


def report(bench: str, figures: dict[str, dict[str, Any]], file: Path | None) -> None:
    """Print the table, write the JSON."""
    print(f"{bench}: {machine()['cpu']}, {machine()['cores']} cores")
    for name, f in figures.items():
        target = f"<= {f['target']:g}" if f["target"] is not None else ""
        spread = f"{min(f['runs']):.4g} .. {max(f['runs']):.4g}"
        print(
            f"  {name:32} {f['value']:10.4g} {f['unit']:6} {target:10} {'ok' if f['ok'] else 'MISSED':7} {spread}"
        )
    if file is not None:
        file.write_text(
            json.dumps({"bench": bench, "machine": machine(), "figures": figures}, indent=2) + "\n"
        )


@contextmanager
def federation(folder: Path, devices: int, *options: str) -> Iterator[tuple[str, int]]:
    """The same with identities: mutual TLS, an operator's credentials, and `devices` enrolled devices c0, c1, ...
    Whoever is started meanwhile finds them."""
    home = folder / "federation"
    coordinate = [sys.executable, "-m", "koinon_coordinator"]
    subprocess.run([*coordinate, "init", "--dir", home], check=True, stdout=subprocess.DEVNULL)
    os.environ |= {"KOINON_STATE": str(folder / "devices"), "KOINON_OPERATOR": str(home / "admin")}
    os.environ.pop("KOINON_INSECURE", None)
    database = f"sqlite:///{folder / 'koinon.db'}"
    command = [*coordinate, "serve", "--dir", home, "--db", database, "--listen", "127.0.0.1:0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        # "... listens on HOST:PORT, enrols on HOST:PORT"
        address = process.stdout.readline().split(" listens on ")[1].split(",")[0].strip()
        cli = [sys.executable, "-m", "koinon"]
        shown = ["--address", address, "--credentials", home / "admin"]
        made = subprocess.run(
            [*cli, "token", "create", "--ttl", "10m", "--uses", str(devices), *shown],
            check=True, stdout=subprocess.PIPE,
        )  # fmt: skip
        for i in range(devices):
            subprocess.run(
                [*cli, "enrol", "--name", f"c{i}"], check=True, input=made.stdout, stdout=subprocess.DEVNULL
            )
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def coordinator(folder: Path | None = None, listen: str = "127.0.0.1:0") -> Iterator[tuple[str, int]]:
    """(address, process id) of a fresh coordinator. Devices that are started meanwhile keep their memory beside it."""
    with tempfile.TemporaryDirectory() as fallback:
        where = folder or Path(fallback)
        os.environ["KOINON_STATE"], os.environ["KOINON_INSECURE"] = str(where / "devices"), "1"
        command = [
            sys.executable, "-m", "koinon_coordinator", "serve", "--insecure",
            "--db", f"sqlite:///{where / 'koinon.db'}", "--listen", listen,
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1], process.pid
        finally:
            process.terminate()
            process.wait(10)
