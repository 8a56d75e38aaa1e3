"""Torch modules: which tensors are federated, and how the owner's loop is steered and recorded."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import koinon
from koinon.adapt import adapt
from koinon_core.strategy import Pull
from koinon_core.tensors import Tensors


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.body = nn.Linear(3, 4, bias=False)
        self.bn = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 4, bias=False)
        self.register_buffer("table", torch.arange(3.0))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x):
        return self.head(self.bn(self.body(self.frozen(x))))


def test_trained_parameters_and_persistent_buffers_are_federated_and_nothing_else():
    names = [f.name for f in adapt(Net()).schema]
    assert names == [
        "body.weight", "bn.weight", "bn.bias", "head.weight", "table", "bn.running_mean", "bn.running_var",
        "bn.num_batches_tracked",
    ]  # fmt: skip
    roles = {f.name: f.role for f in adapt(Net()).schema}
    assert roles["bn.running_var"] == "buffer"
    assert roles["bn.weight"] == "param"


def test_tied_weights_are_sent_once():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    assert [f.name for f in adapt(net).schema] == ["0.weight"]


def test_read_is_a_copy_and_load_is_in_place():
    net = Net()
    model = adapt(net)
    before = model.read()
    kept = before["body.weight"].copy()
    pointer = net.body.weight.data_ptr()
    with torch.no_grad():
        net.body.weight.add_(1)
    assert np.array_equal(before["body.weight"], kept)
    model.load(before)
    assert net.body.weight.data_ptr() == pointer
    assert np.array_equal(net.body.weight.detach().numpy(), kept)


def test_a_buffer_that_a_forward_pass_replaces_is_federated_as_it_is_then():
    class Averaging(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))
            self.register_buffer("ema", torch.zeros(2))

        def forward(self):
            self.ema = 0.5 * self.ema + 0.5 * self.w.detach()
            return self.w.sum()

    module = Averaging()
    model = adapt(module)
    module()
    assert model.read()["ema"].tolist() == [0.5, 0.5]
    model.load(Tensors({"w": np.ones(2, np.float32), "ema": np.full(2, 7.0, np.float32)}))
    assert module.ema.tolist() == [7.0, 7.0]


def test_16_bit_parameters_travel_as_32_bit_and_warn_with_the_way_out():
    net = nn.Linear(2, 2).to(torch.bfloat16)
    with pytest.warns(UserWarning, match=r"torch\.autocast"):
        model = adapt(net)
    assert {f.dtype for f in model.schema} == {"float32"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(nn.Linear(2, 2))


def test_a_module_without_anything_to_train_is_refused():
    with pytest.raises(koinon.UsageError, match="nothing to train"):
        adapt(nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_the_gradient_term_reaches_any_optimizer(kind, fused):
    net = nn.Linear(3, 1)
    start = adapt(net).read()
    shift = Tensors({n: np.full(a.shape, 0.25, np.float32) for n, a in start.items()})
    by_hand = copy.deepcopy(net)

    def run(module, add):
        optimizer = getattr(torch.optim, kind)(module.parameters(), lr=0.1, fused=fused)
        anchors = [p.detach().clone() for p in module.parameters()]
        for step in range(3):
            optimizer.zero_grad()
            module(torch.ones(2, 3) * (step + 1)).square().mean().backward()
            if add:
                for p, w in zip(module.parameters(), anchors, strict=True):
                    p.grad += 0.5 * (p.detach() - w) + 0.25
            optimizer.step()

    with adapt(net).steer(Pull(0.5, shift), start, measure=False, train=None) as steering:
        run(net, add=False)
    run(by_hand, add=True)
    for p, q in zip(net.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-7)
    assert steering.recorded.steps == 3


@pytest.mark.parametrize(
    ("options", "mu", "steps", "expected"),
    [
        ({"lr": 0.1}, 0.0, 7, 7.0),
        ({"lr": 0.1, "momentum": 0.9}, 0.0, 7, 23.046721),
        ({"lr": 0.1}, 0.5, 7, 6.033254078125),
    ],
)
def test_the_length_of_the_steps_is_recorded_as_in_the_papers(options, mu, steps, expected):
    net = nn.Linear(1, 1)
    model = adapt(net)
    optimizer = torch.optim.SGD(net.parameters(), **options)
    with model.steer(Pull(mu), model.read(), measure=False, train=None) as steering:
        for _ in range(steps):
            net(torch.ones(1, 1)).sum().backward()
            optimizer.step()
    assert steering.recorded.norm == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "options", [{"nesterov": True, "momentum": 0.8}, {"momentum": 0.5, "dampening": 0.3}]
)
def test_the_recorded_length_is_what_a_constant_gradient_moves(options):
    x = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    net = nn.Module()
    net.x = x
    model = adapt(net)
    optimizer = torch.optim.SGD([x], lr=0.1, **options)
    with model.steer(Pull(), model.read(), measure=False, train=None) as steering:
        for _ in range(6):
            x.grad = torch.ones(1, dtype=torch.float64)
            optimizer.step()
    assert steering.recorded.displacement == pytest.approx(-float(x.detach()), rel=1e-12)


def test_an_adaptive_optimizer_has_no_length():
    net = nn.Linear(1, 1)
    model = adapt(net)
    optimizer = torch.optim.Adam(net.parameters())
    with model.steer(Pull(), model.read(), measure=False, train=None) as steering:
        net(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    assert math.isnan(steering.recorded.norm)


def test_an_optimizer_with_a_closure_is_refused_under_a_gradient_term():
    net = nn.Linear(1, 1)
    model = adapt(net)
    optimizer = torch.optim.LBFGS(net.parameters())

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(1, 1)).square().sum()
        loss.backward()
        return loss

    with (
        model.steer(Pull(0.1), model.read(), measure=False, train=None),
        pytest.raises(koinon.LocalProtocolError, match="closure"),
    ):
        optimizer.step(closure)
    with model.steer(Pull(), model.read(), measure=False, train=None):
        optimizer.step(closure)  # nothing to lose: allowed


def test_a_measuring_pass_leaves_the_weights_and_gives_the_mean_gradient():
    net = nn.Linear(2, 1, bias=False)
    model = adapt(net)
    start = model.read()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with model.steer(Pull(), start, measure=True, train=None) as steering:
        for scale in (1.0, 3.0):
            optimizer.zero_grad()
            net(torch.ones(1, 2) * scale).sum().backward()
            optimizer.step()
    assert model.read() == start
    assert steering.gradient()["weight"].tolist() == [[2.0, 2.0]]


def test_another_models_optimizer_is_left_alone():
    net, other = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(other.parameters(), lr=1.0)
    with adapt(net).steer(Pull(1.0), adapt(net).read(), measure=False, train=None) as steering:
        other(torch.ones(1, 1)).sum().backward()
        before = other.weight.grad.clone()
        optimizer.step()
    assert torch.equal(other.weight.grad, before)
    assert steering.recorded.steps == 0


def bn_client(sent: list[bytes]):
    def client(session: koinon.Session) -> None:
        i = int(session.client[-1])
        torch.manual_seed(i)
        x = torch.randn(32, 3) * (i + 1) + i
        net = Net()
        for task in session.tasks(net):
            sent.append(session.client.encode())
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
            net.train()
            for _ in range(3):
                optimizer.zero_grad()
                net(x).square().mean().backward()
                optimizer.step()
            task.submit(examples=32)
        stats[session.client] = net.bn.running_mean.clone()

    stats: dict[str, torch.Tensor] = {}
    client.stats = stats
    return client


def test_fedbn_keeps_each_devices_statistics_at_home():
    client = bn_client([])
    run = koinon.Run(
        "bn", model=Net(), aggregation="open", strategy=koinon.FedBN(), rounds=3, min_clients=2, clients=2
    )
    result = koinon.simulate(run, client, clients=2)
    first = adapt(Net()).read()
    for name in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"):
        assert np.array_equal(result.model[name], first[name]), f"{name} left a device"
    assert not np.array_equal(result.model["body.weight"], first["body.weight"])
    a, b = client.stats.values()
    assert not torch.equal(a, b)
    assert float(a.abs().sum()) > 0, "a device goes on from its own statistics"


def test_without_fedbn_statistics_are_averaged_and_counters_take_the_largest():
    run = koinon.Run("bn", model=Net(), aggregation="open", rounds=2, min_clients=2, clients=2)
    result = koinon.simulate(run, bn_client([]), clients=2)
    assert int(result.model["bn.num_batches_tracked"]) == 6
    assert (result.model["bn.running_var"] > 0).all()
    assert not np.array_equal(result.model["bn.running_mean"], np.zeros(4, np.float32))
