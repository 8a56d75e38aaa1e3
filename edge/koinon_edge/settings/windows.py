"""Hours of the week in which a device may work: "mon-fri 22:00-06:00", "sat,sun", "00:30-05:00".

A window is a matter of the clock on the wall. One that passes midnight belongs to the day on which it begins. On the
day when clocks go forward, what lies in the missing hour does not happen, and a window that would begin in it begins
when it is over; on the day when they go back, the hour that comes twice counts twice.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Self
from zoneinfo import ZoneInfo

__all__ = ["Window", "local"]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS = re.compile(r"(\d\d?):(\d\d)-(\d\d?):(\d\d)")
_DAY = 24 * 60


def local(now: datetime, zone: str) -> datetime:
    """What the clock on the wall shows in `zone` (empty: in the machine's own)."""
    return now.astimezone(ZoneInfo(zone) if zone else None)


@dataclass(frozen=True, slots=True)
class Window:
    """On `days` (0: Monday), from minute `begin` of the day until before minute `end`, of the next day where that is
    not later. `text` is how the owner said it."""

    days: frozenset[int]
    begin: int
    end: int
    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """ValueError, with what is wrong, for what is no window."""
        words = text.lower().split()
        hours = words.pop() if words and _HOURS.fullmatch(words[-1]) else ""
        if len(words) > 1 or not (words or hours):
            raise ValueError(
                "write days, hours or both, as in 'mon-fri 22:00-06:00', 'sat,sun' or '00:30-05:00'"
            )
        begin, end = _hours(hours) if hours else (0, _DAY)
        return cls(_days(words[0]) if words else frozenset(range(7)), begin, end, text)

    def holds(self, at: datetime) -> bool:
        """Whether the clock on the wall shows a time of this window."""
        minute, day = at.hour * 60 + at.minute, at.weekday()
        if self.begin < self.end:
            return day in self.days and self.begin <= minute < self.end
        return (day in self.days and minute >= self.begin) or (
            (day - 1) % 7 in self.days and minute < self.end
        )


def _hours(text: str) -> tuple[int, int]:
    found = _HOURS.fullmatch(text)
    assert found is not None
    h1, m1, h2, m2 = map(int, found.groups())
    begin, end = h1 * 60 + m1, h2 * 60 + m2
    if m1 > 59 or m2 > 59 or begin >= _DAY or end > _DAY:
        raise ValueError("a day has hours from 00:00 to 24:00")
    if begin == end:
        raise ValueError("it ends when it begins; leave the hours out for whole days")
    return begin, end


def _days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        for name in (first, last) if dash else (first,):
            if name not in _DAYS:
                raise ValueError(f"there is no day {name!r}; days are {', '.join(_DAYS)}")
        begin = _DAYS.index(first)
        length = (_DAYS.index(last) - begin) % 7 if dash else 0
        found |= {(begin + i) % 7 for i in range(length + 1)}
    return frozenset(found)
