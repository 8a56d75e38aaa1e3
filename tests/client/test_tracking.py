"""Trackers: each round told once and in order, whatever becomes of the connection, and nothing of single devices."""

import json
import math
import re
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

import koinon
import toy
from koinon.cli.track import _tracker
from koinon.run import RunHandle
from koinon.tracking import RoundEnd, RunStart, follow, replay_into
from koinon.tracking.jsonl import JsonLines
from koinon.tracking.mlflow import MLflow
from koinon.tracking.tensorboard import TensorBoard
from koinon_core.canonical import canonical
from koinon_core.errors import Denied, KoinonError, NotFound, Unavailable, UsageError
from koinon_core.wire.v1 import runs_pb2 as pb

DEVICES = ("ward-7", "ward-71", "st.mary")
SPEC = canonical({"name": "digits", "rounds": 3, "config": {"epochs": 2}, "schema": ["long"], "seed": 0})


def round_(number, status="closed", kind="train", reason="", **metrics):
    return pb.RoundInfo(
        number=number, kind=kind, status=status, reason=reason, opened_at=100.0 * number,
        closed_at=100.0 * number + 7 if status in ("closed", "abandoned") else 0.0, bytes_up=30, bytes_down=60,
        metrics={name.replace("_", "."): value for name, value in metrics.items()},
        participants=[
            pb.ParticipantInfo(client=c, status="left" if c == "ward-7" else "counted", examples=5) for c in DEVICES
        ],
    )  # fmt: skip


class Fake:
    """A coordinator through a run's states, one after the other: each is (status of the run, its rounds). Whoever
    watches is told, as the real one does, what lies at most two rounds before the newest that it was told."""

    def __init__(self, *states, reason="3 rounds closed", cuts=()):
        self.states, self.reason, self.at = states, reason, 0
        self.cuts = dict(cuts)
        self.gets = 0

    def _info(self):
        status = self.states[self.at][0]
        return pb.RunInfo(
            id="0123456789", name="digits", status=status, reason=self.reason if status != "running" else "",
            rounds=3, strategy="koinon.FedAvg()", aggregation="open", created_at=90.0,
        )  # fmt: skip

    def get(self, run):
        assert run == "digits"
        self.gets += 1
        return pb.GetResponse(
            run=self._info(), spec=SPEC, rounds=self.states[self.at][1], attached=["st", "ward-9"]
        )

    def watch(self, run):
        assert run == "digits"
        since = 0
        while True:
            status, rounds = self.states[self.at]
            told = [r for r in rounds if r.number >= since]
            yield pb.WatchResponse(run=self._info(), rounds=told)
            since = max(0, max((r.number for r in told), default=0) - 2)
            if status != "running":
                return
            self.at += 1
            if error := self.cuts.pop(self.at, None):
                if error == "silently":
                    return
                raise error


class Notes:
    """An owner's tracker that remembers what it was told."""

    def __init__(self):
        self.start, self.rounds, self.ends = None, [], []

    def on_run_start(self, start):
        assert self.start is None
        self.start = start

    def on_round(self, told):
        assert self.start is not None
        assert not self.ends
        self.rounds.append(told)

    def on_end(self, status, reason):
        self.ends.append((status, reason))


OPEN = {"status": "update"}
STORY = (
    ("running", []),
    ("running", [round_(1, **OPEN)]),
    ("running", [round_(1, train_loss=3.0), round_(2, **OPEN)]),
    ("running", [round_(1, train_loss=3.0, eval_loss=2.5), round_(2, train_loss=2.0), round_(3, **OPEN)]),
    ("running", [
        round_(1, train_loss=3.0, eval_loss=2.5), round_(2, train_loss=2.0),
        round_(3, "abandoned", reason="lost its quorum: ward-7 declined"), round_(4, **OPEN),
    ]),
    ("running", [
        round_(1, train_loss=3.0, eval_loss=2.5), round_(2, train_loss=2.0, eval_loss=1.5),
        round_(3, "abandoned", reason="lost its quorum: ward-7 declined"), round_(4, train_loss=1.0),
        round_(5, kind="evaluate", **OPEN),
    ]),
    ("finished", [
        round_(1, train_loss=3.0, eval_loss=2.5), round_(2, train_loss=2.0, eval_loss=1.5),
        round_(3, "abandoned", reason="lost its quorum: ward-7 declined"), round_(4, train_loss=1.0, eval_loss=0.5),
        round_(5, kind="evaluate"),
    ]),
)  # fmt: skip
METRICS = [
    {"train.loss": 3.0, "eval.loss": 2.5}, {"train.loss": 2.0, "eval.loss": 1.5}, {},
    {"train.loss": 1.0, "eval.loss": 0.5}, {},
]  # fmt: skip


