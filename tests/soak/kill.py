"""`make soak`: every kill there is, one run each (tests/system/test_kill.py and test_secure_kill.py are samples).

The counting loop: a run is disturbed at the first visit to a point, then at the second, and so on, until it ends
without having come so far. pytest collects this file only when it is named.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import postgres as servers
from system.killing import BLOB, JOURNAL, KINDS, LINK, OUTBOX, RPC, STORE, Kill, Ran, federate

AT_ONCE = 4
BEYOND = 8
"""Visits that are tried after the last one of an undisturbed run: it passes a point more or less often, since what
arrives together shares a commit."""

SECURE = ("secure", "secure-large")

LOOPS = [
    *(("small", "sqlite", "coordinator", point) for point in (*STORE, *RPC[:2])),
    *(("large", "sqlite", "coordinator", point) for point in (*STORE, *BLOB, *RPC)),
    *((kind, "sqlite", "client-2", point) for kind in KINDS for point in (*OUTBOX, *LINK)),
    *((kind, "postgresql", "coordinator", point) for kind in KINDS for point in STORE),
    *(("small", "postgresql", "server", point) for point in STORE),
    *(("secure", "sqlite", "coordinator", point) for point in (*STORE, *RPC[:2])),
    *(("secure-large", "sqlite", "coordinator", point) for point in (*STORE, *BLOB, *RPC)),
    *((kind, "sqlite", "client-2", point) for kind in SECURE for point in (*JOURNAL, *OUTBOX, *LINK)),
    *(("secure", "postgresql", "coordinator", point) for point in STORE),
]


@pytest.fixture(scope="module", autouse=True)
def _runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Devices keep their secrets where the tests end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNTIME_DIRECTORY", str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Each kind of run as nobody disturbed it."""
    return {kind: federate(tmp_path_factory.mktemp(kind), kind, hits=True) for kind in (*KINDS, *SECURE)}


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Postgres]:
    with servers.Postgres(durable=True) as one:
        one.drop(one.create())  # its first database is the others' template: before there are threads
        yield one


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("kind", "database", "whom", "point"), LOOPS)
def test_a_kill_anywhere_changes_nothing(
    kind: str, database: str, whom: str, point: str, whole: dict[str, Ran], tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    server = request.getfixturevalue("server") if database == "postgresql" else None

    def one(number: int) -> tuple[Kill, bool, list[str]]:
        kill, folder = Kill(point, number, whom), tmp_path / str(number)
        try:
            with contextlib.nullcontext(None) if server is None else server.database() as url:
                ran = federate(folder, kind, kill, url=url, server=server)
        except BaseException as error:
            return kill, True, [repr(error)]
        unlike = ran.unlike(whole[kind], kill)
        if not unlike:
            shutil.rmtree(folder)
        return kill, ran.killed, unlike

    began, found, reached = time.monotonic(), {}, 0
    known = whole[kind].hits[point]
    # Without a server a coordinator does not start: its first transactions brought its tables up to date.
    first = 4 if whom == "server" else 1
    with ThreadPoolExecutor(1 if whom == "server" else AT_ONCE) as pool:
        for at in range(first, known + BEYOND, AT_ONCE):
            batch = range(at, at + AT_ONCE)
            done = list(pool.map(one, batch))
            found |= {str(kill): unlike for kill, _, unlike in done if unlike}
            reached += sum(killed for _, killed, _ in done)
            if batch[-1] > known and not any(killed for _, killed, _ in done):
                break
    print(
        f"{kind} {database} {whom} {point}: {reached} kills in {time.monotonic() - began:.0f} s, {len(found)} wrong"
    )
    assert found == {}
    assert reached > 0.7 * known - 4
