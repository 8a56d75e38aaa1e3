"""What the gate decides from: everything that it looks at, at one moment."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from koinon_edge.gate.budget import Budget, Spent
from koinon_edge.gate.modes import Mode, power_mode
from koinon_edge.gate.networks import Network
from koinon_edge.probe import (
    Battery,
    Files,
    Reading,
    battery,
    gpu_load,
    hottest,
    memory_available,
    pressure,
    zones,
)
from koinon_edge.settings import local

__all__ = ["Found", "find"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """At `wall`, which is what the clock on the wall shows. `memory` and `disk` are in MB."""

    wall: datetime
    battery: Battery
    heat: Reading
    cpu: Reading
    gpu: Reading
    memory: Reading
    disk: Reading
    mode: Mode
    network: Network
    spent: Spent


def find(
    files: Files, disk: Path, network: Callable[[], Network], budget: Budget, now: datetime, zone: str
) -> Found:
    """Look at everything. It takes as long as the files and the network are given to answer."""
    return Found(
        wall=local(now, zone),
        battery=battery(files),
        heat=hottest(zones(files)),
        cpu=pressure(files, "cpu"),
        gpu=gpu_load(files),
        memory=memory_available(files),
        disk=_free(disk),
        mode=power_mode(files),
        network=network(),
        spent=budget.look(now),
    )


def _free(disk: Path) -> Reading:
    """What a program may still write where `disk` is, or will be made."""
    path = disk.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        found = os.statvfs(path)
    except OSError as error:
        return Reading.unknown("MB", path, (error.strerror or "odd").lower())
    return Reading(found.f_bavail * found.f_frsize / 1e6, "MB", str(path))
