"""How hot the device is, and whether it slows itself down for that.

Zones are known by their type (`tj-thermal`, `gpu-thermal`, `x86_pkg_temp`), never by their number, which changes from
start to start. Those of a Jetson Orin throttle at 99 degrees Celsius and shut down at 104.5 (tegra234's device tree).
"""

from pathlib import Path

from koinon_edge.probe.files import Files, Unreadable
from koinon_edge.probe.reading import Reading

__all__ = ["hottest", "throttled", "zones"]

_UNIT = "°C"
_COUNTS = ("tj", "gpu", "cpu", "soc", "x86_pkg", "acpitz", "k10temp")
_REAL = (-50.0, 200.0)  # what a sensor that is switched off says instead (-256, 0x7fff) is none


def zones(files: Files) -> dict[str, Reading]:
    """The temperature of every zone, by its type; of two with one type the second is "TYPE#2"."""
    found: dict[str, Reading] = {}
    for folder in files.glob("sys/class/thermal/thermal_zone*"):
        try:
            kind = files.text(folder / "type")
        except Unreadable:
            kind = folder.name
        name, n = kind, 1
        while name in found:
            n += 1
            name = f"{kind}#{n}"
        found[name] = _celsius(files, folder)
    return found


def _celsius(files: Files, folder: Path) -> Reading:
    path = folder / "temp"
    try:
        degrees = files.number(path) / 1000
    except Unreadable as error:
        return Reading.failed(_UNIT, error)
    if not _REAL[0] < degrees < _REAL[1]:
        return Reading.unknown(_UNIT, path, "offline")
    return Reading(degrees, _UNIT, str(path))


def hottest(found: dict[str, Reading]) -> Reading:
    """The hottest of the zones that say how hot the chip is; of all, where none does."""
    known = {name: r for name, r in found.items() if r.value is not None}
    chip = {name: r for name, r in known.items() if name.startswith(_COUNTS)}
    if not known:
        why = "no sensor" if not found else "no sensor answers"
        return Reading.unknown(_UNIT, "thermal zones", why)
    return max((chip or known).values(), key=lambda r: r.value or 0.0)


def throttled(files: Files) -> Reading:
    """How many cooling devices are at work by slowing the machine down (fans are not counted)."""
    active, asked = 0, 0
    for folder in files.glob("sys/class/thermal/cooling_device*"):
        try:
            if "fan" in files.text(folder / "type").lower():
                continue
            active += files.number(folder / "cur_state") > 0
            asked += 1
        except Unreadable:
            continue
    source = "sys/class/thermal/cooling_device*"
    return (
        Reading(float(active), "", source)
        if asked
        else Reading.unknown("", source, "no cooling device answers")
    )
