"""The daemon with a real coordinator, a real worker and a real program of its owner's."""

import itertools
import time
from pathlib import Path

import numpy as np
import pytest

import koinon
from conftest import Coordinator
from daemons import Fleet, before, family, incidents
from koinon_edge.settings import load

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    """One for all tests here."""
    one = Coordinator(tmp_path_factory.mktemp("house"))
    yield one
    one.stop()


@pytest.fixture
def daemons(tmp_path, coordinator):
    fleet = Fleet(tmp_path, coordinator)
    yield fleet
    fleet.close()


DESCEND = """
import numpy as np
import koinon_child as koinon

model = {{"x": np.zeros(5)}}
with koinon.join() as session:
    for task in session.tasks(model, evaluate=lambda m: {{"loss": float(abs(m["x"]).sum()), "examples": 7}}):
        for _ in range(3 * task.epochs):
            task.descend({{"x": model["x"] - {target}}}, lr=0.1)
        if task.kind == "train":
            task.submit(examples={examples}, metrics={{"moved": 1.0}})
"""


def descend(session, target, examples):
    """The same as the script."""
    model = {"x": np.zeros(5)}
    for task in session.tasks(model, evaluate=lambda m: {"loss": float(abs(m["x"]).sum()), "examples": 7}):
        for _ in range(3 * task.epochs):
            task.descend({"x": model["x"] - target}, lr=0.1)
        if task.kind == "train":
            task.submit(examples=examples, metrics={"moved": 1.0})


# -- work -----------------------------------------------------------------------------------------------------


def test_an_idle_daemon_is_asked_trains_and_hands_in(daemons):
    daemon = daemons()
    daemon.wait(lambda life: life["state"] == "ELIGIBLE")
    _, handle = daemons.created()
    handle.wait()
    assert handle.model()["x"] == pytest.approx([2.0] * 5)
    daemon.wait(lambda life: life["state"] in ("DONE", "IDLE"))
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.said()


@pytest.mark.parametrize(
    "strategy",
    [koinon.chain(koinon.Scaffold(), koinon.Prox(mu=0.5)), koinon.Ditto(lam=0.3)],
    ids=["scaffold and prox", "ditto"],
)
def test_a_strategy_steers_the_program_as_it_steers_the_sdk(strategy, daemons):
    run, handle = daemons.created(
        strategy=strategy, clients=2, min_clients=2, population=2, evaluate=True, max_examples=64
    )
    made = {"a": (1.0, 10), "b": (3.0, 20)}
    for name, (target, examples) in made.items():
        daemons(name, script=DESCEND.format(target=target, examples=examples))
    handle.wait()
    simulated = koinon.simulate(
        run, lambda session: descend(session, *made[session.client]), clients=list(made)
    )
    assert handle.model() == simulated.model
    # That a program evaluates is known once it was there: the model of the first round was not.
    seen = [dict(r.metrics)["eval.loss"] for r in handle.rounds() if "eval.loss" in r.metrics]
    assert seen == pytest.approx([simulated.metrics[number]["eval.loss"] for number in (1, 2)])


def test_three_daemons_are_in_a_sum_that_nobody_sees_into(daemons):
    _, handle = daemons.created(clients=3, min_clients=3, aggregation="secure", codec="exact")
    made = [daemons(name, step=step) for name, step in (("a", 1.0), ("b", 2.0), ("c", 6.0))]
    handle.wait()
    assert handle.model()["x"] == pytest.approx([6.0] * 5, abs=1e-5)
    assert all("Traceback" not in daemon.said() for daemon in made)


def test_a_task_may_be_for_whichever_run_of_a_kind_is_open(daemons):
    first = daemons.run
    daemons.run = f"{first}-*"
    daemon = daemons("dev", task="linger = 0.1")
    for number in (1, 2):
        daemons.run = f"{first}-{number}"
        _, handle = daemons.created(rounds=1)
        handle.wait()
        assert handle.model()["x"] == pytest.approx([1.0] * 5)
        daemon.wait(lambda life: life["state"] == "ELIGIBLE")


# -- programs that go wrong -----------------------------------------------------------------------------------


def ended(handle):
    """What the run made of its only device's work."""
    until = time.monotonic() + 30
    while not (found := [i for i in incidents(handle) if i.message]):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found[0]


OUT_OF_MEMORY = """
import os
taken = task.micro_batch(32)
open("taken", "a").write(f"{{taken}} ")
if taken > {fits}: os.kill(os.getpid(), 9)
"""


def test_a_program_killed_for_memory_is_started_again_with_half_as_much(daemons):
    daemon = daemons(before=before(OUT_OF_MEMORY, fits=16))
    _, handle = daemons.created(rounds=1)
    handle.wait()
    assert handle.model()["x"] == pytest.approx([1.0] * 5)
    assert (daemon.folder / "taken").read_text().split() == ["32", "16"]
    assert "OOM_KILLED" in daemon.said()


