"""What a report tells a stranger, and what it never does."""

import io
import json
import time
import zipfile

import pytest

from koinon.identity import keys
from koinon_edge.doctor import Extra, Finding, report
from koinon_edge.doctor.redact import Redactor, secrets_in
from koinon_edge.probe import Reading


def texts_of(bundle: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as file:
        return {name: file.read(name).decode() for name in file.namelist()}


def planted() -> tuple[list[Finding], Extra, list[str]]:
    """A device with secrets wherever somebody may have left one, and the secrets."""
    pem = keys.new_tls_key().decode()
    found = [
        Finding("torch", "bad", "/home/alice/venvs/hunter2/bin/python has no torch", "see /home/alice/n and ~/keys"),
        Finding(
            "network", "bad", "the coordinator at fl.hospital.example:8440 refuses connections",
            "ask bob@hospital.example",
        ),
        Finding(
            "edge.toml", "bad", "/etc/koinon/edge.toml line 7: environment = {'PIN': 'fourty two'} must be a table"
        ),
        Finding("credentials", "warn", "device line-4: swordfish"),
        Finding("disk", "ok", "5 MB free below /data/ward-seven/patients"),
    ]  # fmt: skip
    log = "\n".join([
        "12:30:45 connecting to fl.hospital.example:8440 (10.12.13.14, fd00::12:ab) for alice from jet-07:22",
        "again: fl.hospital.example and 192.168.0.7:8440, mac 48:b0:2d:aa:bb:cc", pem,
        "Authorization: Bearer abc.def-ghi",
        'config {"api_key": "k-1234", "epochs": 3} password=tr0ub4dor --token opensesame',
        "url https://svc:p4ss@registry.example/x?sig=zzz koinon-token-1.abcDEF123_x",
        "loss 0.25 at round 7 for swordfish",
        "id 3f2b8c1e-9d4a-4e5f-8a6b-7c8d9e0f1a2b key 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c",
        "task got the value mellon99 and correct-horse", "dGhpcyBpcyBhIHNlY3JldCBrZXkgMTIz",
    ])  # fmt: skip
    extra = Extra(
        board="NVIDIA Jetson Orin Nano", log=log,
        sensors={"heat tj": Reading(51.25, "°C", "/sys/class/thermal/thermal_zone5/temp")},
        environment={
            "USER": "alice", "HOME": "/home/alice", "MY_SECRET": "swordfish", "X": "hunter2", "LANG": "C.UTF-8",
            "DATABASE": "postgres://u:mellon99@db/x", "https_proxy": "http://svc:p4ss@proxy.hospital.example:3128",
            "CUDA_VISIBLE_DEVICES": "0",
        },
        arguments=["koinon-edge", "doctor", "--config", "/home/alice/edge.toml", "--pass", "argv-seecret"],
        task_environment={"WANDB_KEY": "correct-horse"}, hosts=["fl.hospital.example", "jet-07"], names=["line-4"],
    )  # fmt: skip
    secrets = [
        "alice", "hunter2", "swordfish", "mellon99", "correct-horse", "argv-seecret", "fourty two", "hospital",
        "ward-seven", "bob", "10.12.13.14", "192.168.0.7", "fd00::12", "jet-07", "48:b0:2d", "abc.def-ghi",
        "k-1234", "tr0ub4dor",
        "opensesame", "p4ss", "abcDEF123", "3f2b8c1e", "9f86d081", "dGhpcyBp", "line-4", "PRIVATE KEY",
        "registry.example", "sig=zzz", "venvs",
        *(line for line in pem.splitlines() if line),
    ]  # fmt: skip
    return found, extra, secrets


def test_no_secret_is_in_a_report_wherever_it_was_left():
    found, extra, secrets = planted()
    bundle = report(found, extra)
    texts = texts_of(bundle)
    assert sorted(texts) == ["findings.txt", "log.txt", "report.json", "sensors.json"]
    everything = "\n".join([*texts, *texts.values()])
    raw = str(found) + str(extra)
    assert [s for s in secrets if s not in raw and s not in extra.log] == [], "each of them was there"
    assert [s for s in secrets if s.lower() in everything.lower()] == []
    assert all(s.encode() not in bundle for s in secrets)


def test_what_a_stranger_needs_is_in_a_report():
    found, extra, _ = planted()
    texts = texts_of(report(found, extra))
    said = json.loads(texts["report.json"])
    assert said["environment"] == {"LANG": "C.UTF-8", "CUDA_VISIBLE_DEVICES": "0"}
    assert said["set"] == ["https_proxy"]
    assert (said["board"], said["worst"]) == ("NVIDIA Jetson Orin Nano", "bad")
    assert [f["topic"] for f in said["findings"]] == [f.topic for f in found]
    assert said["findings"][0]["found"] == "<path1> has no torch"
    assert said["findings"][3]["found"] == "device <name1>: <withheld>"
    assert said["findings"][1]["found"] == "the coordinator at <host1>:8440 refuses connections"
    assert said["findings"][2]["found"].endswith("edge.toml line 7: environment = <withheld> must be a table")
    assert json.loads(texts["sensors.json"])["heat tj"] == {
        "value": 51.25, "unit": "°C", "source": "/sys/class/thermal/thermal_zone5/temp", "why": "",
    }  # fmt: skip
    log = texts["log.txt"]
    assert log.startswith("12:30:45 connecting to <host1>:8440 (<ip2>, <ip1>) for <name2> from <host2>:22\n")
    assert "again: <host1> and <ip3>:8440" in log, "the same host has the same name"
    assert '"epochs": 3' in log
    assert "loss 0.25 at round 7" in log
    assert "log.txt" not in texts_of(report([], Extra()))


@pytest.mark.parametrize(
    "text",
    [
        "torch 2.8.0+cu126 computes on Orin (sm_87) what it computes on the processor (CUDA 12.6)",
        "ask for a token and run `koinon enrol --again`; the key and the certificate do not belong together",
        "12:30:45 koinon_edge.shift: round 7 of the run ended after 12.5 s, 1.2 kJ (3 of 5)",
        "/sys/class/thermal/thermal_zone5/temp and /usr/lib/aarch64-linux-gnu/libcudnn.so.9",
        "sys/class/devfreq/17000000.gpu/device/load, nvmlDeviceGetTotalEnergyConsumption",
        "RuntimeError: CUDA error: no kernel image is available for execution on the device (torch.cuda.init)",
        "5.15.148-tegra, L4T 36.4.3, `timedatectl timesync-status`, <host1>:8440 and <path1>/edge.toml",
        "Basic settings: 64 KiB are durable after 3 ms and/or 50 % of it; c10::Error",
    ],
)
def test_what_is_no_secret_stays_readable(text):
    assert Redactor()(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("url https://svc:p4ss@registry/x", "url https://<withheld>@registry/x"),
        ("it sent Bearer abc.def-ghi", "it sent Bearer <withheld>"),
        ("it sent Basic YWxpY2U6cw== again", "it sent Basic <withheld> again"),
        ("train.py --hub-token opensesame --epochs 3", "train.py --hub-token <withheld> --epochs 3"),
        ("update 3f2b8c1e-9d4a-4e5f-8a6b-7c8d9e0f1a2b", "update <id1>"),
        ("/home/alice/x is alice's, and /srv/x is not", "<path1> is <name1>'s, and <path2> is not"),
        ("fe80::1%eth0 and 10.0.0.1/24 and 10.0.0.1.", "<ip1> and <ip2>/24 and <ip2>."),
    ],
)
def test_what_looks_like_a_secret_or_a_place_goes_whoever_knows_it(text, left):
    assert Redactor()(text) == left


