"""What steers the owner's program under koinon-edge is what steers it in Koinon itself: the same bits."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from childworker import PlayedWorker, same
from koinon import child
from koinon.adapt import adapt
from koinon.child.adapt import adapt as adapt_child
from koinon_core.errors import LocalProtocolError, UsageError
from koinon_core.strategy import Keys, Pull
from koinon_core.tensors import Tensors

PACKAGE = Path(child.__file__).parent


@pytest.fixture
def worker(tmp_path, monkeypatch):
    played = PlayedWorker(tmp_path)
    monkeypatch.setenv("KOINON_SOCKET", str(played.path))
    yield played
    played.close()


class Net(nn.Module):
    """Parameters of which one is frozen and one tied, statistics, a table, and a buffer that is not kept."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 4)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.body = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 4)
        self.head.weight = self.body.weight
        self.register_buffer("table", torch.arange(3.0))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x):
        return self.head(self.body(self.norm(self.frozen(x))))


INPUT = torch.linspace(-1, 1, 24).reshape(8, 3)
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
}


def train(net, made, steps=4):
    optimizer = made(list(net.parameters()))
    for _ in range(steps):
        optimizer.zero_grad()
        net(INPUT).square().mean().backward()
        optimizer.step()


def loop(net, made=OPTIMIZERS["SGD"], **options):
    def script():
        with child.join() as session:
            for task in session.tasks(net, **options):
                train(net, made)
                task.submit(examples=8, metrics={})

    return script


def reference(net, made, pull=None, start=None, *, measure=False, train_only=None):
    """The same in Koinon itself: what the weights become, and what was recorded."""
    model = adapt(net)
    steering = model.steer(pull or Pull(), start or model.read(), measure=measure, train=train_only)
    with steering:
        train(net, made)
    return model, steering


# -- the same numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("anchored", [False, True])
def test_a_gradient_term_changes_the_steps_as_it_does_in_koinon_itself(worker, name, anchored):
    made, net = OPTIMIZERS[name], Net()
    twin = copy.deepcopy(net)
    params = adapt(net).schema.only(adapt(net).schema.names(role="param"))
    start = adapt(net).read()
    anchor = Tensors({n: a + 0.5 for n, a in start.items()}) if anchored else start
    shift = Tensors({n: np.full_like(start[n], 0.25) for n in params.by_name})
    load = worker.file("load", **start)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)  # what is loaded counts, not what the program began with
    net.frozen.load_state_dict(twin.frozen.state_dict())

    worker.run(loop(net, made)).welcome()
    done, saved = worker.work(
        load=load, mu=0.5, shift=worker.file("shift", **shift),
        anchor=worker.file("anchor", **anchor.select(params.by_name)) if anchored else None,
    )  # fmt: skip
    worker.finish()
    model, steering = reference(twin, made, Pull(0.5, shift), anchor)
    same(saved, model.read())
    recorded = steering.recorded
    assert (done["steps"], done["lr"], done["why"]) == (recorded.steps, recorded.lr, recorded.why)
    if name == "Adam":
        assert done["displacement"] is None
        assert done["why"] == "Adam is not SGD"
    else:
        assert done["displacement"] == recorded.displacement


def test_without_a_term_the_steps_are_the_owners_own(worker):
    net = Net()
    twin = copy.deepcopy(net)
    worker.run(loop(net)).welcome()
    _, saved = worker.work()
    worker.finish()
    train(twin, OPTIMIZERS["SGD"])
    same(saved, adapt(twin).read())


def test_a_shift_of_some_tensors_shifts_those(worker):
    net = Net()
    twin = copy.deepcopy(net)
    shift = Tensors({"head.bias": np.ones(4, dtype=np.float32)})
    worker.run(loop(net)).welcome()
    _, saved = worker.work(shift=worker.file("shift", **shift))
    worker.finish()
    model, _ = reference(twin, OPTIMIZERS["SGD"], Pull(0.0, shift))
    same(saved, model.read())


def test_a_measuring_pass_saves_the_mean_gradient_and_leaves_the_parameters_as_they_are(worker):
    net = Net()
    net.spare = nn.Parameter(torch.ones(2))  # without a gradient: zero is saved for it
    twin, before = copy.deepcopy(net), {n: p.detach().clone() for n, p in net.named_parameters()}
    worker.run(loop(net)).welcome()
    done, saved = worker.work(kind="measure")
    worker.finish()
    _, steering = reference(twin, OPTIMIZERS["SGD"], measure=True)
    same(saved, steering.gradient())
    assert saved["spare"].tolist() == [0.0, 0.0]
    assert np.abs(saved["body.weight"]).max() > 0
    assert done["steps"] == 4
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_a_personal_pass_trains_a_part_and_saves_all(worker):
    net = Net()
    twin = copy.deepcopy(net)
    names = ["head.bias", "norm.weight"]
    worker.run(loop(net)).welcome()
    done, saved = worker.work(kind="personal", train=names)
    assert done["submitted"]
    worker.finish()
    model, _ = reference(twin, OPTIMIZERS["SGD"], train_only=Keys(tuple(names)))
    same(saved, model.read())
    assert np.array_equal(saved["body.weight"], Net().body.weight.detach().numpy())
    assert not np.array_equal(saved["head.bias"], Net().head.bias.detach().numpy())
    assert net.body.weight.requires_grad
    assert not net.frozen.weight.requires_grad


