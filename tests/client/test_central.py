"""Central evaluation by the owner's side: which models are measured, and what a simulated run makes of it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import koinon
from koinon.central import Evaluated, evaluate
from koinon.tracking import follow
from koinon.tracking.jsonl import JsonLines
from koinon_core.errors import NotFound, UsageError
from koinon_core.wire.v1 import runs_pb2 as pb


def client(session):
    model = {"x": np.zeros(1)}
    for task in session.tasks(model):
        model["x"] += 1.0
        task.submit(examples=1)


def distance(model):
    """Best at 3."""
    return {"loss": (float(model["x"][0]) - 3.0) ** 2}


@pytest.mark.parametrize("aggregation", ["open", "secure"])
def test_a_simulated_run_is_stopped_by_what_its_owner_measures(aggregation):
    run = koinon.Run(
        "held-out", model={"x": np.zeros(1)}, rounds=20, min_clients=3, aggregation=aggregation,
        codec="raw" if aggregation == "open" else "exact", best={"metric": "central.loss", "patience": 2},
    )  # fmt: skip
    got = koinon.simulate(run, client, clients=3, central=distance)
    losses = {n: m["central.loss"] for n, m in got.metrics.items()}
    assert losses == pytest.approx({1: 4.0, 2: 1.0, 3: 0.0, 4: 1.0, 5: 4.0, 6: 9.0}, abs=1e-6)
    assert got.reason.startswith("6 rounds closed early: central.loss was no better in")
    assert got.reason.endswith("of round 3")
    assert got.rounds[0].metrics["central.loss"] == pytest.approx(4.0)


@pytest.mark.parametrize("returned", [None, 0.5, [("loss", 0.5)]])
def test_what_is_no_mapping_is_no_metrics(returned):
    with pytest.raises(UsageError, match=r"gave .* and no metrics"):
        list(evaluate(Source(), "r", lambda model: returned))


def test_every_second_model_is_every_second_whatever_numbers_rounds_have():
    source = Source(rounds=9)
    source.made = {1, 3, 5, 7, 9}  # the others asked for losses
    assert [done.round for done in evaluate(source, "r", lambda model: {"loss": 0.0}, every=2)] == [3, 7, 9]


def test_what_the_owner_returns_is_checked_where_it_is_returned():
    run = koinon.Run("r", model={"x": np.zeros(1)}, rounds=1, min_clients=3)
    with pytest.raises(UsageError, match="'loss' is nan"):
        koinon.simulate(run, client, clients=3, central=lambda model: {"loss": float("nan")})


class Source:
    """A coordinator with `rounds` models, of which it shows more and more; `gone` are kept no longer."""

    def __init__(self, rounds=5, gone=(), measured=()):
        self.rounds, self.gone = rounds, gone
        self.made = set(range(1, rounds + 1))
        self.kept = {number: {"central.loss": 0.0} for number in measured}

    def _seen(self, until, first=1):
        over = until == self.rounds
        rounds = [
            pb.RoundInfo(
                number=n, kind="train", status="closed", model_digest="m" if n in self.made else "", closed_at=1.0,
                metrics=self.kept.get(n, {}),
            )
            for n in range(first, until + 1)
        ]  # fmt: skip
        info = pb.RunInfo(name="r", id="r", status="finished" if over else "running")
        return SimpleNamespace(run=info, rounds=rounds, spec=b"{}", attached=[], incidents=[])

    def get(self, run):
        return self._seen(self.rounds)

    def watch(self, run):
        for until in range(1, self.rounds + 1):
            yield self._seen(until, max(1, until - 1))

    def model(self, run, round_=None):
        if round_ in self.gone:
            raise NotFound(f"the model of round {round_} is kept no longer")
        return round_, koinon.Tensors({"x": np.array([float(round_)])})

    def measure(self, run, round_, metrics):
        self.kept.setdefault(round_, {}).update({f"central.{n}": v for n, v in metrics.items()})


@pytest.mark.parametrize("follow_it", [True, False])
def test_every_model_is_measured_once(follow_it):
    source = Source()
    done = list(evaluate(source, "r", distance, follow=follow_it))
    assert done == [Evaluated(n, {"loss": (n - 3.0) ** 2}) for n in range(1, 6)]
    assert list(evaluate(source, "r", distance, follow=follow_it)) == [], "it may be started again"
    assert source.kept[5] == {"central.loss": 4.0}


@pytest.mark.parametrize("follow_it", [True, False])
@pytest.mark.parametrize(("every", "rounds"), [(2, [2, 4, 5]), (5, [5]), (7, [5])])
def test_every_few_and_the_last(every, rounds, follow_it):
    assert [e.round for e in evaluate(Source(), "r", distance, every=every, follow=follow_it)] == rounds


def test_models_that_are_gone_are_named_and_others_measured():
    done = list(evaluate(Source(gone=(2, 3), measured=(1,)), "r", distance))
    assert [(e.round, bool(e.metrics), e.missing) for e in done] == [
        (2, False, "the model of round 2 is kept no longer"), (3, False, "the model of round 3 is kept no longer"),
        (4, True, ""), (5, True, ""),
    ]  # fmt: skip


def test_metrics_that_cannot_be_kept_are_refused_before_they_are_sent():
    source = Source()
    with pytest.raises(UsageError, match="metrics are numbers"):
        list(evaluate(source, "r", lambda model: {"loss": float("inf")}))
    assert source.kept == {}
    with pytest.raises(UsageError, match="every must be at least 1"):
        list(evaluate(source, "r", distance, every=0))


class Late(Source):
    """Its owner measures each model two rounds later."""

    def watch(self, run):
        for until in range(1, self.rounds):
            if until > 2:
                self.measure(run, until - 2, {"loss": float(until - 2)})
            yield self._seen(until)

    def get(self, run):
        # Not over when it is first looked at.
        self.looks = getattr(self, "looks", 0) + 1
        return self._seen(1 if self.looks == 1 else self.rounds if self.looks > 3 else 4)


def test_trackers_hear_what_is_measured_after_a_round_was_told(tmp_path):
    told, late = {}, {}

    class Tracker:
        def on_run_start(self, start):
            pass

        def on_round(self, round_):
            told[round_.number] = round_.metrics

        def on_measured(self, number, metrics):
            late[number] = metrics

        def on_end(self, status, reason):
            pass

    file = tmp_path / "r.jsonl"
    source = Late(rounds=6)
    source.kept = {}
    follow(source, [Tracker(), JsonLines(file)], run="r")
    known = {n: {**told[n], **late.get(n, {})} for n in told}
    assert {n: m["central.loss"] for n, m in known.items() if m} == {1: 1.0, 2: 2.0, 3: 3.0}
    assert late, "some came after their round was told"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    in_file = {}
    for line in lines:
        if line["event"] in ("round", "measured"):
            in_file.setdefault(line["number"], {}).update(line["metrics"])
    assert in_file == known
    # Tracked again, nothing is written twice, and what came while nobody looked is added.
    before = len(lines)
    source.measure("r", 4, {"loss": 4.0})
    source.looks = 9
    follow(source, [JsonLines(file)], run="r")
    added = [json.loads(line) for line in file.read_text().splitlines()[before:]]
    assert added == [{"event": "measured", "number": 4, "metrics": {"central.loss": 4.0}}]
