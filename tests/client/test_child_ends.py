"""What an owner's program under koinon-edge hears while it works, and how it ends, whoever ends it."""

import gc
import os
import signal
import textwrap
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

from childworker import PlayedWorker, loop, model, one_step, start, until
from koinon import child
from koinon_core.errors import RemoteProtocolError, Unavailable


@pytest.fixture
def worker(tmp_path, monkeypatch):
    played = PlayedWorker(tmp_path)
    monkeypatch.setenv("KOINON_SOCKET", str(played.path))
    yield played
    played.close()


# -- what may come at any time --------------------------------------------------------------------------------


def test_a_round_that_is_over_cancels_the_task_under_way(worker):
    seen = []

    def body(task, arrays):
        until(lambda: task.cancelled)
        seen.append(task.outcome)
        task.submit(examples=1)

    worker.run(loop(body)).welcome()
    task = worker.task()
    worker.say("cancel", task=task, reason="the round was over")
    worker.take(task)
    worker.hear("done")
    worker.finish()
    assert seen == ["the round was over"]


def test_a_stop_leaves_no_time_and_what_there_is_is_handed_in(worker):
    def body(task, arrays):
        assert task.remaining > 50
        until(lambda: task.remaining == 0.0)
        assert not task.cancelled
        task.submit(examples=2, partial=True)

    worker.run(loop(body)).welcome()
    task = worker.task(remaining=60.0)
    time.sleep(0.02)
    worker.say("stop", task=task, reason="the device is hot")
    assert worker.take(task)["partial"]
    worker.hear("done")
    worker.finish()


def test_a_stop_leaves_no_time_where_nobody_knew_how_much_there_was(worker):
    def body(task, arrays):
        until(lambda: task.remaining is not None)
        assert task.remaining == 0.0
        task.submit(examples=2)

    worker.run(loop(body)).welcome()
    worker.say("stop", task=99, reason="of a task that is over")
    task = worker.task()
    worker.say("stop", task=task, reason="the device is hot")
    worker.take(task)
    worker.hear("done")
    worker.finish()


def test_a_round_that_is_over_before_its_task_has_begun_is_seen_by_the_task(worker):
    late, told = [], threading.Event()

    def evaluate(arrays):
        assert told.wait(5)
        return {"loss": 1.0}

    def body(task, arrays):
        late.append((task.cancelled, task.remaining))
        task.submit(examples=1)

    worker.run(loop(body, evaluate=evaluate)).welcome()
    worker.say("evaluate", id=1, load=None)
    worker.task(id=2)
    worker.say("cancel", task=2, reason="late")
    worker.say("stop", task=2, reason="hot")
    told.set()
    worker.hear("evaluated")
    worker.take(2)
    worker.hear("done")
    worker.finish()
    assert late == [(True, 0.0)]


def test_what_became_of_an_update_is_known_to_its_task(worker):
    tasks = []

    def body(task, arrays):
        if tasks:
            until(lambda: tasks[0].outcome == "counted")
            assert task.outcome == ""
        tasks.append(task)
        task.submit(examples=1)

    worker.run(loop(body)).welcome()
    worker.work(round=3)
    worker.say("outcome", round=3, outcome="counted")
    worker.work(round=4)
    worker.finish()
    assert tasks[0].outcome == "counted"
    assert tasks[1].outcome == ""


# -- ends -----------------------------------------------------------------------------------------------------


def test_a_loop_that_is_left_declines_its_task(worker):
    def script():
        with child.join() as session:
            for _ in session.tasks(model()):
                break

    worker.run(script).welcome()
    task = worker.task()
    assert worker.hear("declined") == {"task": task, "reason": "the loop was left"}
    assert worker.next() == ("", None)
    assert worker.end() is None


def test_a_session_that_nobody_has_any_more_declines_its_task(worker):
    def lost():
        for _ in child.join().tasks(model()):
            break

    def script():
        lost()
        gc.collect()

    worker.run(script).welcome()
    task = worker.task()
    assert worker.hear("declined")["task"] == task
    assert worker.end() is None


def test_a_loop_that_is_left_takes_no_more_work(worker):
    def script():
        with child.join() as session:
            for _ in session.tasks(model()):
                break
            for _ in session.tasks(model()):
                raise AssertionError

    worker.run(script).welcome()
    worker.task()
    worker.hear("declined")
    error = worker.end()
    assert isinstance(error, Unavailable)
    assert "has left the loop" in str(error)


def test_a_session_that_is_closed_within_the_loop_declines_its_task(worker):
    def script():
        session = child.join()
        tasks = session.tasks(model())
        next(tasks)
        session.close()

    worker.run(script).welcome()
    task = worker.task()
    assert worker.hear("declined") == {"task": task, "reason": "the loop was left"}
    assert worker.end() is None


def test_an_exception_leaves_the_task_as_failed(worker):
    def body(task, arrays):
        raise ValueError("the camera is gone")

    worker.run(loop(body)).welcome()
    task = worker.task()
    assert worker.hear("failed") == {"task": task, "error": "ValueError", "message": "the camera is gone"}
    assert worker.next() == ("", None)
    assert isinstance(worker.end(), ValueError)