def followed(fake, *more):
    notes = Notes()
    status = follow(fake, [notes, *more], run="digits")
    assert notes.ends == [(status, fake.reason)]
    return notes


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("koinon.tracking.following.time.sleep", lambda seconds: None)


# -- following ------------------------------------------------------------------------------------------------


def test_every_round_is_told_once_with_all_its_metrics():
    notes = followed(Fake(*STORY))
    assert [r.number for r in notes.rounds] == [1, 2, 3, 4, 5]
    assert [dict(r.metrics) for r in notes.rounds] == METRICS
    first = notes.rounds[0]
    assert (first.participants, first.counted, first.bytes_up, first.bytes_down) == (3, 2, 30, 60)
    assert (first.seconds, first.closed_at, first.kind, first.status) == (7.0, 107.0, "train", "closed")
    assert notes.start == RunStart(
        id="0123456789", name="digits", strategy="koinon.FedAvg()", rounds=3, aggregation="open", created_at=90.0,
        settings={"name": "digits", "rounds": 3, "config": {"epochs": 2}, "seed": 0},
    )  # fmt: skip


def test_who_starts_late_is_told_what_is_over_first():
    whole = followed(Fake(*STORY))
    for late in range(1, len(STORY)):
        notes = followed(Fake(*STORY[late:]))
        assert notes.rounds == whole.rounds


def test_a_round_is_told_when_the_next_one_has_closed_and_not_before():
    fake, seen = Fake(*STORY), []

    class Clock(Notes):
        def on_round(self, told):
            seen.append((told.number, fake.at))

    follow(fake, [Clock()], run="digits")
    assert seen == [(1, 3), (2, 5), (3, 5), (4, 6), (5, 6)]


@pytest.mark.parametrize(
    "error",
    [Unavailable("gone"), KoinonError("the call was cut short"), "silently"],
    ids=["gone", "cut", "silent"],
)
@pytest.mark.parametrize("at", range(1, len(STORY)))
def test_a_lost_connection_leaves_no_round_out_and_tells_none_twice(at, error, caplog):
    notes = followed(Fake(*STORY, cuts={at: error}))
    assert [dict(r.metrics) for r in notes.rounds] == METRICS
    assert "is out of sight" in caplog.text


def test_every_connection_may_be_lost():
    notes = followed(Fake(*STORY, cuts={at: Unavailable("gone") for at in range(1, len(STORY))}))
    assert [dict(r.metrics) for r in notes.rounds] == METRICS


def test_metrics_that_come_in_long_after_their_round_are_not_forgotten():
    lost = [round_(n, "abandoned", reason="lost its quorum") for n in (2, 3, 4, 5)]
    fake = Fake(
        ("running", [round_(1, **OPEN)]),
        ("running", [round_(1, train_loss=3.0), *lost, round_(6, **OPEN)]),
        ("running", [round_(1, train_loss=3.0, eval_loss=2.5), *lost, round_(6), round_(7, **OPEN)]),
        ("cancelled", [round_(1, train_loss=3.0, eval_loss=2.5), *lost, round_(6), round_(7, "abandoned")]),
        reason="enough",
    )
    notes = followed(fake)
    assert [r.number for r in notes.rounds] == [1, 2, 3, 4, 5, 6, 7]
    assert dict(notes.rounds[0].metrics) == {"train.loss": 3.0, "eval.loss": 2.5}


