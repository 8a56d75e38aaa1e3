"""What a device can say of itself: heat, power, load, battery, memory and wear, from files of the kernel.

Every reader takes the root of the file system, so that a tree of another machine can be read like this one's. What
cannot be read is unknown, by name, and never 0.

    files.py    reading without being held up: descriptors that do not block, a deadline
    reading.py  a value with its unit and source, or why there is none
    thermal.py  temperatures by zone; power.py: watts by rail, joules; machine.py: the rest; energy.py: joules by phase
    nvml.py     what the driver of NVIDIA's graphics processors says, on servers
    survey.py   all of it at once, for `koinon-edge sensors`
"""

from koinon_edge.probe.energy import Energy, Meter
from koinon_edge.probe.files import Files, Unreadable
from koinon_edge.probe.machine import (
    Battery,
    battery,
    gpu_load,
    memory_available,
    model,
    pressure,
    storage_worn,
)
from koinon_edge.probe.nvml import Gpus, gpus_of
from koinon_edge.probe.power import Draw, Rapl, draw, rails
from koinon_edge.probe.reading import Reading
from koinon_edge.probe.survey import survey
from koinon_edge.probe.thermal import hottest, throttled, zones

__all__ = [
    "Battery", "Draw", "Energy", "Files", "Gpus", "Meter", "Rapl", "Reading", "Unreadable", "battery", "draw",
    "gpu_load", "gpus_of", "hottest", "memory_available", "model", "pressure", "rails", "storage_worn", "survey",
    "throttled", "zones",
]  # fmt: skip
