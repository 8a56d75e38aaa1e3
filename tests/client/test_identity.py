"""Who a device is on its own machine: its folder of credentials, which ones are meant, whom it believes."""

import json
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import koinon
from koinon.identity import (
    Credentials,
    DeviceIdentity,
    device_access,
    device_folder,
    identity_of,
    keys,
    operator_access,
)
from koinon.identity.enrolment import enrol
from koinon.identity.folder import Identity, write
from koinon.identity.renewal import asking, is_due
from koinon.operator import Operator
from koinon.outbox.files import safe
from koinon_coordinator.identity.pki import Authority
from koinon_core.errors import BadBlob, Denied, StoreError, UsageError
from koinon_core.identity import Entry, Token, proof_message, verify
from koinon_core.wire.v1 import enrolment_pb2 as pb

DOMAIN = "house.example"
DAY = 86_400.0


@dataclass(frozen=True)
class Federation:
    """A CA and a roster key, and what they give to those that enrol."""

    authority: Authority
    roster_key: bytes

    def entry(self, name: str, public: bytes, version: int = 1) -> bytes:
        made = Entry(id=name, key=public, domain=DOMAIN, since=1, version=version)
        return made.signed_by(self.roster_key).encoded

    def certificate(self, tls_key: bytes, kind: str, name: str, start: float, life: float) -> bytes:
        key = load_pem_private_key(tls_key, None).public_key()
        return self.authority.peer(DOMAIN, kind, name, key, start, life).pem

    def enrol(
        self, folder: Path, name: str, *, start: float | None = None, life: float = 7 * DAY
    ) -> Credentials:
        """A device's folder, as an enrolment leaves it."""
        folder.mkdir(parents=True)
        tls_key, signing = keys.new_tls_key(), keys.new_signing_key()
        public = keys.public_signing_key(keys.private_signing_key(signing))
        who = Identity(
            id=name, kind="device", domain=DOMAIN, address="fl.example:8440",
            roster_key=keys.public_signing_key(self.roster_key).hex(),
        )  # fmt: skip
        start = time.time() if start is None else start
        for file, content in {
            "tls.key": tls_key, "tls.pem": self.certificate(tls_key, "device", name, start, life),
            "ca.pem": self.authority.pem, "ed25519.key": signing, "entry.json": self.entry(name, public),
            "identity.json": who.encoded,
        }.items():  # fmt: skip
            write(folder / file, content)
        return Credentials(folder)

    def operator(self, folder: Path, name: str = "admin") -> Path:
        """An operator's folder, as `koinon-coordinator init` leaves it: without an identity.json."""
        folder.mkdir(parents=True)
        tls_key = keys.new_tls_key()
        write(folder / "tls.key", tls_key)
        write(folder / "tls.pem", self.certificate(tls_key, "operator", name, time.time(), DAY))
        write(folder / "ca.pem", self.authority.pem)
        return folder


