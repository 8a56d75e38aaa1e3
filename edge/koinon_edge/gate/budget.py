"""How many bytes a device may send and receive in a day and a month, and has.

The figures are on disk, and never behind the truth: a stride more than was counted is written ahead of it, so that a
kill may cost some bytes of the budget and cannot give any back, and an eMMC is not written to for every packet. Nor
does a clock that is set back give any: the latest day that was seen stays the day.
"""

import calendar
import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

from koinon_core.errors import StoreError
from koinon_edge.settings import local

__all__ = ["Budget", "Spent"]

_STRIDES = 10_000, 1_000_000  # the shortest, the longest; between them a hundredth of the limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Bytes of `on`, which is a day, and of its month, and the limits (None: there is none). `barred` says why nothing
    more may be spent on that day, `note` what else there is to say."""

    on: date
    day: int = 0
    month: int = 0
    day_limit: int | None = None
    month_limit: int | None = None
    barred: str = ""
    note: str = ""

    @property
    def left(self) -> int | None:
        """Bytes that may still be spent today; None: any number."""
        limits = ((self.day_limit, self.day), (self.month_limit, self.month))
        left = [max(0, limit - spent) for limit, spent in limits if limit is not None]
        if not left:
            return None
        return 0 if self.barred else min(left)


class Budget:
    """Kept in the file at `path` by one process, by its threads at once; days are those of `zone` (empty: the
    machine's). `close` writes what was spent exactly."""

    def __init__(self, path: Path, day: int | None, month: int | None, zone: str):
        self._path, self._zone = path, zone
        self._limits = (day, month)
        shortest, longest = _STRIDES
        hundredth = min((limit // 100 for limit in self._limits if limit is not None), default=longest)
        self._stride = min(longest, max(shortest, hundredth))
        self._lock = threading.Lock()
        self._now: Spent | None = None
        self._written = 0  # bytes more than `_now` has, on disk

    def look(self, now: datetime) -> Spent:
        """What was spent of the day and the month that `now` is in."""
        with self._lock:
            return self._look(now)

    def left(self, now: datetime) -> int | None:
        """Bytes that may still be spent today; None: any number."""
        return self.look(now).left

    def spent(self, now: datetime, size: int) -> None:
        """So many bytes were sent or received. StoreError where that cannot be written down; it counts all the same."""
        with self._lock:
            today = self._look(now)
            self._now = replace(today, day=today.day + size, month=today.month + size)
            self._written -= size
            if self._written < 0:
                self._write(self._now, self._stride)

    def close(self) -> None:
        """Write what was spent, without a stride."""
        with self._lock:
            if self._now is not None and self._written:
                self._write(self._now, 0)

    # -- days -----------------------------------------------------------------------------------------------------

    def _look(self, now: datetime) -> Spent:
        today = local(now, self._zone).date()
        known = self._now or self._read(today)
        if today > known.on:
            new = replace(known, on=today, day=0, barred="", note="")
            known = new if _month(today) == _month(known.on) else replace(new, month=0)
            self._written = 0
        note = (
            f"the clock went back to {today} from {known.on}, whose bytes still count: set it right, or remove "
            f"{self._path}"
            if today < known.on
            else ""
        )
        self._now = replace(known, note=note)
        return self._now

    # -- the file -------------------------------------------------------------------------------------------------

    def _read(self, today: date) -> Spent:
        day_limit, month_limit = self._limits
        fresh = Spent(on=today, day_limit=day_limit, month_limit=month_limit)
        try:
            found = json.loads(self._path.read_bytes())
            on, day, month = date.fromisoformat(found["on"]), found["day"], found["month"]
            barred = found.get("barred", "")
            if not all(type(n) is int and n >= 0 for n in (day, month)) or not isinstance(barred, str):
                raise ValueError("no number of bytes is like that")
        except FileNotFoundError:
            return fresh
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return self._lost(fresh)
        return replace(fresh, on=on, day=day, month=month, barred=barred)

    def _lost(self, fresh: Spent) -> Spent:
        """What was spent is not known any more. So today counts as spent, and of the month as much as its days until
        today may have had: neither can the limits be passed, nor is a month lost for a damaged file."""
        days = calendar.monthrange(fresh.on.year, fresh.on.month)[1]
        month = (fresh.month_limit or 0) * fresh.on.day // days
        barred = f"what was spent could not be read from {self._path}, so today counts as spent"
        lost = replace(fresh, day=fresh.day_limit or 0, month=month, barred=barred)
        with suppress(StoreError):  # written so that the next start does not take it for another loss
            self._write(lost, 0)
        return lost

    def _write(self, now: Spent, ahead: int) -> None:
        values = {
            "on": now.on.isoformat(),
            "day": now.day + ahead,
            "month": now.month + ahead,
            "barred": now.barred,
        }
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with new.open("w") as file:
                json.dump(values, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreError(
                f"the bytes that were spent cannot be written to {self._path} ({error.strerror}); make room on the disk"
            ) from error
        self._written = ahead


def _month(day: date) -> tuple[int, int]:
    return day.year, day.month