def test_an_evaluation_that_fails_says_so(worker):
    worker.run(loop(one_step, evaluate=lambda _: 1 / 0)).welcome()
    worker.say("evaluate", id=4, load=None)
    said = worker.hear("failed")
    assert (said["task"], said["error"]) == (4, "ZeroDivisionError")
    assert isinstance(worker.end(), ZeroDivisionError)


def test_a_worker_that_dies_while_the_loop_trains_cancels_the_task_and_ends_the_program(worker):
    seen = []

    def body(task, arrays):
        until(lambda: task.cancelled)
        seen.append(task.outcome)
        task.descend({"x": np.zeros(2)}, lr=0.1)  # progress that nobody hears is no error
        task.submit(examples=1)

    worker.run(loop(body)).welcome()
    worker.task()
    worker.die()
    error = worker.end()
    assert isinstance(error, Unavailable)
    assert "koinon-edge starts it again" in str(error)
    assert seen == [str(error)]


def test_a_worker_that_dies_between_tasks_ends_the_program(worker):
    worker.run(loop(one_step)).welcome()
    worker.work()
    worker.die()
    assert isinstance(worker.end(), Unavailable)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"GET / HTTP/1.1\n", "is no message"),
        (b'"task"\n', "is no message"),
        (b'{"task": {}, "ended": {}}\n', "is no message"),
        (b"[" * 100_000 + b"\n", "is no message"),
        (b'{"task": {"round": 1}}\n', "does not understand"),
        (b'{"cancel": 3}\n', "does not understand"),
        (b'{"sing": {}}\n', "does not understand"),
        (b'{"ended": {}}\n', "does not understand"),
        (b'{"taken": {"task": 1}}\n', "'taken' where evaluate or load or task or ended was awaited"),
        (b"x" * ((1 << 20) + (1 << 17)), "a line of more than 1 MiB"),
    ],
)
def test_what_is_no_message_ends_the_program_with_a_clear_error(worker, line, words):
    worker.run(loop(one_step)).welcome()
    with suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
        worker.send(line)
    error = worker.end()
    assert isinstance(error, RemoteProtocolError)
    assert words in str(error)


def test_a_line_may_be_long_and_come_in_pieces(worker):
    rounds = []
    worker.run(
        loop(lambda task, _: rounds.append(len(task.config["names"])) or task.submit(examples=1))
    ).welcome()
    worker.work(config={"names": ["n" * 100] * 9_000})
    worker.finish()
    assert rounds == [9_000]


def test_more_than_a_line_takes_is_not_said(worker):
    metrics = {f"metric {i:06}": 1.0 for i in range(60_000)}
    worker.run(loop(lambda task, _: task.submit(examples=1, metrics=metrics))).welcome()
    task = worker.task()
    assert worker.hear("failed")["task"] == task
    assert "a line takes 1048576" in str(worker.end())


# -- processes ----------------------------------------------------------------------------------------------


def test_a_forked_data_loader_does_not_hold_the_line_for_its_dead_parent(worker, tmp_path):
    code = textwrap.dedent("""
        import os, time
        import koinon_child as koinon
        import numpy
        with koinon.join() as session:
            for task in session.tasks({"x": numpy.zeros(1)}):
                child = os.fork()
                if not child:
                    time.sleep(20)
                    os._exit(0)
                print(child, flush=True)
                time.sleep(20)
    """)
    program = start(code, tmp_path, worker)
    try:
        worker.welcome()
        worker.task()
        forked = int(program.stdout.readline())
        program.kill()
        assert worker.next() == ("", None)
        os.kill(forked, 9)
    finally:
        program.kill()
        program.wait()
        program.stdout.close()


def test_a_program_that_ends_in_the_middle_of_its_loop_ends_at_once(worker, tmp_path):
    code = textwrap.dedent("""
        import koinon_child as koinon
        import numpy
        session = koinon.join()
        for task in session.tasks({"x": numpy.zeros(1)}):
            break
    """)
    program = start(code, tmp_path, worker)
    worker.welcome()
    worker.task()
    kind, _ = worker.next()
    assert kind in ("declined", "")
    assert program.wait(5) == 0
    program.stdout.close()


def test_a_program_that_waits_for_work_can_be_interrupted(worker, tmp_path):
    code = textwrap.dedent("""
        import koinon_child as koinon
        import numpy
        with koinon.join() as session:
            try:
                for task in session.tasks({"x": numpy.zeros(1)}):
                    pass
            except KeyboardInterrupt:
                print("interrupted")
    """)
    program = start(code, tmp_path, worker)
    worker.welcome()
    worker.task()
    worker.hear("done")
    program.send_signal(signal.SIGINT)
    assert program.communicate(timeout=30)[0] == "interrupted\n"
    assert program.returncode == 0


def test_a_program_writes_to_its_own_output_alone(worker, tmp_path):
    code = textwrap.dedent("""
        import koinon_child as koinon
        import numpy
        with koinon.join() as session:
            for task in session.tasks({"x": numpy.zeros(2)}):
                task.submit(examples=1)
        print(session.status)
    """)
    program = start(code, tmp_path, worker)
    worker.welcome()
    worker.work()
    worker.say("ended", status="finished", reason="")
    assert program.communicate(timeout=30)[0] == "finished\n"
    assert program.returncode == 0
