"""Traps of torch's optimizers: the gradient term reaches every one that it can reach, and is refused to the others; the
length of the steps is right, or there is none and the reason is told."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import koinon
import toy
from koinon.adapt import adapt
from koinon_core.strategy import Pull
from koinon_core.tensors import Tensors

MU, SHIFT = 0.5, 0.25
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "dampening": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "dampening": 0.3}),
    "decay": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2}),
    "Adam": (torch.optim.Adam, {"lr": 0.1}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.1}),
    "amsgrad": (torch.optim.AdamW, {"lr": 0.1, "amsgrad": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.1}),
}
OTHERS = {
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.1, "momentum": 0.5}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "Adamax": (torch.optim.Adamax, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "RAdam": (torch.optim.RAdam, {}),
    "ASGD": (torch.optim.ASGD, {}),
    "Rprop": (torch.optim.Rprop, {}),
}
KINDS = [
    (name, how)
    for name in (*OPTIMIZERS, *OTHERS)
    for how in (("plain", "foreach", "fused") if name in OPTIMIZERS else ("plain", "foreach"))
]


def made(name, parameters, how="plain", **options):
    kind, given = {**OPTIMIZERS, **OTHERS}[name]
    how_exactly = {"fused": True} if how == "fused" else {"foreach": how == "foreach"}
    return kind(parameters, **{**given, **how_exactly, **options})


def pull_on(net):
    start = adapt(net).read()
    return Pull(MU, start.map(lambda a: np.full_like(a, SHIFT))), start


def steered(net, pull=None, *, measure=False, keep=False):
    model = adapt(net)
    model.keep_optimizer = keep
    return model.steer(pull or Pull(), model.read(), measure=measure, train=None)


def by_hand(net, anchors):
    """The term, put into the gradients where there are some."""
    with torch.no_grad():
        for p, w in zip(net.parameters(), anchors, strict=True):
            p.grad += MU * (p - w) + SHIFT


class Scalar(nn.Module):
    """One weight, as f_i(x) = a_i/2 (x - b_i)^2 has it."""

    def __init__(self, x=0.0):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([x], dtype=torch.float64))


# -- the term -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "how"), KINDS)
def test_the_term_is_in_every_step_as_if_the_owner_had_put_it_into_the_gradient(name, how):
    net = nn.Linear(3, 1)
    twin, (pull, start) = copy.deepcopy(net), pull_on(net)
    anchors = [p.detach().clone() for p in twin.parameters()]

    def run(module, add):
        optimizer = made(name, module.parameters(), how)
        for step in range(4):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            module(torch.ones(2, 3) * (step + 1)).square().mean().backward()
            if add:
                by_hand(module, anchors)
            optimizer.step()

    with adapt(net).steer(pull, start, measure=False, train=None):
        run(net, add=False)
    run(twin, add=True)
    assert adapt(net).read() == adapt(twin).read()
    assert adapt(net).read() != start


def test_an_owner_who_goes_uphill_is_pulled_towards_the_same_weights():
    """Where a step adds the gradient (`maximize`), the term must be taken off it to have the same effect."""
    down, up = nn.Linear(3, 1), nn.Linear(3, 1)
    up.load_state_dict(down.state_dict())
    pull, start = pull_on(down)
    for net, sign in ((down, 1.0), (up, -1.0)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5, maximize=sign < 0)
        with adapt(net).steer(pull, start, measure=False, train=None):
            for step in range(3):
                optimizer.zero_grad()
                (sign * net(torch.ones(2, 3) * (step + 1)).square().mean()).backward()
                optimizer.step()
    assert adapt(up).read() == adapt(down).read()


def test_a_measured_gradient_is_that_of_what_is_minimised():
    net = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, maximize=True)
    with steered(net, measure=True) as steering:
        (-net(torch.ones(1, 2)).sum()).backward()
        optimizer.step()
    assert steering.gradient()["weight"].tolist() == [[1.0, 1.0]]


def test_gradients_that_are_accumulated_over_batches_get_the_term_once_a_step():
    net = nn.Linear(3, 1)
    twin, (pull, start) = copy.deepcopy(net), pull_on(net)
    anchors = [p.detach().clone() for p in twin.parameters()]

    def run(module, add):
        optimizer = made("momentum", module.parameters())
        for step in range(3):
            optimizer.zero_grad()
            for batch in range(4):
                (module(torch.ones(2, 3) * (step + batch)).square().mean() / 4).backward()
            if add:
                by_hand(module, anchors)
            optimizer.step()

    with adapt(net).steer(pull, start, measure=False, train=None) as steering:
        run(net, add=False)
    run(twin, add=True)
    assert adapt(net).read() == adapt(twin).read()
    assert steering.recorded.steps == 3


def test_a_parameter_without_a_gradient_is_shifted_and_one_without_a_shift_is_left_alone():
    """Its gradient is zero, and with a control variate g - c_i + c is not: the variates must stay the mean of what was
    stepped by. A proximal term alone has no such account, and moves what the optimizer moves."""
    for pull, moved in ((Pull(0.0, Tensors({"x": np.full(1, SHIFT)})), -0.1 * SHIFT), (Pull(MU), 0.0)):
        net = Scalar(0.0)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with steered(net, pull):
            optimizer.step()
            assert float(net.x.detach()) == pytest.approx(moved, abs=1e-15)
            net.x.grad = torch.ones_like(net.x)
            optimizer.step()


def test_a_parameter_without_a_gradient_counts_as_zero_in_a_measured_mean():
    net = Scalar()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with steered(net, measure=True) as steering:
        net.x.grad = torch.ones_like(net.x)
        optimizer.step()
        optimizer.step()
    assert steering.gradient()["x"].tolist() == [0.5]


def test_sparse_gradients_get_a_dense_term():
    net = nn.Embedding(4, 2, sparse=True)
    twin = copy.deepcopy(net)
    start = adapt(net).read()
    anchor = twin.weight.detach().clone()
    pull = Pull(MU)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (net, twin))
    with adapt(net).steer(pull, start, measure=False, train=None):
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.tensor([1, 2])).square().sum().backward()
            optimizer.step()
    for _ in range(3):
        other.zero_grad()
        twin(torch.tensor([1, 2])).square().sum().backward()
        twin.weight.grad = twin.weight.grad.to_dense() + MU * (twin.weight.detach() - anchor)
        other.step()
    assert torch.allclose(net.weight, twin.weight, atol=1e-7)


# -- closures -------------------------------------------------------------------------------------------------

CLOSURES = {
    "LBFGS": (lambda ps: torch.optim.LBFGS(ps), {}),
    "SGD": (lambda ps: torch.optim.SGD(ps, lr=0.1), {}),
    "AdamW, by name": (lambda ps: torch.optim.AdamW(ps, lr=0.1), {"named": True}),
}


@pytest.mark.parametrize("case", CLOSURES)
@pytest.mark.parametrize("measure", [False, True])
def test_a_closure_is_refused_at_the_first_step_and_nothing_has_moved(case, measure):
    make, how = CLOSURES[case]
    net = nn.Linear(1, 1)
    start, optimizer = adapt(net).read(), make(net.parameters())

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(1, 1)).square().sum()
        loss.backward()
        return loss

    def step():
        return optimizer.step(closure=closure) if how else optimizer.step(closure)

    pull = Pull() if measure else Pull(0.1)
    with (
        steered(net, pull, measure=measure),
        pytest.raises(koinon.LocalProtocolError, match=r"step\(closure\) recomputes the gradient"),
    ):
        step()
    assert adapt(net).read() == start
    with steered(net):
        step()  # there is no term that could be lost
    assert adapt(net).read() != start


# -- GradScaler -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["plain", "foreach", "fused"])
@pytest.mark.parametrize("unscaled", [False, True], ids=["scaled", "unscaled by the owner"])
@pytest.mark.parametrize("name", ["momentum", "AdamW"])
def test_under_a_grad_scaler_the_term_is_as_large_as_without(name, how, unscaled):
    """A fused optimizer takes the scale off by itself, so gradients are scaled when the term comes to them; unless the
    owner has unscaled them, to clip them."""
    net = nn.Linear(3, 1)
    twin, (pull, start) = copy.deepcopy(net), pull_on(net)
    anchors = [p.detach().clone() for p in twin.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer, other = made(name, net.parameters(), how), made(name, twin.parameters())
    with adapt(net).steer(pull, start, measure=False, train=None):
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(net(torch.ones(2, 3) * (step + 1)).square().mean()).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    for step in range(3):
        other.zero_grad()
        twin(torch.ones(2, 3) * (step + 1)).square().mean().backward()
        by_hand(twin, anchors)
        other.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


@pytest.mark.parametrize("how", ["plain", "fused"])
@pytest.mark.parametrize("measure", [False, True])
def test_a_step_that_the_scaler_skips_is_no_step(how, measure):
    """Its gradients had overflown. A fused optimizer is called all the same, and skips it by itself."""
    net = Scalar()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = made("SGD", net.parameters(), how)
    with steered(net, measure=measure) as steering:
        for factor in (float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale((net.x * factor).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert steering.recorded.steps == 1
    assert steering.recorded.norm == pytest.approx(1.0)
    if measure:
        assert steering.gradient()["x"].tolist() == [1.0]
    assert float(net.x.detach()) == (0.0 if measure else -0.1)


# -- the length of the steps ----------------------------------------------------------------------------------

LENGTHS = ["SGD", "momentum", "nesterov", "dampening", "decay"]


def moved(optimizer, parameter, steps, each=lambda: None):
    for _ in range(steps):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        each()


@pytest.mark.parametrize("how", ["plain", "foreach", "fused"])
@pytest.mark.parametrize("name", LENGTHS)
def test_the_length_is_how_far_a_gradient_of_one_goes_without_decay(name, how):
    """Weight decay is part of what is minimised, and not of how long the steps are."""
    net, free = Scalar(), Scalar()
    with steered(net) as steering:
        moved(made(name, net.parameters(), how), net.x, 6)
    moved(made(name, free.parameters(), weight_decay=0.0), free.x, 6)
    assert steering.recorded.displacement == pytest.approx(-float(free.x.detach()), rel=1e-12)
    assert steering.recorded.why == ""


SCHEDULES = {
    "steps": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
    "from nothing": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: n / 4),
    # It also moves the momentum.
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
}


@pytest.mark.parametrize(
    ("name", "schedule"),
    # One cycle moves a momentum, which plain SGD has none of.
    [(n, s) for n in LENGTHS[:4] for s in SCHEDULES if (n, s) != ("SGD", "one cycle")],
)
def test_the_length_follows_a_schedule_in_units_of_the_first_rate(schedule, name):
    net = Scalar()
    optimizer = made(name, net.parameters())
    going = SCHEDULES[schedule](optimizer)
    with steered(net) as steering:
        moved(optimizer, net.x, 6, going.step)
    done = steering.recorded
    assert done.displacement == pytest.approx(-float(net.x.detach()), rel=1e-12)
    assert done.norm * done.lr == pytest.approx(done.displacement)
    assert done.lr > 0


def test_a_momentum_that_begins_late_is_recorded_as_torch_takes_it():
    net = Scalar()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.0, dampening=0.4)
    with steered(net) as steering:
        for momentum in (0.0, 0.0, 0.9, 0.9):
            optimizer.param_groups[0]["momentum"] = momentum
            moved(optimizer, net.x, 1)
    assert steering.recorded.displacement == pytest.approx(-float(net.x.detach()), rel=1e-12)


def test_groups_that_differ_in_their_decay_alone_have_one_length():
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(
        [{"params": [net.weight], "weight_decay": 0.1}, {"params": [net.bias]}], lr=0.1, momentum=0.9
    )
    with steered(net) as steering:
        for _ in range(7):
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert steering.recorded.norm == pytest.approx(23.046721, rel=1e-9)


@pytest.mark.parametrize(
    "own", [{"lr": 0.2}, {"momentum": 0.5}, {"dampening": 0.1}, {"nesterov": True}], ids=str
)
def test_groups_that_step_differently_have_no_length_and_it_is_said_why(own):
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(
        [{"params": [net.weight], **own}, {"params": [net.bias]}], lr=0.1, momentum=0.9
    )
    with steered(net) as steering:
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert math.isnan(steering.recorded.norm)
    assert next(iter(own)) in steering.recorded.why


def test_an_optimizer_that_is_made_anew_in_the_middle_begins_without_momentum():
    net, free = Scalar(), Scalar()
    with steered(net) as steering:
        for _ in range(3):
            moved(made("momentum", net.parameters()), net.x, 3)
    for _ in range(3):
        moved(made("momentum", free.parameters()), free.x, 3)
    assert steering.recorded.steps == 9
    assert steering.recorded.displacement == pytest.approx(-float(free.x.detach()), rel=1e-12)


def test_two_optimizers_for_the_same_weights_keep_a_momentum_each():
    net = Scalar()
    with steered(net) as steering:
        both = [made("momentum", net.parameters()), made("nesterov", net.parameters())]
        for _ in range(3):
            for optimizer in both:
                moved(optimizer, net.x, 1)
    assert steering.recorded.displacement == pytest.approx(-float(net.x.detach()), rel=1e-12)


def test_two_optimizers_for_parts_of_a_model_have_no_length_and_it_is_said_why():
    net = nn.Linear(2, 1)
    both = [torch.optim.SGD([p], lr=0.1) for p in net.parameters()]
    with steered(net) as steering:
        net(torch.ones(1, 2)).sum().backward()
        for optimizer in both:
            optimizer.step()
    assert math.isnan(steering.recorded.norm)
    assert "optimizers" in steering.recorded.why


def test_momentum_that_is_kept_has_no_length_and_it_is_said_why():
    net = nn.Linear(2, 1)
    for name, why in (("SGD", ""), ("momentum", "keep_optimizer")):
        optimizer = made(name, net.parameters())
        with steered(net, keep=True) as steering:
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        assert why in steering.recorded.why
        assert math.isnan(steering.recorded.norm) is bool(why)


# -- what an optimizer remembers ------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ["momentum", "Adam", "Adagrad"])
def test_an_optimizer_from_outside_of_the_loop_begins_each_task_anew_unless_it_is_kept(name, keep):
    net = Scalar()
    optimizer = made(name, net.parameters())
    ends = []
    for _ in range(2):
        with torch.no_grad():
            net.x.zero_()
        with steered(net, keep=keep):
            for factor in (1.0, 2.0, 3.0):
                optimizer.zero_grad()
                (factor * net.x).square().sum().backward()
                net.x.grad += 1
                optimizer.step()
        ends.append(float(net.x.detach()))
    assert (ends[0] == ends[1]) is not keep


def test_a_measuring_pass_leaves_what_a_kept_optimizer_remembers():
    net = nn.Linear(2, 1)
    optimizer = made("Adam", net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with steered(net, measure=True, keep=True):
        optimizer.zero_grad()
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    after = optimizer.state_dict()
    for number, kept in before["state"].items():
        assert all(torch.equal(kept[name], after["state"][number][name]) for name in kept)


# -- whole runs -----------------------------------------------------------------------------------------------


def torch_client(optimize, steps=10, each=lambda optimizer: optimizer.step()):
    """Toy Q in torch, in float64. `optimize` makes the optimizer of a task from the parameters."""

    def client(session):
        i = int(session.client[-1])
        net = Scalar()
        for task in session.tasks(net):
            optimizer = optimize(net.parameters())
            for _ in range(1 if task.kind == "measure" else steps):
                optimizer.zero_grad()
                (toy.A[i] / 2 * (net.x - toy.B[i]).square()).sum().backward()
                each(optimizer)
            task.submit(examples=toy.N[i])

    return client


def toy_in_torch(strategy, rounds, client, **settings):
    run = toy.toy_run(strategy, rounds, evaluate=False, **settings)
    result = koinon.simulate(run, client, clients=toy.NAMES)
    return float(result.model["x"][0])


DECAY = 0.3
DECAYED = sum(a * b for a, b in zip(toy.A, toy.B, strict=True)) / sum(a + DECAY for a in toy.A)
"""Where the uniform mean of f_i(x) + DECAY/2 x^2 has its least."""
STATEFUL = {
    "scaffold one": (koinon.Scaffold(option=1), 10, 80),
    "scaffold two": (koinon.Scaffold(), 10, 80),
    "feddyn": (koinon.FedDyn(alpha=4.0), 60, 45),
}


@pytest.mark.parametrize("case", STATEFUL)
def test_momentum_and_decay_end_at_the_least_of_what_is_minimised(case):
    strategy, steps, rounds = STATEFUL[case]

    def optimize(parameters):
        return torch.optim.SGD(parameters, lr=0.02, momentum=0.6, nesterov=True, weight_decay=DECAY)

    got = toy_in_torch(strategy, rounds, torch_client(optimize, steps))
    assert got == pytest.approx(DECAYED, abs=1e-9)


def test_a_schedule_within_each_task_changes_nothing_about_where_scaffold_ends():
    def client(session):
        i = int(session.client[-1])
        net = Scalar()
        for task in session.tasks(net):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.5)
            going = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
            for _ in range(10):
                optimizer.zero_grad()
                (toy.A[i] / 2 * (net.x - toy.B[i]).square()).sum().backward()
                optimizer.step()
                going.step()
            task.submit(examples=toy.N[i])

    assert toy_in_torch(koinon.Scaffold(), 120, client) == pytest.approx(toy.UNIFORM, abs=1e-9)


LENGTH_NEEDED = {
    "scaffold": (koinon.Scaffold(), "SCAFFOLD's option 2 needs the length of the local steps"),
    "fednova": (koinon.FedNova(), "FedNova needs the length of the local steps"),
    "feddyn": (koinon.FedDyn(), "FedDyn's gradient term is part of what SGD minimises"),
}


@pytest.mark.parametrize("case", LENGTH_NEEDED)
@pytest.mark.parametrize("name", ["AdamW", "RMSprop"])
def test_what_needs_the_length_refuses_an_adaptive_optimizer_by_its_name(case, name):
    strategy, message = LENGTH_NEEDED[case]
    with pytest.raises(koinon.LocalProtocolError, match=message) as caught:
        toy_in_torch(strategy, 1, torch_client(lambda parameters: made(name, parameters)))
    assert name in str(caught.value)
    assert "SGD" in str(caught.value)


@pytest.mark.parametrize(
    "strategy",
    [koinon.FedProx(mu=0.1), koinon.chain(koinon.FedAvg(), koinon.Ditto()), koinon.Scaffold(option=1)],
    ids=["prox", "ditto", "scaffold one"],
)
def test_what_needs_no_length_takes_an_adaptive_optimizer(strategy):
    got = toy_in_torch(strategy, 40, torch_client(lambda ps: torch.optim.AdamW(ps, lr=0.05)))
    assert abs(got - toy.UNIFORM) < 1.0 < abs(toy.START - toy.UNIFORM)


@pytest.mark.parametrize(
    "strategy",
    [koinon.FedProx(), koinon.Scaffold(), koinon.FedDyn(), koinon.Scaffold(option=1),
     koinon.chain(koinon.FedAvg(), koinon.Ditto())],
    ids=["prox", "scaffold", "feddyn", "scaffold one", "ditto"],
)  # fmt: skip
def test_steps_that_nobody_could_steer_are_refused(strategy):
    """Weights that the owner moves by hand, or by an optimizer that is none of torch's, went without the term."""

    def by_hand(session):
        net = Scalar()
        for task in session.tasks(net):
            with torch.no_grad():
                net.x += 1
            task.submit(examples=1)

    def on_arrays(session):
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            model["x"] += 1
            task.submit(examples=1)

    for client in (by_hand, on_arrays):
        with pytest.raises(koinon.LocalProtocolError, match="no step"):
            toy_in_torch(strategy, 1, client)
    assert toy_in_torch(koinon.FedAvg(), 1, by_hand) == toy.START + 1


