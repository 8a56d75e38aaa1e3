"""What a session is bound to is written in one way, and what cannot be is refused in a sentence."""

import hashlib
import json

import pytest

from koinon_core.canonical import canonical
from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg import Config, Lane, form
from koinon_core.secagg.statements import LABELS, config_digest, statement
from sessions import config


def test_a_config_is_written_in_one_way_and_read_back():
    one = config(attempt=2, groups=3, hardened=True)
    assert Config.decode(one.encoded) == one
    assert config(gamma=0, delta=0).digest == config(gamma=0.0, delta=0.0).digest
    assert one.digest == hashlib.sha256(b"koinon.secagg/1 cfg" + one.encoded).digest()
    value = json.loads(one.encoded)
    assert value["lanes"] == [[12, 37], [8, 5], [64, 3]]
    for other in (
        json.dumps(value).encode(),
        canonical({**value, "more": 1}),
        canonical({**value, "gamma": 0}),
    ):
        with pytest.raises(BadBlob):
            Config.decode(other)


CHANGES = {
    "terms": "00" * 32, "attempt": 1, "groups": 2, "least": 4, "gamma": 0.11, "delta": 0.2, "sigma": 41, "eta": 31,
    "hardened": True, "lanes": (Lane(12, 38),),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_what_sessions_are_bound_to(name):
    assert config(**{name: CHANGES[name]}).digest != config().digest


@pytest.mark.parametrize(
    "change",
    [
        {"terms": "5E" * 32}, {"terms": "5e" * 31}, {"terms": 5}, {"attempt": -1}, {"attempt": True}, {"groups": 0},
        {"least": 2}, {"least": 10**400}, {"gamma": 1.0}, {"gamma": -0.1}, {"gamma": float("nan")}, {"delta": "0.1"},
        {"sigma": 0}, {"eta": 129}, {"hardened": 1}, {"lanes": ()}, {"lanes": (Lane(1, 1),) * 8193},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(change):
    with pytest.raises(UsageError):
        config(**change)


@pytest.mark.parametrize(
    ("bits", "count"), [(0, 1), (65, 1), (8, 0), (8, (1 << 40) + 1), (8.0, 1), (8, True)]
)
def test_no_lane_is_without_bits(bits, count):
    with pytest.raises(UsageError):
        Lane(bits, count)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"nope",
        b'{"lanes":[[8]]}',
        b'{"lanes":["ab"]}',
        b"\xff",
        b"[" * 100_000,
        b" " * (1 << 21),
    ],
)
def test_bytes_that_are_no_config_are_refused(data):
    with pytest.raises(BadBlob):
        Config.decode(data)


def test_a_lane_is_the_smallest_that_holds_the_bits():
    got = [(Lane(bits, 1).dtype, Lane(bits, 1).per_tile) for bits in (1, 8, 9, 16, 17, 32, 33, 64)]
    assert got == [
        ("<u1", 1 << 20), ("<u1", 1 << 20), ("<u2", 1 << 19), ("<u2", 1 << 19), ("<u4", 1 << 18), ("<u4", 1 << 18),
        ("<u8", 1 << 17), ("<u8", 1 << 17),
    ]  # fmt: skip


# -- statements ---------------------------------------------------------------------------------------------------


def test_no_label_is_the_beginning_of_another():
    assert len(set(LABELS)) == len(LABELS)
    assert not [(a, b) for a in LABELS for b in LABELS if a != b and b.startswith(a)]


def test_a_statement_is_its_label_and_its_parts_behind_their_lengths():
    said = statement("consent", b"\x01\x02", "é", 258)
    assert said == (
        b"koinon.secagg/1 consent" + b"\2\0\0\0\1\2" + b"\2\0\0\0\xc3\xa9" + b"\x08\0\0\0\2\1\0\0\0\0\0\0"
    )
    assert statement("consent", b"ab", b"c") != statement("consent", b"a", b"bc")
    assert config_digest(b"{}") == hashlib.sha256(b"koinon.secagg/1 cfg{}").digest()


# -- cohorts ------------------------------------------------------------------------------------------------------


def leaves(count: int) -> dict[str, str]:
    return {f"d{i}": hashlib.sha256(b"%d" % i).hexdigest() for i in range(count)}


def formed(count: int, **changes):
    return form(leaves(count), **{"least": 3, "gamma": 0.1, "delta": 0.1, **changes})


def test_small_groups_are_complete_and_each_device_its_own_neighbour():
    (one,) = formed(64)
    assert (one.k, one.t, one.complete) == (64, 43, True)
    assert one.neighbours("d5") == frozenset(one.order)


def test_large_groups_are_rings():
    (one,) = formed(1000)
    assert (one.k, one.t, one.complete) == (114, 78, False)
    assert all(len(one.neighbours(c)) == 114 and c not in one.neighbours(c) for c in one.order)
    assert all(a in one.neighbours(b) for a in ("d1", "d999") for b in one.neighbours(a))


def test_enough_is_the_threshold_of_neighbours():
    (one,) = formed(100)
    around = sorted(one.neighbours("d7"))
    assert one.recoverable("d7", around[: one.t])
    assert not one.recoverable("d7", [*around[: one.t - 1], "d7", "nobody"])
    assert not one.recoverable("d7", set(one.order) - set(around))


def test_the_order_follows_from_all_leaves_and_nothing_else():
    (one,) = formed(20)
    (again,) = form(dict(reversed(leaves(20).items())), least=3, gamma=0.1, delta=0.1)
    assert again.order == one.order
    more = leaves(21)
    (other,) = form(more, least=3, gamma=0.1, delta=0.1)
    assert [c for c in other.order if c in one.order] != list(one.order)


def test_groups_that_are_too_small_or_too_corrupt_are_left_out():
    assert [len(c.order) for c in formed(11, groups=3)] == [4, 4, 3]
    assert [c.group for c in formed(11, groups=3, least=4)] == [0, 1]
    assert formed(0) == formed(2) == ()
    assert formed(4, gamma=0.5) == (), "half of four keep no secret that three may give back"


def test_two_devices_do_not_have_one_advertisement():
    with pytest.raises(UsageError, match="same advertisement"):
        form({"a": "00" * 32, "b": "00" * 32, "c": "01" * 32}, least=3, gamma=0, delta=0)
