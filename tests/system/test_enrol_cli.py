"""Identities against real coordinators: how devices and operators come in, stay in, and are put out."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import koinon
from conftest import Clients, Coordinator
from hostile import until
from koinon.identity import Credentials, device_folder, keys, renewal
from koinon.identity.enrolment import enrol, register
from koinon.identity.folder import write
from koinon.operator import Operator
from koinon_coordinator.identity.pki import Authority
from koinon_core.errors import Conflict, Denied, Unavailable
from koinon_core.identity import Entry, Token

DAY = 86_400.0
SENTENCE = re.compile(r"koinon: [^\n]+\n")
MODEL = {"x": np.zeros(3)}


class House:
    """A federation's folder, and a coordinator that serves it."""

    def __init__(self, folder: Path, *arguments: str, init: tuple[str, ...] = ()):
        folder.mkdir(exist_ok=True)
        self.folder, self._arguments = folder, arguments
        self.dir, self.log, self.port = folder / "federation", folder / "coordinator.log", 0
        program = [
            sys.executable,
            "-m",
            "koinon_coordinator",
            "init",
            "--dir",
            self.dir,
            "--domain",
            "house.example",
        ]
        subprocess.run([*program, *init], check=True, capture_output=True)
        self.admin = self.dir / "admin"

    def __enter__(self) -> "House":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert "Traceback" not in self.log.read_text(), self.log.read_text()

    def start(self) -> None:
        command = [
            sys.executable, "-m", "koinon_coordinator", "serve", "--dir", self.dir,
            "--db", f"sqlite:///{self.folder / 'koinon.db'}", "--listen", f"127.0.0.1:{self.port}", *self._arguments,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"listens on 127\.0\.0\.1:(\d+)", line)
        assert found, self.log.read_text()
        self.port = int(found[1])

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def operator(self) -> Operator:
        return Operator(self.address, self.admin)

    def token(self, uses: int = 1) -> str:
        with self.operator() as operator:
            return operator.create_token(60, uses).token

    def enrolled(self, name: str) -> Credentials:
        """A device, where `koinon enrol` puts it."""
        return enrol(Token.parse(self.token()), name, device_folder(name) / "identity")

    def run(self, name: str, **settings: Any) -> koinon.RunHandle:
        values = {
            "rounds": 1, "min_clients": 1, "clients": 1, "evaluate": False, "aggregation": "open", **settings,
        }  # fmt: skip
        return koinon.Run(name, model=MODEL, **values).create(self.address, credentials=self.admin)

    def cli(self, *arguments: object, code: int = 0, said: str = "", **environment: str) -> str:
        """What `koinon` printed, as the admin, with `said` on its standard input; one sentence if it must fail."""
        own = {k: v for k, v in os.environ.items() if not k.startswith("KOINON_")}
        given = {"KOINON_OPERATOR": str(self.admin), "KOINON_ADDRESS": self.address, "COLUMNS": "250"}
        own.update(given, KOINON_STATE=os.environ["KOINON_STATE"], **environment)
        done = subprocess.run(
            [sys.executable, "-m", "koinon", *map(str, arguments)],
            input=said, capture_output=True, text=True, timeout=60, env=own, cwd=self.folder, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        if code:
            assert SENTENCE.fullmatch(done.stderr), done.stderr
        return done.stderr if code else done.stdout


def work(session: koinon.Session) -> None:
    for task in session.tasks({"x": np.zeros(3)}):
        task.submit(examples=1)


@pytest.fixture(autouse=True)
def secure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KOINON_INSECURE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("house")) as one:
        yield one


# -- coming in ------------------------------------------------------------------------------------------------


def test_a_device_enrols_with_what_is_on_its_standard_input_and_takes_part(
    house: House, tmp_path: Path
) -> None:
    token = house.cli("token", "create", "--ttl", "5m", "--label", "second floor")
    told = json.loads(house.cli("enrol", "--name", "ward-7", "--json", said=token))
    assert (told["id"], told["domain"], told["address"]) == ("ward-7", "house.example", house.address)
    assert Path(told["credentials"]) == device_folder("ward-7") / "identity"
    handle = house.run("first")
    script = tmp_path / "train.py"
    script.write_text(
        "import koinon, numpy as np\n"
        "with koinon.join() as session:\n"
        "    for task in session.tasks({'x': np.zeros(3)}):\n"
        "        task.submit(examples=1)\n"
        "print(session.client, session.status)\n"
    )
    # Neither a name nor an address: both are known from the enrolment.
    assert house.cli("client", script, "--run", "first", KOINON_ADDRESS="") == "ward-7 finished\n"
    assert handle.wait()
    (seen,) = json.loads(house.cli("device", "ls", "--json"))
    assert (seen["id"], seen["status"], seen["label"]) == ("ward-7", "enrolled", "second floor")
    assert bytes.fromhex(seen["key"]) == keys.public_signing_key(
        Credentials(Path(told["credentials"])).signing_key
    )


