"""The systemd units: known to systemd, locked down, and in step with the programs that they start."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from deploy.reading import (
    DEPLOY,
    PROGRAMS,
    Elsewhere,
    Line,
    commands,
    run,
    serving,
    taken,
    tool,
    unit,
    values,
)
from koinon.outbox.secrets import DiskJournal
from koinon_coordinator.identity import Home

UNITS = DEPLOY / "systemd"
SERVICES = ["koinon-coordinator", "koinon-edge", "koinon-edge-enrol"]
NEW = UNITS / "koinon-edge.service.d" / "restart-steps.conf"
# Of systemd 250 and later: what JetPack 6 does not know, it ignores.
YOUNG = {
    "DelegateSubgroup", "ExitType", "ImportCredential", "LoadCredentialEncrypted", "MemoryPressureWatch",
    "OpenFile", "RestartMaxDelaySec", "RestartMode", "RestartSteps", "RestrictFileSystems",
    "SetCredentialEncrypted", "StartupAllowedCPUs", "StartupMemoryMax", "SurviveFinalKillSignal",
}  # fmt: skip


def service(name: str) -> list[Line]:
    return unit(UNITS / f"{name}.service")


def said(name: str) -> dict[str, str]:
    """The last value of each key."""
    return dict(service(name))


# -- systemd's own word ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A root with the units where deploy/README.md has them, programs where they start them, and systemd's targets."""
    root = tmp_path_factory.mktemp("root")
    targets = Path("/lib/systemd/system")
    if not targets.is_dir():
        pytest.skip(f"{targets} is not on this machine: the units depend on its targets")
    shutil.copytree(targets, root / "usr/lib/systemd/system", symlinks=True)
    installed = root / "etc/systemd/system"
    for file in UNITS.rglob("*"):
        if file.suffix in (".service", ".conf") and file != NEW:
            place = installed / file.relative_to(UNITS)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    for program in ("bin/rm", *(f"opt/koinon/bin/{name}" for name in PROGRAMS)):
        path = root / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return root


def verified(root: Path, name: str) -> str:
    """What systemd says against a unit; nothing, if it has nothing against it. Its status is 0 either way."""
    path = root / "etc/systemd/system" / f"{name}.service"
    return run(tool("systemd-analyze"), "verify", "--man=no", f"--root={root}", path).stderr


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_knows_every_key_and_finds_every_program(machine, name):
    assert verified(machine, name) == ""


def test_systemd_says_so_when_a_key_or_a_program_is_not_there(machine):
    spoiled = machine / "etc/systemd/system/spoiled.service"
    spoiled.write_text("[Service]\nExecStart=/opt/koinon/bin/koinon-age\nRestartSex=1\n")
    try:
        complaint = verified(machine, "spoiled")
    finally:
        spoiled.unlink()
    assert "RestartSex" in complaint
    assert "koinon-age" in complaint


