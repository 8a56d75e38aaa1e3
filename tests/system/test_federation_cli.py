"""`koinon-coordinator init`, `admin` and `serve` on the shell: what is made, what is printed, what is refused."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from federations import Person
from koinon_core.errors import KoinonError, Unavailable
from koinon_core.wire.methods import RUNS
from koinon_core.wire.v1 import runs_pb2

PROGRAM = [sys.executable, "-m", "koinon_coordinator"]
READY = re.compile(
    r"koinon-coordinator \S+ listens on 127\.0\.0\.1:(\d+)(?:, enrols on 127\.0\.0\.1:(\d+))?\n"
)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, cwd=folder, timeout=60)


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[int, int | None]]:
    """(the port, the port that enrols) of a coordinator in this folder."""
    command = [*PROGRAM, "serve", "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = READY.fullmatch(line)
        try:
            assert found, (line, process.stderr and process.stderr.read())
            yield int(found[1]), int(found[2]) if found[2] else None
        finally:
            process.terminate()
            assert process.wait(20) == 0


def admin(folder: Path, port: int) -> Person:
    """The first admin, as their credentials let them."""
    ca, key, chain = ((folder / name).read_bytes() for name in ("ca.pem", "tls.key", "tls.pem"))
    credentials = grpc.ssl_channel_credentials(ca, key, chain)
    return Person("admin", grpc.secure_channel(f"localhost:{port}", credentials))


def test_a_federation_is_made_and_served_and_its_admin_let_in(tmp_path: Path) -> None:
    made = run(tmp_path, "init", "--domain", "x.example")
    assert made.returncode == 0, made.stderr
    assert "koinon-federation holds federation x.example" in made.stdout
    again = run(tmp_path, "init")
    assert (again.returncode, again.stdout) == (1, "")
    assert re.fullmatch(r"koinon-coordinator: [^\n]*its keys are not made twice[^\n]*\n", again.stderr)
    with serving(tmp_path) as (port, enrols):
        assert enrols is not None
        person = admin(tmp_path / "koinon-federation" / "admin", port)
        assert list(person(RUNS.LIST, runs_pb2.ListRequest()).runs) == []
        with pytest.raises(Unavailable):
            Person("nobody", grpc.insecure_channel(f"localhost:{port}"))(RUNS.LIST, runs_pb2.ListRequest())
    with serving(tmp_path, "--enrol-listen", "") as (_, enrols):
        assert enrols is None


def test_the_first_admin_s_credentials_can_be_made_again(tmp_path: Path) -> None:
    run(tmp_path, "init", "--dir", "f", "--admin", "root")
    told = run(tmp_path, "admin", "--dir", "f", "--to", "mine")
    assert told.stdout == "mine holds the credentials of admin root\n"
    with serving(tmp_path, "--dir", "f") as (port, _):
        assert admin(tmp_path / "mine", port)(RUNS.LIST, runs_pb2.ListRequest()) is not None


def test_without_a_federation_it_says_both_ways_out(tmp_path: Path) -> None:
    told = run(tmp_path, "serve", "--listen", "127.0.0.1:0")
    assert (told.returncode, told.stdout) == (2, "")
    assert "`koinon-coordinator init --dir koinon-federation` makes a federation" in told.stderr
    assert "--insecure serves this machine alone, in plain text" in told.stderr
    assert not (tmp_path / "koinon.db").exists(), "nothing was begun"
    with serving(tmp_path, "--insecure") as (port, enrols):
        assert enrols is None
        plain = Person("anybody", grpc.insecure_channel(f"localhost:{port}"))
        assert plain(RUNS.LIST, runs_pb2.ListRequest()) is not None


def test_probes_are_answered_in_plain_text_without_a_certificate(tmp_path: Path) -> None:
    health_pb2 = pytest.importorskip("grpc_health.v1.health_pb2")
    from grpc_health.v1.health_pb2_grpc import HealthStub

    run(tmp_path, "init")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    at = f"127.0.0.1:{port}"
    with serving(tmp_path, "--health-listen", at), grpc.insecure_channel(at) as channel:
        answer = HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(KoinonError, match="Method not found"):
            Person("nobody", channel)(RUNS.LIST, runs_pb2.ListRequest())
