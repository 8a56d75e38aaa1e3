"""Which power mode a Jetson is in, as `nvpmodel -q` says it; from the files that it reads, so that nothing is run.

Modes have numbers, and each module's configuration gives them names (15W, MAXN_SUPER).
"""

import re
from dataclasses import dataclass

from koinon_edge.probe import Files, Unreadable

__all__ = ["Mode", "power_mode"]

_STATUS = "var/lib/nvpmodel/status"
_NAMES = "etc/nvpmodel.conf"
_NAME = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")


@dataclass(frozen=True, slots=True)
class Mode:
    """The mode's name, or empty: then `why` says why it is unknown."""

    name: str
    why: str = ""


def power_mode(files: Files) -> Mode:
    """The mode that the device is in."""
    try:
        found = re.search(r"pmode:\s*(\d+)", files.text(files.root / _STATUS))
    except Unreadable as error:
        return Mode("", "it has no power modes" if error.why == "absent" else error.why)
    if found is None:
        return Mode("", "odd")
    number = int(found[1])
    try:
        names = {int(i): name for i, name in _NAME.findall(files.text(files.root / _NAMES))}
    except Unreadable as error:
        return Mode("", f"mode {number} has no name: {error.path.name} is {error.why}")
    return Mode(names[number]) if number in names else Mode("", f"mode {number} has no name")