def test_a_token_may_lie_in_a_file_or_be_systemds_and_lets_in_once(house: House, tmp_path: Path) -> None:
    file = tmp_path / "koinon-token"
    assert house.cli("token", "create", "--uses", "2", "--out", file) == ""
    assert file.stat().st_mode & 0o777 == 0o600
    house.cli("enrol", "--name", "by-file", "--token-file", file)
    house.cli("enrol", "--name", "by-systemd", CREDENTIALS_DIRECTORY=str(tmp_path))
    assert "used up" in house.cli("enrol", "--name", "third", "--token-file", file, code=4)
    assert "no token" in house.cli("enrol", "--name", "third", said="open sesame", code=1)


def test_enrolling_again_keeps_the_key_for_life_and_takes_new_ones_for_the_connection(house: House) -> None:
    before = house.enrolled("again")
    before.change(known={"other": f"1:{'0' * 64}"})
    with pytest.raises(Conflict, match="the identity of 'again' already"):
        house.enrolled("again")
    after = enrol(Token.parse(house.token()), "again", before.folder, again=True)
    assert after.signing_key == before.signing_key
    assert after.entry == before.entry
    assert after.tls_key != before.tls_key
    assert after.identity.known == {"other": f"1:{'0' * 64}"}


def test_a_device_whose_enrolment_was_cut_off_tries_again_as_the_same_one(
    house: House, tmp_path: Path
) -> None:
    token = Token.parse(house.token())
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = Token(**{**_fields(token), "address": f"127.0.0.1:{nobody.getsockname()[1]}"})
        with pytest.raises(Unavailable):
            enrol(dead, "cut", tmp_path / "cut")
    drawn = (tmp_path / "cut" / "ed25519.key").read_bytes()
    made = enrol(token, "cut", tmp_path / "cut")
    assert made.signing_key == keys.private_signing_key(drawn)


def _fields(token: Token) -> dict[str, Any]:
    return {name: getattr(token, name) for name in ("id", "secret", "ca", "domain", "address", "roster_key")}


def test_a_token_pins_the_federation_so_that_nobody_else_can_answer(house: House, tmp_path: Path) -> None:
    token = _fields(Token.parse(house.token()))
    other = Authority.make("house.example", time.time())
    with pytest.raises(Denied, match="not vouched for by this federation's CA"):
        enrol(Token(**{**token, "ca": other.der}), "misled", tmp_path / "misled")
    with pytest.raises(koinon.KoinonError, match="not signed by the key it should be"):
        enrol(Token(**{**token, "roster_key": bytes(range(32))}), "misled", tmp_path / "misled")
    assert not (tmp_path / "misled" / "identity.json").exists()


# -- staying in -----------------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_beside_the_stream_which_is_not_cut(
    tmp_path: Path, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    # A certificate is dated back by five minutes, so that a short one is past two thirds of its life at once.
    with House(tmp_path, "--device-life", "100s") as own:
        made = own.enrolled("short")
        first, handle = made.chain, own.run("r", clients=2, min_clients=2)
        joined = threading.Event()
        with caplog.at_level("INFO", "koinon"):
            clients.start(lambda: _take_part("r", "short", joined))
            assert joined.wait(60)
            until(lambda: Credentials(made.folder).chain != first)
            until(lambda: "is renewed" in caplog.text)
        assert "is gone" not in caplog.text
        again = Credentials(made.folder)
        assert again.certificate.end >= made.certificate.end
        assert again.tls_key == made.tls_key
        own.stop()  # and the new one is good for the next connection
        own.start()
        own.enrolled("second")
        clients.start(lambda: _take_part("r", "second"))
        clients.join()
        assert handle.wait()


