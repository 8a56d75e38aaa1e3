"""What a device says of itself: its memory, its cores and its graphics processors, so that a run may ask for so much.

Three numbers, and nothing of its data; `profile = false` in the owner's device.toml keeps them to itself.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["profile"]

_DEVICES = Path("/dev")


def profile() -> dict[str, int]:
    """memory_mb, cores and gpu of this machine, as far as this process may use them; 0 for what is not known."""
    return {"memory_mb": _memory() >> 20, "cores": _cores(), "gpu": _gpus()}


def _memory() -> int:
    """Bytes: the machine's, or of a container what it may use."""
    found = 0
    with suppress(AttributeError, ValueError, OSError):
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # "max" is no number, and no limit
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(0, found)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 0


def _gpus() -> int:
    """Those that torch sees, where the program has it; else those whose drivers are there. Nothing is imported."""
    torch = sys.modules.get("torch")
    if torch is not None:
        with suppress(Exception):  # a driver that does not answer is none that can be used
            return int(torch.cuda.device_count())
    return len(list(_DEVICES.glob("nvidia[0-9]*"))) or int((_DEVICES / "nvhost-gpu").exists())
