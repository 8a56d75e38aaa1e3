"""Closed forms deployed: real processes, a coordinator that is killed at its commits again and again, and links that
are cut under updates. Several runs at a time share what it costs to start it anew.

tests/faults/test_toys.py does so for every strategy in every round, in virtual time.
"""

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import koinon
import toy
from conftest import Clients
from faults.test_toys import OPEN, SECURE
from faults.toys import Toy
from koinon_core import failpoints
from koinon_core.errors import Conflict
from proxy import Proxy
from system import killing

pytestmark = pytest.mark.timeout(240)


class Dying(killing.Coordinator):
    """It dies at a commit in each of its lives, after so many of them."""

    def __init__(self, folder: Path, commits: tuple[int, int]):
        self._folder, self._commits, self._dice = folder, commits, random.Random(5)
        super().__init__(folder, ["--kill", "", "", ""])

    def _start(self) -> None:
        point, number = self._dice.choice(killing.STORE), str(self._dice.randint(*self._commits))
        self._arguments[:4] = ["--kill", point, number, self._folder / f"killed-{len(self.started)}"]
        super()._start()


@dataclass
class Deployed:
    """Runs at one such coordinator, by name. All devices' links go through one proxy, and all are cut with an update in
    fifty."""

    coordinator: Dying
    proxy: Proxy
    clients: Clients
    folder: Path
    cut: int = 0

    def start(self, name: str, given: Toy, rounds: int) -> koinon.RunHandle:
        run = toy.toy_run(
            given.strategy, rounds, name, evaluate=False, patience=1000, join_wait=10.0, phase=60.0,
            aggregation="secure" if given.secure else "open",
        )  # fmt: skip

        def create() -> koinon.RunHandle:
            try:
                return run.create(self.coordinator.address)
            except Conflict:  # its answer was lost
                return koinon.RunHandle(self.coordinator.address, name)

        handle = killing._patiently(create)
        for client in toy.NAMES:
            self.clients.start(lambda client=client: self._attend(name, client, given), f"{name} {client}")
        return handle

    def _attend(self, run: str, client: str, given: Toy) -> None:
        with koinon.join(
            self.proxy.address, run=run, name=f"{run}-{client}", state=self.folder / "state",
            timeout=killing.PATIENCE,
        ) as session:  # fmt: skip
            toy.toy_client(given.steps)(session)

    def sabotage(self) -> None:
        dice, lock = random.Random(9), threading.Lock()

        def action(about: str) -> None:
            if about != "answer":
                return
            with lock:
                if dice.random() > 0.02:
                    return
                self.cut += 1
            self.proxy.cut()

        failpoints.arm("link.said", action)


@pytest.fixture
def deployed(request: pytest.FixtureRequest, tmp_path: Path, clients: Clients) -> Iterator[Deployed]:
    coordinator = Dying(tmp_path, request.param)
    try:
        with Proxy(coordinator.port) as proxy:
            yield Deployed(coordinator, proxy, clients, tmp_path)
    finally:
        failpoints.disarm()
        coordinator.kill()
    assert "Traceback" not in coordinator.log.read_text()


def ends(deployed: Deployed, cases, within: float) -> None:
    handles = {name: deployed.start(name, given, rounds) for name, (given, rounds, _) in cases.items()}
    deployed.clients.join(200)
    for name, (_, rounds, end) in cases.items():
        assert killing._patiently(handles[name].wait) == f"{rounds} rounds closed"
        x = float(killing._patiently(handles[name].model)["x"][0])
        assert abs(x - end) <= within, name


@pytest.mark.parametrize("deployed", [(40, 60)], indirect=True)
def test_kills_and_cuts_change_nothing_about_the_end(deployed):
    cases = {"fedavg": OPEN["fedavg"]}
    cases["scaffold"] = (OPEN["scaffold"][0], 26, toy.UNIFORM)
    deployed.sabotage()
    ends(deployed, cases, 1e-9)
    print(f"{len(deployed.coordinator.started) - 1} kills, {deployed.cut} cuts")
    assert len(deployed.coordinator.started) > 3
    assert deployed.cut


@pytest.mark.parametrize("deployed", [(350, 450)], indirect=True)
def test_nor_do_they_where_only_sums_are_seen(deployed):
    ends(deployed, SECURE, 1e-5)
    print(f"{len(deployed.coordinator.started) - 1} kills")
    assert len(deployed.coordinator.started) > 1
