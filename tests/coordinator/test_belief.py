"""Whom the coordinator believes in a secure round: its own devices, under their own keys, and nobody else."""

import pytest

from koinon_coordinator.identity.belief import Belief
from koinon_core.errors import BadBlob
from koinon_core.identity import Entry
from koinon_core.secagg.hazmat import sign

DOMAIN = "x.example"


def key(number: int) -> tuple[bytes, bytes]:
    """(private, public)."""
    return sign.generate(lambda size: bytes([number]) * size)


ROSTER, OWNER, STRANGER = key(1), key(2), key(3)


def entry(name: str, number: int, signer: bytes, version: int = 1, domain: str = DOMAIN) -> Entry:
    return Entry(id=name, key=key(number)[1], domain=domain, since=7, version=version).signed_by(signer)


@pytest.fixture
def belief(store):
    for name, number in (("a", 10), ("b", 11)):
        one = entry(name, number, ROSTER[0])
        store.people.register(name, one.key.hex(), one.encoded, 1.0)
    return Belief(store.people, DOMAIN, ROSTER[1])


def test_an_enrolled_device_is_believed_and_known_again(belief, store):
    one = entry("a", 10, ROSTER[0])
    assert belief(one.encoded) == ("a", one.key)
    reads = store.database.counts["device"]
    assert belief(one.encoded) == ("a", one.key)
    assert store.database.counts["device"] == reads


REFUSED = {
    "whom nobody enrolled": (entry("c", 12, ROSTER[0]), "there is no device 'c'"),
    "another key under that name": (
        entry("a", 11, ROSTER[0]),
        "another key than the device that is enrolled",
    ),
    "another federation's": (entry("a", 10, ROSTER[0], domain="y.example"), "is of domain 'y.example'"),
    "one that signs itself": (Entry.loose("a", key(10)[0]), "is of domain ''"),
    "a stranger's signature": (entry("a", 10, STRANGER[0]), "not signed by the key it should be"),
    "an owner who has pinned nothing": (
        entry("a", 10, OWNER[0], version=2),
        "not signed by the key it should be",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nobody_else_is(belief, case):
    one, said = REFUSED[case]
    with pytest.raises(BadBlob, match=said):
        belief(one.encoded)


def test_bytes_that_are_no_entry_are_not_believed(belief):
    with pytest.raises(BadBlob):
        belief(b"{}")


def test_in_a_pinned_roster_only_what_the_owner_signed_last_is_believed(belief, store):
    """Devices hold entries against the owner's key: with one of another's, all of them would leave the round."""
    before, new = entry("a", 10, ROSTER[0]), entry("a", 10, OWNER[0], version=2)
    newcomer = entry("b", 11, ROSTER[0])
    assert belief(before.encoded) == ("a", before.key)
    store.people.set_roster(OWNER[1].hex(), 2, [("a", new.key.hex(), new.encoded)])
    assert belief(new.encoded) == ("a", new.key)
    for coordinators in (before, newcomer):
        with pytest.raises(BadBlob, match=f"'{coordinators.id}' is not in the roster that the owner signed"):
            belief(coordinators.encoded)
    with pytest.raises(BadBlob, match="not signed by"):
        belief(entry("b", 11, STRANGER[0], version=2).encoded)
    third = entry("a", 10, OWNER[0], version=3)
    assert belief(third.encoded) == ("a", new.key), "signed, and not imported yet"
    store.people.set_roster(OWNER[1].hex(), 3, [("a", third.key.hex(), third.encoded)])
    assert belief(third.encoded) == ("a", new.key)
    with pytest.raises(BadBlob, match="'a' shows an older entry than it has"):
        belief(new.encoded)
