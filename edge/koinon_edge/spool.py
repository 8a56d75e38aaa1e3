"""The spool's quota: what may be taken from the disk again, and in which order.

Models that can be fetched again go first, then what is left of work that is over. An update whose fate is not known is
never taken: where that alone is more than the quota, the device begins nothing new, and says so.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Room", "tidy"]

_CACHES = ("models/*", "*.damaged", "masked/*")


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that the device's folder takes, and those that were given back just now."""

    taken: int
    freed: int
    quota: int

    @property
    def full(self) -> bool:
        return self.taken > self.quota


def tidy(folder: Path, quota: int, *, working: bool) -> Room:
    """Give back what the spool in `folder` has above its quota. While there is work, nothing of it is touched: its
    model is in use, and its tensors are."""
    taken, freed = _size(folder), 0
    if taken <= quota or working:
        return Room(taken, 0, quota)
    for path in _spare(folder):
        size = _size(path)
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            taken, freed = taken - size, freed + size
        if taken <= quota:
            break
    return Room(taken, freed, quota)


def _spare(folder: Path) -> Iterator[Path]:
    """What may go, first things first: caches from the oldest on, then what was exchanged with programs."""
    owed = any(folder.glob("*.sent"))
    for pattern in _CACHES:
        if pattern == "masked/*" and owed:
            continue  # it may be the one that is handed in, and its masks could not be made again
        yield from sorted(folder.glob(pattern), key=_age)
    yield from sorted((folder / "edge" / "work").glob("*"), key=_age)


def _age(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    """Bytes below it, as the disk counts them."""
    total = 0
    for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with suppress(OSError):
            total += one.lstat().st_blocks * 512
    return total
