"""The tree of RFC 6962: its published roots, a slow twin, and proofs that were tampered with."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg.hazmat.merkle import check, prove, root

# The leaves and roots that Certificate Transparency's implementations test with.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LISTS = st.lists(st.binary(max_size=40), min_size=1, max_size=40)


def slow_root(leaves: list[bytes]) -> bytes:
    """Section 2.1, word for word."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + slow_root(leaves[:k]) + slow_root(leaves[k:])).digest()


def some_of(leaves: list[bytes], indices) -> dict[int, bytes]:
    return {i: leaves[i] for i in indices}


@st.composite
def lists_and_places(draw):
    leaves = draw(LISTS)
    return leaves, draw(st.sets(st.integers(0, len(leaves) - 1), min_size=1))


@pytest.mark.parametrize("n", range(9))
def test_the_roots_of_certificate_transparency(n):
    assert root(LEAVES[:n]).hex() == ROOTS[n]


@given(LISTS)
def test_a_root_is_what_the_rfc_says(leaves):
    assert root(leaves) == slow_root(leaves)


def test_a_proof_of_one_leaf_is_its_audit_path_in_the_order_of_the_list():
    leaf = [hashlib.sha256(b"\0" + leaf).digest() for leaf in LEAVES]
    left = hashlib.sha256(b"\1" + leaf[0] + leaf[1]).digest()
    assert prove(LEAVES[:5], [3]) == left + leaf[2] + leaf[4]
    assert prove(LEAVES[:1], [0]) == b""
    assert prove(LEAVES, range(8)) == b""


@given(lists_and_places())
def test_a_proof_convinces_and_is_short(drawn):
    leaves, places = drawn
    proof = prove(leaves, places)
    check(root(leaves), len(leaves), some_of(leaves, places), proof)
    assert len(proof) <= 32 * len(places) * (len(leaves) - 1).bit_length()
    assert prove(leaves, [*places, *places]) == proof


@given(lists_and_places(), st.data())
def test_another_leaf_another_place_or_another_size_does_not_convince(drawn, data):
    leaves, places = drawn
    proof, top, shown = prove(leaves, places), root(leaves), some_of(leaves, places)
    place = data.draw(st.sampled_from(sorted(places)))
    with pytest.raises(BadBlob):
        check(top, len(leaves), {**shown, place: shown[place] + b"!"}, proof)
    with pytest.raises(BadBlob):
        check(bytes(32), len(leaves), shown, proof)
    with pytest.raises(BadBlob):
        check(top, len(leaves), shown, proof + bytes(32))
    with pytest.raises(BadBlob):
        check(top, len(leaves) + len(proof) // 32 + 1, shown, proof + bytes(32))
    missing = {i: leaf for i, leaf in shown.items() if i != place}
    with pytest.raises(BadBlob):
        check(top, len(leaves), missing, proof)


def test_a_change_of_any_byte_is_seen():
    places = [2, 6]
    proof, top, shown = prove(LEAVES, places), root(LEAVES), some_of(LEAVES, places)
    assert len(proof) == 4 * 32
    for at in range(len(proof)):
        changed = bytearray(proof)
        changed[at] ^= 1
        with pytest.raises(BadBlob, match="does not lead to the root"):
            check(top, 8, shown, bytes(changed))
    for place in places:
        for at in range(len(shown[place])):
            leaf = bytearray(shown[place])
            leaf[at] ^= 1
            with pytest.raises(BadBlob, match="does not lead"):
                check(top, 8, {**shown, place: bytes(leaf)}, proof)


@pytest.mark.parametrize("length", range(0, 128, 5))
def test_a_proof_that_was_cut_is_seen(length):
    with pytest.raises(BadBlob, match=f"of {length} bytes is too short"):
        check(root(LEAVES), 8, some_of(LEAVES, [2, 6]), prove(LEAVES, [2, 6])[:length])


def test_a_node_cannot_be_shown_as_a_leaf():
    # The list of two leaves whose bytes are those of its nodes' children would have the same root without prefixes.
    leaf = [hashlib.sha256(b"\0" + leaf).digest() for leaf in LEAVES[:4]]
    nodes = [leaf[0] + leaf[1], leaf[2] + leaf[3]]
    assert root(nodes) != root(LEAVES[:4])
    with pytest.raises(BadBlob):
        check(root(LEAVES[:4]), 2, {0: nodes[0], 1: nodes[1]}, b"")


@pytest.mark.parametrize("n", [-1, 0, 1, 2, (1 << 32) + 1, 1 << 64, 1 << 5000])
def test_a_list_of_an_impossible_size_is_refused_at_once(n):
    with pytest.raises(BadBlob, match="not some of the leaves"):
        check(bytes(32), n, {2: b"leaf"}, bytes(64))


def test_a_large_list_takes_no_more_than_its_proof():
    with pytest.raises(BadBlob, match="too short"):
        check(bytes(32), 1 << 32, {12345: b"leaf"}, bytes(31 * 32))
    with pytest.raises(BadBlob, match="does not lead"):
        check(bytes(32), 1 << 32, {12345: b"leaf"}, bytes(32 * 32))


@pytest.mark.parametrize("shown", [{}, {-1: b""}, {8: b""}, {0: b"", 8: b""}])
def test_leaves_that_a_list_does_not_have_are_not_shown(shown):
    with pytest.raises(BadBlob, match="leaves that the list has"):
        check(root(LEAVES), 8, shown, b"")
    with pytest.raises(UsageError, match="one or more of 8"):
        prove(LEAVES, shown)
