"""The two command lines against real processes: what they print, how they exit, and one sentence for what is wrong."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import koinon
from conftest import Clients, Coordinator
from hostile import Device, until
from koinon.operator import Operator
from koinon_core.wire.v1 import fleet_pb2 as pb

ENV = {k: v for k, v in os.environ.items() if not k.startswith("GRPC_")} | {"COLUMNS": "250", "NO_COLOR": "1"}
SENTENCE = re.compile(r"koinon(-coordinator)?: [^\n]+\n")


def run_module(module: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True, text=True, timeout=30, cwd=cwd, env=ENV, check=False,
    )  # fmt: skip


class Cli:
    """`koinon run` against one coordinator."""

    def __init__(self, address: str, folder: Path):
        self.address, self.folder = address, folder

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """What it printed; `code` is how it must exit, with one sentence if that is no success."""
        done = run_module("koinon", "run", *arguments, "--address", self.address, cwd=self.folder)
        assert done.returncode == code, done.stderr
        if code and "Usage:" not in done.stderr:
            assert SENTENCE.fullmatch(done.stderr), done.stderr
        return done.stderr if code else done.stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    one = Coordinator(tmp_path_factory.mktemp("cli"))
    yield one
    one.stop()
    assert "Traceback" not in one.log.read_text()


@pytest.fixture(scope="module")
def cli(coordinator: Coordinator) -> Cli:
    folder = coordinator.folder
    save_file({"x": np.arange(5.0)}, folder / "init.safetensors")
    return Cli(coordinator.address, folder)


@pytest.fixture(scope="module")
def digits(cli: Cli) -> str:
    """A run of two rounds that finished; one device tried to paint the operator's terminal."""
    (cli.folder / "digits.toml").write_text(
        'rounds = 7\nmin_clients = 2\ncodec = "raw"\naggregation = "open"\n\n[config]\nepochs = 3\nlabel = "a"\n'
    )
    made = cli.json(
        "create", "digits", "--model", "init.safetensors", "--config", "digits.toml", "--rounds", 2,
        "--clients", 2, "--strategy", "koinon.FedAvg(lr=1.0)",
    )  # fmt: skip
    assert made["name"] == "digits"
    with Device(cli.address, "[/red]painter[/]") as painter:
        painter.say(
            leave=pb.Leave(run=painter.join("digits"), code="DECLINED", detail="no [/bold] [thanks] [/]")
        )
        with Operator(cli.address) as operator:
            until(lambda: operator.get("digits").incidents)
    clients = Clients()

    def work(i: int) -> None:
        with koinon.join(cli.address, run="digits", name=f"device-{i}") as session:
            model = {"x": np.zeros(5)}
            for task in session.tasks(model, evaluate=lambda m: {"loss": float(m["x"][0])}):
                assert (task.epochs, task.config["label"]) == (3, "a")
                model["x"] += 1
                task.submit(examples=10)

    for i in range(2):
        clients.start(lambda i=i: work(i))
    clients.join()
    return "digits"


# -- koinon run -----------------------------------------------------------------------------------------------


def test_ls_shows_every_run_for_people_and_for_programs(cli: Cli, digits: str) -> None:
    assert re.search(r"digits +finished +2/2 ", cli("ls"))
    (row,) = [r for r in cli.json("ls") if r["name"] == digits]
    assert (row["status"], row["rounds_closed"], row["rounds"]) == ("finished", 2, 2)
    assert row["strategy"] == "koinon.FedAvg(lr=1.0)"


def test_show_and_why_tell_rounds_and_incidents_in_the_devices_own_words(cli: Cli, digits: str) -> None:
    for command in ("show", "why"):
        told = cli(command, digits)
        assert "[/red]painter[/]" in told
        assert "no [/bold] [thanks] [/]" in told
    shown = cli("show", digits)
    assert "digits is finished, 2 of 2 rounds closed" in shown
    assert re.search(r"1 +closed +2/2", shown)
    value = cli.json("show", digits)
    assert [r["kind"] for r in value["rounds"]] == ["train", "train", "evaluate"]
    assert value["rounds"][0]["bytes_up"] > 0
    assert {p["client"] for p in value["rounds"][0]["participants"]} == {"device-0", "device-1"}
    assert (value["settings"]["rounds"], value["settings"]["config"]["epochs"]) == (2, 3)
    assert value["incidents"][0]["code"] == "DECLINED"
    assert cli.json("why", digits)["status"] == "finished"


def test_watch_of_a_finished_run_prints_its_rounds_and_ends_well(cli: Cli, digits: str) -> None:
    told = cli("watch", digits)
    assert [line.split()[:4] for line in told.splitlines()[:2]] == [
        ["round", "1", "train", "closed,"], ["round", "2", "train", "closed,"],
    ]  # fmt: skip
    lines = [json.loads(line) for line in cli("watch", digits, "--json").splitlines()]
    assert [(r["number"], r["status"]) for r in lines] == [(1, "closed"), (2, "closed"), (3, "closed")]


