"""A run that begins with another run's model, at a real coordinator."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import koinon
from koinon.cli import app
from koinon.models import ArrayModel
from koinon.operator import Operator
from koinon_core.errors import NotFound, UsageError
from koinon_core.schema import Field, Schema
from koinon_core.spec import RunSpec


def said(coordinator, *arguments: object) -> str:
    done = CliRunner().invoke(
        app, [*map(str, arguments), "--address", coordinator.address], env={"COLUMNS": "300"}
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.fixture
def finished(coordinator, clients):
    """A run of four rounds, best after two; one of its tensors is a buffer, which its name does not say."""
    schema = Schema((Field("x", (1,), "float64"), Field("stat", (1,), "float64", "buffer")))
    run = koinon.Run(
        "first", model={"x": np.zeros(1), "stat": np.ones(1)}, rounds=4, min_clients=1, clients=1,
        aggregation="open", codec="raw",
    )  # fmt: skip
    spec = RunSpec.decode(run.spec.encoded)
    object.__setattr__(spec, "schema", schema.to_json())
    vars(spec).pop("model", None)
    with Operator(coordinator.address) as operator:
        operator.create(spec, run.model)

    def client() -> None:
        with koinon.join(coordinator.address, run="first", name="d") as session:
            model = ArrayModel(arrays := {"x": np.zeros(1), "stat": np.zeros(1)})
            model.schema = schema
            for task in session.tasks(model, evaluate=lambda _: {"loss": (float(arrays["x"][0]) - 2.0) ** 2}):
                arrays["x"] += 1.0
                task.submit(examples=1)

    clients.start(client)
    clients.join()
    return koinon.RunHandle(coordinator.address, "first", "first")


def test_a_run_begins_with_another_runs_model_its_roles_included(coordinator, finished, tmp_path):
    open_ = tmp_path / "open.toml"
    open_.write_text("aggregation = 'open'\nmin_clients = 1\n")
    for name, text, round_, x in (
        ("newest", "first", 4, 4.0), ("third", "first@3", 3, 3.0), ("best", "first@best", 2, 2.0),
        ("zero", "first@0", 0, 0.0),
    ):  # fmt: skip
        told = said(coordinator, "run", "create", name, "--from", text, "--config", open_)
        assert (
            f"it begins with round {round_} of run first: the strategy's state, and what devices keep, start afresh"
            in told
        )
        handle = koinon.RunHandle(coordinator.address, name, name)
        assert handle.model()["x"].tolist() == [x]
        with Operator(coordinator.address) as operator:
            made = RunSpec.decode(operator.get(name).spec)
        assert made.model.by_name["stat"].role == "buffer"


def test_a_model_takes_what_fits_of_another_runs(coordinator, finished, tmp_path):
    open_ = tmp_path / "open.toml"
    open_.write_text("aggregation = 'open'\nmin_clients = 1\n")
    save_file({"net.x": np.zeros(1), "head": np.full(3, 5.0)}, tmp_path / "model.safetensors")
    create = ("run", "create", "second", "--model", tmp_path / "model.safetensors", "--config", open_)
    with pytest.raises(UsageError, match=r"'net.x' is missing \(nearest: 'x'\).*'stat' is not the model's"):
        said(coordinator, *create, "--from", "first")
    told = said(
        coordinator,
        *create,
        "--from",
        "first@best",
        "--rename",
        "x=net.x",
        "--ignore",
        "stat",
        "--allow-missing",
    )
    assert (
        "round 2 of run first: 1 of 2 tensors are taken, and the model keeps its own values of head;" in told
    )
    with Operator(coordinator.address) as operator:
        model = operator.model("second")[1]
    assert (model["net.x"].tolist(), model["head"].tolist()) == ([2.0], [5.0] * 3)
    save_file({"net.x": np.full(1, 8.0), "head": np.zeros(3)}, tmp_path / "weights.safetensors")
    told = said(
        coordinator, "run", "create", "third", "--model", tmp_path / "model.safetensors", "--config", open_,
        "--start", tmp_path / "weights.safetensors",
    )  # fmt: skip
    assert "weights.safetensors: 2 of 2 tensors are taken" in told


def test_what_names_no_model_is_said(coordinator, finished, tmp_path):
    save_file({"x": np.zeros(1)}, tmp_path / "m.safetensors")
    model = ("--model", tmp_path / "m.safetensors")
    for arguments, kind, sentence in (
        ((), UsageError, "--model FILE, or --from RUN"),
        (("--start", "w.pt"), UsageError, "--model FILE, or --from RUN"),
        (("--from", "first", "--start", "w.pt", *model), UsageError, "keep one of them"),
        (("--from", "first@worst"), UsageError, "RUN@ROUND or RUN@best"),
        (("--from", "first@9"), NotFound, "round 9 made no model"),
        (("--from", "nobody"), NotFound, "no run 'nobody'"),
        (("--from", "first", "--allow-missing"), UsageError, "about what a --model takes"),
        (("--from", "first", *model, "--rename", "x"), UsageError, "must be OLD=NEW"),
        ((*model, "--ignore", "x"), UsageError, "are about start, and there is none"),
    ):
        with pytest.raises(kind, match=sentence):
            said(coordinator, "run", "create", "none", *arguments)
