"""Keys and keystreams of the ring, against the RFCs' own examples."""

import hashlib
import hmac
import json

import pytest

from koinon_core.errors import UsageError
from koinon_core.ring.seeds import Seeds, derive, keystream

TERMS = hashlib.sha256(b"the terms").digest()
ZEROS = bytes(32)


def hkdf(material: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 in four lines."""
    key, out, block = hmac.digest(salt, material, "sha256"), b"", b""
    for i in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([i]), "sha256")
        out += block
    return out[:length]


def test_the_keystream_is_that_of_rfc_8439():
    # Appendix A.1, vectors 1 and 2: the zero key and nonce, blocks 0 and 1.
    stream = keystream(ZEROS, 0, 128).tobytes()
    assert stream[:32].hex() == "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert stream[64:96].hex() == "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    # Vector 5: the nonce's last byte is 2.
    assert keystream(ZEROS, 2 << 88, 16).tobytes().hex() == "c2c64d378cd536374ae204b9ef933fcd"
    # Vector 3: the key's last byte is 1, block 1.
    other = keystream(bytes(31) + b"\1", 0, 80).tobytes()
    assert other[64:].hex() == "3aeb5224ecf849929b9d828db1ced4dd"


def test_a_shorter_keystream_is_the_start_of_a_longer_one_and_streams_differ():
    long = keystream(TERMS, 7, 1000).tobytes()
    assert keystream(TERMS, 7, 333).tobytes() == long[:333]
    assert keystream(TERMS, 7, 0).size == 0
    assert keystream(TERMS, 8, 1000).tobytes() != long


@pytest.mark.parametrize("count", [-1, (1 << 32) + 1, 1 << 70])
def test_a_keystream_that_no_tile_needs_is_refused_before_anything_is_allocated(count):
    with pytest.raises(UsageError, match="ask for at most"):
        keystream(ZEROS, 0, count)


def test_keys_are_hkdfs_of_rfc_5869():
    case = bytes.fromhex("000102030405060708090a0b0c"), bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    assert hkdf(b"\x0b" * 22, *case, 42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    info = json.dumps(["shared", 3, "signs", "w"], separators=(",", ":")).encode()
    assert derive(TERMS, "shared", 3, "signs", "w") == hkdf(TERMS, b"koinon ring 1", info, 32)


def test_every_purpose_has_a_key_of_its_own():
    seeds, later = Seeds(TERMS, "run", 1), Seeds(TERMS, "run", 2)
    secret, other = b"s" * 32, b"t" * 32
    keys = [
        *(s.shared(label, group) for s in (seeds, later) for label in ("signs", "subset") for group in "ab"),
        *(s.dither(device, group) for s in (seeds, later) for device in ("x", "y") for group in "ab"),
        *(s.rounding(k, group) for s in (seeds, later) for k in (secret, other) for group in "ab"),
        Seeds(TERMS, "run2", 1).dither("x", "a"),
        Seeds(TERMS, "run2", 1).rounding(secret, "a"),
        Seeds(ZEROS, "run", 1).shared("signs", "a"),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(k) for k in keys} == {32}


def test_names_that_run_together_do_not_share_a_key():
    assert derive(TERMS, "a", "bc") != derive(TERMS, "ab", "c")
    assert Seeds(TERMS, "r1", 11).dither("d", "g") != Seeds(TERMS, "r11", 1).dither("d", "g")


def test_the_dither_does_not_depend_on_the_terms_but_the_rotation_does():
    # Another attempt of a round may have other terms; what a device encoded stays what it was.
    a, b = Seeds(TERMS, "run", 1), Seeds(ZEROS, "run", 1)
    assert a.dither("x", "w") == b.dither("x", "w")
    assert a.shared("signs", "w") != b.shared("signs", "w")


def test_short_digests_and_secrets_are_refused():
    with pytest.raises(UsageError, match="has 32 bytes, not 31"):
        Seeds(bytes(31), "run", 1)
    with pytest.raises(UsageError, match="has 31 bytes; draw 32"):
        Seeds(TERMS, "run", 1).rounding(bytes(31), "w")
