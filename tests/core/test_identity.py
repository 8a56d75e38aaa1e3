"""Entries of the roster, what a device believes of them, names, and tokens."""

import base64
import json
from contextlib import suppress
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.canonical import canonical
from koinon_core.errors import BadBlob, UsageError
from koinon_core.identity import (
    Entry,
    Token,
    Trust,
    check_name,
    parse_spiffe,
    proof_message,
    prove,
    spiffe,
    verify,
)

# RFC 8032, 7.1, tests 1 and 2: private and public keys.
A = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
A_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
B = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
B_PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
ROSTER = bytes(range(32))
ROSTER_PUBLIC = Ed25519PrivateKey.from_private_bytes(ROSTER).public_key().public_bytes_raw()
OWNER = bytes(range(1, 33))
OWNER_PUBLIC = Ed25519PrivateKey.from_private_bytes(OWNER).public_key().public_bytes_raw()


def entry(
    name: str = "a", key: bytes = A_PUBLIC, domain: str = "x.example", by: bytes = ROSTER, **more: int
) -> bytes:
    return Entry(id=name, key=key, domain=domain, since=1_700_000_000, **more).signed_by(by).encoded


# -- entries --------------------------------------------------------------------------------------------------


def test_an_entry_is_the_same_bytes_for_ever():
    one = Entry.decode(entry())
    assert one.encoded == entry()
    assert one.statement == (
        b'koinon.identity/1 entry{"domain":"x.example","id":"a","key":"' + A_PUBLIC.hex().encode() + b'",'
        b'"since":1700000000,"version":1}'
    )
    assert one.signature.hex() == (
        "16ce39f89c58757ee56a6c91fbe55f46dec4e239aabc01d03981dbe8e4fa0962"
        "3ca072cbbb5438c308cbb74c24d4e8e18577ca6340252bcd35805cada70d8802"
    )
    assert json.loads(one.encoded)["signature"] == one.signature.hex()


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""}, {"id": 3}, {"id": "a/b"}, {"id": "a" * 65}, {"key": "00"}, {"key": A_PUBLIC.hex().upper()},
        {"key": None}, {"since": -1}, {"since": 1.5}, {"since": True}, {"since": 1 << 60}, {"version": 0},
        {"signature": "00"}, {"domain": "X"}, {"more": 1},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_entry_is_refused(change):
    value = {**json.loads(entry()), **change}
    with pytest.raises(BadBlob):
        Entry.decode(canonical(value))


def test_an_entry_that_is_written_otherwise_is_refused():
    value = json.loads(entry())
    for data in (
        json.dumps(value).encode(),
        entry() + b" ",
        b"[]",
        b"",
        b"{",
        b"\xff",
        b" " * 5000 + entry(),
    ):
        with pytest.raises(BadBlob):
            Entry.decode(data)
    value.pop("since")
    with pytest.raises(BadBlob):
        Entry.decode(canonical(value))


@given(st.binary(max_size=300))
def test_any_bytes_are_an_entry_or_bad(data):
    with suppress(BadBlob):
        assert Entry.decode(data).encoded == data


# -- trust ----------------------------------------------------------------------------------------------------


def test_an_entry_of_the_federation_is_believed_and_remembered():
    trust = Trust("x.example", ROSTER_PUBLIC)
    assert trust(entry()) == ("a", A_PUBLIC)
    assert trust.news == {"a": f"1:{A_PUBLIC.hex()}"}
    later = Trust("x.example", ROSTER_PUBLIC, known=trust.news)
    assert later(entry()) == ("a", A_PUBLIC)
    assert later.news == {}, "nothing new"


@pytest.mark.parametrize("where", range(20, len(entry()), 7))
def test_an_entry_with_a_flipped_bit_is_not_believed(where):
    data = bytearray(entry())
    data[where] ^= 1
    with pytest.raises(BadBlob):
        Trust("x.example", ROSTER_PUBLIC)(bytes(data))


def test_whoever_did_not_sign_with_the_roster_key_is_not_believed():
    for by in (A, OWNER):
        with pytest.raises(BadBlob, match="not signed by the key it should be"):
            Trust("x.example", ROSTER_PUBLIC)(entry(by=by))
    unsigned = replace(Entry.decode(entry()), signature=b"")
    with pytest.raises(BadBlob):
        Trust("x.example", ROSTER_PUBLIC)(unsigned.encoded)
    with pytest.raises(BadBlob, match="of domain 'y"):
        Trust("x.example", ROSTER_PUBLIC)(entry(domain="y.example"))


def test_a_coordinator_cannot_give_somebody_another_key_behind_our_back():
    trust = Trust("x.example", ROSTER_PUBLIC)
    trust(entry())
    for version in (1, 2):
        with pytest.raises(BadBlob, match="not the one that was met before"):
            trust(entry(key=B_PUBLIC, version=version))
    assert trust(entry(version=2)) == ("a", A_PUBLIC), "the same key again is no change"
    # What was remembered as a key alone counts, too.
    with pytest.raises(BadBlob, match="not the one that was met before"):
        Trust("x.example", ROSTER_PUBLIC, known={"a": A_PUBLIC.hex()})(entry(key=B_PUBLIC))


