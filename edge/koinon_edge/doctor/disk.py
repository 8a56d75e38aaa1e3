"""Room, speed and wear of the disk on which the device keeps its memory."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from koinon_edge.doctor.finding import Finding
from koinon_edge.doctor.patient import within
from koinon_edge.probe import Files, storage_worn

__all__ = ["disk"]

_TOPIC = "disk"
_LONGEST = 10.0  # seconds: a disk that takes longer is broken
_SLOW = 0.5  # seconds for 64 KiB to be durable
_WORN, _WORN_OUT = 80.0, 100.0  # percent
_FULL = 100e6  # bytes: an update does not fit any more


def disk(
    files: Files, state: Path | None, least: int, clock: Callable[[], float] = time.monotonic
) -> list[Finding]:
    """What there is to say of the disk below `state` (or below what of its path there is), and of eMMCs."""
    found = [] if state is None else _below(_there(state), state, least, clock)
    worn = storage_worn(files)
    if worn.value is None:
        return found
    said = f"the eMMC has used up {worn.value:g} % of its life"
    if worn.value >= _WORN_OUT:
        return [
            *found,
            Finding(
                "wear",
                "bad",
                said,
                "it may fail at any time: replace it, or keep the device's memory on another disk",
            ),
        ]
    if worn.value >= _WORN:
        return [*found, Finding("wear", "warn", said, "keep its memory on another disk (state in edge.toml)")]
    return [*found, Finding("wear", "ok", said)]


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there: nothing is made by looking."""
    for path in (folder.absolute(), *folder.absolute().parents):
        if path.is_dir():
            return path
    return Path("/")


def _below(folder: Path, meant: Path, least: int, clock: Callable[[], float]) -> list[Finding]:
    try:
        return within(_LONGEST, lambda: [_room(folder, least), _speed(folder, clock)])
    except TimeoutError:
        advice = "it is broken, or a network's file system whose server is gone: see `dmesg`"
        return [
            Finding(_TOPIC, "bad", f"the disk below {folder} does not answer in {_LONGEST:.0f} s", advice)
        ]
    except PermissionError:
        return [
            Finding(
                _TOPIC,
                "bad",
                f"nothing can be written in {folder} by this user (number {os.geteuid()})",
                f"run this as the daemon's user, or give {meant} to it (chown)",
            )
        ]
    except OSError as error:
        advice = "a file system that went read-only, or a full one: see `dmesg` and `df -h -i`"
        return [Finding(_TOPIC, "bad", f"nothing can be written in {folder}: {error.strerror}", advice)]


def _room(folder: Path, least: int) -> Finding:
    of = os.statvfs(folder)
    free = of.f_bavail * of.f_frsize
    said = f"{free / 1e6:.0f} MB free below {folder}"
    if free < _FULL:
        return Finding(_TOPIC, "bad", said, "models and updates do not fit: make room")
    if free < least:
        return Finding(_TOPIC, "warn", said, f"work does not begin below {least / 1e6:.0f} MB: make room")
    return Finding(_TOPIC, "ok", said)


def _speed(folder: Path, clock: Callable[[], float]) -> Finding:
    handle, name = tempfile.mkstemp(prefix=".koinon-doctor-", dir=folder)
    try:
        began = clock()
        os.write(handle, bytes(64 * 1024))
        os.fsync(handle)
        seconds = clock() - began
    finally:
        os.close(handle)
        os.unlink(name)
    said = f"64 KiB are durable after {seconds * 1e3:.0f} ms"
    if seconds > _SLOW:
        return Finding(
            "disk speed", "warn", said, "every word of a round waits for that: use an NVMe or a better card"
        )
    return Finding("disk speed", "ok", said)
