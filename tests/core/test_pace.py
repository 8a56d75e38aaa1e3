"""When visitors come back: nobody is away for ever, a small fleet meets, a large one is never all there at once."""

import random

from hypothesis import given
from hypothesis import strategies as st

from koinon_core.run.pace import MOST_PERIODS, pace

PERIODS = st.floats(1, 86_400)
NOW = st.floats(1e9, 2e9)


@given(
    NOW, st.sampled_from(["gathers", "under way", "paused"]), PERIODS, st.integers(0, 10**6), st.integers(1, 1000),
    st.floats(0, 600), st.none() | st.floats(1e9 - 1e6, 2e9 + 1e6),
)  # fmt: skip
def test_nobody_is_sent_away_for_longer_than_four_periods(now, state, period, known, needed, wait, until):
    told = pace(now, state, period=period, known=known, needed=needed, wait=wait, until=until)
    assert 0 <= told.after <= MOST_PERIODS * period
    assert 0 <= told.jitter <= period
    assert 0 < told.stay <= period + 2 * wait


@given(
    st.integers(10**6, 10**8), PERIODS, st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=20)
)
def test_a_small_fleet_that_came_within_a_period_is_together_at_its_next_visit(n, period, shares):
    """Whenever the devices came, and whatever share of the jitter each draws, all are there at one moment."""
    came = [(n + share) * period for share in shares]
    here = []
    for i, now in enumerate(came):
        told = pace(now, "gathers", period=period, known=len(came), needed=len(came))
        assert told.jitter <= told.stay
        left = now + told.stay
        back = left + told.after + told.jitter * (i % 2)
        again = pace(back, "gathers", period=period, known=len(came), needed=len(came))
        here.append([(now, left), (back, back + again.stay)])
    meeting = (n + 1) * period + told.jitter
    slack = 1e-6 * period + 1e-3  # of floats as large as seconds since 1970
    assert all(any(a - slack <= meeting <= b + slack for a, b in visits) for visits in here)
    # And for a while, so that a round that waits for them has the time to open.
    until = meeting + period / 8 if period < 120 else meeting + 15
    assert all(any(a - slack <= until <= b + slack for a, b in visits) for visits in here)


@given(st.integers(10**6, 10**8), PERIODS, st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_whoever_meets_goes_on_meeting(n, period, share, jitter):
    """Fifty visits of one device, each within the jitter of a moment at which all meet, or there while all are."""
    now = (n + share) * period
    for visit in range(50):
        told = pace(now, "gathers", period=period, known=3, needed=3)
        met = now % period
        close = min(met, period - met)
        if visit:
            assert close <= told.jitter + 1e-3, "it came when the others did"
        now += told.stay + told.after + told.jitter * jitter


@given(NOW, PERIODS, st.floats(0, 1e6))
def test_whom_a_round_cannot_use_comes_back_when_that_is_over_at_the_latest(now, period, left):
    for known in (3, 1000):
        told = pace(now, "under way", period=period, known=known, needed=3, until=now + left)
        assert told.after <= left + 1e-3
        assert told.stay <= 4.0


def test_a_paused_run_is_looked_at_four_periods_later():
    told = pace(1e9, "paused", period=300, known=3, needed=3)
    assert (told.after, told.jitter, told.stay) == (1200, 300, 4)


def test_a_large_fleet_is_spread_and_enough_of_it_are_there_at_any_time():
    """10,000 devices in step with each other, 100 of which a round needs: after a few visits each they are spread."""
    dice, period = random.Random(1), 300.0
    at = dict.fromkeys(range(10_000), 1e9)
    leaves = dict.fromkeys(at, 0.0)
    moment = 1e9 + 10 * period
    visits = []
    for device in at:
        while at[device] <= moment:
            told = pace(at[device], "gathers", period=period, known=10_000, needed=100)
            leaves[device] = at[device] + told.stay
            visits.append((at[device], leaves[device]))
            at[device] = leaves[device] + told.after + told.jitter * dice.random()
    for later in range(5):
        there = sum(a <= moment - later * 20 < b for a, b in visits)
        assert 100 <= there <= 2000


def test_the_most_that_a_small_fleet_is_apart_is_a_short_moment():
    told = pace(1_000_000_010.0, "gathers", period=300, known=5, needed=3, wait=2.0)
    assert (told.stay, told.jitter) == (32.0, 10.0)
    back = 1_000_000_010.0 + told.stay + told.after
    assert back % 300 == 0


def test_who_comes_shortly_before_a_meeting_stays_for_it():
    meeting = 300.0 * 4_000_000
    told = pace(meeting - 5, "gathers", period=300, known=5, needed=3)
    assert told.stay == 35.0
    assert told.after == 270.0
