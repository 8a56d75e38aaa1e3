"""The Dockerfiles: hadolint finds nothing, what they copy is there, and what they start and probe is what there is."""

import fnmatch
import json
import subprocess
import sys
import tomllib

import pytest

from deploy.reading import (
    DEPLOY,
    ROOT,
    Elsewhere,
    Line,
    commands,
    dockerfile,
    free_ports,
    run,
    serving,
    taken,
    tool,
    unit,
    values,
)
from koinon_coordinator.identity import Home

IMAGES = ["coordinator", "client", "edge"]
HEALTH = DEPLOY / "docker" / "health.py"


def image(name: str) -> list[Line]:
    return dockerfile(DEPLOY / "docker" / f"{name}.Dockerfile")


def last_stage(name: str) -> list[Line]:
    lines = image(name)
    start = max(i for i, line in enumerate(lines) if line.word == "FROM")
    return lines[start:]


def environment(name: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for value in values(last_stage(name), "ENV") for pair in value.split())


def copied(name: str) -> list[str]:
    """What is copied from the repository."""
    words = [value.split() for value in values(image(name), "COPY")]
    return [source for line in words if not line[0].startswith("--from") for source in line[:-1]]


def started(name: str) -> list[str]:
    """The whole command of a container to which nothing else is said."""
    (entry,), (rest,) = values(last_stage(name), "ENTRYPOINT"), values(last_stage(name), "CMD")
    line = json.loads(entry) + json.loads(rest)
    return line[line.index("--") + 1 :] if line[0] == "tini" else line


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_finds_nothing(name):
    file = DEPLOY / "docker" / f"{name}.Dockerfile"
    done = run(tool("hadolint"), "--no-color", "--failure-threshold", "style", file)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && apt-get install curl\n")
    assert "DL3006" in run(tool("hadolint"), tmp_path / "Dockerfile").stdout


# -- what goes in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_copied_is_there_and_not_ignored(name):
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored  # all but what is named
    sent = {line[1:] for line in ignored if line.startswith("!")}
    for source in copied(name):
        assert (ROOT / source).exists(), source
        assert source in sent, source
    assert all((ROOT / source).exists() for source in sent)


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_copied_is_all_that_the_wheel_is_made_of(name):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, wheel = settings["project"], settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"], *wheel["packages"]}
    assert needed <= set(copied(name))


def test_an_image_has_the_extras_that_it_needs():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = settings["project"]["optional-dependencies"]
    assert any(one.startswith("psycopg") for one in extras["postgres"])
    assert "'.[postgres]'" in " ".join(values(image("coordinator"), "RUN"))
    assert any(one.startswith("torch") for one in extras["torch"])
    assert "'.[torch]'" in " ".join(values(image("client"), "RUN"))


@pytest.mark.parametrize(
    "secret", ["koinon-federation/ca.key", "deploy/secrets/pgpass", "koinon.db", ".git/config"]
)
def test_no_secret_can_get_into_a_layer(secret):
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")]
    assert not [one for one in sent if fnmatch.fnmatch(secret, one) or secret.startswith(f"{one}/")]


def test_an_image_for_a_jetson_brings_a_python_that_is_new_enough():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    least = tuple(map(int, settings["project"]["requires-python"].removeprefix(">=").split(".")))
    given = dict(value.split("=", 1) for value in values(image("edge"), "ARG"))
    assert tuple(map(int, given["PYTHON"].split("."))) >= least
    assert given["BASE"] == "ubuntu:24.04"
    assert [value.split()[0] for value in values(image("edge"), "FROM")].count("${BASE}") == 2


# -- what comes of it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_a_user_without_rights(name):
    assert values(last_stage(name), "USER") == ["10001:10001"]


@pytest.mark.parametrize("name", IMAGES)
def test_what_an_image_starts_is_a_command_with_these_options(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    assert taken(started(name))


def test_the_image_of_the_edge_daemon_starts_what_its_service_does():
    (start,) = values(unit(DEPLOY / "systemd" / "koinon-edge.service"), "ExecStart")
    assert started("edge") == ["koinon-edge", *commands(start)[1:]]


@pytest.mark.parametrize("name", ["client", "edge"])
def test_what_a_device_must_keep_is_in_a_volume(name):
    said = environment(name)
    assert values(last_stage(name), "VOLUME") == [said["KOINON_STATE"]]
    made = " ".join(values(last_stage(name), "RUN"))
    assert f"install -d -o 10001 -g 10001 -m 0700 {said['KOINON_STATE']} {said['RUNTIME_DIRECTORY']}" in made


def test_the_coordinator_serves_as_its_image_says_and_its_probe_sees_it(tmp_path):
    here = Elsewhere(tmp_path, "/var/lib/koinon/federation", "/var/lib/koinon/data")
    said = {
        name: here(value) for name, value in environment("coordinator").items() if name.startswith("KOINON_")
    }
    home = Home.init(tmp_path / "var-lib-koinon-federation", "example.org", 1.8e9)
    assert said["KOINON_FEDERATION"] == str(home.folder)
    (tmp_path / "var-lib-koinon-data").mkdir()  # as the image has it
    (probe,) = values(last_stage("coordinator"), "HEALTHCHECK")
    words = json.loads(probe[probe.index("[") :])
    assert words[:2] == ["/opt/koinon/bin/python", "/opt/koinon/health.py"]
    assert f"{HEALTH.relative_to(ROOT)} {words[1]}" in values(image("coordinator"), "COPY")
    with serving([here(word) for word in started("coordinator")[1:]], tmp_path / "log", said) as ready:
        assert run(sys.executable, HEALTH, *map(here, words[2:])).returncode == 0
    assert f":{here.ports[8440]}, enrols on 0.0.0.0:{here.ports[8441]}" in ready
    assert run(sys.executable, HEALTH, *map(here, words[2:])).returncode == 1


def test_the_ports_of_the_image_are_the_ones_that_devices_expect():
    from koinon.identity.access import LOCAL

    assert values(last_stage("coordinator"), "EXPOSE") == ["8440 8441"]
    assert LOCAL.endswith(":8440")
    assert taken(["koinon-coordinator", "serve"])["listen"].endswith(":8440")


def test_the_probe_says_who_does_not_answer():
    (port,) = free_ports(1)
    done = run(sys.executable, HEALTH, f"127.0.0.1:{port}")
    assert (done.returncode, done.stderr) == (1, f"127.0.0.1:{port} does not answer: UNAVAILABLE\n")


@pytest.fixture(scope="module")
def unready():
    """A server whose health is NOT_SERVING; gives its address."""
    code = (
        "import sys, grpc; from concurrent.futures import ThreadPoolExecutor as P; "
        "from grpc_health.v1 import health, health_pb2 as h, health_pb2_grpc as g; "
        "one = health.HealthServicer(); one.set('', h.HealthCheckResponse.NOT_SERVING); "
        "s = grpc.server(P(1)); g.add_HealthServicer_to_server(one, s); "
        "print(s.add_insecure_port('127.0.0.1:0'), flush=True); s.start(); sys.stdin.read()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server:
        yield f"127.0.0.1:{server.stdout.readline().strip()}"
        server.stdin.close()


def test_the_probe_fails_while_a_coordinator_is_not_ready(unready):
    done = run(sys.executable, HEALTH, unready)
    assert (done.returncode, done.stdout) == (1, "NOT_SERVING\n")
