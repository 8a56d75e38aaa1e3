"""Models of one's own, through whole runs: what never leaves, what is frozen when, and what each device ends with."""

import numpy as np
import pytest
import torch
from torch import nn

import koinon
from koinon.adapt import adapt
from koinon_core.errors import UsageError
from koinon_core.strategy.protocol import Keys

KEYS = ("head.*",)
DRAW = np.random.default_rng(11)


def run(strategy, model, rounds=2, devices=3, **settings):
    given = {"min_clients": devices, "clients": devices, "aggregation": "open", "codec": "raw", **settings}
    return koinon.Run("own", model=model, strategy=strategy, rounds=rounds, **given)


def arrays(**values):
    return {"body.w": np.zeros(3), "head.w": np.zeros(2), **values}


@pytest.mark.parametrize(
    "strategy", [koinon.FedPer(keys=KEYS), koinon.FedRep(keys=KEYS, head_epochs=3)], ids=repr
)
@pytest.mark.parametrize("aggregation", ["open", "secure"])
def test_a_head_never_leaves_and_stays_what_its_device_made_of_it(strategy, aggregation, monkeypatch):
    """No byte of any update, open or in lanes, is of the head: its section is in none."""
    sections, ends, kinds = set(), {}, []
    from koinon_core.strategy.runner import LocalHalf

    prepare = LocalHalf.prepare

    def seen(self, **given):
        sections.update(self.layout.under(given["terms"]).update.by_name)
        return prepare(self, **given)

    monkeypatch.setattr(LocalHalf, "prepare", seen)

    def client(session):
        i = int(session.client[-1])
        model = arrays()
        for task in session.tasks(model):
            kinds.append((task.kind, task.epochs))
            task.descend({"body.w": np.full(3, -1.0), "head.w": np.full(2, -float(i + 1))}, lr=0.5)
            task.submit(examples=1, metrics={"loss": 1.0 + i})
        ends[i] = {n: a.copy() for n, a in model.items()}

    codec = "raw" if aggregation == "open" else "exact"
    made = run(koinon.chain(koinon.FedAvg(), strategy), arrays(), aggregation=aggregation, codec=codec)
    got = koinon.simulate(made, client, clients=3)
    assert sections == {"delta/body.w"}
    assert got.model["body.w"] == pytest.approx(1.0, abs=1e-4), "two rounds of half a step each"
    assert got.model["head.w"].tolist() == [0.0, 0.0]
    for i, end in ends.items():
        assert end["head.w"].tolist() == [i + 1.0] * 2, "two steps of one half, which nobody averaged"
    if isinstance(strategy, koinon.FedRep):
        assert set(kinds) == {("personal", 3), ("train", 1)}


def test_fedrep_freezes_the_one_and_then_the_other():
    seen = []

    def client(session):
        model = arrays()
        for task in session.tasks(model):
            before = {n: a.copy() for n, a in model.items()}
            task.descend({"body.w": np.ones(3), "head.w": np.ones(2)}, lr=1.0)
            seen.append((task.kind, {n for n in model if not np.array_equal(model[n], before[n])}))
            task.submit(examples=1)

    koinon.simulate(
        run(koinon.chain(koinon.FedAvg(), koinon.FedRep(keys=KEYS)), arrays(), rounds=1), client, clients=3
    )
    assert seen == [("personal", {"head.w"}), ("train", {"body.w"})] * 3


