"""Who gets in, over real sockets: enrolment, certificates, roles, and what a revocation cuts."""

import queue
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

import koinon
from federations import DOMAIN, Attending, House, Keys, Person, call, csr_of
from koinon_coordinator.identity import Home, pki
from koinon_coordinator.identity.security import Outside
from koinon_core import codec, failpoints
from koinon_core.errors import (
    BadBlob,
    Conflict,
    Denied,
    KoinonError,
    NotFound,
    RemoteProtocolError,
    Unavailable,
    UsageError,
)
from koinon_core.identity import Entry, Trust
from koinon_core.wire import convert
from koinon_core.wire.methods import BLOBS, DIRECTORY, ENROLMENT, FLEET, IDENTITY, RUNS, TOKEN_KEY, Method
from koinon_core.wire.v1 import blobs_pb2, fleet_pb2, runs_pb2
from koinon_core.wire.v1 import enrolment_pb2 as pb


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("house")) as one:
        yield one


def create(person: Person, name: str) -> runs_pb2.RunInfo:
    """Submit a run as this operator."""
    run = koinon.Run(name, model={"x": np.zeros(3)}, aggregation="open", min_clients=2)
    blob = codec.encode(run.model, run.spec.model, run.spec.snapshots)
    parts = iter([runs_pb2.CreateRequest(spec=run.spec.encoded), runs_pb2.CreateRequest(model=blob)])
    stub = person.channel.stream_unary(
        RUNS.CREATE.path, request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=runs_pb2.CreateResponse.FromString,
    )  # fmt: skip
    return stub(parts, timeout=20).run


# -- enrolment ------------------------------------------------------------------------------------------------


def test_a_device_that_enrols_is_in_the_roster_under_a_short_lived_certificate(house: House) -> None:
    keys = Keys()
    got = house.enrol("first", house.token(label="ward 3"), keys)
    certificate = x509.load_pem_x509_certificate(got.certificate)
    assert pki.peer_of(got.certificate, DOMAIN, common_names=False) == ("device", "first")
    assert pki.spki_of(got.certificate) == keys.spki
    life = certificate.not_valid_after_utc.timestamp() - time.time()
    assert 6.99 * 86_400 < life <= 7 * 86_400
    assert certificate.not_valid_before_utc.timestamp() <= time.time() - 299, (
        "for those whose clock is behind"
    )
    assert Trust(DOMAIN, house.security.roster_key)(got.entry) == ("first", keys.public)
    assert got.address == house.security.address
    with house.attending(house.person("first", got.certificate, keys)):
        (row,) = [
            d for d in house.admin(DIRECTORY.LIST_DEVICES, pb.ListDevicesRequest()).devices if d.id == "first"
        ]
        assert (row.status, row.attached, row.label, row.key) == ("enrolled", True, "ward 3", keys.public)


def test_a_token_lets_so_many_devices_in_and_no_more(house: House) -> None:
    token = house.token(uses=2)
    house.enrol("one-of-two", token)
    house.enrol("two-of-two", token)
    with pytest.raises(Denied, match="used up"):
        house.enrol("three-of-two", token)
    with pytest.raises(NotFound):
        house.store.people.device("three-of-two")


def test_whose_answer_was_lost_may_use_the_token_again_and_nobody_else(house: House) -> None:
    token, keys = house.token(), Keys()
    house.enrol("lost", token, keys)
    keys.tls = ec.generate_private_key(ec.SECP256R1())  # a fresh TLS key; the key for life is the same
    again = house.enrol("lost", token, keys)
    assert pki.spki_of(again.certificate) == keys.spki
    with pytest.raises(Denied, match="used up"):
        house.enrol("other", token, keys)
    with pytest.raises(Denied, match="used up"):
        house.enrol("lost", token, Keys())


def test_an_expired_token_and_one_with_another_secret_let_nobody_in(house: House) -> None:
    token = house.token()
    with pytest.raises(Denied, match="not one of this federation's"):
        house.enrol("guesser", replace(token, secret=token.secret + "x"))
    house.federation.clock = lambda: time.time() + 3601
    try:
        with pytest.raises(Denied, match="expired"):
            house.enrol("late", token)
    finally:
        house.federation.clock = time.time
    house.enrol("in-time", token)


