"""The owner's program under koinon-edge: what it says to the worker, and what is said of what it hands in."""

import inspect
import os
import socket
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import koinon
from childworker import PlayedWorker, loop, model, one_step
from koinon import child
from koinon.child.line import Line
from koinon_core.errors import BadUpdate, RunEnded, Unavailable, UsageError


@pytest.fixture
def worker(tmp_path, monkeypatch):
    played = PlayedWorker(tmp_path)
    monkeypatch.setenv("KOINON_SOCKET", str(played.path))
    yield played
    played.close()


# -- the loop -------------------------------------------------------------------------------------------------


def test_a_program_says_what_it_is_and_what_its_model_is_before_its_first_task(worker):
    worker.run(loop(one_step, keep_optimizer=True))
    hello = worker.greet()
    assert (hello["protocol"], hello["pid"]) == (1, os.getpid())
    assert hello["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert worker.hear("ready") == {
        "schema": [["x", [2], "float64", "param"], ["steps", [1], "int64", "buffer"]],
        "tied": {}, "rounds": False, "evaluates": False, "keep_optimizer": True,
    }  # fmt: skip
    worker.say("accepted")
    worker.finish()


def test_four_lines_train_what_is_loaded_and_hand_in_what_becomes_of_it(worker):
    worker.run(loop(one_step)).welcome()
    task = worker.task(load=worker.file("load", x=np.array([10.0, 20.0]), steps=np.array([9])))
    said = worker.hear("submit")
    assert worker.saved(task)["x"].tolist() == [9.5, 19.5]
    assert worker.saved(task)["steps"].tolist() == [9]
    assert said == {
        "task": task, "examples": 4, "metrics": {"loss": 0.25}, "partial": False, "steps": 1, "lr": 0.5,
        "displacement": 0.5, "why": "",
    }  # fmt: skip
    worker.say("taken", task=task)
    assert worker.hear("done") == {
        "task": task, "submitted": True, "steps": 1, "lr": 0.5, "displacement": 0.5, "why": "",
    }  # fmt: skip
    worker.finish()


def test_what_is_saved_is_whole_or_not_there_and_nothing_else_is_left(worker):
    worker.run(loop(one_step)).welcome()
    worker.work()
    worker.finish()
    assert sorted(p.name for p in worker.folder.iterdir()) == ["s", "save-1.safetensors"]


def test_a_task_without_a_file_to_load_goes_on_from_the_weights_as_they_are(worker):
    worker.run(loop(one_step)).welcome()
    worker.work(load=worker.file("load", x=np.array([4.0, 4.0]), steps=np.array([0])))
    _, saved = worker.work(round=2)
    assert saved["x"].tolist() == [3.0, 3.0]
    worker.finish()


def test_a_task_has_the_face_of_a_task_in_koinon(worker):
    seen = {}

    def body(task, arrays):
        seen.update(
            round=task.round, kind=task.kind, config=task.config, seed=task.seed, epochs=task.epochs,
            steps=task.steps, takes_partial=task.takes_partial, cancelled=task.cancelled, outcome=task.outcome,
            remaining=task.remaining, text=repr(task),
        )  # fmt: skip
        task.submit(examples=1, partial=True)
        seen.update(submitted=task.submitted, partial=task.partial)

    worker.run(loop(body)).welcome()
    worker.task(round=3, config={"lr": 0.1}, seed=123, epochs=2)
    worker.take(1)
    worker.hear("done")
    worker.finish()
    assert seen == {
        "round": 3, "kind": "train", "config": {"lr": 0.1}, "seed": 123, "epochs": 2, "steps": 0,
        "takes_partial": True, "cancelled": False, "outcome": "", "remaining": None, "submitted": True,
        "partial": True, "text": "Task(round=3, kind='train', submitted=False)",
    }  # fmt: skip


def test_everything_that_a_task_in_koinon_has_is_there(worker):
    missing = []

    def body(task, arrays):
        missing.extend(n for n in dir(koinon.Task) if not n.startswith("_") and n not in dir(task))

    worker.run(loop(body)).welcome()
    worker.task()
    worker.hear("done")
    worker.finish()
    assert missing == ["cancel"]  # which is the session's, and not the loop's


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [(child.Session.tasks, koinon.Session.tasks), (child.Task.submit, koinon.Task.submit)],
    ids=["tasks", "submit"],
)
def test_a_program_that_runs_with_koinon_alone_runs_under_the_daemon(mine, theirs):
    assert set(inspect.signature(theirs).parameters) == set(inspect.signature(mine).parameters)


