"""edge.toml: what the owner of a device has decided, once, in one file.

    name = "line-4"                       # default: what the credentials say, as the address
    address = "coordinator.example:8440"
    state = "/var/lib/koinon"

    [tasks.defects]                       # a program that trains, for the run of that name
    command = ["python3", "train.py"]
    memory = "4GB"

    [gate]                                # when the device may work
    windows = ["mon-fri 22:00-06:00", "sat,sun"]
    metered = false

Sizes are "500MB", "2GiB" or a whole number of bytes, durations "90s", "10m", "6h", "2d" or seconds, and paths are taken
from the folder of edge.toml. What is wrong is said with its line, and nothing that was meant is ever left out quietly.

    kinds.py    what there is to decide, as dataclasses with their defaults
    file.py     reading them from edge.toml; tasks.py: those of its tasks
    table.py    one table of it, key by key: what it must be, and where it is wrong
    lines.py    in which line a key is, which tomllib does not tell
    windows.py  hours of the week
"""

from koinon_edge.settings.file import load
from koinon_edge.settings.kinds import (
    Container,
    GateSettings,
    NetworkSettings,
    Settings,
    SpoolSettings,
    TaskSettings,
)
from koinon_edge.settings.windows import Window, local

__all__ = [
    "Container", "GateSettings", "NetworkSettings", "Settings", "SpoolSettings", "TaskSettings", "Window",
    "load", "local",
]  # fmt: skip