def test_nothing_of_a_personal_pass_is_saved_when_it_is_handed_in_but_at_its_end(worker):
    net = Net()

    def script():
        with child.join() as session:
            for task in session.tasks(net):
                task.submit(examples=1)
                train(net, OPTIMIZERS["SGD"])

    worker.run(script).welcome()
    task = worker.task(kind="personal")
    worker.hear("submit")
    assert worker.saved(task) == {}
    worker.say("taken", task=task)
    assert worker.hear("done")["steps"] == 4
    same(worker.saved(task), adapt(net).read())
    worker.finish()


def test_an_optimizer_begins_each_task_without_memory_unless_it_is_to_keep_it(worker):
    def run(keep):
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            with adapt_child(net).steer(
                0.0, None, None, measure=False, train=None, keep_optimizer=keep, stepped=lambda: None
            ) as steering:
                net(INPUT).square().mean().backward()
                optimizer.step()
        return steering.recorded

    assert run(False).displacement == pytest.approx(0.1)
    assert run(True).why == "with keep_optimizer its momentum goes on from steps that nobody recorded"


def test_keep_optimizer_reaches_the_hook(worker):
    net = Net()
    worker.run(loop(net, OPTIMIZERS["momentum"], keep_optimizer=True)).welcome()
    done, _ = worker.work()
    worker.finish()
    assert done["displacement"] is None
    assert "keep_optimizer" in done["why"]


def test_the_optimizer_hook_tells_of_progress(worker):
    worker.run(loop(Net())).welcome()
    task = worker.task()
    assert worker.next() == ("progress", {"task": task, "steps": 1})
    worker.take(task)
    worker.hear("done")
    worker.finish()


def test_the_hook_is_gone_after_the_loop_whatever_ended_it(worker):
    net = Net()
    seen = []

    def script():
        with child.join() as session:
            for task in session.tasks(net):
                seen.append(task)
                raise KeyError("the loop breaks")

    worker.run(script).welcome()
    worker.task(mu=0.5)
    worker.hear("failed")
    assert isinstance(worker.end(), KeyError)
    train(net, OPTIMIZERS["SGD"])
    assert seen[0].steps == 0


def test_a_closure_that_would_lose_the_term_is_refused_in_the_program(worker):
    net = Net()

    def script():
        optimizer = torch.optim.LBFGS(net.parameters())
        with child.join() as session:
            for _ in session.tasks(net):
                optimizer.step(lambda: net(INPUT).square().mean())

    worker.run(script).welcome()
    worker.task(mu=0.5)
    assert worker.hear("failed")["error"] == "LocalProtocolError"
    assert isinstance(worker.end(), LocalProtocolError)


def test_descent_on_a_module_is_the_owners_optimizers(worker):
    def script():
        with child.join() as session:
            for task in session.tasks(Net()):
                task.descend({}, lr=0.1)

    worker.run(script).welcome()
    worker.task()
    assert worker.hear("failed")["error"] == "UsageError"
    assert isinstance(worker.end(), UsageError)


# -- numpy ----------------------------------------------------------------------------------------------------


def arrays():
    return {"x": np.array([1.0, -2.0]), "y": np.array([[0.5]], dtype=np.float32), "n": np.array([4])}


def gradients(held):
    return {"x": held["x"] * 2, "y": held["y"] * 3}


@pytest.mark.parametrize("kind", ["train", "measure", "personal"])
def test_descent_on_arrays_is_steered_as_it_is_in_koinon_itself(worker, kind):
    mine, twin = arrays(), arrays()
    anchor, shift = (
        {"x": np.array([3.0, 3.0]), "y": np.array([[1.0]], np.float32)},
        {"x": np.array([0.25, 0.5])},
    )
    names = ["x"] if kind == "personal" else None

    def script():
        with child.join() as session:
            for task in session.tasks(mine):
                for _ in range(3):
                    task.descend(gradients(mine), lr=0.1)
                task.submit(examples=1)

    worker.run(script).welcome()
    done, saved = worker.work(
        kind=kind,
        mu=0.5,
        anchor=worker.file("anchor", **anchor),
        shift=worker.file("shift", **shift),
        train=names,
    )
    worker.finish()
    model = adapt(twin)
    keys = None if names is None else Keys(tuple(names))
    pull = Pull(0.5, Tensors(shift))
    with model.steer(pull, Tensors(anchor), measure=kind == "measure", train=keys) as steering:
        for _ in range(3):
            model.descend(gradients(twin), 0.1, steering)
    same(saved, steering.gradient() if kind == "measure" else model.read())
    assert done["displacement"] == steering.recorded.displacement


def test_a_rate_that_is_none_is_refused(worker):
    mine = arrays()

    def script():
        with child.join() as session:
            for task in session.tasks(mine):
                task.descend({"x": mine["x"]}, lr=0.0)

    worker.run(script).welcome()
    worker.task()
    assert "a learning rate must be above 0" in worker.hear("failed")["message"]
    assert isinstance(worker.end(), UsageError)