def test_a_device_without_a_step_that_did_not_move_is_as_good_as_any():
    def client(session):
        for task in session.tasks(Scalar()):
            task.submit(examples=1)

    assert toy_in_torch(koinon.FedProx(), 1, client) == toy.START


def test_a_measuring_pass_leaves_weights_and_statistics_as_the_round_has_them():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    kinds, seen = [], {}

    def client(session):
        model = net()
        dice = torch.Generator().manual_seed(int(session.client[-1]))
        for task in session.tasks(model):
            now = adapt(model).read()
            if task.kind == "train":
                assert now == seen["measure"], "the pass before it left something behind"
            seen[task.kind] = now
            kinds.append(task.kind)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(8, 2, generator=dice) + 3).square().mean().backward()
                optimizer.step()
            if task.kind == "measure":
                after = adapt(model).read()
                assert after["1.running_mean"].tolist() != now["1.running_mean"].tolist()
                assert after["0.weight"].tolist() == now["0.weight"].tolist()
            task.submit(examples=8)

    run = koinon.Run(
        "measured", model=net(), strategy=koinon.Scaffold(option=1), rounds=2, min_clients=2, clients=2,
        population=2, aggregation="open",
    )  # fmt: skip
    koinon.simulate(run, client, clients=2)
    assert kinds == ["measure", "train"] * 4


def test_an_array_without_a_gradient_is_shifted_like_a_parameter_of_torchs():
    pull = Pull(0.0, Tensors({"a": np.full(2, SHIFT), "b": np.full(2, SHIFT)}))
    arrays = {"a": np.zeros(2), "b": np.zeros(2)}
    model = adapt(arrays)
    with model.steer(pull, model.read(), measure=False, train=None) as steering:
        model.descend({"a": np.ones(2)}, 0.1, steering)
    assert arrays["a"].tolist() == [-0.1 * (1 + SHIFT)] * 2
    assert arrays["b"].tolist() == [-0.1 * SHIFT] * 2
