"""What was measured of an update is kept with it, wherever that is, and is no part of what the update is."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from koinon.outbox import DiskOutbox, MemoryOutbox, Outbox, Sent, files
from koinon_core.blob import NO_BYTES
from koinon_core.update import Head, Stats

RUN = "5f" * 16
MEASURED = Stats(parameters=10, nmse=0.25, norm=3.0, encode_s=0.5)
SENT = Sent(round=1, terms=b"{}", blob=NO_BYTES, head=Head(examples=1), pending=None, stats=MEASURED)


@pytest.fixture(params=["memory", "disk"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    one: Outbox = MemoryOutbox() if request.param == "memory" else DiskOutbox(tmp_path / "device")
    yield one
    one.close()


def found(folder: Path) -> Sent | None:
    """The update that a process finds which starts now."""
    one = DiskOutbox(folder)
    try:
        return one.enter(RUN).sent
    finally:
        one.close()


def test_the_same_update_made_again_may_have_taken_another_time(outbox: Outbox):
    outbox.keep(RUN, SENT)
    outbox.keep(RUN, replace(SENT, stats=replace(MEASURED, encode_s=9.0)))
    assert outbox.enter(RUN).sent == SENT


def test_the_next_process_finds_it_and_in_an_older_file_nothing_was_measured(tmp_path: Path):
    one = DiskOutbox(tmp_path)
    one.keep(RUN, SENT)
    one.close()
    assert found(tmp_path) == SENT
    (path,) = tmp_path.glob("*.sent")
    header, parts = files.read(path, "sent", RUN)
    del header["stats"]
    files.write(files.File(path, header, tuple(parts)))
    assert found(tmp_path) == replace(SENT, stats=Stats())
