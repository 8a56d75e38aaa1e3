"""LoRA: only adapters travel, what is frozen stays, averages of B are exact, and whole runs learn."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import koinon
from koinon.adapt import adapt
from koinon.torch.lora import LoraLinear, add_lora, lora_layers, merge_lora
from koinon_core.errors import UsageError
from koinon_core.strategy.lora import project
from koinon_core.strategy.runner import LocalHalf

X = torch.from_numpy(np.random.default_rng(3).normal(size=(96, 16)).astype(np.float32))
TEACHER = torch.from_numpy(np.random.default_rng(4).normal(size=(16, 4)).astype(np.float32))
Y = (X @ TEACHER).argmax(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 32)
        self.norm = nn.LayerNorm(32)
        self.second = nn.Linear(32, 32, bias=False)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.second(torch.relu(self.norm(self.first(x)))))


def adapted(**given):
    return add_lora(Net(), targets=("first", "second"), rank=4, also=("head.*",), **given)


def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))


def train(model, rows=slice(None), steps=8, lr=0.05):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X[rows]), Y[rows])
        loss.backward()
        optimizer.step()
    return loss.item()


def bytes_of(tensors):
    return {n: t.detach().numpy().tobytes() for n, t in tensors}


def frozen(model):
    return bytes_of((n, p) for n, p in model.named_parameters() if not p.requires_grad)


# -- what travels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze_a", [True, False])
def test_adapters_and_what_is_named_beside_them_are_federated_and_nothing_else(freeze_a):
    names = {f.name for f in adapt(adapted(freeze_a=freeze_a)).schema}
    a = set() if freeze_a else {"first.lora_a", "second.lora_a"}
    assert names == {"first.lora_b", "second.lora_b", "head.weight", "head.bias", *a}


def test_the_adapters_are_sections_of_their_own_kinds():
    from koinon_core.sections import kind_of

    kinds = {f.name: kind_of(f) for f in adapt(adapted(freeze_a=False)).schema}
    assert kinds["first.lora_a"] == "lora_a"
    assert kinds["first.lora_b"] == "lora_b"
    assert kinds["head.weight"] == "param"


def test_the_model_computes_at_first_what_it_did_before_and_checkpoints_of_it_load():
    plain, model = Net(), adapted()
    assert torch.equal(plain(X), model(X))
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) == {f"{n}.lora_{f}" for n in ("first", "second") for f in "ab"}


@pytest.mark.parametrize("freeze_a", [True, False])
def test_base_weights_are_the_same_bytes_after_training(freeze_a):
    model = adapted(freeze_a=freeze_a)
    before, b = frozen(model), model.first.lora_b.detach().clone()
    assert {"first.weight", "first.bias", "norm.weight", "norm.bias", "second.weight"} <= set(before)
    assert ("first.lora_a" in before) is freeze_a
    train(model)
    assert frozen(model) == before
    assert not torch.equal(model.first.lora_b, b)


def test_a_is_the_same_everywhere_and_another_for_each_seed_and_layer():
    one = add_lora(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), rank=2)
    torch.manual_seed(99)
    two = add_lora(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), rank=2)
    assert torch.equal(one[0].lora_a, two[0].lora_a)
    assert not torch.equal(one[0].lora_a, one[1].lora_a)
    other = add_lora(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), rank=2, seed=1)
    assert not torch.equal(one[0].lora_a, other[0].lora_a)
    # Its bytes are fixed: devices of different releases have to agree on them.
    digest = hashlib.sha256(one[0].lora_a.detach().numpy().tobytes()).hexdigest()
    assert digest[:16] == "fe1875e0d2181dc4"


def test_a_is_uniform_as_a_linear_layer_draws_its_weights():
    a = add_lora(nn.Sequential(nn.Linear(400, 300)), rank=300)[0].lora_a.detach().numpy()
    bound = 1 / 20
    assert np.abs(a).max() <= bound
    assert a.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)
    assert abs(a.mean()) < bound / 100


def test_add_lora_takes_no_random_number_of_torch():
    model = Net()
    state = torch.get_rng_state()
    add_lora(model, rank=2)
    assert torch.equal(torch.get_rng_state(), state)


# -- merging, copies, torch's own ways ------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 16.0])
def test_a_merged_model_computes_the_same_and_is_plain(alpha):
    model = adapted(freeze_a=False, alpha=alpha)
    train(model)
    expected = model(X)
    unadapted = Net()(X)
    assert merge_lora(model) is model
    assert not lora_layers(model)
    assert {type(model.first), type(model.second)} == {nn.Linear}
    assert set(model.state_dict()) == set(Net().state_dict())
    assert (model(X) - expected).abs().max() < 1e-6 * max(1, expected.abs().max().item())
    assert (unadapted - expected).abs().max() > 0.01


def test_alpha_over_rank_scales_what_is_added():
    outputs = {}
    for alpha in (4.0, 8.0):
        model = adapted(alpha=alpha)
        with torch.no_grad():
            model.second.lora_b.normal_(generator=torch.Generator().manual_seed(0))
        outputs[alpha] = model.second(torch.eye(32)) - Net().second(torch.eye(32))
    assert torch.allclose(outputs[8.0], 2 * outputs[4.0], atol=1e-5)
    assert outputs[4.0].abs().max() > 0.1


def test_merging_unties_what_was_tied():
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    net[1].weight = net[0].weight
    add_lora(net, rank=2)
    with torch.no_grad():
        net[1].lora_b.fill_(1.0)
    before = net[0].weight.detach().clone()
    merge_lora(net)
    assert torch.equal(net[0].weight, before)
    assert not torch.equal(net[1].weight, before)


def test_a_layer_that_is_used_twice_stays_one():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    add_lora(net, rank=2)
    assert net[0] is net[2]
    assert isinstance(net[2], LoraLinear)
    assert [f.name for f in adapt(net).schema] == ["0.lora_b"]
    merge_lora(net)
    assert net[0] is net[2]
    assert type(net[2]) is nn.Linear


def test_the_fused_inference_of_a_transformer_layer_does_not_pass_the_adapters_by():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
    net = nn.Sequential(layer)
    add_lora(net, rank=2)
    assert set(lora_layers(net)) == {"0.linear1", "0.linear2"}, (
        "not self_attn.out_proj, which is never called"
    )
    with torch.no_grad():
        net[0].linear1.lora_b.fill_(0.5)
        x = torch.ones(1, 3, 8) * torch.arange(8)
        assert torch.allclose(net.eval()(x), net.train()(x), atol=1e-5)


def test_adapters_of_a_16_bit_layer_have_32_and_give_its_dtype_back():
    net = add_lora(nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16), rank=2)
    assert net[0].lora_b.dtype == torch.float32
    assert net(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert copy.deepcopy(net)[0].lora_a.requires_grad is False


# -- averages -------------------------------------------------------------------------------------------------


def learned(freeze_a, active=(None,) * 4, rank=4):
    """The layer `first` of four devices that trained on data of their own from a common start."""
    out = []
    for i, r in enumerate(active):
        model = adapted(freeze_a=freeze_a, active=r)
        train(model, slice(24 * i, 24 * i + 24), steps=14)
        layer = model.first
        out.append((layer.lora_b.detach().double().numpy(), layer.lora_a.detach().double().numpy()))
    return out


def nmse(found, exact):
    return float(((found - exact) ** 2).sum() / (exact**2).sum())


def products(factors):
    exact = np.mean([b @ a for b, a in factors], axis=0)
    plain = np.mean([b for b, _ in factors], axis=0) @ np.mean([a for _, a in factors], axis=0)
    return exact, plain


def test_with_a_frozen_the_mean_of_b_gives_the_mean_of_the_products():
    exact, plain = products(learned(freeze_a=True))
    assert nmse(plain, exact) < 1e-28


def test_with_a_trained_it_does_not_and_the_projection_is_nearer():
    factors = learned(freeze_a=False)
    exact, plain = products(factors)
    b, a = project(factors, [1] * 4, 4)
    assert nmse(plain, exact) > 0.01
    assert nmse(b @ a, exact) < nmse(plain, exact) / 2


# -- ranks that differ ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze_a", [True, False])
def test_a_device_of_a_lower_rank_changes_its_part_and_has_the_same_schema(freeze_a):
    whole, part = adapted(freeze_a=freeze_a), adapted(freeze_a=freeze_a, active=1)
    assert adapt(whole).schema == adapt(part).schema
    with torch.no_grad():
        for model in (whole, part):
            model.first.lora_b.copy_(torch.linspace(-1, 1, 128).reshape(32, 4))
    assert torch.equal(whole(X), part(X)), "it uses all of the round's model"
    before = {n: p.detach().clone() for n, p in part.first.named_parameters()}
    train(part)
    moved = {n: p.detach() - before[n] for n, p in part.first.named_parameters()}
    assert moved["lora_b"][:, 0].abs().min() > 0
    assert moved["lora_b"][:, 1:].abs().max() == 0
    assert moved["lora_a"][1:].abs().max() == 0
    assert (moved["lora_a"][0].abs().max() > 0) is not freeze_a


def test_columns_that_few_devices_train_move_by_their_share_only():
    factors = learned(freeze_a=True, active=(1, 1, 1, 4))
    mean = np.mean([b for b, _ in factors], axis=0)
    assert np.allclose(mean[:, 1:], factors[3][0][:, 1:] / 4)
    assert np.abs(mean[:, 1:]).max() > 0


# -- whole runs -----------------------------------------------------------------------------------------------


def run(aggregation, codec, **given):
    """(what came of it, the bytes of what is frozen on each device at the end, the run's first model)."""
    model = add_lora(Net(), targets=("first", "second"), rank=4, **given)
    made = koinon.Run(
        "lora", model=model, rounds=6, min_clients=3, clients=3, aggregation=aggregation, max_examples=128, **codec
    )  # fmt: skip
    ends = []

    def evaluate(model):
        with torch.no_grad():
            return {"loss": float(nn.functional.cross_entropy(model(X), Y)), "examples": len(X)}

    def client(session):
        i = int(session.client[-1])
        own = add_lora(Net(), targets=("first", "second"), rank=4, **given)
        for task in session.tasks(own, evaluate=evaluate):
            loss = train(own, slice(32 * i, 32 * i + 32), steps=6)
            task.submit(examples=32, metrics={"loss": loss})
        ends.append(frozen(own))

    return koinon.simulate(made, client, clients=3), ends, model


@pytest.fixture
def sent(monkeypatch):
    """The names of all sections that devices made, and the sizes of the updates."""
    sections, sizes = set(), []
    prepare = LocalHalf.prepare

    def seen(self, **given):
        sections.update(self.layout.under(given["terms"]).update.by_name)
        made = prepare(self, **given)
        sizes.append(made.blob.size)
        return made

    monkeypatch.setattr(LocalHalf, "prepare", seen)
    return sections, sizes


@pytest.mark.parametrize(
    ("aggregation", "codec"),
    [("open", {"codec": "raw"}), ("open", {}), ("secure", {"codec": "exact"}), ("secure", {})],
    ids=["open-raw", "open", "secure-exact", "secure"],
)
def test_a_run_learns_and_only_b_travels(aggregation, codec, sent):
    sections, sizes = sent
    got, ends, first = run(aggregation, codec)
    losses = [values["eval.loss"] for _, values in sorted(got.metrics.items()) if "eval.loss" in values]
    assert got.status == "finished"
    assert losses[-1] < 0.8 * losses[0], losses
    assert set(got.model) == {"first.lora_b", "second.lora_b"}
    assert ends == [frozen(first)] * 3, "base weights and A are what they were, on every device"
    assert sections == {"delta/first.lora_b", "delta/second.lora_b"}
    parameters = (32 + 32) * 4
    if codec == {"codec": "raw"}:
        assert all(4 * parameters <= size < 4 * parameters + 600 for size in sizes), sizes


def test_a_whole_model_costs_many_times_the_bytes(sent):
    _, sizes = sent

    def cost(model):
        made = koinon.Run("cost", model=model(), rounds=1, aggregation="open", codec="raw", evaluate=False)

        def client(session):
            own = model()
            for task in session.tasks(own):
                train(own, steps=1)
                task.submit(examples=1)

        sizes.clear()
        koinon.simulate(made, client, clients=2)
        return sum(sizes) / len(sizes)

    def adapters(freeze_a):
        return lambda: add_lora(wide(), targets=("2",), rank=8, freeze_a=freeze_a)

    whole, both, b_only = cost(wide), cost(adapters(False)), cost(adapters(True))
    assert whole / both > 15
    assert whole / b_only > 30


def test_devices_of_different_ranks_share_a_run_and_a_lower_one_sends_less(sent):
    _, sizes = sent
    by_rank = {}

    def model(active):
        return add_lora(wide(), targets=("2",), rank=8, active=active)

    made = koinon.Run("ranks", model=model(None), rounds=1, min_clients=3, clients=3, aggregation="open",
                      evaluate=False)  # fmt: skip

    def client(session):
        i = int(session.client[-1])
        own = model((2, 2, 8)[i])
        for task in session.tasks(own):
            train(own, steps=4)
            task.submit(examples=1)
            by_rank[i] = sizes[-1]

    got = koinon.simulate(made, client, clients=3)
    assert np.abs(got.model["2.lora_b"][:, 2:]).max() > 0
    assert by_rank[0] < by_rank[2] / 2


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rank": 0}, "at least 1"),
        ({"rank": 17}, "'first' of 16 by 32 can have; use at most 16"),
        ({"rank": 5}, "'head' of 32 by 4 can have; use at most 4"),
        ({"rank": 2, "targets": ("nothing.*",)}, "match none .*first, second, head"),
        ({"rank": 2, "also": ("haed.*",)}, r"'haed\.\*' matches no parameter"),
        ({"rank": 2, "alpha": 0.0}, "alpha = 0.0 must be a number above 0"),
        ({"rank": 2, "alpha": float("nan")}, "alpha = nan"),
        ({"rank": 2, "active": 0}, "between 1 and rank = 2"),
        ({"rank": 2, "active": 3}, "between 1 and rank = 2"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_changed(given, says):
    net = Net()
    with pytest.raises(UsageError, match=says):
        add_lora(net, **given)
    assert not lora_layers(net)
    assert all(p.requires_grad for p in net.parameters())


def test_adapters_are_added_and_merged_once():
    net = add_lora(Net(), rank=2)
    with pytest.raises(UsageError, match="has adapters already"):
        add_lora(net, rank=2)
    merge_lora(net)
    with pytest.raises(UsageError, match="no adapters to merge"):
        merge_lora(net)
    assert lora_layers(add_lora(net, rank=2)), "after a merge there may be others"


def test_the_most_that_fits_is_no_error():
    assert add_lora(Net(), rank=4).head.lora_b.shape == (4, 4)


def test_a_lone_linear_cannot_be_replaced_in_place():
    with pytest.raises(UsageError, match="itself a Linear"):
        add_lora(nn.Linear(4, 4), rank=2)


def test_what_is_named_beside_the_adapters_never_thaws_an_adapted_weight():
    net = add_lora(Net(), targets=("first",), rank=2, also=("*",))
    assert not net.first.weight.requires_grad
    assert net.first.bias.requires_grad
    assert net.second.weight.requires_grad


def test_the_example_of_the_page_works_as_it_is_written():
    page = (Path(__file__).parents[2] / "docs" / "lora.md").read_text()
    (code,) = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    made = {}
    exec(code, made)
    assert set(made["done"].model) == {"0.lora_b", "2.lora_b", "4.weight", "4.bias"}
    assert {type(layer) for layer in made["plain"]} == {nn.Linear, nn.ReLU}
    assert not torch.equal(made["plain"][2].weight, made["model"]()[2].weight)


def test_a_device_with_another_freeze_a_is_told_that_its_model_is_another():
    made = koinon.Run("other", model=adapted(), rounds=1, aggregation="open", patience=1)

    def client(session):
        for task in session.tasks(adapted(freeze_a=False)):
            task.submit(examples=1)

    with pytest.raises(koinon.KoinonError, match="lora_a"):
        koinon.simulate(made, client, clients=2)


def test_a_may_be_shared_while_every_device_keeps_its_b(sent):
    sections, _ = sent
    strategy = koinon.chain(koinon.FedAvg(), koinon.FedPer(keys=("*.lora_b",)))
    made = koinon.Run("own-b", model=adapted(freeze_a=False), strategy=strategy, rounds=2, aggregation="open")
    ends = []

    def client(session):
        own = adapted(freeze_a=False)
        i = int(session.client[-1])
        for task in session.tasks(own):
            train(own, slice(32 * i, 32 * i + 32), steps=2)
            task.submit(examples=1)
        ends.append(own.first.lora_b.detach())

    koinon.simulate(made, client, clients=2)
    assert {name for name in sections if "lora" in name} == {"delta/first.lora_a", "delta/second.lora_a"}
    assert not torch.equal(*ends)
