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


def test_a_pattern_that_matches_nothing_is_refused_though_another_does():
    """A misspelt layer would leave the device without a word."""
    with pytest.raises(UsageError, match=r"key 'lm\.\*'"):
        run(koinon.chain(koinon.FedAvg(), koinon.FedPer(keys=("head.*", "lm.*"))), arrays())
    with pytest.raises(UsageError, match=r"FedBN's key 'lm\.\*'"):
        run(koinon.chain(koinon.FedAvg(), koinon.FedBN(keys=("head.*", "lm.*"))), arrays())


def test_a_tensor_that_has_two_names_may_not_stay_by_one_and_leave_by_the_other():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.head.weight = self.emb.weight

    with pytest.raises(UsageError, match=r"'head\.weight' is to stay .* 'emb\.weight', which is sent"):
        run(koinon.chain(koinon.FedAvg(), koinon.FedPer(keys=KEYS)), Tied())
    run(koinon.chain(koinon.FedAvg(), koinon.FedPer(keys=("head.*", "emb.weight"))), Tied())


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)

    def forward(self, x):
        return self.head(self.norm(self.body(x)))


def test_the_heads_phase_leaves_no_trace_in_statistics_that_are_shared():
    data = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1

    def client(session):
        model = Normed()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for task in session.tasks(model):
            for _ in range(task.epochs if task.kind == "personal" else 0):
                optimizer.zero_grad()
                model(data).square().mean().backward()
                optimizer.step()
            task.submit(examples=1)

    torch.manual_seed(0)
    first = Normed()
    got = koinon.simulate(
        run(koinon.chain(koinon.FedAvg(), koinon.FedRep(keys=KEYS)), first), client, clients=3
    )
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "body.weight"):
        assert np.array_equal(got.model[name], first.state_dict()[name].numpy()), name


@pytest.mark.parametrize("first", [True, False])
def test_a_measuring_pass_does_not_undo_the_heads_phase(first):
    heads = {}

    def client(session):
        model = arrays()
        for task in session.tasks(model):
            task.descend({"body.w": np.ones(3), "head.w": np.full(2, -1.0)}, lr=0.5)
            task.submit(examples=1)
        heads[session.client] = model["head.w"].tolist()

    parts = (koinon.Scaffold(option=1), koinon.FedRep(keys=KEYS))
    strategy = koinon.chain(*(parts if first else reversed(parts)))
    koinon.simulate(run(strategy, arrays(), population=3, evaluate=False), client, clients=3)
    assert set(map(tuple, heads.values())) == {(1.0, 1.0)}


@pytest.mark.parametrize("kept", [False, True])
def test_an_optimizer_made_outside_of_the_loop_begins_each_task_anew(kept):
    """Otherwise its momentum is of weights that the round, or Ditto's pass, has replaced."""
    ends = {}

    def client(session):
        model = nn.Linear(1, 1, bias=False)
        outside = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for task in session.tasks(model, keep_optimizer=kept):
            for _ in range(5):
                outside.zero_grad()
                (model.weight - 1.0).square().sum().backward()
                outside.step()
            task.submit(examples=1)

    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    for name, strategy in (
        ("plain", koinon.FedAvg()),
        ("ditto", koinon.chain(koinon.FedAvg(), koinon.Ditto(lam=2.0))),
    ):
        got = koinon.simulate(run(strategy, model, rounds=3, evaluate=False), client, clients=3)
        ends[name] = got.model["weight"].tobytes()
    assert (ends["plain"] == ends["ditto"]) is not kept


def test_steps_of_a_momentum_that_goes_on_have_no_length():
    from koinon_core.errors import LocalProtocolError

    def client(session):
        model = nn.Linear(1, 1, bias=False)
        outside = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for task in session.tasks(model, keep_optimizer=True):
            model(torch.ones(1, 1)).sum().backward()
            outside.step()
            task.submit(examples=1)

    with pytest.raises(LocalProtocolError, match="goes on from steps that nobody recorded"):
        koinon.simulate(run(koinon.FedNova(), nn.Linear(1, 1, bias=False)), client, clients=3)


def test_a_personal_metric_with_too_long_a_name_is_told_by_its_own():
    from koinon_core.errors import BadUpdate

    def client(session):
        for task in session.tasks({"x": np.zeros(1)}):
            task.submit(examples=1, metrics={"m" * 60: 1.0} if task.kind == "personal" else {})

    with pytest.raises(BadUpdate, match="of a personal task is sent as"):
        koinon.simulate(
            run(koinon.chain(koinon.FedAvg(), koinon.Ditto()), {"x": np.zeros(1)}), client, clients=3
        )