def test_an_enrolment_that_takes_its_time_is_not_taken_for_somebody_revoked(house: House) -> None:
    failpoints.arm("store.begun", lambda name: time.sleep(1.0) if name == "enrol" else None)
    try:
        assert house.enrol("slow").certificate
    finally:
        failpoints.disarm()


def test_the_csr_the_proof_and_the_name_belong_together(house: House) -> None:
    token, keys, other = house.token(), Keys(), Keys()
    for changes in (
        {"csr": csr_of(other.tls)},  # another TLS key than the proof's
        {"key": other.public},  # an Ed25519 key whose private half it does not have
        {"proof": bytes(64)},
        {"id": "somebody-else"},
        {"token_id": "another"},
    ):
        with pytest.raises(BadBlob, match="not signed by the key"):
            house.enrol("forger", token, keys, **changes)
    swapped = bytearray(csr_of(keys.tls))
    swapped[-1] ^= 1  # of the CSR's own signature
    with pytest.raises(BadBlob, match="is not signed by the key that is in it"):
        house.enrol("forger", token, keys, csr=bytes(swapped))
    with pytest.raises(BadBlob, match="cannot be read"):
        house.enrol("forger", token, keys, csr=b"junk")
    for weak in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(BadBlob, match="not on P-256"):
            house.enrol("forger", token, keys, csr=csr_of(weak))
    with pytest.raises(UsageError, match="is no name"):
        house.enrol("../admin", token, keys)
    house.enrol("forger", token, keys)  # none of that used the token up


def test_a_csr_cannot_ask_for_another_name(house: House) -> None:
    keys = Keys()
    got = house.enrol("modest", keys=keys, csr=csr_of(keys.tls, "admin"))
    assert x509.load_pem_x509_certificate(got.certificate).subject.rfc4514_string() == ""
    assert pki.peer_of(got.certificate, DOMAIN, common_names=True) == ("device", "modest")


def test_a_name_belongs_to_its_key_and_a_key_to_its_name(house: House) -> None:
    keys = Keys()
    house.enrol("mine", keys=keys)
    with pytest.raises(Conflict, match="enrolled already, with another Ed25519 key"):
        house.enrol("mine")
    with pytest.raises(Conflict, match="belongs to device 'mine' already"):
        house.enrol("mine-too", keys=keys)


# -- connections ----------------------------------------------------------------------------------------------


def test_nobody_connects_without_a_certificate_of_this_federation(house: House) -> None:
    strangers = [
        Person("nobody", house.channel()),
        house.issued(
            "device", "a", authority=pki.Authority.make(DOMAIN, time.time())
        ),  # another CA, the same name
        house.issued("device", "a", now=time.time() - 7200, life=3600),  # expired
        house.issued("device", "a", now=time.time() + 3600),  # not valid yet
    ]
    for stranger in strangers:
        with pytest.raises(Unavailable):
            stranger(RUNS.LIST, runs_pb2.ListRequest())


def test_a_clock_that_is_minutes_behind_does_not_shut_anybody_out(house: House) -> None:
    house.device("behind")
    # As the coordinator's clock sees it: issued 4 minutes in the future.
    keys = Keys()
    made = house.security.authority.peer(
        DOMAIN, "device", "behind", keys.tls.public_key(), time.time() + 240, 600
    )
    with house.attending(house.person("behind", made.pem, keys)):
        pass


def test_a_device_cannot_show_its_certificate_as_a_server(house: House, tmp_path) -> None:
    certificate = x509.load_pem_x509_certificate(house.enrol("no-server").certificate)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_certificate_of_the_ca_alone_makes_nobody_a_member(house: House) -> None:
    for kind in ("device", "operator"):
        with pytest.raises(Denied, match="not enrolled"):
            house.issued(kind, "unknown").renew()
    with pytest.raises(Denied, match=r"trust domain 'y\.example'"):
        house.issued("device", "first", domain="y.example").renew()


def test_a_device_attends_and_moves_blobs_under_its_own_name_only(house: House) -> None:
    one, two = house.device("one"), house.device("two")
    stream = Attending(one.channel, "two")
    assert stream.wait() == "Denied"
    attending = Attending(one.channel, "one")
    token = attending.welcome().token
    asked = blobs_pb2.StatRequest(digest="0" * 64, run="r", round=1)
    with pytest.raises(RemoteProtocolError, match="only an attached device"):
        two(BLOBS.STAT, asked, metadata=((TOKEN_KEY, token),))  # a token that was overheard
    with pytest.raises(RemoteProtocolError, match="no update of round 1"):
        one(BLOBS.STAT, asked, metadata=((TOKEN_KEY, token),))
    attending.close()


