"""A database that an older version left in the middle of its work is taken up by this one, and its runs are finished.

Each folder of tests/archive is such a database, with what it must say (its README tells more).
"""

import importlib.util
import json
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import koinon
from conftest import Clients, Coordinator
from koinon.cli import audit
from koinon.operator import Operator
from koinon_core.audit import verify

ARCHIVES = sorted(path.parent for path in (Path(__file__).parents[1] / "archive").glob("*/expected.json"))


class Archive:
    """What a version left, and this version's coordinator over it. `make` is the module that made it: the devices'
    functions are in it."""

    def __init__(self, folder: Path, at: Path):
        self.known: dict[str, Any] = json.loads((folder / "expected.json").read_text())["runs"]
        self.make = _module(folder / "make.py")
        self.joined: dict[str, set[str]] = defaultdict(set)
        """Who entered a run."""
        self.worked: dict[tuple[str, int], set[str]] = defaultdict(set)
        """Who was given work in a run's round."""
        with tarfile.open(folder / "database.tar.xz") as tar:
            tar.extractall(at, filter="data")
        self.coordinator = Coordinator(at)
        self.address = self.coordinator.address

    @property
    def open(self) -> list[str]:
        """The runs that were under way."""
        return sorted(name for name, run in self.known.items() if run["status"] == "running")

    def start(self, clients: Clients, run: str, names: list[str]) -> None:
        """Let these devices of the run take part until it is over."""
        for name in names:
            clients.start(lambda name=name: self._device(run, name), f"{run} {name}")

    def _device(self, run: str, name: str) -> None:
        with koinon.join(self.address, run=run, name=name) as session:
            self.joined[run].add(name)
            self.make.RUNS[run][2](session, lambda client, number: self.worked[run, number].add(client))


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("made_" + path.parent.name.replace(".", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    one = Archive(request.param, tmp_path)
    try:
        yield one
        assert one.coordinator.stop() == 0
        assert "Traceback" not in one.coordinator.log.read_text(), one.coordinator.log.read_text()
    finally:
        one.coordinator.kill()


def ended_well(archive: Archive, run: str) -> None:
    """The run is over, its model is the one it had to be, and its log holds from where this version took it up."""
    known = archive.known[run]
    with Operator(archive.address) as operator:
        seen = operator.get(run)
        assert seen.run.status == "finished"
        number, model = operator.model(run)
        entries = list(operator.audit(run))
    # These devices were started anew: what 0.1.0 kept in their memory alone is gone, as it was for 0.1.0 itself.
    expected = known["final_with_restarted_devices"]
    assert (number, archive.make.tensors_digest(model)) == (expected["round"], expected["tensors"])
    people = {r.number: {p.client: p.status for p in r.participants} for r in seen.rounds}
    assert people == {n: dict.fromkeys(archive.make.RUNS[run][1], "counted") for n in range(1, number + 1)}
    report = verify(entries)
    assert (report.problems, report.head) == ([], seen.head)
    kinds = [entry.value["kind"] for entry in entries]
    assert kinds[0] == "anchored"
    assert [e.value["facts"]["round"] for e in entries if e.value["kind"] == "ended"] == [
        *range(known["open_round"], number + 1)
    ]
    audit.verify(run, archive.address)
    audit.replay(run, None, archive.address)


def until_closed(operator: Operator, run: str, rounds: int) -> None:
    end = time.monotonic() + 30
    while operator.get(run).run.rounds_closed < rounds:
        assert time.monotonic() < end, f"round {rounds} of {run} does not close"
        time.sleep(0.02)


def test_all_that_was_known_is_known(archive: Archive) -> None:
    with Operator(archive.address) as operator:
        for run, known in archive.known.items():
            facts = archive.make.facts(operator, run)
            facts["model_digests"]["0"] = known["model_digests"]["0"]  # only the database itself says it
            assert facts == {key: known[key] for key in facts}


def test_a_run_that_was_over_is_read_exported_and_verified(archive: Archive) -> None:
    over = sorted({*archive.known} - {*archive.open})
    assert over
    with Operator(archive.address) as operator:
        for run in over:
            assert operator.get(run).run.status == archive.known[run]["status"]
            number, model = operator.model(run)
            expected = archive.known[run]["final"]
            assert (number, archive.make.tensors_digest(model)) == (expected["round"], expected["tensors"])
            assert {r.verdict for r in operator.replay(run)} <= {"gone", "evaluation"}
            audit.verify(run, archive.address)  # nothing was written down then, and nothing is made up now
            assert list(operator.audit(run)) == []


def test_open_runs_are_finished_without_what_was_handed_in_being_asked_for_again(
    archive: Archive, clients: Clients
) -> None:
    for run in archive.open:
        archive.start(clients, run, archive.make.RUNS[run][1])
    clients.join()
    for run in archive.open:
        known = archive.known[run]
        assert archive.worked[run, known["open_round"]] == set(known["awaited"])
        ended_well(archive, run)


def test_whoever_comes_when_the_round_is_over_that_it_had_worked_for_goes_on_too(
    archive: Archive, clients: Clients
) -> None:
    with Operator(archive.address) as operator:
        for run in archive.open:
            known = archive.known[run]
            archive.start(clients, run, known["awaited"])
            until_closed(operator, run, known["open_round"])
            archive.start(clients, run, known["staged"])
    clients.join()
    for run in archive.open:
        ended_well(archive, run)


def test_a_coordinator_that_is_killed_after_the_upgrade_goes_on_as_any_other(
    archive: Archive, clients: Clients
) -> None:
    for run in archive.open:
        archive.start(clients, run, archive.make.RUNS[run][1][:-1])
    archive.make.until(lambda: all(len(archive.joined[run]) for run in archive.open))
    archive.coordinator.kill()
    archive.coordinator.start()
    for run in archive.open:
        archive.start(clients, run, archive.make.RUNS[run][1][-1:])
    clients.join()
    for run in archive.open:
        known = archive.known[run]
        assert archive.worked[run, known["open_round"]] == set(known["awaited"])
        ended_well(archive, run)
