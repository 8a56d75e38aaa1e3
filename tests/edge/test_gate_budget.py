"""Bytes of a day and a month: they survive kills, and neither a clock nor a damaged file gives any back."""

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import StoreError
from koinon_edge.gate import Budget

MB = 1_000_000
BERLIN = "Europe/Berlin"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "budget.json"


def test_what_is_spent_is_counted_by_day_and_month(path):
    budget = Budget(path, 10 * MB, 15 * MB, "UTC")
    assert budget.left(at("2027-01-30 10:00")) == 10 * MB
    budget.spent(at("2027-01-30 10:00"), 8 * MB)
    assert budget.left(at("2027-01-30 23:59")) == 2 * MB
    assert budget.left(at("2027-01-31 00:00")) == 7 * MB, "the month's are fewer than the day's"
    budget.spent(at("2027-01-31 10:00"), 9 * MB)
    assert budget.left(at("2027-01-31 10:00")) == 0
    assert budget.look(at("2027-01-31 10:00")).month == 17 * MB
    assert budget.left(at("2027-02-01 00:00")) == 10 * MB


def test_a_day_begins_at_midnight_in_its_zone(path):
    budget = Budget(path, MB, None, BERLIN)
    budget.spent(at("2027-01-31 22:59"), MB)
    assert budget.left(at("2027-01-31 22:59")) == 0
    assert budget.left(at("2027-01-31 23:00")) == MB


def test_without_limits_bytes_are_counted_and_none_is_refused(path):
    budget = Budget(path, None, None, "UTC")
    budget.spent(at("2027-01-31 10:00"), 10**15)
    assert budget.left(at("2027-01-31 10:00")) is None
    assert budget.look(at("2027-01-31 10:00")).day == 10**15


def test_another_start_goes_on_where_the_last_one_ended(path):
    first = Budget(path, 10 * MB, None, "UTC")
    first.spent(at("2027-01-31 10:00"), 3 * MB)
    first.close()
    assert Budget(path, 10 * MB, None, "UTC").look(at("2027-01-31 11:00")).day == 3 * MB
    assert list(path.parent.iterdir()) == [path]


def test_small_amounts_are_not_each_written_to_disk(path):
    budget, now = Budget(path, 100 * MB, None, "UTC"), at("2027-01-31 10:00")
    contents = set()
    for _ in range(3000):
        budget.spent(now, 1000)
        contents.add(path.read_bytes())
        assert json.loads(path.read_bytes())["day"] >= budget.look(now).day
    assert len(contents) <= 4, "a stride of a hundredth of the limit"


@given(
    st.lists(st.tuples(st.integers(0, 400_000), st.integers(-1, 30), st.booleans()), max_size=20),
    st.sampled_from([None, 0, 2 * MB]),
    st.sampled_from([None, 5 * MB]),
)
def test_what_a_kill_leaves_is_never_less_than_what_was_spent(tmp_path_factory, steps, day, month):
    """Hours pass, sometimes backwards, and sometimes it is killed: no day has more than its bytes."""
    path = tmp_path_factory.mktemp("budget") / "budget.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # a process that is killed does not need it, only a disk
        _play(path, steps, day, month)


def _play(path, steps, day, month):
    budget, now = Budget(path, day, month, "UTC"), at("2027-01-25 10:00")
    truth: dict[str, int] = {}
    latest = now
    for size, hours, killed in steps:
        now += timedelta(hours=hours)
        latest = max(latest, now)
        budget.spent(now, size)
        for key in (f"{latest:%Y-%m-%d}", f"{latest:%Y-%m}"):
            truth[key] = truth.get(key, 0) + size
        if killed:
            budget = Budget(path, day, month, "UTC")
        found = budget.look(now)
        assert found.on == latest.date()
        assert found.day >= truth[f"{latest:%Y-%m-%d}"]
        assert found.month >= truth[f"{latest:%Y-%m}"]
        if day is not None and truth[f"{latest:%Y-%m-%d}"] >= day:
            assert budget.left(now) == 0


