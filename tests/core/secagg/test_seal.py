"""AES-256-GCM under nonce zero, against the examples of its specification."""

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg.hazmat.seal import seal, unseal

ZERO = bytes(32)
KEYS = st.binary(min_size=32, max_size=32)


def test_the_examples_of_the_specification():
    # McGrew and Viega, "The Galois/Counter Mode of Operation", cases 13 and 14: zero key, zero nonce.
    assert seal(ZERO, b"", b"").hex() == "530f8afbc74536b9a963b4f1c4cb738b"
    assert seal(ZERO, bytes(16), b"").hex() == (
        "cea7403d4d606b6e074ec5d3baf39d18" + "d0d1c8a799996bf0265b98b5d48ab919"
    )


@given(KEYS, st.binary(), st.binary())
def test_it_is_gcm_with_the_tag_last_and_opens_again(key, plain, aad):
    cipher = Cipher(AES256(key), GCM(bytes(12))).encryptor()
    cipher.authenticate_additional_data(aad)
    sealed = cipher.update(plain) + cipher.finalize() + cipher.tag
    assert seal(key, plain, aad) == sealed
    assert unseal(key, sealed, aad) == plain


def test_a_change_of_any_byte_is_seen():
    sealed = seal(ZERO, b"thirty-two bytes of a secret key", b"sid")
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 0x10
        with pytest.raises(BadBlob, match="48 sealed bytes do not authenticate"):
            unseal(ZERO, bytes(changed), b"sid")


@pytest.mark.parametrize("length", [0, 1, 15, 16, 47])
def test_a_cut_is_seen(length):
    with pytest.raises(BadBlob, match=f"{length} sealed bytes"):
        unseal(ZERO, seal(ZERO, b"thirty-two bytes of a secret key", b"sid")[:length], b"sid")


@pytest.mark.parametrize("aad", [b"", b"sie", b"sid\0"])
def test_another_session_is_seen(aad):
    with pytest.raises(BadBlob):
        unseal(ZERO, seal(ZERO, b"secret", b"sid"), aad)


def test_another_key_does_not_open_and_a_short_one_is_the_callers_fault():
    with pytest.raises(BadBlob):
        unseal(bytes(31) + b"\1", seal(ZERO, b"secret", b"sid"), b"sid")
    for use in (seal, unseal):
        with pytest.raises(UsageError, match="not 16"):
            use(bytes(16), bytes(32), b"")