def test_a_micro_batch_is_halved_for_each_time_that_memory_was_short(worker):
    batches = []
    worker.run(
        loop(
            lambda task, _: (
                batches.append([task.micro_batch(n) for n in (32, 5, 1)]) or task.submit(examples=1)
            )
        )
    ).welcome()
    worker.work(shrink=0)
    worker.work(shrink=2)
    worker.work(shrink=9)
    worker.finish()
    assert batches == [[32, 5, 1], [8, 1, 1], [1, 1, 1]]


def test_a_program_that_evaluates_says_what_it_measured_of_the_weights_that_were_loaded(worker):
    def evaluate(arrays):
        return {"loss": np.float32(arrays["x"].sum()), "examples": 100}

    worker.run(loop(one_step, evaluate=evaluate))
    assert worker.welcome()["evaluates"]
    worker.say("evaluate", id=7, load=worker.file("load", x=np.array([0.5, 1.0]), steps=np.array([0])))
    assert worker.hear("evaluated") == {"id": 7, "metrics": {"loss": 1.5, "examples": 100.0}}
    worker.finish()


def test_a_worker_may_ask_what_of_its_weights_the_model_holds(worker):
    worker.run(loop(one_step)).welcome()
    saved = worker.folder / "held.safetensors"
    worker.say(
        "load", id=3, load=worker.file("load", x=np.array([5.0, 6.0]), steps=np.array([1])), save=str(saved)
    )
    assert worker.hear("loaded") == {"id": 3}
    assert load_file(saved)["x"].tolist() == [5.0, 6.0]
    worker.finish()


def test_the_run_and_its_end_are_told(worker):
    sessions = []

    def script():
        with child.join("defects") as session:
            sessions.append(session)
            assert list(session.tasks(model())) == []
            assert list(session.tasks(model())) == []  # it stays over

    worker.run(script).welcome()
    worker.say("ended", status="failed", reason="too few devices")
    assert worker.end() is None
    (session,) = sessions
    assert (session.run, session.client) == ("defects", "line-4")
    assert (session.status, session.reason) == ("failed", "too few devices")


def test_a_run_that_ends_while_an_update_is_handed_in_ends_the_loop_after_it(worker):
    worker.run(loop(one_step)).welcome()
    task = worker.task()
    worker.hear("submit")
    worker.say("ended", status="finished", reason="")
    worker.say("taken", task=task)
    assert worker.hear("done")["submitted"]
    assert worker.end() is None


def test_a_loop_that_goes_on_without_handing_in_says_so(worker):
    worker.run(loop(lambda task, _: None)).welcome()
    worker.task()
    assert worker.hear("done")["submitted"] is False
    worker.finish()


def test_a_reason_for_no_update_goes_along(worker):
    worker.run(loop(lambda task, _: task.decline("no light on the line"))).welcome()
    worker.task()
    done = worker.hear("done")
    assert (done["submitted"], done["code"], done["declined"]) == (False, "DECLINED", "no light on the line")
    worker.finish()


def test_progress_is_told_at_most_once_a_second(worker, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(child.session.Line, "to", lambda path: _line_with(path, lambda: now[0]))

    def body(task, arrays):
        for _ in range(10):
            task.descend({"x": np.zeros(2)}, lr=0.1)
            now[0] += 0.4
        task.submit(examples=1)

    worker.run(loop(body)).welcome()
    task = worker.task()
    heard = [worker.next() for _ in range(5)]
    assert [said["steps"] for kind, said in heard if kind == "progress"] == [1, 4, 7, 10]
    assert heard[-1][0] == "submit"
    worker.say("taken", task=task)
    worker.hear("done")
    worker.finish()


def _line_with(path, clock):
    end = socket.socket(socket.AF_UNIX)
    end.connect(path)
    return Line(end, clock)


# -- what submit refuses --------------------------------------------------------------------------------------


def test_an_error_of_the_worker_is_raised_in_submit_by_its_class(worker):
    caught = []

    def body(task, arrays):
        try:
            task.submit(examples=1)
        except BadUpdate as error:
            caught.append(str(error))

    worker.run(loop(body)).welcome()
    task = worker.task()
    worker.hear("submit")
    worker.say("error", task=task, error="BadUpdate", message="'x' holds a NaN")
    assert worker.hear("done")["task"] == task
    worker.finish()
    assert caught == ["'x' holds a NaN"]


def test_an_error_that_the_loop_does_not_catch_ends_the_program(worker):
    worker.run(loop(one_step)).welcome()
    task = worker.task()
    worker.hear("submit")
    worker.say("error", task=task, error="RunEnded", message="the run is over")
    assert worker.hear("failed") == {"task": task, "error": "RunEnded", "message": "the run is over"}
    assert isinstance(worker.end(), RunEnded)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"examples": 1.5}, "whole number"),
        ({"examples": True}, "whole number"),
        ({"examples": 1, "partial": True}, "cannot be handed in early: the strategy needs all of it"),
    ],
)
def test_what_can_be_refused_at_once_is_and_the_loop_may_go_on(worker, given, words):
    def body(task, arrays):
        with pytest.raises(UsageError, match=words):
            task.submit(**given)
        assert not task.submitted
        task.submit(examples=1)

    worker.run(loop(body)).welcome()
    worker.work(whole="the strategy needs all of it")
    worker.finish()


