"""What an owner decides, as values: durations in seconds, sizes in bytes, heat in °C, shares in percent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from koinon_core.errors import UsageError
from koinon_edge.settings.windows import Window

__all__ = ["Container", "GateSettings", "NetworkSettings", "Settings", "SpoolSettings", "TaskSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The program runs in a container of `image`; `runtime` is the engine's (nvidia; empty: its usual one), `mounts`
    are SOURCE:TARGET or SOURCE:TARGET:ro, `options` go to the engine as they are."""

    image: str
    runtime: str = ""
    mounts: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """A program of the owner's that trains for `run`, a name or a pattern of names ("ward-*"). `timeout` is the longest
    for one piece of work, `linger` how long the program is kept after its last one, `grace` what it has between being
    asked to end and being killed. `memory` and `cpus` are the most that it may take, where the kernel lets us set them.
    """

    name: str
    command: tuple[str, ...]
    run: str
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 6 * 3600.0
    memory: int | None = None
    cpus: float | None = None
    nice: int = 10
    linger: float = 60.0
    grace: float = 20.0
    container: Container | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """When the device may work. Nothing begins above `heat_start`; work pauses at `heat_pause` and goes on below
    `heat_resume`; a pause of more than `patience` gives it up. `metered` and `roaming` allow to train and send where
    bytes cost money, `windows` are the hours for it (none: always) on the clock of `zone` (empty: the machine's).
    `unknown` is what a figure counts as that cannot be had."""

    mains: bool = False
    battery_min: float = 50.0
    heat_start: float = 75.0
    heat_pause: float = 88.0
    heat_resume: float = 78.0
    cpu_pressure_max: float = 50.0
    gpu_load_max: float = 50.0
    memory_min: int = 500_000_000
    disk_min: int = 1_000_000_000
    power_modes: tuple[str, ...] = ()
    metered: bool = False
    roaming: bool = False
    bytes_day: int | None = None
    bytes_month: int | None = None
    windows: tuple[Window, ...] = ()
    zone: str = ""
    patience: float = 600.0
    unknown: Literal["allow", "refuse"] = "allow"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """How the coordinator is reached: whether the device stays `attach`ed or checks in shortly (auto: as its power and
    network are), with how many bytes a second at most, by which HTTP proxy, and which interfaces cost money where
    nothing else says so."""

    attach: Literal["auto", "always", "never"] = "auto"
    bandwidth: int | None = None
    proxy: str = ""
    metered_interfaces: tuple[str, ...] = ("wwan*", "ppp*", "usb*")
    keepalive: float = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSettings:
    """What the daemon may keep on the disk."""

    quota: int = 4_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of edge.toml, which is at `path`. What is None is said elsewhere: the name and the address by the
    credentials, those and the state by the places that are usual."""

    path: Path
    name: str | None = None
    address: str | None = None
    credentials: Path | None = None
    state: Path | None = None
    tasks: Mapping[str, TaskSettings] = field(default_factory=dict)
    gate: GateSettings = field(default_factory=GateSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    spool: SpoolSettings = field(default_factory=SpoolSettings)

    def task_of(self, run: str) -> TaskSettings:
        """The task that trains for `run`. UsageError where there is none."""
        for task in self.tasks.values():
            if fnmatchcase(run, task.run):
                return task
        there = ", ".join(
            f"{t.name} (run {t.run!r})" if t.run != t.name else t.name for t in self.tasks.values()
        )
        raise UsageError(
            f"no task in {self.path} trains for run {run!r}; "
            + (f"there are {there}" if there else "it has no task at all")
            + f": add [tasks.{run}] with its command"
        )
