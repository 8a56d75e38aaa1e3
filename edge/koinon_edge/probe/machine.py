"""What the machine is, and how busy: its model, memory, processors and graphics processor, battery, disk."""

import os
from dataclasses import dataclass
from pathlib import Path

from koinon_edge.probe.files import Files, Unreadable
from koinon_edge.probe.reading import Reading

__all__ = ["Battery", "battery", "gpu_load", "memory_available", "model", "pressure", "storage_worn"]


def model(files: Files) -> str:
    """What the board calls itself; empty where it does not."""
    for path in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        try:
            return files.text(files.root / path)
        except Unreadable:
            continue
    return ""


def gpu_load(files: Files) -> Reading:
    """How much of its time a Jetson's graphics processor works, in percent (it says per mille)."""
    for pattern in ("sys/class/devfreq/*.gpu", "sys/class/devfreq/*ga10b*", "sys/class/devfreq/gpu-gpc-0"):
        for folder in files.glob(pattern):
            path = folder / "device" / "load"
            try:
                load = files.number(path) / 10
            except Unreadable as error:
                return Reading.failed("%", error)
            if not 0 <= load <= 100:
                return Reading.unknown("%", path, "odd")
            return Reading(load, "%", str(path))
    return Reading.unknown("%", "sys/class/devfreq", "no sensor")


def memory_available(files: Files) -> Reading:
    """Megabytes that a program may take before others are pushed out. A Jetson's graphics processor takes from them."""
    path = files.root / "proc/meminfo"
    try:
        for line in files.text(path).splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return Reading(int(rest.split()[0]) * 1024 / 1e6, "MB", str(path))
    except Unreadable as error:
        return Reading.failed("MB", error)
    except (ValueError, IndexError):
        return Reading.unknown("MB", path, "odd")
    return Reading.unknown("MB", path, "odd")


def pressure(files: Files, what: str) -> Reading:
    """The share of the last ten seconds in which some task waited for the "cpu", for "memory" or "io", in percent
    (PSI). Kernels of Jetsons may not have it: then of the cpu how much more is to be done than there are processors
    for."""
    path = files.root / "proc/pressure" / what
    try:
        for line in files.text(path).splitlines():
            kind, *pairs = line.split()
            if kind == "some":
                return Reading(float(dict(p.split("=") for p in pairs)["avg10"]), "%", str(path))
        return Reading.unknown("%", path, "odd")
    except Unreadable as error:
        return _crowd(files) if what == "cpu" else Reading.failed("%", error)
    except (ValueError, KeyError):
        return Reading.unknown("%", path, "odd")


def _crowd(files: Files) -> Reading:
    path = files.root / "proc/loadavg"
    try:
        waiting = float(files.text(path).split()[0]) - (os.cpu_count() or 1)
    except Unreadable as error:
        return Reading.failed("%", error)
    except (ValueError, IndexError):
        return Reading.unknown("%", path, "odd")
    return Reading(min(100.0, max(0.0, 100.0 * waiting / (waiting + (os.cpu_count() or 1)))), "%", str(path))


@dataclass(frozen=True, slots=True)
class Battery:
    """`level` in percent, and whether the device is on mains (None: nothing says so). A device without a battery, and
    with nothing that says how it is fed, is on mains: it could not run otherwise."""

    level: Reading
    mains: bool | None
    present: bool


def battery(files: Files) -> Battery:
    """From /sys/class/power_supply. Batteries of mice and the like (scope "Device") do not feed this machine."""
    level = Reading.unknown("%", "sys/class/power_supply", "no battery")
    present, mains, discharging = False, None, None
    for folder in files.glob("sys/class/power_supply/*"):
        kind = _word(files, folder / "type")
        if _word(files, folder / "scope") == "Device":
            continue
        if kind == "Battery" and _word(files, folder / "present") != "0":
            present = True
            level = _level(files, folder / "capacity")
            status = _word(files, folder / "status")
            discharging = status == "Discharging" if status and status != "Unknown" else None
        elif kind in ("Mains", "USB", "USB_PD", "Wireless"):
            online = _word(files, folder / "online")
            mains = mains or online == "1" if online else mains
    if mains is None:
        mains = (not discharging if discharging is not None else None) if present else True
    return Battery(level, mains, present)


def _word(files: Files, path: Path) -> str:
    try:
        return files.text(path)
    except Unreadable:
        return ""


def _level(files: Files, path: Path) -> Reading:
    try:
        return Reading(files.number(path), "%", str(path))
    except Unreadable as error:
        return Reading.failed("%", error)


def storage_worn(files: Files) -> Reading:
    """How much of its life the most worn eMMC has used up, in percent: it says it in tenths, of which the last used one
    counts whole (JEDEC eMMC 5.0, DEVICE_LIFE_TIME_EST)."""
    worst: Reading | None = None
    for path in files.glob("sys/class/mmc_host/mmc*/mmc*:*/life_time"):
        try:
            tenths = [int(word, 16) for word in files.text(path).split()]
        except Unreadable as error:
            return Reading.failed("%", error)
        except ValueError:
            return Reading.unknown("%", path, "odd")
        used = [10.0 * t for t in tenths if 1 <= t <= 11]  # 0: it does not say; 11: more than it was made for
        if used and (worst is None or max(used) > (worst.value or 0.0)):
            worst = Reading(max(used), "%", str(path))
    return worst or Reading.unknown("%", "sys/class/mmc_host", "no sensor")
