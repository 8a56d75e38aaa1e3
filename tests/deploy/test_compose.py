"""compose.yaml: well-formed, closed, in step with the image and the coordinator, and served from as it says."""

import json
import re
import stat
import sys

import psycopg
import pytest
import yaml

from deploy.reading import DEPLOY, ROOT, Elsewhere, dockerfile, run, serving, taken, tool, values, variables
from koinon_coordinator.identity import Home

FILE = DEPLOY / "compose.yaml"
IMAGE = dockerfile(DEPLOY / "docker" / "coordinator.Dockerfile")
SAID = {"KOINON_HOST": "localhost"}


def filled(text: str) -> str:
    """`text` with its variables: as .env would have them, or by their defaults."""

    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        return SAID[name] if name in SAID else default.removeprefix(":-")

    return re.sub(r"\$\{(\w+)(:[-?][^}]*)?\}", value, text)


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load(filled(FILE.read_text()))


@pytest.fixture
def coordinator(compose):
    return compose["services"]["coordinator"]


# -- what tools say -------------------------------------------------------------------------------------------


def test_yamllint_finds_nothing():
    rules = "{extends: default, rules: {line-length: {max: 120}}}"
    done = run(tool("yamllint"), "--strict", "--format", "parsable", "-d", rules, FILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_is_a_compose_file_by_the_specification():
    done = run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", FILE)
    assert done.returncode == 0, done.stdout


# -- closed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coordinator", "db"])
def test_a_service_has_no_rights_and_writes_only_where_it_must(compose, name):
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].partition(":")[0]) > 0
    assert service["healthcheck"]["test"][0] == "CMD"


def test_nobody_but_the_coordinator_reaches_the_database(compose, coordinator):
    assert "ports" not in compose["services"]["db"]
    assert compose["services"]["db"]["networks"] == ["database"]
    assert compose["networks"]["database"] == {"internal": True}
    assert set(coordinator["networks"]) == set(compose["networks"])


def test_no_password_is_in_an_environment_or_a_command_line(compose):
    for service in compose["services"].values():
        for name, value in service["environment"].items():
            assert "PASS" not in name.upper() or value.startswith("/run/secrets/"), name
        assert not any(re.search(r"://[^@/]*:[^@/]*@", word) for word in service.get("command", []))


def test_every_volume_network_and_secret_that_is_used_is_declared_and_the_other_way_round(compose):
    services = compose["services"].values()
    assert {v.partition(":")[0] for s in services for v in s["volumes"]} == set(compose["volumes"])
    assert {name for s in services for name in s["networks"]} == set(compose["networks"])
    assert {name for s in services for name in s["secrets"]} == set(compose["secrets"])


# -- in step --------------------------------------------------------------------------------------------------


def test_the_coordinator_reads_what_its_environment_says(coordinator):
    libpq = {one.envvar.decode() for one in psycopg.pq.Conninfo.get_defaults() if one.envvar}
    assert set(coordinator["environment"]) <= variables("koinon-coordinator") | libpq


def test_it_starts_the_coordinator_with_options_that_it_has(coordinator):
    said = taken(["koinon-coordinator", *coordinator["command"]])
    assert said["db"] == "postgresql+psycopg://koinon@db/koinon"
    assert said["health_listen"] == coordinator["healthcheck"]["test"][-1]
    assert (said["address"], said["enrol_address"]) == ("localhost:8440", "localhost:8441")


def test_the_image_is_built_from_its_dockerfile_and_run_as_that_says(compose, coordinator):
    context = (DEPLOY / coordinator["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / coordinator["build"]["dockerfile"]).exists()
    assert coordinator["user"] == values(IMAGE, "USER")[-1]
    (probe,) = values(IMAGE, "HEALTHCHECK")
    assert coordinator["healthcheck"]["test"][1:] == json.loads(probe[probe.index("[") :])
    made = " ".join(values(IMAGE, "RUN"))
    for volume in coordinator["volumes"]:  # a volume has the owner that its folder has in the image
        assert (
            volume.partition(":")[2]
            in re.search(r"install -d -o 10001 -g 10001 -m 0700 ([^&]*)", made)[1].split()
        )


def test_the_published_ports_are_the_ones_that_the_coordinator_listens_on(coordinator):
    said = taken(["koinon-coordinator", *coordinator["command"]])
    inside = {port.rpartition(":")[2] for port in coordinator["ports"]}
    assert inside == {said[name].rpartition(":")[2] for name in ("listen", "enrol_listen")}
    assert inside == set(values(IMAGE, "EXPOSE")[0].split())


def test_every_variable_of_the_file_is_in_the_example(compose):
    used = set(re.findall(r"\$\{(\w+)", FILE.read_text()))
    shown = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert used == set(shown)
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", FILE.read_text()):
        assert shown[name] == default


def test_without_a_host_name_it_says_what_to_do():
    assert "${KOINON_HOST:?say in .env" in FILE.read_text()


# -- for real -------------------------------------------------------------------------------------------------


@pytest.fixture
def secrets(tmp_path):
    """A folder with the files that secrets.sh writes."""
    if run("id", "-u").stdout.strip() != "0":
        pytest.skip("secrets.sh gives files to other users, and these tests do not run as root")
    done = run(DEPLOY / "secrets.sh", tmp_path / "secrets")
    assert done.returncode == 0, done.stderr
    return tmp_path / "secrets"


def test_each_password_file_is_its_containers_alone_and_written_once(compose, secrets):
    for name, service in (("pgpass", "coordinator"), ("postgres-password", "db")):
        found = (secrets / name).stat()
        assert f"{found.st_uid}:{found.st_gid}" == compose["services"][service]["user"]
        assert stat.S_IMODE(found.st_mode) == 0o400
        assert compose["secrets"][name]["file"] == f"./secrets/{name}"
    password = (secrets / "postgres-password").read_text()
    assert re.fullmatch(r"[0-9a-f]{48}", password)
    user = compose["services"]["db"]["environment"]["POSTGRES_USER"]
    base = compose["services"]["db"]["environment"]["POSTGRES_DB"]
    assert (secrets / "pgpass").read_text() == f"db:5432:{base}:{user}:{password}\n"
    again = run(DEPLOY / "secrets.sh", secrets)
    assert again.returncode == 1
    assert (secrets / "postgres-password").read_text() == password


def test_the_coordinator_serves_from_postgresql_as_it_says_with_the_password_from_its_file(
    coordinator, postgres, tmp_path
):
    with postgres.database() as url:
        base, port = url.rpartition("/")[2].partition("?")[0], postgres.port
        passfile = tmp_path / "pgpass"
        passfile.write_text(f"127.0.0.1:{port}:{base}:koinon:{postgres.password}\n")
        passfile.chmod(0o400)
        also = {"@db/koinon": f"@127.0.0.1:{port}/{base}", "/run/secrets/pgpass": str(passfile)}
        here = Elsewhere(tmp_path, "/var/lib/koinon/federation", "/var/lib/koinon/data", also=also)
        environment = {name: here(value) for name, value in coordinator["environment"].items()}
        Home.init(tmp_path / "var-lib-koinon-federation", "example.org", 1.8e9)
        with serving([here(word) for word in coordinator["command"]], tmp_path / "log", environment):
            probe = run(sys.executable, DEPLOY / "docker" / "health.py", here.health)
            assert probe.stdout == "SERVING\n"
        assert (tmp_path / "var-lib-koinon-data").is_dir()
