"""Tokens, devices, operators and the roster as the database keeps them; the federation's folder; what is configured."""

import asyncio
import os
import stat
import threading
import time

import pytest
from cryptography import x509

from federations import DOMAIN, Keys
from koinon_coordinator.config import Config
from koinon_coordinator.identity import Home, Security, pki
from koinon_coordinator.identity.security import Outside
from koinon_coordinator.identity.tokens import hash_of, new_token
from koinon_coordinator.service.peers import RULES, Guard, Peer
from koinon_coordinator.store import OperatorRow
from koinon_core.errors import Conflict, Denied, NotFound, StoreError, UsageError
from koinon_core.wire import methods
from koinon_core.wire.methods import Method

NOW = 1_700_000_000.0


def enrol(store, name, key, token, *, now=NOW, secret=None):
    row, real = token
    return store.people.enrol(
        row.id, hash_of(secret or real), name, key, b"entry of " + name.encode(), now, now + 100
    )


@pytest.fixture
def token(store):
    made = new_token(60, 3, "ward", "alice", NOW)
    store.people.add_token(made[0])
    return made


# -- tokens and devices ---------------------------------------------------------------------------------------


def test_a_device_and_the_use_of_its_token_are_one_transaction(store, token):
    row = enrol(store, "a", "aa", token)
    assert (row.key, row.entry, row.entry_version, row.label, row.enrolled_at) == (
        "aa",
        b"entry of a",
        1,
        "ward",
        NOW,
    )
    with pytest.raises(Conflict):
        enrol(store, "a", "bb", token)
    with pytest.raises(Conflict):
        enrol(store, "b", "aa", token)
    for name in ("b", "c"):  # what failed cost no use
        enrol(store, name, name * 2, token)
    with pytest.raises(Denied, match="used up"):
        enrol(store, "d", "dd", token)
    assert [d.name for d in store.people.devices()] == ["a", "b", "c"]


def test_the_last_use_of_a_token_is_one_device_s(store, token):
    """Eight at once, three of which get in."""
    errors = []

    def one(number):
        try:
            enrol(store, f"d{number}", f"{number:02}", token)
        except Denied as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 5
    assert len(store.people.devices()) == 3


def test_a_token_that_is_wrong_says_less_than_one_that_is_over(store, token):
    with pytest.raises(Denied, match="not one of this federation's"):
        enrol(store, "a", "aa", token, secret="guessed", now=NOW + 61)
    with pytest.raises(Denied, match="expired"):
        enrol(store, "a", "aa", token, now=NOW + 60)
    for ttl, uses in ((0, 1), (91 * 86_400, 1), (60, 0), (60, 100_001)):
        with pytest.raises(UsageError):
            new_token(ttl, uses, "", "", NOW)


def test_a_device_from_before_there_were_identities_enrols_under_its_name(store, token):
    store.see_device("old", "0.3.0", NOW - 10)
    assert store.people.standing({"old"}, set()) == (set(), {})
    enrol(store, "old", "aa", token)
    assert store.people.device("old").first_seen == NOW - 10
    assert store.people.standing({"old"}, set()) == ({"old"}, {})


def test_a_revoked_device_stays_revoked(store, token):
    enrol(store, "a", "aa", token)
    assert store.people.revoke_device("a", "alice", "lost", NOW).revoked_by == "alice"
    assert store.people.revoke_device("a", "bob", "again", NOW + 1).reason == "lost"
    for attempt in (
        lambda: enrol(store, "a", "aa", token),
        lambda: store.people.register("a", "aa", b"e", NOW),
    ):
        with pytest.raises(Denied, match="revoked"):
            attempt()
    with pytest.raises(Denied):
        store.people.renew("a", "aa", NOW)
    assert store.people.standing({"a"}, set()) == (set(), {})
    with pytest.raises(NotFound):
        store.people.revoke_device("nobody", "alice", "", NOW)