def test_the_last_round_is_told_even_where_the_status_was_ahead_of_it():
    class Racing(Fake):
        def get(self, run):
            got = super().get(run)
            if self.gets == 1:
                got.rounds[-1].CopyFrom(round_(5, kind="evaluate", **OPEN))
            return got

    assert [r.number for r in followed(Racing(*STORY[-1:])).rounds] == [1, 2, 3, 4, 5]


def test_a_round_that_never_ends_is_not_told():
    fake = Fake(("failed", [round_(1), round_(2, **OPEN)]), reason="it was given up")
    assert [r.number for r in followed(fake).rounds] == [1]


@pytest.mark.parametrize("error", [Unavailable("nobody"), NotFound("no run"), Denied("not you")])
def test_what_the_first_connection_raises_is_raised(error):
    class Away(Fake):
        def get(self, run):
            raise error

    with pytest.raises(type(error)):
        follow(Away(), [Notes()], run="digits")


def test_who_is_denied_after_an_outage_is_not_asked_again():
    class Revoked(Fake):
        def get(self, run):
            if self.gets:
                raise Denied("revoked")
            return super().get(run)

    with pytest.raises(Denied):
        follow(Revoked(*STORY, cuts={3: Unavailable("gone")}), [Notes()], run="digits")


def test_names_of_devices_are_not_told():
    told = "lost its quorum: ward-71 declined, ward-7: 'no', st.mary and ward-9 fell silent; ward-700 did not"
    fake = Fake(("failed", [round_(1, "abandoned", reason=told)]), reason=f"the last one {told}")
    notes = Notes()
    assert follow(fake, [notes], run="digits") == "failed"
    clean = "lost its quorum: a device declined, a device: 'no', a device and a device fell silent; ward-700 did not"
    assert notes.rounds[0].reason == clean
    assert notes.ends == [("failed", f"the last one {clean}")]
    everything = repr((notes.start, notes.rounds, notes.ends)).replace("ward-700", "")
    assert not any(name in everything for name in (*DEVICES, "ward-9"))


def test_a_run_must_be_said_once():
    handle = RunHandle("127.0.0.1:1", "id", "digits", None, True)
    for source, run in ((Fake(*STORY), ""), (handle, "letters")):
        with pytest.raises(UsageError, match="run="):
            follow(source, [Notes()], run=run)
    with pytest.raises(UsageError, match="at least one"):
        follow(Fake(*STORY), [], run="digits")


class Broken(Notes):
    def on_round(self, told):
        if told.number == 2:
            raise ZeroDivisionError("by nought")
        super().on_round(told)


def test_a_tracker_that_raises_does_not_cost_the_others_anything(caplog):
    notes, broken = Notes(), Broken()
    with pytest.raises(KoinonError, match=r"Broken failed at round 2 .* ZeroDivisionError: by nought"):
        follow(Fake(*STORY), [broken, notes], run="digits")
    assert [r.number for r in notes.rounds] == [1, 2, 3, 4, 5]
    assert len(notes.ends) == 1
    assert ([r.number for r in broken.rounds], broken.ends) == ([1], [])
    assert "Broken failed" in caplog.text


def test_with_no_tracker_left_the_run_is_followed_no_further():
    fake = Fake(*STORY)
    with pytest.raises(KoinonError, match="Broken failed"):
        follow(fake, [Broken()], run="digits")
    assert fake.at < len(STORY) - 1


def test_a_trackers_own_unavailable_is_not_taken_for_a_lost_connection():
    class Remote(Notes):
        def on_round(self, told):
            raise Unavailable("the tracker's server is gone")

    fake = Fake(*STORY)
    with pytest.raises(Unavailable, match="tracker's server"):
        follow(fake, [Remote()], run="digits")
    assert fake.at == 3


# -- simulated ------------------------------------------------------------------------------------------------