def _take_part(run: str, name: str, joined: threading.Event | None = None) -> None:
    with koinon.join(run=run, name=name, timeout=60) as session:
        if joined is not None:
            joined.set()
        work(session)


def test_an_expired_device_is_told_so_before_it_connects(house: House) -> None:
    made = house.enrolled("late")
    authority = Authority((house.dir / "ca.pem").read_bytes(), (house.dir / "ca.key").read_bytes())
    key = load_pem_private_key(made.tls_key, None).public_key()
    write(
        made.folder / "tls.pem",
        authority.peer("house.example", "device", "late", key, time.time() - DAY, 60.0).pem,
    )
    with pytest.raises(koinon.UsageError, match=r"certificate of 'late' .* ended on .*koinon enrol --again"):
        koinon.join(run="any", name="late")


# -- being put out --------------------------------------------------------------------------------------------


def test_a_revoked_device_is_cut_and_told_so(house: House, clients: Clients) -> None:
    house.enrolled("lost")
    handle = house.run("waits", clients=2, min_clients=2)
    clients.start(lambda: _take_part("waits", "lost"))
    with house.operator() as operator:
        until(lambda: any(d.id == "lost" and d.attached for d in operator.devices()))
        started = time.monotonic()
        operator.revoke_device("lost", "stolen")
        with pytest.raises(Denied, match="'lost' was revoked"):
            clients.join()
        assert time.monotonic() - started < 10, "its process ends; the cut itself is the coordinator's test"
        operator.control(handle.id, "cancel")
    with pytest.raises(Denied, match="'lost' was revoked"):
        koinon.join(run="waits", name="lost")
    assert "stolen" in house.cli("device", "ls")


def test_operators_may_do_what_their_role_allows(house: House, tmp_path: Path) -> None:
    for role in ("viewer", "operator"):
        house.cli("operator", "create", role, "--role", role, "--to", tmp_path / role)
    assert stat_of(tmp_path / "viewer" / "tls.key") == 0o600
    viewer, owner = ({"KOINON_OPERATOR": str(tmp_path / role)} for role in ("viewer", "operator"))
    house.run("admins")
    assert "admins" in house.cli("run", "ls", **viewer)
    assert "may not" in house.cli("run", "cancel", "admins", code=4, **viewer)
    with pytest.raises(Denied):
        koinon.Run("v", model=MODEL, aggregation="open").create(
            house.address, credentials=tmp_path / "viewer"
        )
    koinon.Run("own", model=MODEL, aggregation="open").create(
        house.address, credentials=tmp_path / "operator"
    )
    house.cli("run", "cancel", "own", **owner)
    assert house.cli("run", "cancel", "admins", code=4, **owner)
    assert house.cli("token", "create", code=4, **owner)
    house.cli("operator", "revoke", "operator")
    assert "revoked" in house.cli("run", "ls", code=4, **owner)
    listed = {o["name"]: o["status"] for o in json.loads(house.cli("operator", "ls", "--json"))}
    assert (listed["admin"], listed["viewer"], listed["operator"]) == ("active", "active", "revoked")


def stat_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


# -- misunderstandings ----------------------------------------------------------------------------------------


def test_who_expects_another_kind_of_coordinator_is_told_which_it_is(house: House, tmp_path: Path) -> None:
    made = house.enrolled("astray")
    with pytest.raises(Unavailable, match="wants TLS"):
        koinon.join(house.address, run="r", insecure=True, timeout=2)
    with pytest.raises(Unavailable, match="wants TLS"), Operator(house.address, insecure=True) as operator:
        operator.runs()
    plain = Coordinator(tmp_path)
    try:
        started = time.monotonic()
        with pytest.raises(Denied, match="does not speak TLS"):
            koinon.join(plain.address, run="r", credentials=made.folder, timeout=60)
        assert time.monotonic() - started < 30, "it is said at once"
        with (
            pytest.raises(Denied, match="does not speak TLS"),
            Operator(plain.address, house.admin) as operator,
        ):
            operator.runs()
    finally:
        plain.stop()


def test_a_device_waits_for_the_coordinator_that_it_knew_while_somebody_else_is_in_its_place(
    tmp_path: Path, clients: Clients
) -> None:
    with House(tmp_path / "own") as own:
        own.enrolled("a")
        handle = own.run("r", clients=2, min_clients=2)
        joined = threading.Event()
        clients.start(lambda: _take_part("r", "a", joined))
        assert joined.wait(60)
        own.stop()
        stranger = Coordinator(tmp_path, port=own.port)
        time.sleep(3)  # the device has met the stranger by then, at one of its first attempts
        stranger.stop()
        own.start()
        own.enrolled("b")
        clients.start(lambda: _take_part("r", "b"))
        clients.join()
        assert handle.wait()