def test_the_enrolment_listener_serves_nothing_else_and_is_the_only_one_that_enrols(house: House) -> None:
    for method, request in (
        (RUNS.LIST, runs_pb2.ListRequest()),
        (IDENTITY.RENEW, pb.RenewRequest()),
        (DIRECTORY.CREATE_TOKEN, pb.CreateTokenRequest(ttl=1, uses=1)),
    ):
        with pytest.raises(KoinonError, match="Method not found"):
            call(house.newcomer(), method, request)
    with pytest.raises(KoinonError, match="Method not found"):
        house.device("curious")(ENROLMENT.ENROL, pb.EnrolRequest())


# -- renewal --------------------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_for_the_same_name_and_key_only(house: House) -> None:
    device = house.device("renewing")
    assert device.keys is not None
    before = house.store.people.device("renewing")
    got = device.renew()
    assert pki.peer_of(got.certificate, DOMAIN, common_names=False) == ("device", "renewing")
    assert Entry.decode(got.entry).key == device.keys.public
    assert (house.store.people.device("renewing").expires_at or 0) >= (before.expires_at or 0)
    with house.attending(house.person("renewing", got.certificate, device.keys)):
        pass
    stolen = Keys()
    stolen.tls = device.keys.tls
    with pytest.raises(Denied, match="no device 'renewing' is enrolled with that Ed25519 key"):
        device.renew(stolen)  # who has the TLS key alone
    with pytest.raises(BadBlob, match="not signed"):
        device.renew(csr=csr_of(Keys().tls))
    # Without a CSR there is the newest entry, and no certificate.
    assert device.renew(csr=b"").entry == got.entry
    assert device.renew(csr=b"").certificate == b""


def test_an_operator_renews_and_stays_what_they_are(house: House) -> None:
    viewer = house.operator("reader", "viewer")
    assert viewer.keys is not None
    got = viewer.renew(key=b"", proof=b"")
    assert pki.peer_of(got.certificate, DOMAIN, common_names=False) == ("operator", "reader")
    with pytest.raises(Denied, match="takes an operator who is more than a viewer"):
        house.person("reader", got.certificate, viewer.keys)(RUNS.CONTROL, runs_pb2.ControlRequest())
    with pytest.raises(Denied):
        house.person("reader", got.certificate, viewer.keys)(RUNS.MEASURE, runs_pb2.MeasureRequest())


def test_the_server_shows_a_new_certificate_without_a_new_listener(house: House) -> None:
    def shown() -> int:
        context = ssl.create_default_context(cadata=house.security.ca.decode())
        host, port = house.security.enrol_address.split(":")
        with (
            socket.create_connection((host, int(port)), 5) as plain,
            context.wrap_socket(plain, server_hostname=host) as tls,
        ):
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"").serial_number

    first = shown()
    assert shown() == first
    house.security.clock = lambda: time.time() + 21 * 86_400  # past two thirds of its thirty days
    try:
        with pytest.raises(OSError, match="not yet valid"):
            shown()  # for us it is from the future: it is another one
    finally:
        house.security.clock, house.security._due = time.time, 0.0
    assert shown() != first


# -- roles ----------------------------------------------------------------------------------------------------

METHODS = [
    m
    for table in (FLEET, BLOBS, RUNS, IDENTITY, DIRECTORY)
    for m in vars(table).values()
    if isinstance(m, Method)
]
READS = {"List", "Get", "Watch", "Export", "Audit", "Replay", "Updates"}
MAY = {
    "device": {"Attend", "Download", "Upload", "Stat", "Renew"},
    "viewer": READS | {"Renew", "ListDevices"},
    "operator": READS | {"Renew", "ListDevices", "Create", "Control", "Measure"},
    "admin": READS
    | {"Renew", "Create", "Control", "Measure"}
    | {m.name for m in vars(DIRECTORY).values() if isinstance(m, Method)},
}


@pytest.fixture(scope="module")
def people(house: House) -> dict[str, Person]:
    made = {role: house.operator(f"the-{role}", role) for role in ("viewer", "operator", "admin")}
    return {"device": house.device("the-device"), **made}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.service}.{m.name}")