def test_submitting_twice_is_refused(worker):
    def body(task, arrays):
        task.submit(examples=1)
        with pytest.raises(UsageError, match="round 5 has its update already"):
            task.submit(examples=1)

    worker.run(loop(body)).welcome()
    worker.work(round=5)
    worker.finish()


def test_a_task_of_an_iteration_before_can_not_be_handed_in(worker):
    kept = []

    def body(task, arrays):
        kept.append(task)
        if len(kept) == 2:
            with pytest.raises(UsageError, match="the loop has gone on from round 1"):
                kept[0].submit(examples=1)
            task.submit(examples=1)

    worker.run(loop(body)).welcome()
    worker.task(round=1)
    assert not worker.hear("done")["submitted"]
    worker.work(round=2)
    worker.finish()


def test_a_metric_that_is_no_number_reaches_the_worker_who_refuses_it(worker):
    def body(task, arrays):
        with pytest.raises(BadUpdate):
            task.submit(examples=1, metrics={"loss": float("nan")})

    worker.run(loop(body)).welcome()
    task = worker.task()
    assert np.isnan(worker.hear("submit")["metrics"]["loss"])
    worker.say("error", task=task, error="BadUpdate", message="the metric 'loss' is NaN")
    worker.hear("done")
    worker.finish()


def test_weights_that_the_disk_does_not_take_are_an_error_that_says_so(worker):
    worker.run(loop(one_step)).welcome()
    task = worker.task(save=str(worker.folder / "nowhere" / "save"))
    said = worker.hear("failed")
    assert (said["task"], said["error"]) == (task, "StoreError")
    assert "cannot be saved in" in str(worker.end())


def test_a_model_that_is_not_the_runs_is_refused_in_the_program(worker):
    worker.run(loop(one_step)).greet()
    worker.hear("ready")
    worker.say(
        "refused", error="UsageError", message="your model has no tensor 'y', which the run's model has"
    )
    error = worker.end()
    assert type(error) is UsageError
    assert "no tensor 'y'" in str(error)


# -- joining --------------------------------------------------------------------------------------------------


def test_a_program_that_koinon_edge_did_not_start_is_told_so(monkeypatch):
    monkeypatch.delenv("KOINON_SOCKET", raising=False)
    with pytest.raises(UsageError, match="which is to start it"):
        child.join()


def test_a_socket_that_is_not_there_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.setenv("KOINON_SOCKET", str(tmp_path / "gone"))
    with pytest.raises(Unavailable, match="no worker of koinon-edge answers"):
        child.join()


def test_a_worker_that_says_nothing_is_not_waited_for_for_ever():
    ours, theirs = socket.socketpair()
    line = Line(ours)
    with pytest.raises(Unavailable, match=r"says nothing for 0\.01 s"):
        line.wait("welcome", timeout=0.01)
    line.close()
    theirs.close()


def test_a_program_that_joins_another_run_is_refused(worker):
    worker.run(lambda: child.join("digits")).greet()
    error = worker.end()
    assert isinstance(error, UsageError)
    assert "run 'defects', and it joins 'digits'" in str(error)
    assert worker.next() == ("", None)


@pytest.mark.parametrize("owned", [{"x": [1.0]}, 3, {"x": np.zeros(1, dtype=complex)}])
def test_what_is_no_model_is_refused_before_anything_is_said_of_it(worker, owned):
    def script():
        with child.join() as session:
            next(session.tasks(owned))

    worker.run(script).greet()
    assert worker.next() == ("", None)
    error = worker.end()
    assert isinstance(error, UsageError)
    assert "cannot be federated" in str(error)
