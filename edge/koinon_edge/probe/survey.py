"""All that a device can say of itself, at once: for its owner to read."""

from koinon_edge.probe.files import Files
from koinon_edge.probe.machine import battery, gpu_load, memory_available, model, pressure, storage_worn
from koinon_edge.probe.nvml import Gpus, gpus_of
from koinon_edge.probe.power import draw, rails
from koinon_edge.probe.reading import Reading
from koinon_edge.probe.thermal import hottest, throttled, zones

__all__ = ["survey"]


def survey(files: Files, gpus: Gpus | None = None) -> tuple[str, dict[str, Reading], str]:
    """The device's model, its readings by name, and a sentence about what of it feeds on what is measured. `gpus` are
    those of this machine where nothing else is said."""
    heat, power = zones(files), rails(files)
    drawn, fed = draw(power), battery(files)
    found = {
        **{f"heat {name}": reading for name, reading in heat.items()},
        "heat, the hottest": hottest(heat),
        "slowed down by": throttled(files),
        **{f"power {name}": reading for name, reading in power.items()},
        "power": drawn.watts,
        "graphics processor at work": gpu_load(files),
        **_of_servers(files, gpus),
        **{f"waiting for {what}": pressure(files, what) for what in ("cpu", "memory", "io")},
        "memory that is free": memory_available(files),
        "battery": fed.level,
        "eMMC used up": storage_worn(files),
    }
    scope = {
        "module": f"power is that of {' and '.join(drawn.rails)}, which feeds all of the module",
        "rails": f"power is the sum of {len(drawn.rails)} rails: {', '.join(drawn.rails)}",
    }.get(drawn.scope, "nothing here measures power")
    mains = {True: "on mains", False: "on its battery", None: "not known to be on mains"}[fed.mains]
    return model(files), found, f"{scope}; the device is {mains}"


def _of_servers(files: Files, gpus: Gpus | None) -> dict[str, Reading]:
    """What NVML says of each graphics processor; nothing where there is no such library."""
    asked = gpus or gpus_of(files)
    if asked is None:
        return {}
    found = asked.readings()
    if gpus is None:
        asked.close()
    return found