def test_the_restarts_that_grow_are_for_a_systemd_that_knows_them(machine, tmp_path):
    version = int(re.search(r"\d+", run(tool("systemd-analyze"), "--version").stdout)[0])
    root = tmp_path / "root"
    shutil.copytree(machine, root, symlinks=True)
    shutil.copy(NEW, root / "etc/systemd/system/koinon-edge.service.d")
    unknown = re.findall(r"Unknown key(?: name)? '(\w+)'", verified(root, "koinon-edge"))
    assert unknown == ([] if version >= 254 else ["RestartSteps", "RestartMaxDelaySec"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_exposed_by_no_more_than_two_of_ten(machine, name):
    done = run(
        tool("systemd-analyze"), "security", "--no-pager", "--offline=true", "--threshold=20", f"--root={machine}",
        f"{name}.service",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_no_key_is_younger_than_the_systemd_of_jetpack_6(name):
    assert YOUNG.isdisjoint(said(name))


# -- in step with the programs --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_starts_is_a_command_with_these_options(name):
    (start,) = values(service(name), "ExecStart")
    assert taken(commands(start))


def test_the_daemon_and_who_enrols_it_read_the_settings_that_they_ask_for():
    for name in ("koinon-edge", "koinon-edge-enrol"):
        (start,) = values(service(name), "ExecStart")
        assert str(taken(commands(start))["config"]) == said("koinon-edge")["AssertPathExists"], name


def test_a_word_that_the_program_does_not_have_is_noticed():
    with pytest.raises(Exception, match="--lisen"):
        taken(["koinon-coordinator", "serve", "--lisen", "0.0.0.0:8440"])
    with pytest.raises(Exception, match="server"):
        taken(["koinon-coordinator", "server"])


def test_the_coordinator_serves_as_its_unit_says_without_writing_code(tmp_path):
    state = "/var/lib/koinon-coordinator"
    here = Elsewhere(tmp_path, state)
    keys = said("koinon-coordinator")
    assert keys["MemoryDenyWriteExecute"] == "yes"
    home = Path(here(keys["AssertPathExists"])).parent
    Home.init(home, "example.org", 1.8e9)
    line = [here(word) for word in commands(keys["ExecStart"])[1:]]
    with serving(line, tmp_path / "log") as ready:
        health = run(sys.executable, DEPLOY / "docker" / "health.py", here.health)
    assert f":{here.ports[8440]}, enrols on 0.0.0.0:{here.ports[8441]}" in ready
    assert health.stdout == "SERVING\n"
    assert (home.parent / "koinon.db").exists()
    # What it reads and writes is in the one folder that the unit gives it.
    assert f"/var/lib/{keys['StateDirectory']}" == state
    if "not refused" in (tmp_path / "log").read_text():
        pytest.skip("it serves, but this kernel cannot refuse it memory that is written and executed")


# -- what the daemon needs of its unit ------------------------------------------------------------------------


def test_secrets_of_a_round_are_where_they_outlive_a_restart_and_not_a_reboot(monkeypatch, tmp_path):
    keys = said("koinon-edge")
    assert (keys["RuntimeDirectory"], keys["RuntimeDirectoryPreserve"]) == ("koinon", "restart")
    memory = tmp_path / "run"
    memory.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(memory))  # as systemd tells it
    DiskJournal(tmp_path / "device")
    assert list(memory.iterdir())
    # A service that has the same folder would take it away when it ends.
    assert "RuntimeDirectory" not in said("koinon-edge-enrol")


def test_who_enrols_and_who_trains_have_the_same_folder():
    trains, enrols = said("koinon-edge"), said("koinon-edge-enrol")
    for key in ("User", "Group", "StateDirectory", "StateDirectoryMode", "EnvironmentFile"):
        assert trains[key] == enrols[key], key
    state = f"KOINON_STATE=/var/lib/{trains['StateDirectory']}"
    assert state in values(service("koinon-edge"), "Environment")
    assert state in values(service("koinon-edge-enrol"), "Environment")


def test_the_token_is_handed_over_under_the_name_that_enrol_looks_for():
    from koinon.cli import enrol

    keys = said("koinon-edge-enrol")
    name, _, file = keys["LoadCredential"].partition(":")
    assert name == enrol._CREDENTIAL
    assert file == keys["ConditionPathExists"]
    assert keys["ExecStartPost"].endswith(f" {file}")
    assert keys["Before"] == keys["WantedBy"] == "koinon-edge.service"


def test_children_get_cgroups_and_the_daemon_survives_them():
    keys = said("koinon-edge")
    assert (keys["Delegate"], keys["ProtectControlGroups"], keys["OOMPolicy"]) == ("yes", "no", "continue")
    assert "MemoryMax" not in keys  # the children's memory counts in the unit's
    assert (keys["KillMode"], keys["Type"], keys["NotifyAccess"]) == ("mixed", "notify", "main")


def test_cuda_may_open_its_devices_and_write_its_code():
    keys = said("koinon-edge")
    assert {"PrivateDevices", "MemoryDenyWriteExecute", "ProcSubset"}.isdisjoint(keys)
    allowed = {value.split()[0] for value in values(service("koinon-edge"), "DeviceAllow")}
    assert allowed == {"char-nvidia*", "char-drm"}
    jetson = values(unit(UNITS / "koinon-edge.service.d" / "jetson.conf"), "DeviceAllow")
    assert {"/dev/nvmap rw", "/dev/nvgpu/igpu0/ctrl rw", "/dev/nvhost-ctrl-gpu rw"} <= set(jetson)
    assert not [value for value in jetson if "*" in value]  # systemd takes none in a path


def test_every_user_and_group_of_a_service_is_made(tmp_path):
    file = tmp_path / "usr/lib/sysusers.d/koinon.conf"
    file.parent.mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    shutil.copy(UNITS / "koinon.sysusers", file)
    done = run(tool("systemd-sysusers"), f"--root={tmp_path}")
    assert done.returncode == 0, done.stderr
    users = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    groups = {line.split(":")[0] for line in (tmp_path / "etc/group").read_text().splitlines()}
    for name in SERVICES:
        keys = said(name)
        assert keys["User"] in users
        assert {keys["Group"], *keys.get("SupplementaryGroups", "").split()} <= groups
