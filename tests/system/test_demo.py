"""`koinon demo`: the first thing a newcomer does."""

import json
import subprocess
import sys


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