def test_a_simulated_run_is_told_like_a_deployed_one():
    def client(session):
        model = {"x": toy.np.zeros(1)}
        for task in session.tasks(model, evaluate=lambda m: {"loss": abs(float(m["x"][0]))}):
            task.descend({"x": toy.np.array([1.0])}, lr=0.5)
            task.submit(examples=1, metrics={"loss": 1.0})

    run = toy.toy_run(koinon.FedAvg(), 3)
    simulated = koinon.simulate(run, client, clients=toy.NAMES)
    one, two = Notes(), Notes()
    for notes in (one, two):
        replay_into(simulated, run, [notes])
    assert (one.start, one.rounds, one.ends) == (two.start, two.rounds, two.ends)
    assert [(r.number, r.kind, r.counted) for r in one.rounds] == [
        (1, "train", 4), (2, "train", 4), (3, "train", 4), (4, "evaluate", 4),
    ]  # fmt: skip
    assert [r.metrics.get("eval.loss") for r in one.rounds] == pytest.approx([4.5, 4.0, 3.5, None])
    assert one.rounds[0].metrics["train.loss"] == 1.0
    assert one.rounds[0].bytes_up is None
    assert one.ends == [("finished", simulated.reason)]
    assert one.start.name == "toy"
    assert "schema" not in one.start.settings
    assert not any(name in repr((one.start, one.rounds)) for name in toy.NAMES)
    replay_into(replace(simulated, models=[*simulated.models[:-1], "other"]), run, [three := Notes()])
    assert three.start.id != one.start.id


# -- JSONL ----------------------------------------------------------------------------------------------------


def jsonl(path, *states, **keys):
    followed(Fake(*(states or STORY), **keys), JsonLines(path))
    return path.read_bytes()


def test_a_file_has_one_canonical_object_a_line(tmp_path):
    lines = jsonl(tmp_path / "a.jsonl").splitlines()
    values = [json.loads(line) for line in lines]
    assert [canonical(v) for v in values] == lines
    assert [v["event"] for v in values] == ["run", *["round"] * 5, "end"]
    assert values[1]["metrics"] == METRICS[0]
    assert values[3]["reason"] == "lost its quorum: a device declined"
    assert values[-1] == {"event": "end", "status": "finished", "reason": "3 rounds closed"}


def test_a_file_that_was_cut_anywhere_becomes_what_it_would_have_been(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = jsonl(path)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert jsonl(path, *STORY[-1:]) == whole, cut


def test_lines_are_in_the_file_as_soon_as_they_are_told(tmp_path):
    path = tmp_path / "a.jsonl"
    tracker = JsonLines(path)
    tracker.on_run_start(START)
    tracker.on_round(ROUND)
    assert path.read_bytes().count(b"\n") == 2


def test_a_complete_file_is_left_as_it_is(tmp_path):
    whole = jsonl(tmp_path / "a.jsonl")
    assert jsonl(tmp_path / "a.jsonl") == whole


START = RunStart(
    id="another", name="letters", strategy="koinon.FedAvg()", rounds=1, aggregation="open", created_at=5.0,
    settings={"rounds": 1, "config": {"epochs": 2, "odd:name": "x" * 900}},
)  # fmt: skip
ROUND = RoundEnd(
    number=1, kind="train", status="closed", reason="", participants=3, counted=2, closed_at=6.0, seconds=1.0,
    bytes_up=10, bytes_down=20, metrics={"train.loss": 0.5, "eval.what/a:b": 2.0},
)  # fmt: skip
LOST = replace(ROUND, number=2, status="abandoned", reason="lost its quorum", metrics={}, seconds=None)


def test_a_file_of_another_run_is_refused(tmp_path):
    whole = jsonl(tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match=r"holds run 'digits' .* name another file"):
        JsonLines(tmp_path / "a.jsonl").on_run_start(START)
    assert (tmp_path / "a.jsonl").read_bytes() == whole


@pytest.mark.parametrize("text", [
    b"a diary", b"a diary\n", b'{"epoch":1}\n{"epo', b"[1]\n", b'{"event":"end","status":"x"}\n', b'{"event":[]}\n',
    b"\n", b"\xff\n",
])  # fmt: skip
def test_a_file_that_is_something_else_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=r"line 1 of .* is not what this tracker writes"):
        JsonLines(path).on_run_start(START)
    assert path.read_bytes() == text


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none/a\.jsonl cannot be written: No such file"):
        JsonLines(tmp_path / "none" / "a.jsonl").on_run_start(START)
    with pytest.raises(UsageError, match="cannot be used: Is a directory"):
        JsonLines(tmp_path).on_run_start(START)