def test_an_owner_may_give_a_device_another_key_with_a_newer_version_only():
    trust = Trust("x.example", OWNER_PUBLIC, pinned=True)
    trust(entry(by=OWNER, version=2))
    with pytest.raises(BadBlob, match="not the one that was met before"):
        trust(entry(key=B_PUBLIC, by=OWNER, version=2))
    with pytest.raises(BadBlob, match="not signed"):
        trust(entry(key=B_PUBLIC, by=ROSTER, version=3))
    assert trust(entry(key=B_PUBLIC, by=OWNER, version=3)) == ("a", B_PUBLIC)
    with pytest.raises(BadBlob, match="version 2, and version 3 was met before"):
        trust(entry(by=OWNER, version=2))
    assert trust.news == {"a": f"3:{B_PUBLIC.hex()}"}


def test_an_entry_below_the_least_version_is_off_the_roster():
    trust = Trust("x.example", OWNER_PUBLIC, pinned=True, least_version=3)
    with pytest.raises(BadBlob, match="the roster is at 3 by now"):
        trust(entry(by=OWNER, version=2))
    assert trust(entry(by=OWNER, version=3)) == ("a", A_PUBLIC)


def test_loose_entries_are_for_federations_without_identities_only():
    loose = Entry.loose("any name, printable", A)
    assert Trust.loose()(loose.encoded) == ("any name, printable", A_PUBLIC)
    assert Trust.loose().news == {}
    with pytest.raises(BadBlob, match="domain ''"):
        Trust("x.example", ROSTER_PUBLIC)(loose.encoded)
    with pytest.raises(BadBlob, match="of domain 'x"):
        Trust.loose()(entry())
    with pytest.raises(BadBlob, match="not signed"):
        Trust.loose()(replace(loose, key=B_PUBLIC).encoded)
    for domain, key in (("", ROSTER_PUBLIC), ("x.example", None)):
        with pytest.raises(UsageError, match="has neither"):
            Trust(domain, key)


# -- names and proofs -----------------------------------------------------------------------------------------


def test_names_are_uris_and_back():
    assert spiffe("x.example", "device", "ward-3_a.b") == "spiffe://x.example/device/ward-3_a.b"
    assert parse_spiffe("spiffe://x.example/operator/alice") == ("x.example", "operator", "alice")
    for uri in (
        "", "x.example/device/a", "spiffe://x.example/device/", "spiffe://x.example/device/a/b", "spiffe://X/device/a",
        "spiffe://x.example/robot/a", "spiffe:///device/a", "spiffe://x.example/device/..", "spiffe://x.example/device/a?b",
        "https://x.example/device/a", "spiffe://spiffe://x.example/device/a", "spiffe://x.example/device/" + "a" * 65,
    ):  # fmt: skip
        with pytest.raises(BadBlob):
            parse_spiffe(uri)
    for name in ("", ".", "..", "a b", "a/b", "é", "a" * 65, "a\n"):
        with pytest.raises(UsageError):
            check_name(name)


def test_a_proof_is_for_one_token_one_tls_key_and_one_name():
    proof = prove(A, "t", b"spki", "a")
    verify(A_PUBLIC, proof, proof_message("t", b"spki", "a"), "it")
    for token, spki, name in (
        ("u", b"spki", "a"),
        ("t", b"other", "a"),
        ("t", b"spki", "b"),
        ("t", b"", "spki"),
    ):
        with pytest.raises(BadBlob, match=r"^it is not signed"):
            verify(A_PUBLIC, proof, proof_message(token, spki, name), "it")
    with pytest.raises(BadBlob):
        verify(b"short", proof, proof_message("t", b"spki", "a"), "it")
    # No list of fields is another list's bytes.
    assert proof_message('t","', b"", "a") != proof_message("t", b"", '","a')


# -- tokens ---------------------------------------------------------------------------------------------------

TOKEN = Token(
    id="0123", secret="sEcReT", ca=b"\x30\x82 a certificate", domain="x.example", address="fl.example.org:8441",
    roster_key=ROSTER_PUBLIC,
)  # fmt: skip


def test_a_token_is_one_line_and_back():
    assert TOKEN.text.startswith("koinon-token-1.")
    assert len(TOKEN.text.split()) == 1
    assert Token.parse(f"  {TOKEN.text}\n") == TOKEN


def test_a_token_never_shows_its_secret():
    assert "sEcReT" not in repr(TOKEN)
    for text in (TOKEN.text[:-9], TOKEN.text + "!", TOKEN.text.replace(".", ":", 1), "", "koinon-token-1."):
        with pytest.raises(BadBlob) as caught:
            Token.parse(text)
        assert TOKEN.text[20:40] not in str(caught.value)


def test_a_token_with_other_fields_is_refused():
    value = json.loads(base64.urlsafe_b64decode(TOKEN.text.removeprefix("koinon-token-1.") + "=="))
    for change in ({"more": 1}, {"domain": "X"}, {"roster_key": "00"}, {"ca": "?"}, {"secret": 1}):
        text = base64.urlsafe_b64encode(canonical({**value, **change})).decode()
        with pytest.raises(BadBlob):
            Token.parse("koinon-token-1." + text)
