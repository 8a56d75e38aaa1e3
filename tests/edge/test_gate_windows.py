"""Hours of the week in which a device may work."""

import time
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_edge.settings import Window, local

BERLIN = "Europe/Berlin"


def open_at(window: str, text: str) -> bool:
    return Window.parse(window).holds(datetime.fromisoformat(text))


def hours(window: str, begin: datetime, end: datetime, zone: str = BERLIN) -> list[str]:
    """When it opens and closes between two times, in the clock on the wall; minute by minute of real time."""
    one, found, was = Window.parse(window), [], False
    while begin < end:
        wall = local(begin, zone)
        if one.holds(wall) != was:
            was = not was
            found.append(f"{'opens' if was else 'closes'} {wall:%a %H:%M %Z}")
        begin += timedelta(minutes=1)
    return found


# 2027-01-01 is a Friday.
@pytest.mark.parametrize(
    ("window", "text", "is_open"),
    [
        ("mon-fri 22:00-06:00", "2027-01-01 21:59", False),
        ("mon-fri 22:00-06:00", "2027-01-01 22:00", True),
        ("mon-fri 22:00-06:00", "2027-01-02 05:59", True),  # Saturday morning is Friday's night
        ("mon-fri 22:00-06:00", "2027-01-02 06:00", False),
        ("mon-fri 22:00-06:00", "2027-01-02 22:00", False),
        ("mon-fri 22:00-06:00", "2027-01-04 05:59", False),  # and Monday morning is Sunday's
        ("sat,sun", "2027-01-01 23:59", False),
        ("sat,sun", "2027-01-02 00:00", True),
        ("sat,sun", "2027-01-03 23:59", True),
        ("sat,sun", "2027-01-04 00:00", False),
        ("00:30-05:00", "2027-01-01 00:30", True),
        ("00:30-05:00", "2027-01-01 05:00", False),
        ("sun-mon 10:00-24:00", "2027-01-03 23:59", True),  # days may pass the end of the week
        ("sun-mon 10:00-24:00", "2027-01-05 00:00", False),
        ("Sat,MON-tue 9:05-10:00", "2027-01-05 09:05", True),
        ("sun 22:00-6:00", "2027-01-04 05:00", True),
    ],
)
def test_a_window_has_days_and_hours_and_belongs_to_the_day_on_which_it_begins(window, text, is_open):
    assert open_at(window, text) is is_open


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "write days, hours or both"),
        ("mon 10:00 - 12:00", "write days, hours or both"),
        ("mon 10-12", "write days, hours or both"),
        ("montag", "there is no day 'montag'"),
        ("mon-", "there is no day ''"),
        ("sat, sun", "write days, hours or both"),
        ("24:00-06:00", "a day has hours from 00:00 to 24:00"),
        ("10:00-24:01", "a day has hours from 00:00 to 24:00"),
        ("10:60-12:00", "a day has hours from 00:00 to 24:00"),
        ("10:00-10:00", "it ends when it begins"),
    ],
)
def test_what_is_no_window_says_why(text, why):
    with pytest.raises(ValueError, match=why):
        Window.parse(text)


def test_in_spring_the_missing_hour_does_not_happen():
    """On 2027-03-28 Berlin's clocks go from 02:00 to 03:00."""
    begin, end = datetime(2027, 3, 27, 20, tzinfo=UTC), datetime(2027, 3, 28, 20, tzinfo=UTC)
    assert hours("02:30-05:00", begin, end) == ["opens Sun 03:00 CEST", "closes Sun 05:00 CEST"]
    assert hours("01:00-02:30", begin, end) == ["opens Sun 01:00 CET", "closes Sun 03:00 CEST"]
    assert hours("02:10-02:50", begin, end) == []
    assert hours("sat 22:00-06:00", begin, end) == ["opens Sat 22:00 CET", "closes Sun 06:00 CEST"]


def test_in_autumn_the_hour_that_comes_twice_counts_twice():
    """On 2027-10-31 Berlin's clocks go from 03:00 to 02:00."""
    begin, end = datetime(2027, 10, 30, 20, tzinfo=UTC), datetime(2027, 10, 31, 20, tzinfo=UTC)
    assert hours("02:00-03:00", begin, end) == ["opens Sun 02:00 CEST", "closes Sun 03:00 CET"]
    assert hours("02:30-04:00", begin, end) == [
        "opens Sun 02:30 CEST", "closes Sun 02:00 CET", "opens Sun 02:30 CET", "closes Sun 04:00 CET",
    ]  # fmt: skip
    assert hours("sat 22:00-06:00", begin, end) == ["opens Sat 22:00 CEST", "closes Sun 06:00 CET"]


def test_the_clock_is_that_of_the_zone_or_the_machines(monkeypatch):
    now = datetime(2027, 1, 1, 23, 30, tzinfo=UTC)
    assert local(now, BERLIN).strftime("%a %H:%M") == "Sat 00:30"
    assert local(now, "America/New_York").strftime("%a %H:%M") == "Fri 18:30"
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    try:
        time.tzset()
        assert local(now, "").strftime("%a %H:%M") == "Sat 05:15"
    finally:
        monkeypatch.undo()
        time.tzset()


# -- against a brute force ------------------------------------------------------------------------------------

_NAMES = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = st.integers(0, 24 * 60 - 1)


@given(
    days=st.sets(st.integers(0, 6), min_size=1),
    begin=_CLOCK,
    length=st.integers(1, 24 * 60 - 1),
    zone=st.sampled_from([BERLIN, "Asia/Kathmandu", "America/St_Johns", "Australia/Lord_Howe", "UTC"]),
    start=st.dates(date(2026, 1, 1), date(2028, 1, 1)),
    first=st.integers(0, 16),
)
def test_it_holds_the_minutes_that_counting_them_one_by_one_finds(days, begin, length, zone, start, first):
    """A set of all minutes of a week on the wall, which no clock that is changed can confuse."""
    end = (begin + length) % (24 * 60)
    text = (
        f"{','.join(_NAMES[d] for d in days)} {begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    )
    inside = {(day * 24 * 60 + begin + i) % (7 * 24 * 60) for day in days for i in range(length)}
    window = Window.parse(text)
    instant = datetime(start.year, start.month, start.day, tzinfo=UTC)
    for minutes in range(first, 8 * 24 * 60, 17):
        wall = (instant + timedelta(minutes=minutes)).astimezone(ZoneInfo(zone))
        minute = wall.weekday() * 24 * 60 + wall.hour * 60 + wall.minute
        assert window.holds(local(instant + timedelta(minutes=minutes), zone)) is (minute in inside)
