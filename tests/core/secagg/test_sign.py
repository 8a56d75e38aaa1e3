"""Ed25519 against RFC 8032, and signatures that are not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg.hazmat import sign

# Section 7.1, tests 1 to 3: private, public, message, signature.
CASES = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
GROUP = 2**252 + 27742317777372353535851937790883648493  # the order of the base point
PRIVATE, PUBLIC, MESSAGE, SIGNATURE = map(bytes.fromhex, CASES[2])


@pytest.mark.parametrize(("private", "public", "message", "signature"), CASES)
def test_the_signatures_of_rfc_8032(private, public, message, signature):
    key, text = bytes.fromhex(private), bytes.fromhex(message)
    assert sign.public_of(key).hex() == public
    assert sign.sign(key, text).hex() == signature
    sign.verify(bytes.fromhex(public), bytes.fromhex(signature), text)


@given(st.binary(min_size=32, max_size=32), st.binary())
def test_what_is_signed_verifies(private, message):
    sign.verify(sign.public_of(private), sign.sign(private, message), message)


@pytest.mark.parametrize("bit", range(0, 512, 7))
def test_a_signature_with_a_changed_bit_is_refused(bit):
    changed = bytearray(SIGNATURE)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadBlob, match="not that of key fc51cd8e6218a1a3"):
        sign.verify(PUBLIC, bytes(changed), MESSAGE)


@pytest.mark.parametrize("bit", range(0, 256, 7))
def test_a_signature_under_another_key_is_refused(bit):
    changed = bytearray(PUBLIC)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadBlob, match="enrolled"):
        sign.verify(bytes(changed), SIGNATURE, MESSAGE)


@pytest.mark.parametrize("message", [b"", MESSAGE[:-1], MESSAGE + b"\0", b"\xaf\x83"])
def test_a_signature_of_another_message_is_refused(message):
    with pytest.raises(BadBlob):
        sign.verify(PUBLIC, SIGNATURE, message)


def test_the_same_signature_in_a_second_spelling_is_refused():
    # S and S + L satisfy the equation alike; RFC 8032 demands S < L, or anybody could make a second signature.
    s = int.from_bytes(SIGNATURE[32:], "little") + GROUP
    with pytest.raises(BadBlob):
        sign.verify(PUBLIC, SIGNATURE[:32] + s.to_bytes(32, "little"), MESSAGE)


@pytest.mark.parametrize(("key", "signature"), [(31, 64), (33, 64), (0, 64), (32, 63), (32, 65), (32, 0)])
def test_lengths_are_checked(key, signature):
    with pytest.raises(BadBlob, match=f"not {key} and {signature}"):
        sign.verify(bytes(key), bytes(signature), MESSAGE)


def test_a_private_key_of_another_length_is_the_callers_fault():
    with pytest.raises(UsageError, match="not 31"):
        sign.sign(bytes(31), MESSAGE)
    with pytest.raises(UsageError, match="not 64"):
        sign.public_of(bytes(64))


def test_a_pair_is_what_the_entropy_gave():
    assert sign.generate(lambda size: bytes(range(size))) == (
        bytes(range(32)),
        sign.public_of(bytes(range(32))),
    )