def test_operators_are_made_once_and_an_admin_stays(store):
    people = store.people
    people.add_operator(OperatorRow(name="root", role="admin", created_at=NOW))
    people.add_operator(OperatorRow(name="eve", role="viewer", created_at=NOW, created_by="root"))
    with pytest.raises(Conflict):
        people.add_operator(OperatorRow(name="eve", role="admin", created_at=NOW))
    kept = people.add_operator(OperatorRow(name="eve", role="admin", created_at=NOW), again=True)
    assert kept.role == "viewer"
    assert people.standing(set(), {"root", "eve", "nobody"}) == (set(), {"root": "admin", "eve": "viewer"})
    with pytest.raises(Conflict, match="the last admin"):
        people.revoke_operator("root", "root", NOW)
    people.revoke_operator("eve", "root", NOW)
    assert people.standing(set(), {"eve"}) == (set(), {})
    with pytest.raises(Denied):
        people.renew_operator("eve", NOW)
    assert people.add_operator(kept, again=True).revoked_at == NOW, (
        "a start of the coordinator brings nobody back"
    )


def test_a_roster_is_pinned_once_and_only_goes_forward(store, token):
    people = store.people
    for name in ("a", "b"):
        enrol(store, name, name * 2, token)
    assert people.roster() == ("", 1)
    people.set_roster("k" * 64, 2, [("a", "aa", b"signed")])
    assert people.roster() == ("k" * 64, 2)
    assert (people.device("a").entry, people.device("a").entry_version) == (b"signed", 2)
    assert people.device("b").entry_version == 1
    for key, version, entries, sentence in (
        ("l" * 64, 3, [("a", "aa", b"x")], "another owner's key"),
        ("k" * 64, 2, [("a", "aa", b"x")], "at version 2 by now"),
        ("k" * 64, 3, [("b", "bb", b"x"), ("a", "cc", b"x")], "not enrolled with the key that was signed"),
    ):
        with pytest.raises(Conflict, match=sentence):
            people.set_roster(key, version, entries)
        assert people.roster() == ("k" * 64, 2)
        assert people.device("b").entry_version == 1, "all or nothing"
    enrol(store, "a", "aa", token, now=NOW + 1)
    assert people.device("a").entry == b"signed", "enrolling again does not undo the owner's signature"


def test_many_are_looked_up_at_once(store, token):
    enrol(store, "a", "aa", token)
    many = {f"d{i}" for i in range(1200)} | {"a"}
    assert store.people.standing(many, set()) == ({"a"}, {})


# -- rules ----------------------------------------------------------------------------------------------------


def test_every_method_has_a_rule():
    tables = [t for t in vars(methods).values() if isinstance(t, type) and t.__module__ == methods.__name__]
    rows = {row for table in tables for row in vars(table).values() if isinstance(row, Method)}
    assert len(rows) > 20
    assert rows == set(RULES)


def test_only_admins_and_its_own_operator_control_a_run():
    for peer, mine, others in (
        (Peer("operator", "a", "operator"), True, False),
        (Peer("operator", "a", "viewer"), False, False),
        (Peer("operator", "b", "admin"), True, True),
        (Peer("device", "a"), False, False),
    ):
        assert (peer.may_control("a"), peer.may_control("")) == (mine, others)


# -- certificates ---------------------------------------------------------------------------------------------


def test_a_ca_makes_certificates_for_its_federation_only():
    authority, key = pki.Authority.make(DOMAIN, NOW), Keys().tls.public_key()
    ca = x509.load_pem_x509_certificate(authority.pem)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    made = x509.load_pem_x509_certificate(authority.peer(DOMAIN, "operator", "eve", key, NOW, 3600).pem)
    made.verify_directly_issued_by(ca)
    assert made.not_valid_before_utc.timestamp() == NOW - 300
    assert made.not_valid_after_utc.timestamp() == NOW + 3600
    assert made.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
    with pytest.raises(UsageError, match="is no name"):
        authority.peer(DOMAIN, "device", "../x", key, NOW, 1)
    hosts = x509.load_pem_x509_certificate(
        authority.server(["fl.example", "10.0.0.1", "::1"], key, NOW, 1).pem
    )
    names = hosts.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    with pytest.raises(UsageError, match="is not the key of"):
        pki.Authority(authority.pem, pki.Authority.make(DOMAIN, NOW).key)


# -- the folder -----------------------------------------------------------------------------------------------


def test_a_federation_s_folder_is_its_user_s_own(tmp_path):
    old = os.umask(0)
    try:
        made = Home.init(tmp_path / "deep" / "f", "", time.time())
    finally:
        os.umask(old)
    paths = [made.folder, *made.folder.rglob("*")]
    assert {p.name for p in paths if p.is_file()} == {
        "ca.pem", "ca.key", "roster.key", "federation.json", "tls.key", "tls.pem",
    }  # fmt: skip
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    again = Home(made.folder)
    assert (again.domain, again.roster_key, again.admin) == (made.domain, made.roster_key, "admin")
    certificate = (made.folder / "admin" / "tls.pem").read_bytes()
    assert pki.peer_of(certificate, made.domain, common_names=False) == ("operator", "admin")


