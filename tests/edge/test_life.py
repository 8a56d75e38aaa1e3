"""Where a device stands, on disk; what of its disk may go; and lines over a local socket."""

import json
import socket
import threading
from contextlib import suppress

import pytest

from koinon_core.errors import RemoteProtocolError, UsageError
from koinon_edge.container import commands
from koinon_edge.life import Life, LifeFile
from koinon_edge.line import LONGEST, Line
from koinon_edge.settings import Container, TaskSettings
from koinon_edge.spool import tidy

# -- life -----------------------------------------------------------------------------------------------------


def test_a_start_finds_where_the_last_one_stood(tmp_path):
    first = LifeFile(tmp_path / "life.json", lambda: 5.0)
    assert first.now == Life()
    first.move("TRAINING", task="defects", run="defects-7", round=3)
    first.evaluates("defects", True)
    again = LifeFile(tmp_path / "life.json", lambda: 9.0)
    assert again.now == Life(
        state="TRAINING", task="defects", run="defects-7", round=3, since=5.0, evaluates=("defects",)
    )
    assert again.now.works


def test_nothing_is_written_where_nothing_changes(tmp_path):
    times = iter((1.0, 2.0, 3.0))
    life = LifeFile(tmp_path / "life.json", lambda: next(times))
    for _ in range(5):
        life.move("IDLE", "too hot")
    assert life.now.since == 1.0


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"state": "ASLEEP"}', b'{"state": "TRAINING", "odd": 1}', b"[1]"]
)
def test_what_cannot_be_read_is_taken_for_work_that_may_be_owed(tmp_path, content):
    (tmp_path / "life.json").write_bytes(content)
    life = LifeFile(tmp_path / "life.json", lambda: 0.0)
    assert life.now.state == "UPLOADING"
    assert "could not be read" in life.now.reason


# -- the spool ------------------------------------------------------------------------------------------------


def spool(tmp_path, **files):
    for name, size in files.items():
        path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return tmp_path


def test_models_go_first_and_an_update_that_is_owed_never(tmp_path):
    folder = spool(
        tmp_path, models__old=400_000, run_dot_sent=1000, run_dot_update=400_000, masked__run=400_000,
        edge__work__defects__save=400_000,
    )  # fmt: skip
    room = tidy(folder, 1_300_000, working=False)
    assert not room.full
    assert room.freed >= 400_000
    assert not (folder / "models/old").exists()
    assert (folder / "edge/work/defects/save").exists()
    room = tidy(folder, 100_000, working=False)
    assert room.full
    assert not (folder / "edge/work/defects").exists()
    assert (folder / "run.sent").exists()
    assert (folder / "run.update").exists()
    assert (folder / "masked/run").exists(), "its masks could not be made again"


def test_while_there_is_work_nothing_is_touched(tmp_path):
    folder = spool(tmp_path, models__new=400_000)
    assert tidy(folder, 1000, working=True).full
    assert (folder / "models/new").exists()


# -- lines ----------------------------------------------------------------------------------------------------


def test_lines_come_whole_however_they_are_cut():
    ours, theirs = socket.socketpair()
    line = Line(ours)
    for piece in (b'{"ta', b'sk": {"id": 1}}\n{"stop"', b': "hot"}\n'):
        theirs.sendall(piece)
    assert line.hear() == ("task", {"id": 1})
    assert line.hear() == ("stop", "hot")
    theirs.close()
    assert line.hear() is None


@pytest.mark.parametrize(
    "rubbish", [b"rubbish\n", b"[1]\n", b'{"a": 1, "b": 2}\n', b"{}\n", b"[" * 100_000 + b"\n"]
)
def test_rubbish_is_refused_by_name(rubbish):
    ours, theirs = socket.socketpair()
    theirs.sendall(rubbish)
    with pytest.raises(RemoteProtocolError, match="no message of Koinon's"):
        Line(ours).hear()


def test_a_line_without_an_end_is_not_kept_for_ever():
    ours, theirs = socket.socketpair()

    def send():
        with suppress(BrokenPipeError):  # it was hung up on
            theirs.sendall(b"x" * (LONGEST + (1 << 17)))

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(RemoteProtocolError, match="more than 1 MiB"):
        Line(ours).hear()


# -- containers -----------------------------------------------------------------------------------------------


def task(tmp_path, **values):
    inside = Container(image="defects:3", **values)
    return TaskSettings(
        name="defects", command=("python", "train.py"), run="defects", directory=tmp_path, memory=3 << 30, cpus=2.0,
        environment={"SECRET": "xyzzy"}, container=inside,
    )  # fmt: skip


def test_a_container_has_its_limits_its_mounts_and_no_network(tmp_path):
    engine = tmp_path / "docker"
    engine.write_text("#!/bin/sh\n")
    engine.chmod(0o755)
    one = task(tmp_path, runtime="nvidia", mounts=("/data:/data:ro",))
    start, end = commands(one, "koinon-x", {"SECRET": "xyzzy"}, [tmp_path], path=str(tmp_path))
    text = " ".join(start)
    assert start[0] == str(engine)
    assert "--runtime nvidia --memory 3221225472 --memory-swap 3221225472 --cpus 2.0" in text
    assert (
        f"--volume {tmp_path}:{tmp_path} --volume /data:/data:ro --env SECRET defects:3 python train.py"
        in text
    )
    assert "--network none" in text
    assert "xyzzy" not in text, "every user of the machine reads the list of processes"
    assert end == [str(engine), "rm", "--force", "koinon-x"]
    own = task(tmp_path, options=("--network=host",))
    assert "none" not in commands(own, "koinon-x", {}, [], path=str(tmp_path))[0]


def test_without_an_engine_the_owner_is_told(tmp_path):
    with pytest.raises(UsageError, match="neither docker nor podman"):
        commands(task(tmp_path), "koinon-x", {}, [], path=str(tmp_path))


def test_life_is_json_that_other_programs_read(tmp_path):
    LifeFile(tmp_path / "life.json", lambda: 1.0).move("IDLE", "too hot")
    assert json.loads((tmp_path / "life.json").read_text())["reason"] == "too hot"
