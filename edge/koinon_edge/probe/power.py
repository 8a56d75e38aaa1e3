"""What the device draws, from the sensors on its board, and what it has drawn.

A Jetson has INA3221s: three rails each, volts and amperes but no watts (W = mV * mA / 10^6; the kernel's ina3221 page).
Which rails there are depends on the module: an Orin NX or Nano has VDD_IN, which is all of it; an AGX Orin has no such
rail, and the sum of those that it has is the nearest thing. Thor has an INA238 on its input beside them. A server's CPU
counts its energy (RAPL). Which rails a figure is of is part of it (`scope`): a module's and a GPU's must never be
compared.
"""

from dataclasses import dataclass
from pathlib import Path

from koinon_edge.probe.files import Files, Unreadable
from koinon_edge.probe.reading import Reading

__all__ = ["Draw", "Rapl", "draw", "rails"]

_WHOLE = ("VDD_IN", "VIN", "POM_5V_IN")  # what is behind it is all of the module
_WATTS = "W"


@dataclass(frozen=True, slots=True)
class Draw:
    """Watts, and of what: "module" (a rail that feeds all of it), "rails" (the sum of those in `rails`)."""

    watts: Reading
    scope: str
    rails: tuple[str, ...] = ()


def rails(files: Files) -> dict[str, Reading]:
    """Watts of every rail that has a name, by it. Rails that are connected to nothing ("NC") are left out."""
    found: dict[str, Reading] = {}
    for folder in files.glob("sys/class/hwmon/hwmon*"):
        try:
            chip = files.text(folder / "name")
        except Unreadable:
            continue
        if chip == "ina3221":
            for number in (1, 2, 3):  # 4 to 7 are shunt voltages and sums
                _rail(files, folder, number, found)
        elif chip == "ina238":
            found["VIN"] = _scaled(files, folder / "power1_input", 1e-6, _WATTS)
    return found


def _rail(files: Files, folder: Path, number: int, found: dict[str, Reading]) -> None:
    try:
        label = files.text(folder / f"in{number}_label")
    except Unreadable:
        return
    if not label or "NC" in label.replace("-", "_").split("_"):
        return
    volts = _scaled(files, folder / f"in{number}_input", 1e-3, "V")
    amperes = _scaled(files, folder / f"curr{number}_input", 1e-3, "A")
    for part in (volts, amperes):
        if part.value is None:
            found[label] = Reading(None, _WATTS, part.source, part.why)
            return
    watts = (volts.value or 0.0) * (amperes.value or 0.0)
    found[label] = Reading(watts, _WATTS, f"{folder} {label}")


def _scaled(files: Files, path: Path, by: float, unit: str) -> Reading:
    try:
        return Reading(files.number(path) * by, unit, str(path))
    except Unreadable as error:
        return Reading.failed(unit, error)


def draw(found: dict[str, Reading]) -> Draw:
    """What the module draws, by the rails that were found."""
    for name in _WHOLE:
        if name in found:
            return Draw(found[name], "module", (name,))
    if not found:
        return Draw(Reading.unknown(_WATTS, "sys/class/hwmon", "no sensor"), "none")
    dead = sorted(name for name, r in found.items() if r.value is None)
    names = tuple(sorted(found))
    if dead:  # a sum without one of them would be another figure
        return Draw(Reading.unknown(_WATTS, dead[0], found[dead[0]].why), "rails", names)
    total = sum(r.value or 0.0 for r in found.values())
    return Draw(Reading(total, _WATTS, "+".join(names)), "rails", names)


class Rapl:
    """The energy counters of a server's processors, whose numbers begin anew at a certain one (`max_energy_range_uj`).
    Only root may read them."""

    def __init__(self, files: Files):
        self._files = files
        # Packages alone (intel-rapl:0): their parts (intel-rapl:0:0) are in them.
        self._packages = [p for p in files.glob("sys/class/powercap/intel-rapl:*") if p.name.count(":") == 1]
        self._last: dict[Path, float] = {}
        self._joules = 0.0

    def joules(self) -> Reading:
        """Joules since the first call. To be called before a counter begins anew twice: once a minute will do."""
        source = "sys/class/powercap/intel-rapl"
        if not self._packages:
            return Reading.unknown("J", source, "no sensor")
        for package in self._packages:
            try:
                now = self._files.number(package / "energy_uj")
                last = self._last.setdefault(package, now)
                around = self._files.number(package / "max_energy_range_uj") if now < last else 0.0
            except Unreadable as error:
                return Reading.failed("J", error)
            self._joules += (now + around - last) * 1e-6
            self._last[package] = now
        return Reading(self._joules, "J", source)
