"""How far a transfer is, as lines in the log and as bars."""

import io
import logging

import pytest
from rich.console import Console

from koinon import progress
from koinon.progress import Bars, LogLines


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_say_how_far_it_is_how_fast_and_how_long_it_will_take(clock, caplog):
    caplog.set_level(logging.INFO, "koinon")
    lines = LogLines("c0", lambda: clock[0])
    for done in range(0, 101, 2):  # two megabytes a second
        lines("upload", done * 1_000_000, 100_000_000)
        clock[0] += 1
    assert caplog.messages == [
        "c0: upload, 6.0 MB of 100.0 MB (6 %), 2.0 MB/s, 47 s left",
        "c0: upload, 26.0 MB of 100.0 MB (26 %), 2.0 MB/s, 37 s left",
        "c0: upload, 46.0 MB of 100.0 MB (46 %), 2.0 MB/s, 27 s left",
        "c0: upload, 66.0 MB of 100.0 MB (66 %), 2.0 MB/s, 17 s left",
        "c0: upload, 86.0 MB of 100.0 MB (86 %), 2.0 MB/s, 7 s left",
        "c0: upload of 100.0 MB is over",
    ]


def test_a_transfer_that_goes_on_is_as_fast_as_it_is_now(clock, caplog):
    caplog.set_level(logging.INFO, "koinon")
    lines = LogLines("c0", lambda: clock[0])
    lines("download", 50_000_000, 100_000_000)  # an earlier process brought these
    clock[0] += 5
    lines("download", 60_000_000, 100_000_000)
    assert caplog.messages == ["c0: download, 60.0 MB of 100.0 MB (60 %), 2.0 MB/s, 20 s left"]


def test_of_a_short_transfer_nothing_is_said(clock, caplog):
    caplog.set_level(logging.INFO, "koinon")
    lines = LogLines("c0", lambda: clock[0])
    for done in range(11):
        lines("upload", done, 10)
        clock[0] += 0.2
    assert caplog.messages == []


def test_a_bar_is_there_while_a_transfer_is_under_way(clock):
    console = Console(force_terminal=True, width=100, record=True, file=io.StringIO())
    bars = Bars(console)
    show = bars.of("c0")
    show("upload", 0, 10_000_000)
    assert not bars._display.live.is_started, "it may be over at once"
    clock[0] += 1
    show("upload", 5_000_000, 10_000_000)
    assert bars._display.live.is_started
    bars._display.refresh()
    text = console.export_text()
    assert "c0 upload" in text
    assert "5.0/10.0 MB" in text
    show("upload", 10_000_000, 10_000_000)
    assert not bars._display.live.is_started


def test_a_process_chooses_once_what_its_links_report_to(monkeypatch):
    monkeypatch.setattr(progress, "_of", [LogLines])
    assert isinstance(progress.reporter("c0"), LogLines)
    said = []
    progress.use(lambda client: lambda *what: said.append((client, *what)))
    progress.reporter("c1")("upload", 1, 2)
    assert said == [("c1", "upload", 1, 2)]
