"""`koinon demo`: the first thing a newcomer does."""

import io
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from koinon.demo.digits import make_model
from koinon.demo.show import Scene
from koinon_core.update import Head


def test_the_demo_learns_and_leaves_a_run_to_look_at(tmp_path):
    figures, folder = tmp_path / "demo.json", tmp_path / "run"
    out = subprocess.run(
        [sys.executable, "-m", "koinon", "demo", "--json", figures, "--directory", folder],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    told = json.loads(figures.read_text())
    assert told["accuracy"] >= 0.95
    assert told["accuracy"] >= told["central_accuracy"] - 0.02
    assert told["accuracy"] >= told["best_alone_accuracy"] + 0.03
    assert [r["round"] for r in told["rounds"]] == list(range(1, 11))
    assert {r["clients"] for r in told["rounds"]} == {10}
    assert all(r["bytes_up"] > 100_000 and r["bytes_down"] > 100_000 for r in told["rounds"])
    parameters = sum(p.numel() for p in make_model().parameters())
    for r in told["rounds"]:
        assert r["bits"] == pytest.approx(8 * r["bytes_up"] / parameters / r["clients"])
        # Masked, with numbers and checks beside it: wide at first, then sized to the sum before.
        assert 8 < r["bits"] < (40 if r["round"] == 1 else 10)
    with sqlite3.connect(folder / "koinon.db") as db:
        assert [row[0] for row in db.execute("SELECT DISTINCT head FROM updates")] == [
            json.dumps(Head().to_json())
        ]
    db.close()
    assert (folder / "koinon.db").exists()
    assert told["directory"] == str(folder)
    assert "federated" in out.stdout


def test_the_demo_does_not_write_over_a_run(tmp_path):
    (tmp_path / "koinon.db").touch()
    out = subprocess.run(
        [sys.executable, "-m", "koinon", "demo", "--directory", tmp_path],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert out.returncode == 2
    assert "holds a run already" in out.stderr


def test_the_table_of_the_demo_fits_in_80_columns():
    scene, out = Scene(Path("runs") / ("demo-" + "x" * 80), time.monotonic()), io.StringIO()
    # The widest figures that a demo has: a hundred devices, whose updates came in full.
    scene.follow(
        [("round", 100, 0.9876, 0.1234, 100, 999.9e3, 32.1, 999.9e3, 3599.99)], Console(file=out, width=200)
    )
    lines = out.getvalue().splitlines()
    assert any("999.9 KB" in line and "32.1" in line and "3599.99" in line for line in lines)
    assert max(map(len, lines)) <= 80
