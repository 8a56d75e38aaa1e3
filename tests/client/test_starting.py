"""Warm starts: where a first model may come from, which of its tensors are taken, and what does not fit."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from torch import nn

import koinon
from koinon_core.errors import UsageError

BODY, HEAD = np.arange(6, dtype=np.float32).reshape(2, 3), np.full(2, 7.0, np.float32)


def run(model, **settings):
    return koinon.Run("warm", model=model, min_clients=3, **settings)


def target():
    return {"body.w": np.zeros((2, 3), np.float32), "head.w": np.zeros(2, np.float32)}


def sharded(folder, weights, index="model.safetensors.index.json", **changes):
    folder.mkdir(exist_ok=True)
    where = {}
    for i, (name, array) in enumerate(weights.items()):
        shard = f"model-{i}.safetensors"
        save_file({name: array}, folder / shard)
        where[name] = shard
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": {**where, **changes}}))
    return folder


# -- where it may come from ---------------------------------------------------------------------------------


def stored(kind, tmp_path):
    weights = {"body.w": BODY, "head.w": HEAD}
    state = {name: torch.from_numpy(a.copy()) for name, a in weights.items()}
    path = tmp_path / f"model{ {'safetensors': '.safetensors', 'folder': '', 'one': ''}.get(kind, '.pt') }"
    match kind:
        case "safetensors":
            save_file(weights, path)
        case "folder":
            sharded(path, weights)
        case "one":
            path.mkdir()
            save_file(weights, path / "any.safetensors")
        case "state_dict":
            torch.save(state, path)
        case "within":
            torch.save({"epoch": 3, "state_dict": state, "loss": 0.5}, path)
        case "old":
            torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "folder", "one", "state_dict", "within", "old"])
def test_a_model_is_read_from_wherever_it_is_stored(kind, tmp_path):
    path = stored(kind, tmp_path)
    made = run(path)
    assert {n: a.tolist() for n, a in made.model.items()} == {
        "body.w": BODY.tolist(),
        "head.w": HEAD.tolist(),
    }
    assert made.started == ""
    began = run(target(), start=str(path))
    assert began.model == made.model
    assert (
        began.started == "2 of 2 tensors are taken; the strategy's state, and what devices keep, start afresh"
    )


def test_bfloat16_is_widened_and_loses_nothing(tmp_path):
    values = torch.randn(4, 5).to(torch.bfloat16)
    save_torch({"a": torch.zeros(3), "w": values}, tmp_path / "half.safetensors")
    torch.save({"a": torch.zeros(3), "w": values}, tmp_path / "half.pt")
    for file in ("half.safetensors", "half.pt"):
        found = run(tmp_path / file).model["w"]
        assert found.dtype == np.float32
        assert torch.equal(torch.from_numpy(np.array(found)), values.float())
    began = run({"a": np.zeros(3), "w": np.zeros((4, 5))}, start={"a": torch.zeros(3), "w": values})
    assert torch.equal(torch.from_numpy(np.array(began.model["w"])), values.double())


def test_a_checkpoint_that_could_run_something_is_refused_and_nothing_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"w": Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"w": Bomb()}))
    for file in ("bomb.pt", "plain.pt"):
        with pytest.raises(UsageError, match=rf"{file} holds something else than tensors"):
            run(tmp_path / file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("no.pt", None, "there is no model file"),
        ("no.safetensors", None, "there is no model file"),
        ("text.pt", lambda p: p.write_text("hello"), "text.pt"),
        ("list.pt", lambda p: torch.save([1, 2], p), "holds no state_dict"),
        (
            "two.pt", lambda p: torch.save({"net": {"w": torch.zeros(2)}, "ema": {"w": torch.zeros(2)}}, p),
            "state_dicts as net, ema, and nothing says which",
        ),
        ("sparse.pt", lambda p: torch.save({"w": torch.eye(2).to_sparse()}, p), "which numpy does not have"),
        ("complex.pt", lambda p: torch.save({"w": torch.zeros(2, dtype=torch.complex64)}, p), "which numpy does not"),
        ("empty", lambda p: p.mkdir(), "0 indices .* and 0 safetensors files"),
        ("two", lambda p: [sharded(p, {"a": BODY}), sharded(p, {"a": BODY}, "b.safetensors.index.json")], "2 indices"),
        ("gone", lambda p: sharded(p, {"a": BODY}, a="model-9.safetensors"), "there is no model file .*model-9"),
        ("short", lambda p: sharded(p, {"a": BODY}, b="model-0.safetensors"), "does not hold 'b'"),
        ("above", lambda p: sharded(p, {"a": BODY}, a="../up.safetensors"), "which is no file of its folder"),
        ("absolute", lambda p: sharded(p, {"a": BODY}, a="/etc/passwd"), "which is no file of its folder"),
        ("index", lambda p: [p.mkdir(), (p / "m.safetensors.index.json").write_text("{}")], "is not the index"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_named(name, make, sentence, tmp_path):
    if make is not None:
        make(tmp_path / name)
    with pytest.raises(UsageError, match=sentence):
        run(tmp_path / name)


# -- what is taken ------------------------------------------------------------------------------------------


def test_a_module_takes_what_fits_and_is_left_as_it_is():
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    made = run(module, start=other.state_dict())
    assert np.array_equal(made.model["0.weight"], other.state_dict()["0.weight"].numpy())
    assert not np.array_equal(made.model["0.weight"], module.state_dict()["0.weight"].numpy())
    assert made.spec.schema == run(module).spec.schema, (
        "the model says what is trained, whatever it starts from"
    )


def test_a_modules_own_state_dict_fits_it_with_what_is_frozen_and_tied():
    module = nn.ModuleList([nn.Embedding(4, 3), nn.Linear(3, 4, bias=False), nn.Linear(3, 3)])
    module[1].weight = module[0].weight
    module[2].weight.requires_grad_(False)
    made = run(module, start=module.state_dict())
    assert set(made.model) == {"0.weight", "2.bias"}
    assert made.started.startswith("2 of 2 tensors are taken; 2 are frozen or tied, and not sent")
    with pytest.raises(UsageError, match=r"'2\.weights' is not the model's"):
        run(module, start={**module.state_dict(), "2.weights": torch.zeros(3)})


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_named(value):
    with pytest.raises(UsageError, match=r"'head\.w' of these weights have values that are not finite"):
        run(target(), start={"body.w": BODY, "head.w": np.array([1.0, value])})


def test_everything_that_does_not_fit_is_in_one_sentence_with_what_comes_nearest():
    weights = {"body.v": BODY, "head.w": np.zeros(3, np.float32), "n": np.zeros(2)}
    model = {**target(), "m": np.zeros(2)}
    with pytest.raises(UsageError) as refused:
        run(model, start=weights)
    said = str(refused.value)
    assert said.startswith("these weights do not fit the model: ")
    for part in (
        "'head.w' has shape (3,), the model's has (2,)", "'body.w' is missing (nearest: 'body.v')", "'m' is missing",
        "'body.v' is not the model's (nearest: 'body.w')", "'n' is not the model's",
    ):  # fmt: skip
        assert part in said
    assert "\n" not in said


def test_a_prefix_is_found_as_the_nearest_and_renamed():
    weights = {"module.body.w": BODY, "module.head.w": HEAD}
    with pytest.raises(UsageError, match=r"'body.w' is missing \(nearest: 'module.body.w'\)"):
        run(target(), start=weights)
    assert run(target(), start=weights, rename={"module.": ""}).model["head.w"].tolist() == HEAD.tolist()
    with pytest.raises(UsageError, match=r"would both be called 'body\.w'"):
        run(target(), start={"a.body.w": BODY, "b.body.w": BODY}, rename={"a.": "", "b.": ""})


def test_a_head_of_another_size_keeps_its_own_values_where_that_is_said():
    weights = {"body.w": BODY, "head.w": np.zeros(10, np.float32), "extra": np.zeros(1)}
    model = {**target(), "head.w": np.full(2, 3.0, np.float32)}
    made = run(model, start=weights, ignore=("head.*", "extra"))
    assert made.model["head.w"].tolist() == [3.0, 3.0]
    assert made.model["body.w"].tolist() == BODY.tolist()
    assert made.started.startswith(
        "1 of 2 tensors are taken, and the model keeps its own values of head.w; the strat"
    )
    made = run(model, start={"body.w": BODY}, allow_missing=True)
    assert made.model["head.w"].tolist() == [3.0, 3.0]
    with pytest.raises(UsageError, match=r"'head\.w' is missing"):
        run(model, start={"body.w": BODY})
    with pytest.raises(UsageError, match=r"'head.w' has shape \(10,\)"):
        run(model, start={"body.w": BODY, "head.w": np.zeros(10)}, allow_missing=True)
    with pytest.raises(UsageError, match="nothing would be taken"):
        run(model, start={"head.w": HEAD}, ignore=("head.*",), allow_missing=True)


def test_numbers_stay_of_their_kind_and_take_the_models_precision():
    model = {"w": np.zeros(2, np.float32), "n": np.zeros(1, np.int64)}
    made = run(model, start={"w": np.ones(2), "n": np.ones(1, np.int32)}, aggregation="open")
    assert (made.model["w"].dtype, made.model["n"].dtype) == (np.float32, np.int64)
    with pytest.raises(UsageError, match="'w' is int64, the model's is float32"):
        run(model, start={"w": np.ones(2, np.int64), "n": np.ones(1, np.int64)}, aggregation="open")


def test_what_is_about_a_start_needs_one():
    with pytest.raises(UsageError, match="are about start, and there is none"):
        run(target(), ignore=("head.*",))
    with pytest.raises(UsageError, match="cannot start from a int"):
        run(target(), start=5)


def test_a_simulated_run_goes_on_from_another_ones_model():
    def client(session):
        model = {"x": np.zeros(1)}
        for task in session.tasks(model):
            model["x"] += 1.0
            task.submit(examples=1)

    def settings(strategy):
        return {"rounds": 2, "aggregation": "open", "codec": "raw", "strategy": strategy}

    first = koinon.simulate(run({"x": np.zeros(1)}, **settings(koinon.FedAvg())), client, clients=3)
    made = run({"x": np.zeros(1)}, start=first.model, **settings(koinon.FedAvgM(beta=0.5)))
    assert koinon.simulate(made, client, clients=3).model["x"].tolist() == [2.0 + 1.0 + 1.5]