def test_fedrep_finds_the_common_subspace_of_linear_devices():
    """d = 10, k = 2, 20 devices of 200 examples without noise, exact heads: the distance between the subspaces goes to
    nothing (Collins et al. 2021)."""
    d, k, devices = 10, 2, 20
    truth = np.linalg.qr(DRAW.normal(size=(d, k)))[0]
    data = []
    for _ in range(devices):
        x = DRAW.normal(size=(200, d))
        data.append((x, x @ truth @ DRAW.normal(size=k)))
    first = np.linalg.qr(DRAW.normal(size=(d, k)))[0]

    def distance(body):
        q = np.linalg.qr(body)[0]
        return np.linalg.norm((np.eye(d) - truth @ truth.T) @ q, 2)

    def client(session):
        x, y = data[int(session.client.rpartition("-")[2])]
        model = {"body.w": np.zeros((d, k)), "head.w": np.zeros(k)}
        for task in session.tasks(model):
            if task.kind == "personal":
                model["head.w"][:] = np.linalg.lstsq(x @ model["body.w"], y, rcond=None)[0]
            else:
                error = x @ model["body.w"] @ model["head.w"] - y
                gradient = np.outer(x.T @ error, model["head.w"]) / len(y)
                task.descend({"body.w": gradient, "head.w": np.ones(k)}, lr=0.5)
            task.submit(examples=1)

    strategy = koinon.chain(koinon.FedAvgUniform(), koinon.FedRep(keys=KEYS))
    model = {"body.w": first, "head.w": np.zeros(k)}
    got = koinon.simulate(
        run(strategy, model, rounds=200, devices=devices, evaluate=False), client, clients=devices
    )
    assert distance(first) > 0.5
    assert distance(got.model["body.w"]) < 1e-8


def test_ditto_gives_each_device_a_model_and_metrics_of_it():
    own, kinds = {}, []

    def client(session):
        i = int(session.client[-1])
        model = {"x": np.zeros(1)}
        assert session.personal is None
        for task in session.tasks(model):
            kinds.append(task.kind)
            for _ in range(200):
                task.descend({"x": model["x"] - i}, lr=0.1)
            task.submit(examples=1, metrics={"loss": float(i)} if task.kind == "personal" else {})
        own[i] = float(session.personal["x"][0])

    strategy = koinon.chain(koinon.FedAvgUniform(), koinon.Ditto(lam=1.0))
    got = koinon.simulate(run(strategy, {"x": np.zeros(1)}, rounds=4), client, clients=3)
    assert set(kinds) == {"train", "personal"}
    assert float(got.model["x"][0]) == pytest.approx(1.0)
    assert own == pytest.approx({i: (i + 1.0) / 2 for i in range(3)}), (
        "halfway between its own and the common one"
    )
    assert got.metrics[4]["train.personal.loss"] == pytest.approx(1.0)


# -- torch ----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.fixed = nn.Linear(2, 2)
        self.fixed.requires_grad_(False)

    def forward(self, x):
        return self.fixed(self.head(torch.relu(self.body(x))))


def test_a_frozen_half_of_a_module_moves_not_even_by_momentum_and_is_let_go_of():
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    data = torch.randn(8, 3)

    def steps():
        for _ in range(3):
            net(data).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

    steps()
    model = adapt(net)
    before = model.read()
    for train, moved in ((Keys(KEYS), "head"), (Keys(KEYS, others=True), "body")):
        start = model.read()
        with model.steer(koinon.Pull(), start, measure=False, train=train):
            steps()
        now = model.read()
        assert {n for n in now if not np.array_equal(now[n], start[n])} == {
            f"{moved}.weight",
            f"{moved}.bias",
        }
    assert not any(p.requires_grad for p in net.fixed.parameters()), "what its owner has frozen stays so"
    assert all(p.requires_grad for p in (*net.body.parameters(), *net.head.parameters()))
    assert before.keys() == model.read().keys()


# -- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [koinon.FedPer, koinon.FedRep])
def test_a_head_must_be_named_be_there_and_not_be_all(make):
    with pytest.raises(UsageError, match=r"keys=\('head\.\*',\)"):
        make()
    with pytest.raises(UsageError, match="no tensor of the model matches"):
        run(koinon.chain(koinon.FedAvg(), make(keys=("tail.*",))), arrays())
    with pytest.raises(UsageError, match="nothing is left to share"):
        run(koinon.chain(koinon.FedAvg(), make(keys=("*",))), arrays())
    with pytest.raises(UsageError, match="at least 1"):
        koinon.FedRep(keys=KEYS, head_epochs=0)
    with pytest.raises(UsageError, match="negative"):
        koinon.Ditto(lam=-1.0)