def test_every_call_is_for_whom_it_is_for(house: House, people: dict[str, Person], method: Method) -> None:
    for role, person in people.items():
        denied = False
        try:
            person(method, method.request())
        except Denied:
            denied = True
        except KoinonError:
            pass  # an empty request is none; but it was heard
        assert denied == (method.name not in MAY[role]), role


def test_a_run_is_controlled_by_its_own_operator_and_by_admins(house: House) -> None:
    alice, bob = house.operator("alice", "operator"), house.operator("bob", "operator")
    create(alice, "alices")
    assert house.store.run(house.federation.find("alices").id).operator == "alice"
    pause = runs_pb2.ControlRequest(run="alices", verb="pause")
    with pytest.raises(Denied, match="run 'alices' belongs to operator 'alice'"):
        bob(RUNS.CONTROL, pause)
    assert bob(RUNS.GET, runs_pb2.GetRequest(run="alices")).run.name == "alices"
    measure = runs_pb2.MeasureRequest(run="alices", round=1, metrics={"loss": 1.0})
    with pytest.raises(Denied, match="belongs to operator 'alice'; ask them, or an admin, to measure it"):
        bob(RUNS.MEASURE, measure)
    with pytest.raises(NotFound, match="round 1 made no model"):
        alice(RUNS.MEASURE, measure)
    assert alice(RUNS.CONTROL, pause).run.status == "paused"
    assert (
        house.admin(RUNS.CONTROL, runs_pb2.ControlRequest(run="alices", verb="cancel")).run.status
        == "cancelled"
    )


def test_an_admin_cannot_be_lost(house: House) -> None:
    with pytest.raises(UsageError, match="one of viewer, operator, admin"):
        house.operator("emperor", "emperor")
    with pytest.raises(Conflict, match="there is an operator named 'admin' already"):
        house.operator("admin", "admin")


# -- revocation -----------------------------------------------------------------------------------------------


def revoke(house: House, name: str, reason: str = "stolen") -> float:
    """Revoke a device; when that was done."""
    house.admin(DIRECTORY.REVOKE_DEVICE, pb.RevokeDeviceRequest(id=name, reason=reason))
    return time.monotonic()


def test_a_revoked_device_is_cut_within_a_second_and_refused_at_its_next_call(house: House) -> None:
    device, other = house.device("stolen"), house.device("honest")
    with house.attending(device) as stream, house.attending(other) as beside:
        at = revoke(house, "stolen")
        assert stream.wait() == "Denied"
        assert stream.ended - at < 1.0
        with pytest.raises(Denied, match="device 'stolen' was revoked"):
            device.renew()
        assert house.federation.roster.get("stolen") is None
        assert not beside.ended
        with pytest.raises(Denied, match="was revoked; it may come back under another name"):
            house.enrol("stolen", keys=device.keys)
    (row,) = [
        d for d in house.admin(DIRECTORY.LIST_DEVICES, pb.ListDevicesRequest()).devices if d.id == "stolen"
    ]
    assert (row.status, row.revoked_by, row.reason) == ("revoked", "admin", "stolen")


def test_a_revoked_operator_loses_what_they_watch(house: House) -> None:
    watcher = house.operator("watcher", "viewer")
    create(house.admin, "watched")
    stub = watcher.channel.unary_stream(
        RUNS.WATCH.path, request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=runs_pb2.WatchResponse.FromString,
    )  # fmt: skip
    watching = stub(runs_pb2.WatchRequest(run="watched"))
    assert next(watching).run.name == "watched"
    house.admin(DIRECTORY.REVOKE_OPERATOR, pb.RevokeOperatorRequest(name="watcher"))
    at = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        list(watching)
    assert time.monotonic() - at < 1.0
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(Denied):
        watcher(RUNS.LIST, runs_pb2.ListRequest())


def test_a_revocation_that_only_the_database_knows_of_cuts_too(house: House) -> None:
    device = house.device("elsewhere")
    with house.attending(device) as stream:
        house.store.people.revoke_device("elsewhere", "another coordinator", "", time.time())
        at = time.monotonic()
        assert stream.wait() == "Denied"
        assert stream.ended - at < 1.0
    with pytest.raises(Denied):
        device.renew()


