"""`koinon update` and the figures of `koinon run show`: one device says what it measured, one does not."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import koinon
from conftest import Coordinator
from hostile import Device, container, over
from koinon.operator import Operator
from koinon_core.canonical import sha256
from koinon_core.wire.v1 import fleet_pb2 as pb

ENV = {k: v for k, v in os.environ.items() if not k.startswith("GRPC_")} | {"COLUMNS": "250", "NO_COLOR": "1"}
SENTENCE = re.compile(r"koinon: [^\n]+\n")
ROUNDS = 33  # with two updates each: more than one page
UPDATE = container(x=[3.0] * 5)
STATS = pb.Stats(parameters=5, nmse=0.0052, norm=6.7082, encode_s=0.0125)


class Cli:
    """`koinon` against one coordinator."""

    def __init__(self, address: str):
        self.address = address

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """What it printed; `code` is how it must exit, with one sentence if that is no success."""
        done = subprocess.run(
            [sys.executable, "-m", "koinon", *map(str, arguments), "--address", self.address],
            capture_output=True, text=True, timeout=30, env=ENV, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        if code:
            assert SENTENCE.fullmatch(done.stderr), done.stderr
        return done.stderr if code else done.stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))


def take_part(address: str, run: str, rounds: int) -> None:
    """Both devices take part in every round; b measures nothing."""
    with Device(address, "a") as a, Device(address, "b") as b:
        asks = a.join(run), b.join(run)
        for _ in range(rounds):
            for device, joined in zip((a, b), asks, strict=True):
                device.offer(joined)
            a.answer(a.asked(), UPDATE, stats=STATS, head={"training": {"loss": 0.25}, "steps": 4})
            b.answer(b.asked(), UPDATE)
            for device in (a, b):
                while device.hear("receipt").verdict != pb.VERDICT_COUNTED:
                    pass
    over(address, run)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """One with two runs that finished: `digits`, whose updates are kept, and `scrubbed`."""
    one = Coordinator(tmp_path_factory.mktemp("update"))
    settings: dict[str, Any] = {
        "model": {"x": np.zeros(5)}, "min_clients": 2, "clients": 2, "evaluate": False, "codec": "lossless",
        "aggregation": "open",
    }  # fmt: skip
    koinon.Run("digits", rounds=ROUNDS, retention="keep", **settings).create(one.address)
    koinon.Run("scrubbed", rounds=1, retention="none", **settings).create(one.address)
    take_part(one.address, "digits", ROUNDS)
    take_part(one.address, "scrubbed", 1)
    with sqlite3.connect(one.db) as db:  # as if these had been large
        db.execute("UPDATE updates SET upload_s = 1.75 WHERE round = 2 AND client = 'a'")
        db.execute("UPDATE rounds SET fold_s = 0.625 WHERE number = 2")
    db.close()
    yield one
    one.stop()
    assert "Traceback" not in one.log.read_text()


@pytest.fixture(scope="module")
def cli(coordinator: Coordinator) -> Cli:
    return Cli(coordinator.address)


def test_ls_tells_of_every_update_what_it_weighs_and_what_was_measured(cli: Cli) -> None:
    told = cli("update", "ls", "digits", "--round", 2).splitlines()
    assert len(told) == 3
    bits = f"{8 * len(UPDATE) / 5:.3g}"
    assert told[1].split() == [
        "2", "a", sha256(UPDATE)[:12], "lossless", str(len(UPDATE)), "B", bits, "0.0052", "6.71", "0.0125", "1.75",
        "counted", "kept",
    ]  # fmt: skip
    assert told[2].split() == [
        "2",
        "b",
        sha256(UPDATE)[:12],
        "lossless",
        str(len(UPDATE)),
        "B",
        "counted",
        "kept",
    ]
    assert "scrubbed" in cli("update", "ls", "scrubbed").splitlines()[1].split()


def test_ls_lists_all_rounds_and_programs_get_numbers(cli: Cli) -> None:
    found = cli.json("update", "ls", "digits")
    assert [(u["round"], u["client"]) for u in found] == [(n, c) for n in range(1, ROUNDS + 1) for c in "ab"]
    first = found[0]
    assert first["stats"] == {"parameters": 5, "nmse": 0.0052, "norm": 6.7082, "encode_s": 0.0125}
    assert (first["bytes"], first["status"], first["kept"]) == (len(UPDATE), "counted", True)
    assert first["bits"] == 8 * len(UPDATE) / 5
    assert first["head"]["training"] == {"loss": 0.25}
    assert (found[1]["stats"]["parameters"], found[1]["bits"]) == (0, 0.0)
    assert [u["kept"] for u in cli.json("update", "ls", "scrubbed")] == [False, False]


def test_show_tells_all_of_one_update(cli: Cli) -> None:
    told = cli("update", "show", "digits", 2, "a")
    assert told.startswith("round 2, a: counted\n")
    said = dict(re.findall(r"(?m)^ (\S.*?)  +(\S.*?) *$", told))
    assert said["digest"] == sha256(UPDATE)
    assert said["bytes"] == f"{len(UPDATE)}, kept"
    assert (said["parameters"], said["NMSE"], said["upload s"]) == ("5", "0.0052", "1.75")
    assert (said["examples"], said["steps"], said["training"]) == ("10", "4", "loss 0.25")
    assert "NMSE" not in cli("update", "show", "digits", 2, "b"), "it measured nothing"
    assert cli.json("update", "show", "digits", 2, "a")["client"] == "a"


def test_run_show_has_the_figures_of_a_round(cli: Cli) -> None:
    lines = cli("run", "show", "digits").splitlines()
    (header,) = [line for line in lines if line.split()[:2] == ["round", "status"]]
    (second,) = [line for line in lines if line.split()[:2] == ["2", "closed"]]

    def under(column: str) -> str:
        return second[header.index(column) :].split()[0]

    assert under("bits/param") == f"{8 * len(UPDATE) / 5:.3g}"
    assert (under("NMSE"), under("upload s"), under("fold s")) == ("0.0052", "1.75", "0.625")
    assert "upload s" not in cli("run", "show", "scrubbed"), "nobody measured that"
    r = cli.json("run", "show", "digits")["rounds"][1]
    assert (r["bits"], r["nmse"], r["upload_s"], r["fold_s"]) == (8 * len(UPDATE) / 5, 0.0052, 1.75, 0.625)


def test_the_seconds_of_a_sum_are_measured(cli: Cli) -> None:
    assert all(0 < r["fold_s"] < 60 for r in cli.json("run", "show", "scrubbed")["rounds"])


def test_what_is_not_there_is_said_in_one_sentence(cli: Cli) -> None:
    assert "no run 'nope'" in cli("update", "ls", "nope", code=3)
    assert "has no update of round 99" in cli("update", "ls", "digits", "--round", 99, code=3)
    assert "has no update of 'c' in round 2" in cli("update", "show", "digits", 2, "c", code=3)


def test_the_sdk_reads_the_same(coordinator: Coordinator) -> None:
    handle = koinon.run.RunHandle(coordinator.address, "scrubbed", "scrubbed")
    assert [(u.client, u.stats.parameters) for u in handle.updates(1)] == [("a", 5), ("b", 0)]


@pytest.mark.parametrize(
    "lie", [{"nmse": float("nan")}, {"norm": -1.0}, {"parameters": 6}, {"parameters": 1 << 63}]
)
def test_who_says_what_cannot_be_measured_is_refused_by_name(coordinator: Coordinator, lie: Any) -> None:
    name = f"lies-{next(iter(lie))}-{next(iter(lie.values()))}"
    koinon.Run(
        name,
        model={"x": np.zeros(5)},
        aggregation="open",
        min_clients=1,
        clients=1,
        evaluate=False,
        codec="lossless",
    ).create(coordinator.address)
    with Device(coordinator.address, "liar") as liar, Operator(coordinator.address) as operator:
        ask = liar.enter(name)
        liar.answer(ask, UPDATE, stats=pb.Stats(**lie))
        assert liar.hear("receipt").verdict == pb.VERDICT_NOT_COUNTED
        (incident,) = operator.get(name).incidents
        assert (incident.client, incident.code) == ("liar", "BAD_BLOB")
        assert list(operator.updates(name)) == []
        operator.control(name, "cancel")
