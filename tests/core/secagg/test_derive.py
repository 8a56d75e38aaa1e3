"""HKDF-SHA256 against RFC 5869."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import UsageError
from koinon_core.secagg.hazmat.derive import expand, hkdf

# Appendix A, cases 1 to 3: secret, salt, info, pseudorandom key, output.
CASES = [
    (
        b"\x0b" * 22,
        bytes(range(13)),
        bytes(range(0xF0, 0xFA)),
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)),
        bytes(range(0x60, 0xB0)),
        bytes(range(0xB0, 0x100)),
        "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
        "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
        "cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        b"\x0b" * 22,
        b"",
        b"",
        "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]


@pytest.mark.parametrize(("secret", "salt", "info", "key", "wanted"), CASES)
def test_the_keys_of_rfc_5869(secret, salt, info, key, wanted):
    length = len(wanted) // 2
    assert hkdf(secret, salt=salt, info=info, length=length).hex() == wanted
    assert expand(bytes.fromhex(key), info, length).hex() == wanted
    assert hkdf(secret, salt=salt, info=info).hex() == wanted[:64]
    assert expand(bytes.fromhex(key), info).hex() == wanted[:64]


@given(st.binary(), st.binary(), st.binary(), st.integers(1, 300))
def test_hkdf_is_extract_then_expand(secret, salt, info, length):
    key = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    assert hkdf(secret, salt=salt, info=info, length=length) == expand(key, info, length)


@pytest.mark.parametrize("length", [-1, 0, 8161])
def test_a_key_that_the_rfc_does_not_define_is_refused(length):
    assert len(expand(bytes(32), b"", 8160)) == 8160
    for ask in (lambda: expand(bytes(32), b"", length), lambda: hkdf(b"", salt=b"", info=b"", length=length)):
        with pytest.raises(UsageError, match="1 to 8160 bytes"):
            ask()


def test_a_short_key_is_not_expanded():
    with pytest.raises(UsageError, match="not 31; derive it"):
        expand(bytes(31), b"info")