def test_one_that_is_killed_again_is_named_and_the_daemon_lives_on(daemons):
    daemon = daemons(before=before(OUT_OF_MEMORY, fits=0))
    _, handle = daemons.created(rounds=1)
    found = ended(handle)
    assert (found.code, "most likely for memory" in found.message) == ("OOM_KILLED", True)
    assert (daemon.folder / "taken").read_text().split()[:2] == ["32", "16"]
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("import time; time.sleep(600)", "STOPPED", "toy worked for more than 1 s"),
        ("print('rubbish'); raise SystemExit(3)", "FAILED", "ended with status 3"),
        ("import os, socket; s = socket.socket(socket.AF_UNIX); s.connect(os.environ['KOINON_SOCKET'])\n"
         "s.sendall(b'rubbish\\n' * 3); import time; time.sleep(600)", "FAILED", "no message of Koinon's"),
        ("import koinon_child as k, numpy as np\n"
         "for task in k.join().tasks({'y': np.zeros(5)}): pass", "FAILED", "no tensor 'x'"),
    ],
    ids=["hangs", "fails", "speaks rubbish", "has another model"],
)  # fmt: skip
def test_a_program_that_goes_wrong_is_named_and_the_daemon_lives_on(script, code, said, daemons):
    daemon = daemons(script=script, task="timeout = 1\ngrace = 0.2")
    _, handle = daemons.created(rounds=1)
    found = ended(handle)
    assert said in found.message or said in daemon.said()
    daemon.wait(lambda life: life["state"] == "ABORTED")
    assert daemon.stop() == 0


def test_an_error_of_the_loop_reaches_the_operator(daemons):
    daemons(before="raise RuntimeError('the camera is gone')")
    _, handle = daemons.created(rounds=1)
    found = ended(handle)
    assert (found.code, found.message) == ("FAILED", "RuntimeError: the camera is gone")


# -- power ----------------------------------------------------------------------------------------------------

STATES = ("CHECKED_IN", "DOWNLOADING", "TRAINING", "PACKING", "UPLOADING", "DONE")


def test_power_may_go_in_every_state_and_no_work_is_lost_or_done_twice(daemons):
    """One run, whose only device loses its power once in every round, everywhere."""
    places = [*zip(itertools.cycle(("life.written", "life.named")), STATES, strict=False)]
    places += [("life.written", "PACKING")]
    daemon = daemons(before='open("trained", "a").write(f"{task.round} ")')
    daemon.wait(lambda life: life["state"] == "ELIGIBLE")
    daemon.kill()
    _, handle = daemons.created(rounds=len(places) + 1)
    for place in places:
        daemon.stand_still = place
        daemon.start()
        until = time.monotonic() + 20
        while not daemon.stood.exists():
            assert time.monotonic() < until, (place, daemon.life(), daemon.said())
            time.sleep(0.01)
        daemon.kill()
    daemon.stand_still = None
    daemon.start()
    handle.wait()
    assert handle.model()["x"] == pytest.approx([len(places) + 1.0] * 5)
    assert [i.code for i in incidents(handle)] == []
    trained = (daemon.folder / "trained").read_text().split()
    again = len(trained) - len(set(trained))
    assert again <= len([state for _, state in places if state in ("DOWNLOADING", "TRAINING", "PACKING")])


def test_sigterm_ends_it_soon_and_the_same_round_goes_on_after_a_start(daemons):
    daemon = daemons(before='import os; os.path.exists("again") or time.sleep(600)', task="grace = 1")
    _, handle = daemons.created(rounds=1)
    daemon.wait(lambda life: life["state"] == "TRAINING")
    began = time.monotonic()
    members = family(daemon.process.pid)
    assert daemon.stop() == 0
    assert time.monotonic() - began < 15
    assert len(members) == 3, "the daemon, its worker and the program"
    (daemon.folder / "again").touch()
    daemon.start()
    handle.wait()
    assert handle.model()["x"] == pytest.approx([1.0] * 5)
    assert [i.code for i in incidents(handle)] == []


def test_the_example_is_one(daemons):
    example = Path(__file__).parents[2] / "examples" / "edge"
    settings = load(example / "edge.toml")
    assert settings.task_of("defects-7").command == ("python3", "train.py")
    daemons(script=(example / "train.py").read_text())
    run = koinon.Run(
        daemons.run, model={"mean": np.zeros(4)}, rounds=5, min_clients=1, clients=1, aggregation="open", codec="raw",
        evaluate=False,
    )  # fmt: skip
    handle = run.create(daemons.coordinator.address)
    handle.wait()
    assert handle.model()["mean"] == pytest.approx([3.0] * 4, abs=1.0)


def test_a_program_whose_daemon_was_killed_is_ended_by_the_next_one(daemons):
    daemon = daemons(before='open("pids", "a").write(f"{__import__(\'os\').getpid()} "); time.sleep(600)')
    daemons.created(rounds=1)
    daemon.wait(lambda life: life["state"] == "TRAINING" and (daemon.folder / "pids").exists())
    (old,) = (daemon.folder / "pids").read_text().split()
    daemon.process.kill()
    daemon.process.wait()
    assert Path(f"/proc/{old}").exists()
    daemon.start()
    daemon.wait(lambda life: len((daemon.folder / "pids").read_text().split()) == 2)
    stat = Path(f"/proc/{old}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_program_that_takes_longer_to_join_than_it_would_be_kept_works_all_the_same(daemons):
    script = (Path(__file__).parents[2] / "examples" / "edge" / "train.py").read_text()
    daemons(script="import time; time.sleep(1.5)\n" + script, task="linger = 0.3")
    run = koinon.Run(
        daemons.run, model={"mean": np.zeros(4)}, rounds=2, min_clients=1, clients=1, aggregation="open", codec="raw",
        evaluate=False,
    )  # fmt: skip
    handle = run.create(daemons.coordinator.address)
    handle.wait()
    assert [i.code for i in incidents(handle)] == []
