"""The simulation catches every planted bug (bugs.py), each within a hundred worlds."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faults.bugs import BUGS, Bug

_HERE = Path(__file__).parent
_WORLDS = 100
_WORKERS = 2


def _worlds(bug: Bug) -> list[int]:
    """The world that is known to catch it comes first; where something has changed since, all others follow."""
    return [bug.seed, *(seed for seed in range(_WORLDS) if seed != bug.seed)]


class _Planter:
    """One process that plants all bugs at once, and a line from it for each."""

    def __init__(self, bugs: list[Bug], seeds: list[int] | None = None) -> None:
        told = [
            {
                "name": b.name, "file": b.file, "old": b.old, "new": b.new, "rule": b.rule,
                "seeds": seeds or _worlds(b),
            }
            for b in bugs
        ]  # fmt: skip
        command = [sys.executable, _HERE / "plant.py", _HERE.parent.parent, str(_WORKERS)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            json.dump(told, pipe)
        self._found: dict[str, dict[str, Any]] = {}

    def found(self, bug: Bug) -> dict[str, Any]:
        """What became of it; lines come in the order in which bugs are caught."""
        assert self._process.stdout is not None
        while bug.name not in self._found:
            line = self._process.stdout.readline()
            assert line, "the process that plants them died"
            found = json.loads(line)
            self._found[found["name"]] = found
        return self._found[bug.name]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def planter(request: pytest.FixtureRequest) -> Iterator[_Planter]:
    wanted = {item.callspec.params["bug"] for item in request.session.items if "planter" in item.fixturenames}  # type: ignore[attr-defined]
    planter = _Planter([bug for bug in BUGS if bug in wanted])
    yield planter
    planter.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Bug, planter: _Planter) -> None:
    found = planter.found(bug)
    assert found["seed"] is not None, (
        f"nothing notices that {bug.breaks}: {found['law'] or 'every law holds'}"
    )
    print(f"{bug.name}: world {found['seed']}: {found['law']}")


def test_where_nothing_is_planted_nothing_is_caught() -> None:
    """What catches them is the laws, and not a simulation that is broken itself."""
    control = replace(BUGS[0], name="none", new=BUGS[0].old)
    # The others of these worlds are among those of test_simulation's five thousand rounds, or of the soak's.
    planter = _Planter([control], sorted({bug.seed for bug in BUGS if not bug.rule})[::4])
    try:
        assert planter.found(control)["seed"] is None, planter.found(control)["law"]
    finally:
        planter.close()


def test_no_two_have_one_name() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)