@pytest.fixture
def federation() -> Federation:
    return Federation(Authority.make(DOMAIN, time.time()), os.urandom(32))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing was set up."""
    for name in (
        "KOINON_INSECURE",
        "KOINON_CREDENTIALS",
        "KOINON_OPERATOR",
        "KOINON_ADDRESS",
        "KOINON_FEDERATION",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def enrolled(federation: Federation, name: str = "a") -> Credentials:
    """Where `koinon enrol` puts it."""
    return federation.enrol(device_folder(name) / "identity", name)


# -- which credentials are meant ------------------------------------------------------------------------------


def test_a_device_finds_what_it_enrolled_with_its_name_and_its_coordinator(federation: Federation) -> None:
    made = enrolled(federation)
    access = device_access()
    assert access.credentials is not None
    assert (access.credentials.id, access.address) == ("a", "fl.example:8440")
    assert (
        access.credentials.folder == made.folder == Path(os.environ["KOINON_STATE"]) / safe("a") / "identity"
    )
    assert device_access("other.example:1", "a").address == "other.example:1"


def test_what_is_said_goes_before_the_environment_and_that_before_what_lies_there(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder_of(**said: object) -> Path | None:
        found = device_access("127.0.0.1:1", **said).credentials  # type: ignore[arg-type]
        return found.folder if found else None

    lies, environment, said = (enrolled(federation).folder, tmp_path / "environment", tmp_path / "said")
    federation.enrol(environment, "a")
    federation.enrol(said, "a")
    assert folder_of() == lies
    monkeypatch.setenv("KOINON_INSECURE", "1")
    assert folder_of() is None
    assert folder_of(insecure=False) == lies
    monkeypatch.setenv("KOINON_CREDENTIALS", str(environment))
    assert folder_of() == environment
    assert folder_of(insecure=True) is None
    assert folder_of(credentials=said) == said
    with pytest.raises(UsageError, match="not both"):
        folder_of(credentials=said, insecure=True)


def test_without_credentials_a_device_is_told_how_to_enrol() -> None:
    with pytest.raises(
        UsageError, match=r"device 'a' has no credentials: .*koinon enrol --name a.*--insecure"
    ):
        koinon.join("127.0.0.1:1", run="r", name="a")


def test_plain_text_never_leaves_the_machine() -> None:
    for address in ("10.0.0.1:8440", "fl.example:8440", "0.0.0.0:8440", "127.0.0.1.fl.example:8440"):
        with pytest.raises(UsageError, match="not on this machine"):
            koinon.join(address, run="r", insecure=True)
        with pytest.raises(UsageError, match="not on this machine"):
            operator_access(address, insecure=True)
    for address in ("127.0.0.1:8440", "localhost:8440", "[::1]:8440", "127.9.9.9:1"):
        assert device_access(address, insecure=True).credentials is None


def test_a_device_has_the_name_that_it_enrolled_with(federation: Federation) -> None:
    made = enrolled(federation)
    with pytest.raises(UsageError, match="those of 'a', not of 'b'"):
        koinon.join(run="r", name="b", credentials=made.folder)


def test_of_several_devices_on_a_machine_one_must_be_named(federation: Federation) -> None:
    enrolled(federation, "a")
    enrolled(federation, "b")
    with pytest.raises(UsageError, match=r"several devices .*\(a, b\)"):
        device_access()
    access = device_access(name="b")
    assert access.credentials is not None
    assert access.credentials.id == "b"


def test_operators_and_devices_have_credentials_of_their_own(federation: Federation, tmp_path: Path) -> None:
    device, operator = enrolled(federation).folder, federation.operator(tmp_path / "eve", "eve")
    with pytest.raises(UsageError, match="are a device's"):
        operator_access(credentials=device)
    with pytest.raises(UsageError, match="are an operator's"):
        device_access(credentials=operator)


def test_an_operator_finds_the_federations_admin_before_their_own(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def who() -> str:
        found = operator_access().credentials
        assert found is not None
        return found.id

    with pytest.raises(
        UsageError, match=r"no operator's credentials in koinon-federation/admin or .*/config"
    ):
        operator_access()
    federation.operator(tmp_path / "config" / "koinon" / "operator", "own")
    assert who() == "own"
    federation.operator(tmp_path / "koinon-federation" / "admin", "first")
    assert who() == "first"
    monkeypatch.setenv("KOINON_OPERATOR", str(federation.operator(tmp_path / "eve", "eve")))
    assert who() == "eve"


# -- the folder -----------------------------------------------------------------------------------------------


def test_what_is_written_is_its_users_own(tmp_path: Path) -> None:
    write(tmp_path / "tls.key", b"x")
    assert stat.S_IMODE((tmp_path / "tls.key").stat().st_mode) == 0o600
    with pytest.raises(StoreError, match="credentials cannot be kept"):
        write(tmp_path / "nowhere" / "tls.key", b"x")


def test_a_certificate_that_ended_or_a_clock_that_is_wrong_is_told_in_both_their_times(
    federation: Federation, tmp_path: Path
) -> None:
    made = federation.enrol(tmp_path / "a", "a", start=1_800_000_000.0, life=DAY)
    made.check(1_800_000_000.0 + DAY - 1)
    with pytest.raises(UsageError, match=r"ended on 2027-01-16 .* clock says 2027-01-1[67].*enrol --again"):
        made.check(1_800_000_000.0 + DAY)
    made.check(1_800_000_000.0 - 60)  # clocks differ
    with pytest.raises(UsageError, match=r"valid from 2027-01-15 .*clock says 1970-01-01.*set the clock"):
        made.check(5.0)


def test_halves_that_do_not_belong_together_are_noticed(federation: Federation, tmp_path: Path) -> None:
    made = federation.enrol(tmp_path / "a", "a")
    write(made.folder / "tls.key", keys.new_tls_key())
    with pytest.raises(UsageError, match="do not belong together"):
        Credentials(made.folder)


def test_what_is_missing_or_damaged_in_a_folder_is_named(federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no credentials in .*nowhere: .* is missing"):
        Credentials(tmp_path / "nowhere")
    made = federation.enrol(tmp_path / "a", "a")
    write(made.folder / "identity.json", b"{")
    with pytest.raises(UsageError, match=r"identity\.json cannot be read"):
        Credentials(made.folder)


# -- renewal --------------------------------------------------------------------------------------------------


def test_a_certificate_is_due_at_two_thirds_of_its_life(federation: Federation, tmp_path: Path) -> None:
    made = federation.enrol(tmp_path / "a", "a", start=1_800_000_000.0, life=30 * DAY)
    certificate = made.certificate
    assert certificate.end == 1_800_000_000.0 + 30 * DAY
    due = certificate.start + (certificate.end - certificate.start) * 2 / 3
    assert not is_due(made, due - 1)
    assert is_due(made, due)
    assert not asking(made, due - 1).csr
    request = asking(made, due)
    assert request.csr
    public = keys.public_signing_key(made.signing_key)
    assert request.key == public
    verify(public, request.proof, proof_message("", certificate.spki, "a"), "the proof")


def test_a_new_certificate_is_kept_only_if_it_is_this_devices(federation: Federation, tmp_path: Path) -> None:
    made = federation.enrol(tmp_path / "a", "a")
    for tls_key, name in ((made.tls_key, "b"), (keys.new_tls_key(), "a")):
        theirs = federation.certificate(tls_key, "device", name, time.time(), DAY)
        with pytest.raises(BadBlob, match="not this one's"):
            made.renewed(theirs, federation.authority.pem, b"")
    ours = federation.certificate(made.tls_key, "device", "a", time.time(), 9 * DAY)
    made.renewed(ours, federation.authority.pem, b"")
    assert made.chain == ours == Credentials(made.folder).chain


def test_a_renewal_does_not_undo_an_enrolment_that_came_in_between(
    federation: Federation, tmp_path: Path
) -> None:
    running = federation.enrol(tmp_path / "a", "a")
    late = federation.certificate(running.tls_key, "device", "a", time.time(), DAY)
    tls_key = keys.new_tls_key()
    write(running.folder / "tls.key", tls_key)
    again = federation.certificate(tls_key, "device", "a", time.time(), DAY)
    write(running.folder / "tls.pem", again)
    running.renewed(late, federation.authority.pem, b"")
    assert Credentials(running.folder).chain == again


# -- whom a device believes -----------------------------------------------------------------------------------


def test_a_device_signs_what_others_can_check_by_its_entry(federation: Federation, tmp_path: Path) -> None:
    me = DeviceIdentity.of(federation.enrol(tmp_path / "a", "a"))
    other = DeviceIdentity.of(federation.enrol(tmp_path / "b", "b"))
    name, public = other.trust(me.entry)
    assert name == me.id == "a"
    verify(public, me.sign(b"said"), b"said", "it")


def test_a_device_that_was_met_keeps_its_key_until_it_is_forgotten(
    federation: Federation, tmp_path: Path
) -> None:
    folder = federation.enrol(tmp_path / "a", "a").folder
    first, second = (keys.public_signing_key(os.urandom(32)) for _ in range(2))
    me = DeviceIdentity.of(Credentials(folder))
    me.trust(federation.entry("b", first))
    me.remember()
    again = DeviceIdentity.of(Credentials(folder))
    with pytest.raises(BadBlob, match="the key of 'b' is not the one that was met before"):
        again.trust(federation.entry("b", second, version=2))
    assert Credentials(folder).forget("b")
    assert not Credentials(folder).forget("b")
    assert DeviceIdentity.of(Credentials(folder)).trust(federation.entry("b", second))[1] == second


def test_what_is_remembered_is_not_lost_to_another_process(federation: Federation, tmp_path: Path) -> None:
    folder = federation.enrol(tmp_path / "a", "a").folder
    one, other = (DeviceIdentity.of(Credentials(folder)) for _ in range(2))
    for me, name in ((one, "b"), (other, "c")):
        me.trust(federation.entry(name, keys.public_signing_key(os.urandom(32))))
    one.remember()
    Credentials(folder).change(pinned=True)
    other.remember()
    kept = json.loads((folder / "identity.json").read_text())
    assert set(kept["known"]) == {"b", "c"}
    assert kept["pinned"] is True


def test_a_pinned_device_believes_the_owner_and_not_the_coordinator(
    federation: Federation, tmp_path: Path
) -> None:
    made, owner = federation.enrol(tmp_path / "a", "a"), os.urandom(32)
    made.change(roster_key=keys.public_signing_key(owner).hex(), pinned=True)
    me, public = DeviceIdentity.of(Credentials(made.folder)), keys.public_signing_key(os.urandom(32))
    with pytest.raises(BadBlob, match="not signed by the key it should be"):
        me.trust(federation.entry("b", public))
    signed = Entry.decode(federation.entry("b", public, version=2)).signed_by(owner)
    assert me.trust(signed.encoded) == ("b", public)


def test_a_loose_device_keeps_its_key_where_it_has_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    first, again = (identity_of(device_access(insecure=True), "a", folder) for _ in range(2))
    assert first.entry == again.entry
    assert stat.S_IMODE((folder / "ed25519.key").stat().st_mode) == 0o600
    nameless = [DeviceIdentity.loose("host-1") for _ in range(2)]
    assert nameless[0].entry == nameless[0].entry != nameless[1].entry
    name, public = again.trust(first.entry)
    verify(public, first.sign(b"said"), b"said", "it")
    assert name == "a"


def test_loose_and_enrolled_devices_never_believe_each_other(federation: Federation, tmp_path: Path) -> None:
    enrolled_one = DeviceIdentity.of(federation.enrol(tmp_path / "a", "a"))
    loose = DeviceIdentity.loose("b")
    for one, other in ((enrolled_one, loose), (loose, enrolled_one)):
        with pytest.raises(BadBlob):
            one.trust(other.entry)


def test_a_loose_devices_key_is_made_only_when_it_is_needed(tmp_path: Path) -> None:
    loose = DeviceIdentity.loose("a name that no roster takes \n", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(BadBlob):
        _ = loose.entry


# -- whom a device talks to -----------------------------------------------------------------------------------


def answering(
    federation: Federation, name: str, enrol: Callable[[pb.EnrolRequest], pb.EnrolResponse] | None = None
) -> tuple[grpc.Server, str]:
    """Somebody who has a certificate of the federation for a host `name`; (it, its address). With `enrol` it enrols
    devices, in its own way."""
    key = keys.new_tls_key()
    public = load_pem_private_key(key, None).public_key()
    issued = federation.authority.server([name], public, time.time(), DAY)
    server = grpc.server(ThreadPoolExecutor(1))
    shown = grpc.ssl_server_credentials([(key, issued.pem)], federation.authority.pem, enrol is None)
    port = server.add_secure_port("127.0.0.1:0", shown)
    if enrol is not None:
        call = grpc.unary_unary_rpc_method_handler(
            lambda request, _: enrol(request), pb.EnrolRequest.FromString, pb.EnrolResponse.SerializeToString
        )
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("koinon.v1.EnrolmentService", {"Enrol": call})]
        )
    server.start()
    return server, f"127.0.0.1:{port}"


def test_a_name_that_is_not_in_the_coordinators_certificate_is_refused(
    federation: Federation, tmp_path: Path
) -> None:
    device, operator = enrolled(federation), federation.operator(tmp_path / "eve", "eve")
    for name, told in (("elsewhere.example", r"does not have that name.*--name"), ("127.0.0.1", "failed")):
        server, address = answering(federation, name)
        try:
            with pytest.raises(koinon.KoinonError, match=told), Operator(address, operator) as calls:
                calls.runs()
            if name != "127.0.0.1":
                with pytest.raises(Denied, match=told):
                    koinon.join(address, run="r", credentials=device.folder)
        finally:
            server.stop(None)


@pytest.mark.parametrize("what", ["another key", "another name", "another entry", "all right"])
def test_an_enrolment_takes_only_what_is_for_its_own_keys(
    federation: Federation, tmp_path: Path, what: str
) -> None:
    def answer(request: pb.EnrolRequest) -> pb.EnrolResponse:
        key = x509.load_der_x509_csr(request.csr).public_key()
        if what == "another key":
            key = load_pem_private_key(keys.new_tls_key(), None).public_key()
        name = "b" if what == "another name" else request.id
        entry = federation.entry(request.id, os.urandom(32) if what == "another entry" else request.key)
        issued = federation.authority.peer(DOMAIN, "device", name, key, time.time(), DAY)
        return pb.EnrolResponse(certificate=issued.pem, ca=b"", entry=entry, address="fl.example:8440")

    server, address = answering(federation, "127.0.0.1", answer)
    token = Token(
        id="t", secret="s", ca=federation.authority.der, domain=DOMAIN, address=address,
        roster_key=keys.public_signing_key(federation.roster_key),
    )  # fmt: skip
    try:
        if what == "all right":
            assert enrol(token, "a", tmp_path / "a").address == "fl.example:8440"
        else:
            with pytest.raises(BadBlob, match="somebody else"):
                enrol(token, "a", tmp_path / "a")
            assert not (tmp_path / "a" / "identity.json").exists()
    finally:
        server.stop(None)
