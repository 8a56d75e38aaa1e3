"""Tracking a real run: a coordinator process, devices, and a file that says what the coordinator knows."""

import json
import threading
import time

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import koinon
from hostile import until
from koinon.cli.track import track
from koinon.operator import Operator
from koinon.tracking import follow
from koinon.tracking.jsonl import JsonLines
from koinon_core.errors import NotFound, RunEnded

NAMES = ("ward-1", "ward-2", "ward-3")


def client(session):
    model = {"x": np.zeros(2)}
    for task in session.tasks(model, evaluate=lambda m: {"loss": float(np.abs(m["x"]).sum()), "examples": 1}):
        model["x"] -= 0.1
        time.sleep(0.05)  # so that the coordinator dies in a round, not after them all
        task.submit(examples=1, metrics={"loss": 1.0})


def start(address, clients, rounds, **settings):
    run = koinon.Run(
        "tracked", model={"x": np.ones(2)}, rounds=rounds, min_clients=3, clients=3, aggregation="open", codec="raw",
        **settings,
    )  # fmt: skip
    handle = run.create(address)

    def device(name):
        with koinon.join(address, run="tracked", name=name) as session:
            client(session)

    for name in NAMES:
        clients.start(lambda name=name: device(name), name)
    return handle


def lines_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_file_follows_a_run_through_a_coordinator_that_is_killed(coordinator, clients, tmp_path):
    path = tmp_path / "tracked.jsonl"
    handle = start(coordinator.address, clients, 12)
    ended = []
    follower = threading.Thread(target=lambda: ended.append(follow(handle, [JsonLines(path)])), daemon=True)
    follower.start()
    until(path.exists)
    for signal in (coordinator.kill, coordinator.stop):
        here = len(lines_of(path)) if path.exists() else 0
        for seen in handle.watch():
            if seen.run.rounds_closed >= here + 3:
                break
        signal()
        coordinator.start()
    clients.join(60)
    follower.join(30)
    assert ended == ["finished"]
    start_, *rounds, end = lines_of(path)
    known = handle.rounds()
    assert (start_["event"], start_["id"], start_["settings"]["rounds"]) == ("run", handle.id, 12)
    assert [r["number"] for r in rounds] == [r.number for r in known]
    for told, r in zip(rounds, known, strict=True):
        assert told["metrics"] == dict(r.metrics)
        assert (told["status"], told["bytes_up"], told["bytes_down"]) == (r.status, r.bytes_up, r.bytes_down)
        assert told["participants"] == 3
    made = [r for r in rounds if r["kind"] == "train" and r["status"] == "closed"]
    assert len(made) == 12
    assert all({"train.loss", "eval.loss"} <= set(r["metrics"]) for r in made)
    assert end == {"event": "end", "status": "finished", "reason": "12 rounds closed"}
    assert not any(name.encode() in path.read_bytes() for name in NAMES)


def test_the_command_tracks_a_run_that_is_over_and_goes_on_with_its_file(coordinator, clients, tmp_path):
    path = tmp_path / "tracked.jsonl"
    handle = start(coordinator.address, clients, 2)
    clients.join()
    handle.wait()
    app = typer.Typer()
    app.command()(track)
    arguments = ["tracked", "--to", f"jsonl:{path}", "--address", coordinator.address, "--insecure"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "tracked is finished" in done.output
    whole = path.read_bytes()
    assert [line["event"] for line in lines_of(path)] == ["run", "round", "round", "round", "end"]
    path.write_bytes(whole[:-70])
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert path.read_bytes() == whole


def test_the_command_says_that_a_run_did_not_finish(coordinator, tmp_path):
    run = koinon.Run("never", model={"x": np.ones(2)}, rounds=2)
    handle = run.create(coordinator.address)
    with Operator(coordinator.address, insecure=True) as operator:
        operator.control(handle.id, "cancel", "wrong labels")
    with pytest.raises(RunEnded, match="never' cancelled"):
        track("never", [f"jsonl:{tmp_path / 'never.jsonl'}"], coordinator.address, None, True)
    assert lines_of(tmp_path / "never.jsonl")[-1] == {
        "event": "end",
        "status": "cancelled",
        "reason": "wrong labels",
    }
    with pytest.raises(NotFound):
        track("nowhere", [f"jsonl:{tmp_path / 'nowhere.jsonl'}"], coordinator.address, None, True)
    assert not (tmp_path / "nowhere.jsonl").exists()