def test_export_writes_a_model_that_safetensors_reads(cli: Cli, digits: str) -> None:
    for arguments, wanted in (((), 2.0), (("--round", 1), 1.0), (("--round", 0), 0.0)):
        assert "the model of round" in cli("export", digits, "--to", "out.safetensors", *arguments)
        np.testing.assert_array_equal(load_file(cli.folder / "out.safetensors")["x"], np.arange(5.0) + wanted)
    cli("create", "again", "--model", "out.safetensors")  # and the next run begins with it
    assert "round 9 made no model" in cli("export", digits, "--to", "o.safetensors", "--round", 9, code=3)
    assert "there is no folder" in cli("export", digits, "--to", "no/where.safetensors", code=2)
    assert "cannot be written" in cli("export", digits, "--to", cli.folder, code=2)
    assert "--round" in cli("export", digits, "--to", "o.safetensors", "--round", -1, code=2)


def test_pause_resume_why_and_cancel_of_a_run_that_waits(cli: Cli) -> None:
    cli("create", "waiting", "--model", "init.safetensors")
    assert "waits for devices: 0 of at least 3 have joined" in cli("why", "waiting")
    assert "waiting is paused" in cli("pause", "waiting")
    assert "waiting is running" in cli("resume", "waiting")
    assert "waiting is cancelled" in cli("cancel", "waiting", "--reason", "wrong [/labels]")
    assert "wrong [/labels]" in cli("why", "waiting")
    assert "nothing to pause" in cli("pause", "waiting", code=1)
    assert "run 'waiting' cancelled: wrong [/labels]" in cli("watch", "waiting", code=6)


def test_watch_follows_a_run_until_it_is_cancelled(cli: Cli) -> None:
    cli("create", "followed", "--model", "init.safetensors")
    command = [sys.executable, "-m", "koinon", "run", "watch", "followed", "--address", cli.address]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    ) as watch:
        assert watch.stdout is not None
        assert "0 of at least 3 have joined" in watch.stdout.readline()
        with Operator(cli.address) as operator:
            operator.control("followed", "cancel", "enough")
        assert watch.wait(10) == 6
        assert "cancelled: enough" in watch.communicate()[1]


