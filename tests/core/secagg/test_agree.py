"""X25519 against RFC 7748, and what must not be agreed with."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg.hazmat import agree

KEYS = st.binary(min_size=32, max_size=32)
BASE = bytes([9]) + bytes(31)

# RFC 7748, section 5.2: scalar, u-coordinate, product.
PRODUCTS = [
    (
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
        "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
    ),
]

# Points of order 1, 2, 4 and 8 on the curve and its twist, and their other spellings (p - 1, p, p + 1).
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
]


@pytest.mark.parametrize(("scalar", "point", "product"), PRODUCTS)
def test_the_products_of_rfc_7748(scalar, point, product):
    assert agree.exchange(bytes.fromhex(scalar), bytes.fromhex(point)).hex() == product


def test_a_thousand_products_in_a_row():
    # Section 5.2 again: k, u := X25519(k, u), k.
    k, u = BASE, BASE
    for turn in range(1000):
        k, u = agree.exchange(k, u), k
        if turn == 0:
            assert k.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_alice_and_bob_of_rfc_7748():
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert agree.public_of(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert agree.public_of(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert agree.exchange(alice, agree.public_of(bob)).hex() == shared
    assert agree.exchange(bob, agree.public_of(alice)).hex() == shared


@given(KEYS, KEYS)
def test_both_ends_of_an_exchange_have_the_same_secret(a, b):
    assert agree.exchange(a, agree.public_of(b)) == agree.exchange(b, agree.public_of(a))


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("top", [0, 0x80])  # the highest bit, which X25519 does not look at
def test_a_point_of_low_order_is_refused(point, top):
    public = bytearray.fromhex(point)
    public[31] |= top
    with pytest.raises(BadBlob, match="low order"):
        agree.exchange(bytes(range(32)), bytes(public))
    with pytest.raises(ValueError):  # by the library too, whatever the list says
        agree.load(bytes(range(32))).exchange(X25519PublicKey.from_public_bytes(bytes(public)))


@given(KEYS)
def test_what_is_checked_without_an_exchange_is_what_an_exchange_takes(public):
    try:
        agree.check_public(public)
    except BadBlob:
        with pytest.raises(ValueError):
            agree.load(bytes(range(32))).exchange(X25519PublicKey.from_public_bytes(public))
    else:
        agree.load(bytes(range(32))).exchange(X25519PublicKey.from_public_bytes(public))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_keys_of_another_length_are_refused_and_it_is_said_whose(length):
    with pytest.raises(BadBlob, match=f"not {length}; its owner"):
        agree.exchange(bytes(range(32)), bytes(length))
    with pytest.raises(UsageError, match=f"not {length}; pass"):
        agree.exchange(bytes(length), BASE)
    with pytest.raises(UsageError, match=f"not {length}; pass"):
        agree.public_of(bytes(length))


def test_a_pair_is_what_the_entropy_gave():
    asked = []

    def entropy(size: int) -> bytes:
        asked.append(size)
        return bytes(range(size))

    private, public = agree.generate(entropy)
    assert asked == [32]
    assert (private, public) == (bytes(range(32)), agree.public_of(bytes(range(32))))


@pytest.mark.parametrize("given_", [0, 31, 33])
def test_entropy_that_gives_another_number_of_bytes_makes_no_key(given_):
    with pytest.raises(UsageError, match=f"gave {given_} bytes where 32"):
        agree.generate(lambda size: bytes(given_))