# -- a roster that its owner signs ----------------------------------------------------------------------------


def test_devices_that_pin_an_owner_believe_only_whom_the_owner_signed(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "_SOON", 0.0)  # when a device asks for its newest entry
    with House(tmp_path) as own:
        own.cli("roster", "keygen", "owner.key")
        assert stat_of(tmp_path / "owner.key") == 0o600
        owner = keys.read_public(tmp_path / "owner.key.pub")
        early = own.enrolled("early")
        late = enrol(Token.parse(own.token()), "late", device_folder("late") / "identity", owner_key=owner)
        assert late.identity.pinned
        own.cli("roster", "pin", "owner.key.pub", "--name", "early")
        with pytest.raises(koinon.ProtocolError):
            koinon.identity.DeviceIdentity.of(late).trust(early.entry)
        own.cli("roster", "export", "roster.json")
        assert {e["id"] for e in json.loads((tmp_path / "roster.json").read_text())["entries"]} == {
            "early",
            "late",
        }
        assert "not signed" in own.cli("roster", "import", "roster.json", code=2)
        own.cli("roster", "sign", "--key", "owner.key", "roster.json", "signed.json")
        told = json.loads(own.cli("roster", "import", "signed.json", "--json"))
        assert told == {"entries": 2, "version": 2}
        handle = own.run("r", clients=2, min_clients=2)
        clients.start(lambda: _take_part("r", "early"))
        until(lambda: Entry.decode(early.entry).version == 2)
        assert koinon.identity.DeviceIdentity.of(late).trust(early.entry)[0] == "early"
        clients.start(lambda: _take_part("r", "late"))
        clients.join()
        assert handle.wait()


# -- an outside CA --------------------------------------------------------------------------------------------


def test_a_device_with_an_outside_cas_certificate_registers_its_key(tmp_path: Path) -> None:
    outside, now = Authority.make("house.example", time.time()), time.time()

    def issue(name: str, kind: str = "") -> Path:
        folder, key = tmp_path / name, keys.new_tls_key()
        folder.mkdir()
        public = load_pem_private_key(key, None).public_key()
        made = (
            outside.peer("house.example", kind, name, public, now, DAY)
            if kind
            else outside.server(["127.0.0.1"], public, now, DAY)
        )
        for file, content in (("tls.key", key), ("tls.pem", made.pem), ("ca.pem", outside.pem)):
            write(folder / file, content)
        return folder

    server, files = issue("server"), issue("ward-9", "device")
    arguments = (
        "--tls-cert",
        server / "tls.pem",
        "--tls-key",
        server / "tls.key",
        "--client-ca",
        server / "ca.pem",
    )
    own = House(tmp_path, *map(str, arguments), init=("--outside-ca",))
    own.admin = issue("admin", "operator")
    roster = load_pem_private_key((own.dir / "roster.key").read_bytes(), None).public_key()
    write(tmp_path / "roster.pub", keys.public_pem(roster.public_bytes_raw()))
    with own:
        given = [f"--{option}={files / file}" for option, file in _FILES]
        own.cli("register", "--domain", "house.example", *given, "--roster-key", "roster.pub")
        handle = own.run("r")
        _take_part("r", "ward-9")
        assert handle.wait()
        (seen,) = json.loads(own.cli("device", "ls", "--json"))
        made = Credentials(device_folder("ward-9") / "identity")
        assert bytes.fromhex(seen["key"]) == keys.public_signing_key(made.signing_key)
        assert made.folder.joinpath("tls.pem").is_symlink(), "what the CA's tools put there is used"
        with pytest.raises(koinon.KoinonError, match="another Ed25519 key"):
            register(
                own.address, "house.example", tmp_path / "stolen", tls_key=files / "tls.key",
                certificate=files / "tls.pem", ca=files / "ca.pem", roster_key=roster.public_bytes_raw(),
            )  # fmt: skip


_FILES = (("tls-key", "tls.key"), ("tls-cert", "tls.pem"), ("ca", "ca.pem"))