def test_a_device_that_takes_nothing_of_what_it_is_sent_is_revoked_too(house: House) -> None:
    """Its stream is full, and gRPC waits for it; nothing that it says is heard any more."""
    device = house.device("deaf")
    stub = device.channel.stream_stream(
        FLEET.ATTEND.path,
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=lambda b: b,
    )
    say: queue.Queue = queue.Queue()
    hello = fleet_pb2.DeviceMessage(hello=convert.hello("deaf", "i"))
    say.put(fleet_pb2.AttendRequest(messages=[hello]))
    open_call = stub(iter(say.get, None))
    next(open_call)
    connection = house.federation.roster.get("deaf")
    assert connection is not None
    for _ in range(30):
        house._loop.call_soon_threadsafe(connection.send, b"\0" * (1 << 20))
    runs = [create(house.admin, name).id for name in ("before", "after")]

    def join(run: str) -> None:
        message = fleet_pb2.DeviceMessage(join=fleet_pb2.Join(run=run))
        say.put(fleet_pb2.AttendRequest(messages=[message]))
        time.sleep(0.3)

    join("before")
    assert connection.runs == {runs[0]}
    revoke(house, "deaf")
    join("after")
    assert connection.runs == {runs[0]}, "nothing that it says is heard any more"
    read: list[int] = []
    with pytest.raises(grpc.RpcError) as caught:
        read.extend(len(message) for message in open_call)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert sum(read) < 8 << 20, "what was on its way, and no more"
    say.put(None)


def test_two_coordinators_on_one_database_know_the_same_devices(postgres, tmp_path) -> None:
    with (
        postgres.database() as url,
        House(tmp_path / "a", url=url) as one,
        House(tmp_path / "b", url=url, home=one.home.folder) as two,
    ):
        keys = Keys()
        got = one.enrol("roaming", keys=keys)
        there = two.person("roaming", got.certificate, keys)
        with two.attending(there) as stream:
            at = revoke(one, "roaming")
            assert stream.wait() == "Denied"
            assert stream.ended - at < 1.0
        with pytest.raises(Denied):
            there.renew()


# -- secrets --------------------------------------------------------------------------------------------------


def test_no_secret_is_logged_or_stored(tmp_path, capfd) -> None:
    with House(tmp_path) as house:
        token, keys = house.token(), Keys()
        got = house.enrol("quiet", token, keys)
        with pytest.raises(Denied):
            house.enrol("loud", token)
        with house.attending(house.person("quiet", got.certificate, keys)) as stream:
            revoke(house, "quiet")
            stream.wait()
        kept = [path.read_bytes() for path in tmp_path.rglob("koinon.db*") if path.is_file()]
        roster, authority = house.home.roster_key, house.home.authority
    out, err = capfd.readouterr()
    said = (out + err).encode()
    assert b"a device enrolled" in said, "what is logged was seen"
    assert any(token.id.encode() in data for data in kept)
    private = pki.key_pem(keys.tls).split(b"\n")[1]
    for secret in (
        token.secret.encode(),
        token.text.encode(),
        keys.private,
        keys.private.hex().encode(),
        private,
    ):
        assert not any(secret in data for data in [said, *kept])
    assert authority is not None
    for secret in (roster, roster.hex().encode(), authority.key.split(b"\n")[1]):
        assert not any(secret in data for data in [said, *kept])
    assert not re.search(rb"PRIVATE KEY", b"".join(kept) + said)


# -- the roster -----------------------------------------------------------------------------------------------