def test_what_is_known_here_goes_whatever_it_looks_like():
    assert secrets_in([("DATABASE", "postgres://u:melon@db/x")]) == {
        "postgres://u:melon@db/x",
        "melon",
        "postgres",
    }
    assert secrets_in([("MY_KEY", "fish"), ("X", "fowl"), ("Y", "fowl7x"), ("SHELL", "/bin/bash")]) == {
        "fish",
        "fowl7x",
    }
    assert secrets_in([("A_TOKEN", "python")]) == set(), "or nothing could be read any more"
    given = ["koinon-edge", "report", "--pass", "fish", "--mode=seafood!", "cockroach"]
    log = "fish seafood! cockroach fishing koinon-edge report"
    kept = texts_of(report([], Extra(log=log, environment={}, arguments=given)))["log.txt"]
    assert kept == "<withheld> <withheld> <withheld> fishing koinon-edge report"


@pytest.mark.parametrize("piece", ["a.", "a-", "a", "A1", "/a", "://a", "key='", "a@a", "--", "::", "1."])
def test_a_log_that_is_nonsense_is_read_in_time(piece):
    began = time.monotonic()
    Redactor(["swordfish"], ["fl.example"], ["alice"])(piece * (64 * 1024 // len(piece)))
    assert time.monotonic() - began < 10.0, "minutes, where a pattern tries every way to match"


def test_a_long_log_is_cut_at_a_line():
    log = "".join(f"{i:06d} a line of the log that is not short\n" for i in range(20000))
    kept = texts_of(report([], Extra(log=log, environment={})))["log.txt"]
    assert len(kept) <= 256 * 1024
    assert kept.splitlines()[0].endswith("a line of the log that is not short")
    assert kept.startswith("0")
    assert kept.endswith("019999 a line of the log that is not short\n")