def test_what_is_not_there_exits_with_3_and_who_does_not_answer_with_5(cli: Cli, digits: str) -> None:
    for command in ("show", "watch", "why", "pause", "resume", "cancel"):
        assert "no run 'nope' (there are: " in cli(command, "nope", code=3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = Cli(f"127.0.0.1:{free.getsockname()[1]}", cli.folder)
        for arguments in (("ls",), ("watch", "x"), ("create", "x", "--model", "init.safetensors")):
            assert "no coordinator answers at 127.0.0.1" in nobody(*arguments, code=5)
    assert "no coordinator answers at" in Cli("localhost:no-port", cli.folder)("ls", code=5)
    assert "'no host' is not on this machine" in Cli("no host", cli.folder)("ls", code=2)


@pytest.mark.parametrize(
    ("toml", "flags", "sentence"),
    [
        ("", ["--wrong"], "No such option"),
        ("", ["--rounds", "many"], "Invalid value for '--rounds'"),
        ("", ["--rounds", "0"], "rounds must be at least 1"),
        ("", ["--min-clients", "9", "--clients", "3"], "can never have min_clients = 9"),
        ("", ["--clients", "2"], "let 3 or more devices take part, or set aggregation = 'open'"),
        ("", ["--strategy", "koinon.FedAdm()"], "there is no strategy 'koinon.FedAdm' here"),
        ("", ["--strategy", "__import__('os')"], "there is no strategy"),
        ("", ["--plugin", "no_such_plugin"], "the plugin 'no_such_plugin' cannot be imported"),
        ("", ["--config", "missing.toml"], "there is no config file missing.toml"),
        ("", ["--config", "."], "cannot be read"),
        ("", ["--model", "missing.safetensors"], "there is no model file missing.safetensors"),
        ("", ["--model", "bad.toml"], "bad.toml is not a safetensors file"),
        ("rounds = ", [], "bad.toml is not TOML"),
        ("min_client = 3", [], "no key 'min_client'; did you mean 'min_clients'?"),
        ("rounds = 'many'", [], "rounds = 'many' in the run's config must be int"),
        ("config = 3", [], "config"),
        ("strategy = 3", [], "strategy"),
        ("name = 'other'", [], "name"),
        ("schema = []", [], "schema"),
        ("model = 'x'", [], "model"),
        ("aggregation = 'sum'", [], "aggregation = 'sum' must be open or secure"),
    ],
)
def test_a_run_that_cannot_be_is_refused_in_one_sentence(
    cli: Cli, toml: str, flags: list[str], sentence: str
) -> None:
    (cli.folder / "bad.toml").write_text(toml)
    base = ["create", "bad", "--model", "init.safetensors", "--config", "bad.toml"]
    code = 3 if "there is no strategy" in sentence else 2
    assert sentence in cli(*base, *flags, code=code)


def test_a_name_that_is_taken_is_a_conflict(cli: Cli, digits: str) -> None:
    told = cli("create", digits, "--model", "init.safetensors", code=1)
    assert "there is a run named 'digits' already" in told


def commands(app: typer.Typer) -> Iterator[list[str]]:
    def walk(command: Any, path: list[str]) -> Iterator[list[str]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield path
        for name, one in (inner or {}).items():
            yield from walk(one, [*path, name])

    yield from walk(typer.main.get_command(app), [])


def test_the_help_of_every_command_has_an_example() -> None:
    from koinon.cli import app as client
    from koinon_coordinator.cli import app as coordinator

    runner = CliRunner()
    seen = 0
    for app in (client, coordinator):
        for path in commands(app):
            path = path if app is client or path else []
            told = runner.invoke(app, [*path, "--help"])
            assert told.exit_code == 0
            assert "Example: koinon" in told.output, path
            seen += 1
    assert seen >= 12


# -- koinon-coordinator ---------------------------------------------------------------------------------------


def serve(folder: Path, *arguments: object) -> str:
    """What a coordinator says that cannot start."""
    done = run_module("koinon_coordinator", "serve", "--insecure", *arguments, cwd=folder)
    assert done.returncode in (1, 2), done.stderr
    assert SENTENCE.fullmatch(done.stderr), done.stderr
    assert done.stdout == ""
    return done.stderr


def test_a_coordinator_that_cannot_start_says_why_in_one_sentence(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    taken = serve(tmp_path, "--listen", coordinator.address)
    assert "the port is in use" in taken
    for listen in ("0.0.0.0:0", "example.org:0"):
        assert "is not a loopback address" in serve(tmp_path, "--listen", listen)
    for listen in ("127.0.0.1", "127.0.0.1:99999"):
        assert "must be HOST:PORT" in serve(tmp_path, "--listen", listen)
    assert "the plugin 'nope' cannot be imported" in serve(tmp_path, "--plugin", "nope")
    assert "is not a database this coordinator can use" in serve(tmp_path, "--db", "nonsense")
    missing = serve(tmp_path, "--db", f"sqlite:///{tmp_path}/no/where.db", "--data", tmp_path / "blobs")
    assert "cannot be used" in missing


def test_a_database_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    text, foreign = tmp_path / "notes.db", tmp_path / "foreign.db"
    text.write_text("these are my notes, " * 100)
    assert "cannot be used" in serve(tmp_path, "--listen", "127.0.0.1:0", "--db", f"sqlite:///{text}")
    assert text.read_text().startswith("these are my notes")
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")
    told = serve(tmp_path, "--listen", "127.0.0.1:0", "--db", f"sqlite:///{foreign}")
    assert "holds tables that are not Koinon's ('recipes')" in told


def test_a_database_of_a_newer_version_or_in_use_is_refused(tmp_path: Path) -> None:
    own = Coordinator(tmp_path)
    assert "another coordinator uses" in serve(
        tmp_path, "--db", f"sqlite:///{own.db}", "--listen", "127.0.0.1:0"
    )
    assert own.stop() == 0
    with sqlite3.connect(own.db) as db:
        db.execute("UPDATE alembic_version SET version_num = 'ffff'")
    told = serve(tmp_path, "--db", f"sqlite:///{own.db}", "--listen", "127.0.0.1:0")
    assert "is at revision 'ffff'" in told
    assert "written by a newer Koinon" in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_good_order_while_devices_and_operators_are_attached(
    tmp_path: Path, number: int
) -> None:
    own, clients = Coordinator(tmp_path), Clients()
    koinon.Run("r", model={"x": np.zeros(5)}, aggregation="open", min_clients=3).create(own.address)

    def watch() -> None:
        with Operator(own.address) as operator, pytest.raises(koinon.Unavailable):
            list(operator.watch("r"))

    clients.start(watch)
    with Device(own.address) as raw, koinon.join(own.address, run="r", name="waits") as session:
        raw.offer(raw.join("r"))
        clients.start(lambda: next(session.tasks({"x": np.zeros(5)}), None))
        with Operator(own.address) as operator:
            until(lambda: len(operator.get("r").attached) == 2)
        started = time.monotonic()
        own.process.send_signal(number)
        assert own.process.wait(10) == 0
        assert time.monotonic() - started < 5
        assert session.status == ""  # it waits for the coordinator to come back, and does
        own.start()
        with Operator(own.address) as operator:
            until(lambda: "waits" in operator.get("r").attached)
            operator.control("r", "cancel", "enough")
        clients.join(20)
    assert session.status == "cancelled"
    assert own.stop() == 0
    assert "Traceback" not in own.log.read_text()