def test_an_owner_signs_the_roster_offline_and_devices_get_it_by_renewing(tmp_path) -> None:
    owner = Ed25519PrivateKey.generate()
    private, public = owner.private_bytes_raw(), owner.public_key().public_bytes_raw()
    with House(tmp_path) as house:
        devices = [house.device(name) for name in ("a", "b")]
        house.device("gone")
        revoke(house, "gone")
        exported = house.admin(DIRECTORY.EXPORT_ROSTER, pb.ExportRosterRequest())
        unsigned = [Entry.decode(data) for data in exported.entries]
        assert [(e.id, e.version, e.signature) for e in unsigned] == [("a", 2, b""), ("b", 2, b"")]
        trust = Trust(DOMAIN, public, pinned=True)
        with pytest.raises(BadBlob, match="not signed"):
            trust(devices[0].renew().entry)  # it is the coordinator's word alone
        signed = [e.signed_by(private).encoded for e in unsigned]
        for wrong in (
            [e.encoded for e in unsigned],
            [e.signed_by(Keys().private).encoded for e in unsigned],
            [signed[0], signed[0]],
            [replace(unsigned[0], domain="y.example").signed_by(private).encoded],
            [signed[0], replace(unsigned[1], version=3).signed_by(private).encoded],
        ):
            with pytest.raises(BadBlob):
                house.admin(DIRECTORY.IMPORT_ROSTER, pb.ImportRosterRequest(entries=wrong, key=public))
        request = pb.ImportRosterRequest(entries=signed, key=public)
        assert house.admin(DIRECTORY.IMPORT_ROSTER, request).version == 2
        assert {trust(device.renew().entry)[0] for device in devices} == {"a", "b"}
        with pytest.raises(Conflict, match="at version 2 by now"):
            house.admin(DIRECTORY.IMPORT_ROSTER, request)
        rows = house.admin(DIRECTORY.LIST_DEVICES, pb.ListDevicesRequest()).devices
        assert {d.id: d.version for d in rows} == {"a": 2, "b": 2, "gone": 1}


# -- an outside CA --------------------------------------------------------------------------------------------


def common_name(authority: pki.Authority, name: str, keys: Keys) -> bytes:
    """A certificate as many a company's CA makes it: a name, and nothing of ours."""
    ca_key = load_pem_private_key(authority.key, None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    begins = datetime.now(UTC) - timedelta(minutes=5)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.load_pem_x509_certificate(authority.pem).subject)
        .public_key(keys.tls.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(hours=1))
        .sign(ca_key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM)


def test_an_outside_ca_vouches_for_devices_which_register_their_own_keys(tmp_path) -> None:
    authority, keys = pki.Authority.make("company", time.time()), Keys()
    files = [tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem")]
    files[0].write_bytes(authority.server(["127.0.0.1"], keys.tls.public_key(), time.time(), 3600).pem)
    files[1].write_bytes(pki.key_pem(keys.tls))
    files[2].write_bytes(authority.pem)
    home = Home.init(tmp_path / "federation", DOMAIN, time.time(), outside=True)
    with House(tmp_path, home=home.folder, outside=Outside(*files)) as house:
        assert house.security.enrol_address == ""
        admin = house.issued("operator", "admin", authority=authority)
        with pytest.raises(UsageError, match="has no enrolment listener"):
            admin(DIRECTORY.CREATE_TOKEN, pb.CreateTokenRequest(ttl=60, uses=1))
        by_uri = house.issued("device", "by-uri", authority=authority)
        named = Keys()
        by_name = house.person("by-name", common_name(authority, "by-name", named), named)
        for device in (by_uri, by_name):
            assert device.keys is not None
            assert Attending(device.channel, device.name).wait() == "Denied"  # its key is not known yet
            with pytest.raises(BadBlob, match="not signed"):
                device.renew(csr=b"", proof=bytes(64))
            with pytest.raises(UsageError, match="an outside CA issues"):
                device.renew()
            entry = device.renew(csr=b"").entry
            assert Trust(DOMAIN, house.security.roster_key)(entry) == (device.name, device.keys.public)
            with house.attending(device):
                pass
        assert by_uri.keys is not None
        other = Keys()
        other.tls = by_uri.keys.tls
        with pytest.raises(Conflict, match="with another Ed25519 key"):
            by_uri.renew(other, csr=b"")
        with house.attending(by_name) as stream:
            admin(DIRECTORY.REVOKE_DEVICE, pb.RevokeDeviceRequest(id="by-name"))
            assert stream.wait() == "Denied"
        with pytest.raises(Denied, match="revoked"):
            by_name.renew(csr=b"")
        nameless = house.person("admin", common_name(authority, "admin", named), named)
        with pytest.raises(Denied):
            nameless(RUNS.LIST, runs_pb2.ListRequest())  # a common name makes no operator
        made = admin(DIRECTORY.CREATE_OPERATOR, pb.CreateOperatorRequest(name="eve", role="viewer"))
        assert made.certificate == b""
        assert (
            house.issued("operator", "eve", authority=authority)(RUNS.LIST, runs_pb2.ListRequest())
            is not None
        )