def test_a_federation_is_not_made_twice(tmp_path):
    Home.init(tmp_path, DOMAIN, NOW)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(Conflict, match="its keys are not made twice"):
        Home.init(tmp_path, DOMAIN, NOW)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_federation_s_folder_that_is_not_whole_says_the_way_out(tmp_path):
    with pytest.raises(UsageError, match=r"init --dir .*--insecure"):
        Home(tmp_path / "none")
    for name, content in (("federation.json", b"{}"), ("ca.key", b"x"), ("roster.key", b"x")):
        folder = tmp_path / name
        Home.init(folder, DOMAIN, NOW)
        (folder / name).write_bytes(content)
        with pytest.raises(UsageError, match="restore"):
            Home(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Home.init(tmp_path / "file" / "f", DOMAIN, NOW)


def test_an_outside_ca_s_files_are_read_again_when_they_change(tmp_path):
    home = Home.init(tmp_path / "f", DOMAIN, NOW, outside=True)
    assert not (home.folder / "ca.key").exists()
    ca, key = pki.Authority.make("outside", NOW), Keys().tls
    files = [tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem")]

    def write(key):
        files[0].write_bytes(ca.server(["localhost"], key.public_key(), NOW, 1).pem)
        files[1].write_bytes(pki.key_pem(key))

    write(key)
    files[2].write_bytes(ca.pem)
    security = Security(home, ("localhost",), outside=Outside(*files))
    first = security.pair()
    assert security.pair() is first
    other = Keys().tls
    os.utime(files[1], ns=(1, 1))
    files[1].write_bytes(pki.key_pem(other))
    with pytest.raises(UsageError, match="another certificate's"):
        security.pair()  # one file was replaced, the other not yet
    write(other)
    assert security.pair().key == pki.key_pem(other)
    with pytest.raises(UsageError, match="an outside CA issues"):
        security.issue("device", "a", key.public_key())
    with pytest.raises(UsageError, match="an outside CA issues"):
        home.issue_admin(tmp_path / "admin", NOW)
    with pytest.raises(UsageError, match="go with a folder that was made by"):
        Security(home, ("localhost",))


# -- configuration --------------------------------------------------------------------------------------------


def config(listen="127.0.0.1:8440", **given):
    return Config(db="sqlite:///x", listen=listen, **given)


def test_enrolment_is_at_the_next_port_unless_said_otherwise():
    assert config().enrol_at == "127.0.0.1:8441"
    assert config("10.0.0.1:0").enrol_at == "10.0.0.1:0"
    assert config(enrol_listen="").enrol_at == ""
    assert config(enrol_listen="0.0.0.0:443").enrol_at == "0.0.0.0:443"


def test_a_coordinator_is_known_by_the_name_that_it_was_given_first():
    assert config("0.0.0.0:1", names=("fl.example",)).hosts[0] == "fl.example"
    assert config("10.0.0.1:1").hosts[0] == "10.0.0.1"
    assert "0.0.0.0" not in config("0.0.0.0:1").hosts
    for hosts in (config().hosts, config("[::]:1").hosts):
        assert {"localhost", "127.0.0.1"} <= set(hosts)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"listen": "0.0.0.0:1", "insecure": True},
            "is not a loopback address, and --insecure serves this machine only",
        ),
        ({"insecure": True, "enrol_listen": "127.0.0.1:1"}, "goes with no option of TLS"),
        ({"tls_cert": "c"}, "go together"),
        ({"enrol_listen": "here"}, "--enrol-listen 'here' must be HOST:PORT"),
        ({"address": "there"}, "--address 'there' must be HOST:PORT"),
        ({"device_life": "soon"}, "--device-life 'soon' is no life of a certificate"),
        ({"device_life": "0s"}, "--device-life '0s' is no life of a certificate"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(given, sentence):
    with pytest.raises(UsageError, match=sentence):
        config(**given)
    assert config(device_life="1.5h").device_seconds == 5400.0


def test_a_guard_without_identities_lets_everybody_do_everything(store):
    guard = Guard(store.people, None)
    for method in RULES:
        peer = asyncio.run(guard.admit(method, None))
        assert peer.may_control("anybody's")
    guard.close()