def test_what_json_does_not_have_is_null(tmp_path):
    tracker = JsonLines(tmp_path / "a.jsonl")
    tracker.on_run_start(START)
    tracker.on_round(replace(ROUND, metrics={"train.loss": math.nan, "train.a": math.inf, "train.b": 1.0}))
    line = json.loads((tmp_path / "a.jsonl").read_bytes().splitlines()[1])
    assert line["metrics"] == {"train.loss": None, "train.a": None, "train.b": 1.0}


# -- TensorBoard ----------------------------------------------------------------------------------------------


class Recorder:
    """Stands in for somebody's class: writes down every call, by name."""

    def __init__(self, calls, **answers):
        self.calls, self.answers = calls, answers

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, *args, *((kwargs,) if kwargs else ())))
            return self.answers.get(name)

        return call


@pytest.mark.parametrize("package", ["tensorboardX", "torch.utils.tensorboard"])
def test_tensorboard_gets_scalars_by_round(package, monkeypatch, tmp_path):
    calls = []
    stub = types.ModuleType(package)
    stub.SummaryWriter = lambda *a, **k: calls.append(("make", *a, k)) or Recorder(calls)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, package, stub)
    tracker = TensorBoard(tmp_path)
    assert calls == []
    tracker.on_run_start(START)
    tracker.on_round(ROUND)
    tracker.on_round(LOST)
    tracker.on_end("finished", "1 rounds closed")
    settings = canonical(dict(START.settings)).decode()
    assert calls == [
        ("make", str(tmp_path / "letters-another"), {"purge_step": 0}),
        ("add_text", "run/settings", f"koinon.FedAvg(), open, 1 rounds\n\n`{settings}`", 0, 5.0), ("flush",),
        ("add_scalar", "eval/what/a:b", 2.0, 1, 6.0), ("add_scalar", "train/loss", 0.5, 1, 6.0),
        ("add_scalar", "round/participants", 3, 1, 6.0), ("add_scalar", "round/counted", 2, 1, 6.0),
        ("add_scalar", "round/bytes_up", 10, 1, 6.0), ("add_scalar", "round/bytes_down", 20, 1, 6.0),
        ("add_scalar", "round/seconds", 1.0, 1, 6.0), ("flush",),
        ("add_scalar", "round/participants", 3, 2, 6.0), ("add_scalar", "round/counted", 2, 2, 6.0),
        ("add_scalar", "round/bytes_up", 10, 2, 6.0), ("add_scalar", "round/bytes_down", 20, 2, 6.0),
        ("add_text", "round/status", "round 2 abandoned: it lost its quorum", 2, 6.0), ("flush",),
        ("add_text", "run/end", "finished: 1 rounds closed", 2), ("close",),
    ]  # fmt: skip


def test_without_its_package_a_tracker_says_what_to_install(monkeypatch, tmp_path):
    for package in ("tensorboardX", "torch.utils.tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=re.escape("pip install koinon[tensorboard]")):
        TensorBoard(tmp_path)
    with pytest.raises(UsageError, match=re.escape("pip install koinon[mlflow]")):
        MLflow("sqlite:///x.db")


# -- MLflow ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mlflow(monkeypatch):
    """A stub of mlflow: what its clients were told, and what they answer."""
    stub, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    stub.calls, stub.answers = [], {"create_experiment": "7", "create_run": run_of("new"), "search_runs": []}
    stub.MlflowClient = lambda **k: stub.calls.append(("make", k)) or Recorder(stub.calls, **stub.answers)
    entities.Metric = lambda key, value, timestamp, step: (key, value, timestamp, step)
    entities.Param = lambda key, value: (key, value)
    monkeypatch.setitem(sys.modules, "mlflow", stub)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return stub


def run_of(id_):
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=id_))