_SPENDER = """
import sys, pathlib
from datetime import UTC, datetime
from koinon_edge.gate import Budget
budget = Budget(pathlib.Path(sys.argv[1]), 10**9, None, "UTC")
total = 0
while True:
    budget.spent(datetime(2027, 1, 31, tzinfo=UTC), 70_000)
    total += 70_000
    print(total, flush=True)
"""


def test_a_process_that_is_killed_has_written_down_all_that_it_spent(path):
    with subprocess.Popen(
        [sys.executable, "-c", _SPENDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = "".join(process.stdout.readline() for _ in range(200))
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read()
    spent = int(said.rpartition("\n")[0].split("\n")[-1])
    found = Budget(path, 10**9, None, "UTC").look(at("2027-01-31 01:00"))
    assert spent <= found.day <= spent + MB + 2 * 70_000


def test_threads_may_spend_at_once(path):
    budget, now = Budget(path, None, None, "UTC"), at("2027-01-31 10:00")

    def spend():
        for _ in range(500):
            budget.spent(now, 1)

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.look(now).day == 2000


# -- what gives nothing back ----------------------------------------------------------------------------------


def test_a_clock_that_goes_back_gives_nothing_back_and_that_is_said(path):
    budget = Budget(path, MB, None, "UTC")
    budget.spent(at("2027-01-31 10:00"), MB)
    back = budget.look(at("2027-01-30 10:00"))
    assert (back.left, back.day) == (0, MB)
    assert back.note == (
        f"the clock went back to 2027-01-30 from 2027-01-31, whose bytes still count: set it right, or remove {path}"
    )
    budget.spent(at("1970-01-01 00:00"), 5)
    again = Budget(path, MB, None, "UTC")
    assert again.look(at("1970-01-01 00:00")).day >= MB + 5, "nor after a start before the clock is set"
    assert again.look(at("2027-01-31 23:00")).note == ""
    assert again.left(at("2027-02-01 00:00")) == MB


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"on": "2027-01-31"}', '{"on": "soon", "day": 0, "month": 0}',
     '{"on": "2027-01-31", "day": -1, "month": 0}', '{"on": "2027-01-31", "day": 0.5, "month": 0}',
     '{"on": "2027-01-31", "day": true, "month": 0}', '{"on": "2027-01-31", "day": 0, "month": 0, "barred": 1}',
     "\udcff"],
)  # fmt: skip
def test_a_damaged_file_counts_as_a_day_that_is_spent_and_a_fair_part_of_the_month(path, text):
    path.parent.mkdir()
    path.write_bytes(text.encode(errors="surrogateescape"))
    budget = Budget(path, MB, 31 * MB, "UTC")
    lost = budget.look(at("2027-01-10 10:00"))
    assert (lost.left, lost.day, lost.month) == (0, MB, 10 * MB)
    assert lost.barred == f"what was spent could not be read from {path}, so today counts as spent"
    assert Budget(path, MB, 31 * MB, "UTC").left(at("2027-01-10 23:00")) == 0, "nor is a new start a new day"
    assert Budget(path, MB, 31 * MB, "UTC").left(at("2027-01-11 00:00")) == MB
    assert budget.look(at("2027-01-11 00:00")).barred == ""


def test_a_damaged_file_bars_a_day_that_has_no_limit_of_its_own(path):
    path.parent.mkdir()
    path.write_text("?")
    budget = Budget(path, None, 31 * MB, "UTC")
    assert budget.left(at("2027-01-10 10:00")) == 0
    assert budget.left(at("2027-01-11 10:00")) == 21 * MB
    path.write_text("?")
    assert Budget(path, None, None, "UTC").left(at("2027-01-10 10:00")) is None


def test_a_disk_that_takes_nothing_says_so_and_the_bytes_count_all_the_same(tmp_path):
    (tmp_path / "state").write_text("a file where the folder should be")
    budget, now = Budget(tmp_path / "state" / "budget.json", MB, None, "UTC"), at("2027-01-31 10:00")
    assert budget.left(now) == 0, "what was spent before cannot be known"
    budget = Budget(tmp_path / "other" / "budget.json", MB, None, "UTC")
    assert budget.left(now) == MB
    (tmp_path / "other").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match=r"cannot be written to .*; make room on the disk"):
        budget.spent(now, MB // 2)
    assert budget.left(now) == MB // 2
