"""`koinon run compare` and the best model, of two runs that devices took part in."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import koinon
from conftest import Clients, Coordinator
from koinon.cli import app
from koinon_core.errors import KoinonError

RUNNER = CliRunner()


def device(address: str, run: str, name: str, step: float) -> None:
    with koinon.join(address, run=run, name=name) as session:
        model = {"x": np.zeros(1)}

        def evaluate(_: object) -> dict[str, float]:
            return {"loss": (float(model["x"][0]) - 3.0) ** 2}

        for task in session.tasks(model, evaluate=evaluate):
            model["x"] += step
            task.submit(examples=1, metrics={"speed": step * task.round})


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory):
    """One with the finished runs `slow` and `fast`."""
    one = Coordinator(tmp_path_factory.mktemp("compare"))
    for run, step, best in (
        ("slow", 0.5, {"metric": "train.speed", "mode": "max"}), ("fast", 1.0, {"metric": "eval.loss", "patience": 2}),
        ("falling", -1.0, {"metric": "train.speed", "mode": "min"}),
    ):  # fmt: skip
        clients = Clients()
        koinon.Run(
            run, model={"x": np.zeros(1)}, rounds=7, min_clients=2, clients=2, aggregation="open", best=best,
            models="none", codec="raw",
        ).create(one.address)  # fmt: skip
        for name in ("a", "b"):
            clients.start(lambda run=run, name=name, step=step: device(one.address, run, name, step), name)
        clients.join()
    yield one
    one.stop()


def said(coordinator: Coordinator, *arguments: object) -> str:
    done = RUNNER.invoke(
        app, [*map(str, arguments), "--address", coordinator.address], env={"COLUMNS": "200"}
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_that_stopped_early_says_so_and_has_its_best_model(coordinator, tmp_path):
    handle = koinon.RunHandle(coordinator.address, "fast", "fast")
    assert handle.best() == (3, "eval.loss", 0.0)
    assert "6 rounds closed early: eval.loss was no better in" in said(coordinator, "run", "show", "fast")
    said(coordinator, "run", "export", "fast", "--best", "--to", tmp_path / "best.safetensors")
    assert load_file(tmp_path / "best.safetensors")["x"].tolist() == [3.0]
    with pytest.raises(KoinonError, match="leave --round out"):
        said(coordinator, "run", "export", "fast", "--best", "--round", 2, "--to", tmp_path / "x.safetensors")


def test_runs_are_compared_by_what_they_have_in_common(coordinator):
    import json

    told = json.loads(said(coordinator, "run", "compare", "slow", "fast", "--json"))
    assert told["metric"] == "eval.loss"
    slow, fast = told["runs"]
    assert (slow["best"], slow["best_round"], slow["rounds"]) == (0.0, 6, 7)
    assert (fast["best"], fast["best_round"], fast["last"]) == (0.0, 3, 9.0)
    assert fast["bytes_up"] > 0 < fast["seconds"]
    text = said(coordinator, "run", "compare", "slow", "fast")
    assert "best eval.loss" in text
    assert "▁" in text
    speed = json.loads(
        said(coordinator, "run", "compare", "slow", "fast", "--metric", "train.speed", "--json")
    )
    assert [row["last"] for row in speed["runs"]] == [3.5, 6.0]


def test_each_run_is_judged_as_its_own_settings_say(coordinator):
    import json

    told = json.loads(
        said(coordinator, "run", "compare", "slow", "falling", "fast", "--metric", "train.speed", "--json")
    )
    slow, falling, fast = told["runs"]
    assert (slow["mode"], slow["best"], slow["best_round"]) == ("max", 3.5, 7), (
        "by its [best], not by the name"
    )
    assert (falling["mode"], falling["best"], falling["best_round"]) == ("min", -7.0, 7)
    assert (fast["mode"], fast["best"]) == ("min", 1.0), "its [best] is about another metric: by the name"
    text = said(coordinator, "run", "compare", "slow", "falling", "--metric", "train.speed")
    assert "slow by the largest, falling by the least" in " ".join(text.split())
    assert "judged differently" not in said(
        coordinator, "run", "compare", "fast", "falling", "--metric", "train.speed"
    )
    steps = json.loads(said(coordinator, "run", "compare", "slow", "fast", "--metric", "step.norm", "--json"))
    assert all(row["best"] > 0 for row in steps["runs"]), (
        "any metric of a round, also one that is no one's aim"
    )


def test_what_cannot_be_compared_is_said(coordinator, tmp_path, monkeypatch):
    for arguments, reason in (
        (("slow",), "two runs or more"),
        (("slow", "fast", "--metric", "eval.f1"), "has no 'eval.f1'"),
        (("slow", "nobody"), "nobody"),
    ):
        with pytest.raises(KoinonError, match=reason):
            said(coordinator, "run", "compare", *arguments)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(KoinonError, match=r"koinon\[plot\]"):
        said(coordinator, "run", "compare", "slow", "fast", "--plot", tmp_path / "curves.png")


def test_curves_are_drawn_by_what_draws(coordinator, tmp_path, monkeypatch):
    drawn: list[tuple[object, ...]] = []

    class Axes:
        def __getattr__(self, name):
            return lambda *given, **_: drawn.append((name, *given))

    class Figure:
        def __init__(self, **_):
            pass

        def subplots(self):
            return Axes()

        def savefig(self, to: Path, dpi: int):
            to.write_bytes(b"drawn")

    monkeypatch.setitem(sys.modules, "matplotlib", types.ModuleType("matplotlib"))
    module = types.ModuleType("matplotlib.figure")
    module.Figure = Figure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", module)
    said(coordinator, "run", "compare", "slow", "fast", "--plot", tmp_path / "curves.png")
    curves = [given for name, *given in drawn if name == "plot"]
    assert [len(rounds) for rounds, _ in curves] == [7, 6]
    assert (tmp_path / "curves.png").read_bytes() == b"drawn"
