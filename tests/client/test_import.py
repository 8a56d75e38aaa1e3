"""What `import koinon` costs, and what it does not drag in."""

import subprocess
import sys

HEAVY = ("torch", "grpc", "sqlalchemy", "alembic", "rich", "typer", "zstandard")


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_importing_koinon_loads_nothing_heavy():
    assert loaded_after("import koinon") == set()


def test_writing_a_strategy_loads_neither_torch_nor_grpc():
    assert loaded_after("import koinon; koinon.FedAvg(), koinon.Base") <= {"zstandard"}


def test_submitting_a_numpy_run_does_not_load_torch():
    code = "import koinon, numpy; koinon.Run('r', model={'w': numpy.zeros(1)})"
    assert "torch" not in loaded_after(code)


def test_the_coordinator_never_loads_torch():
    assert "torch" not in loaded_after("import koinon_coordinator.service, koinon_coordinator.cli")


def test_help_needs_neither_torch_nor_sqlalchemy():
    assert loaded_after("import koinon.cli") <= {"grpc", "rich", "typer", "zstandard"}


def test_every_public_name_is_there():
    import koinon

    for name in koinon.__all__:
        assert getattr(koinon, name) is not None