PARAMS = [
    ("aggregation", "open"), ("config.epochs", "2"), ("config.odd_name", "x" * 500), ("rounds", "1"),
    ("strategy", "koinon.FedAvg()"),
]  # fmt: skip


def test_mlflow_gets_one_run_with_metrics_by_round(mlflow):
    tracker = MLflow("http://here")
    tracker.on_run_start(START)
    tracker.on_round(ROUND)
    tracker.on_round(LOST)
    tracker.on_end("cancelled", "enough")
    named = {
        "round.participants": 3.0,
        "round.counted": 2.0,
        "round.bytes_up": 10.0,
        "round.bytes_down": 20.0,
    }

    def metrics(step, **values):
        given = {**values, "round.number": float(step)}
        return {"metrics": [(key, value, 6000, step) for key, value in given.items()]}

    assert mlflow.calls == [
        ("make", {"tracking_uri": "http://here"}),
        ("get_experiment_by_name", "koinon"), ("create_experiment", "koinon"),
        ("search_runs", ["7"], {"filter_string": "tags.`koinon.run` = 'another'"}),
        ("create_run", "7", {"start_time": 5000, "run_name": "letters", "tags": {"koinon.run": "another"}}),
        ("log_batch", "new", {"params": PARAMS}),
        ("log_batch", "new",
         metrics(1, **{"train.loss": 0.5, "eval.what/a_b": 2.0}, **named, **{"round.seconds": 1.0})),
        ("set_tag", "new", "koinon.round.2", "abandoned: it lost its quorum"),
        ("log_batch", "new", metrics(2, **named)),
        ("set_tag", "new", "koinon.reason", "enough"), ("set_terminated", "new", {"status": "KILLED"}),
    ]  # fmt: skip


def test_mlflow_goes_on_with_a_run_that_is_there(mlflow):
    history = [types.SimpleNamespace(value=1.0)]
    experiment = types.SimpleNamespace(experiment_id="3")
    mlflow.answers |= {
        "get_experiment_by_name": experiment, "search_runs": [run_of("old")], "get_metric_history": history,
    }  # fmt: skip
    tracker = MLflow("http://here", experiment="mine")
    tracker.on_run_start(START)
    tracker.on_round(ROUND)
    tracker.on_round(LOST)
    assert "create_run" not in [c[0] for c in mlflow.calls]
    assert ("get_metric_history", "old", "round.number") in mlflow.calls
    logged = [c for c in mlflow.calls if c[0] == "log_batch" and "metrics" in c[2]]
    assert [c[1] for c in logged] == ["old"]
    assert {step for *_, step in logged[0][2]["metrics"]} == {2}


# -- what users write -----------------------------------------------------------------------------------------


def test_the_tracker_on_the_page_works_as_written(capsys):
    page = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text()
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if c.startswith("class "))
    known = {}
    exec(code, known)
    worse = ("finished", [round_(1, eval_loss=1.0), round_(2, eval_loss=2.0), round_(3, eval_loss=0.5)])
    followed(Fake(worse), known["Alarm"]())
    assert capsys.readouterr().out.splitlines() == [
        "digits: round 2 made the model worse (2.000)", "digits finished: 3 rounds closed",
    ]  # fmt: skip


def test_the_command_says_which_trackers_there_are(tmp_path):
    assert isinstance(_tracker(f"jsonl:{tmp_path / 'a:b.jsonl'}"), JsonLines)
    for text in ("csv:a", "jsonl:", "jsonl", ""):
        with pytest.raises(UsageError, match=r"write jsonl:PATH, tensorboard:DIR or mlflow:URI"):
            _tracker(text)


def test_trackers_load_nothing_heavy_before_they_are_made():
    code = (
        "import sys, koinon.tracking, koinon.tracking.jsonl, koinon.tracking.mlflow, koinon.tracking.tensorboard;"
        "print(*[m for m in ('torch', 'grpc', 'mlflow', 'tensorboardX', 'tensorboard') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []
