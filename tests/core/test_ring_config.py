"""The ring's config: written in one way, hostile ones refused in a sentence, owners' limits held."""

import contextlib
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import BadBlob, BadUpdate, RemoteProtocolError, UsageError
from koinon_core.ring import Group, Limits, Ring

W = Group(name="w", size=5000, bits=8, grid=10, gain=12, bound=2.0, wraps=1e-5)
LOSS = Group(name="loss", size=3, bits=20, grid=8, bound=10.0, rotated=False)
RING = Ring(groups=(W, LOSS), devices=10, max_weight=10, subset=2, equal={"steps": 7})
LIMITS = Limits(sizes={"w": 5000, "loss": 3}, clip=2.0, value=10.0, weight=10, devices=10)


def test_the_layout_is_groups_then_accounts_each_at_eight_bytes():
    assert [(s.group, s.dtype, s.lanes, s.offset) for s in RING.sections] == [
        (W, "<u1", 2 * 2048, 0),
        (LOSS, "<u4", 3, 4096),
        (None, "<u8", 1 + 1 + 16, 4096 + 16),
    ]
    assert RING.nbytes == 4096 + 16 + 8 * 18


@pytest.mark.parametrize(
    ("bits", "dtype"), [(2, "<u1"), (8, "<u1"), (9, "<u2"), (16, "<u2"), (17, "<u4"), (32, "<u4")]
)
def test_lanes_are_the_smallest_that_hold_the_bits(bits, dtype):
    assert replace(W, bits=bits).dtype == dtype
    assert replace(LOSS, bits=33).dtype == replace(LOSS, bits=64).dtype == "<u8"


def test_a_ring_is_written_in_one_way_and_read_back():
    assert Ring.decode(RING.encoded) == RING
    assert Ring.decode(RING.encoded).digest == RING.digest
    assert replace(RING, groups=(replace(W, bound=2), LOSS)).digest == RING.digest, "2 is 2.0"
    assert replace(RING, subset=4).digest != RING.digest


def group(**changes):
    return lambda: replace(W, **changes)


def plain(**changes):
    return lambda: replace(LOSS, **changes)


def ring(**changes):
    return lambda: replace(RING, **changes)


HUGE = 10**400
REFUSED = [
    (group(name=""), "name must be a text of 1 to 512"),
    (group(name="x" * 513), "name must be a text of 1 to 512"),
    (group(name=7), "name must be a text"),
    (group(size=0), "the size of group 'w' is 0; it must be a whole number from 1"),
    (group(size=2**41), "the size of group 'w' is 2199023255552"),
    (group(size=True), "the size of group 'w' is True"),
    (group(size=5.0), "the size of group 'w' is 5.0"),
    (group(size=HUGE), "the size of group 'w' is enormous"),
    (group(bits=1), "the bits of group 'w' is 1"),
    (group(bits=33), "the bits of group 'w' is 33"),
    (plain(bits=65), "the bits of group 'loss' is 65"),
    (group(grid=-1), "the grid of group 'w' is -1"),
    (group(grid=41), "the grid of group 'w' is 41; it must be a whole number from 0 to 40"),
    (group(gain=7), "the gain of group 'w' is 7"),
    (group(gain=16), "the gain of group 'w' is 16"),
    (plain(gain=9), "the gain of group 'loss' is 9"),
    (group(bound=math.nan), "the bound of group 'w' is nan"),
    (group(bound=math.inf), "the bound of group 'w' is inf"),
    (group(bound=0.0), "the bound of group 'w' is 0.0; it must be above 0"),
    (group(bound=-1.0), "the bound of group 'w' is -1.0"),
    (group(bound=HUGE), "the bound of group 'w' is enormous"),
    (group(bound="2"), "the bound of group 'w' is '2'"),
    (group(bound=2.0**40, grid=10), r"reaches 2\^50.6 steps; lower its grid or its bound"),
    (group(wraps=-1e-9), "the wraps of group 'w' is -1e-09"),
    (group(wraps=0.6), "the wraps of group 'w' is 0.6"),
    (group(wraps=math.nan), "the wraps of group 'w' is nan"),
    (plain(wraps=1e-9), "the wraps of group 'loss' is 1e-09"),
    (group(rotated=1), "1 does not say whether group 'w' is rotated"),
    (group(rule="max"), "asks for 'max', but a ring only adds .* LOCAL, or state it in the ring's `equal`"),
    (group(rule="equal"), "asks for 'equal'"),
    (ring(groups=()), "a ring has 1 to 4096 groups, not 0"),
    (ring(groups=(W, W)), "two groups of a ring have the same name"),
    (ring(devices=0), "the number of devices is 0"),
    (ring(devices=2**25), "the number of devices is 33554432"),
    (ring(max_weight=0), "the largest weight is 0"),
    (ring(max_weight=2**48), r"add up beyond 2\^48; lower max_weight"),
    (ring(subset=3), "one coordinate in 3 cannot be sent; use 1, 2, 4 or 8"),
    (ring(subset=True), "one coordinate in True"),
    (ring(subset=2.0), "one coordinate in 2.0"),
    (ring(rounding="none"), "rounding is 'none'"),
    (ring(version=2), "the version of a ring is 2"),
    (ring(version=True), "the version of a ring is True"),
    (ring(equal={"steps": 1.5}), "the stated value 'steps' is 1.5"),
    (ring(equal={"": 1}), "the name of a stated value"),
    # 10 devices * (2 * 1.5 * 2^10 + 1) steps > 2^14
    (ring(groups=(replace(W, wraps=0.0),)), r"group 'w' may reach 2\^14.9 steps and does not fit in 8 bits"),
    # 10 devices * weight 10 * (10 * 2^8 + 1) > 2^17
    (ring(groups=(replace(LOSS, bits=18),)), r"group 'loss' may reach 2\^18.0 steps and does not fit in 18 bits"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "sentence"), REFUSED)
def test_what_no_ring_may_say_is_refused_with_what_to_do(make, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_proof_of_fit_is_tight():
    exact = replace(W, wraps=0.0, gain=8)
    Ring(groups=(replace(exact, bits=16),), devices=15)  # 15 * 2051 < 2^15
    with pytest.raises(UsageError, match="does not fit"):
        Ring(groups=(replace(exact, bits=16),), devices=16)
    Ring(groups=(replace(LOSS, bits=13),), devices=1)  # 2561 < 2^12; a sum is not weighted
    with pytest.raises(UsageError, match="does not fit"):
        Ring(groups=(replace(LOSS, bits=13),), devices=1, max_weight=2)
    Ring(groups=(replace(LOSS, bits=13, rule="sum"),), devices=1, max_weight=2)


def encoded(change) -> bytes:
    value = json.loads(RING.encoded)
    change(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


HOSTILE = [
    b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff", b"[" * 100_000, b"{}", b'{"groups":7}', b'{"groups":[7]}',
    b"9" * 5000, RING.encoded + b" ", RING.encoded.replace(b'"devices":10', b'"devices":10,"devices":10'),
    RING.encoded.replace(b"2.0", b"2"), RING.encoded.replace(b"2.0", b"NaN"), RING.encoded.replace(b"2.0", b"1e999"),
    encoded(lambda v: v.update(surprise=1)), encoded(lambda v: v.pop("devices")), encoded(lambda v: v.pop("version")),
    encoded(lambda v: v.update(version=2)), encoded(lambda v: v.update(version=True)),
    encoded(lambda v: v.update(equal=[])), encoded(lambda v: v.update(equal=None)),
    encoded(lambda v: v["groups"][0].update(rule=[])), encoded(lambda v: v["groups"][0].update(name="\ud800")),
    encoded(lambda v: v.update(devices=10**4000)), encoded(lambda v: v.update(groups={})),
    encoded(lambda v: v["groups"][0].update(bits=3, wraps=0.0)),
]  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_bytes_that_are_no_ring_are_a_bad_blob(data):
    with pytest.raises(BadBlob):
        Ring.decode(data)


def test_a_config_of_any_length_is_not_even_read():
    with pytest.raises(BadBlob, match="has 1048577 bytes"):
        Ring.decode(b" " * ((1 << 20) + 1))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(json.loads(RING.encoded))), anything)
def test_whatever_stands_in_a_field_it_is_a_ring_or_a_bad_blob(key, value):
    data = encoded(lambda v: v.update({key: value}))
    with contextlib.suppress(BadBlob):
        assert Ring.decode(data).encoded == data


@given(st.sampled_from(sorted(json.loads(RING.encoded)["groups"][0])), anything)
def test_whatever_stands_in_a_group_it_is_a_ring_or_a_bad_blob(key, value):
    data = encoded(lambda v: v["groups"][0].update({key: value}))
    with contextlib.suppress(BadBlob):
        assert Ring.decode(data).encoded == data


# -- a device's own limits ----------------------------------------------------------------------------------


def test_a_ring_at_the_owners_limits_is_accepted():
    LIMITS.check(RING)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (
            replace(LIMITS, clip=1.9),
            "the ring's clip of group 'w' is 2, above this device's own limit of 1.9",
        ),
        (
            replace(LIMITS, value=9.0),
            "the ring's bound of group 'loss' is 10, above this device's own limit of 9",
        ),
        (replace(LIMITS, weight=9), "the ring's weight is 10, above this device's own limit of 9"),
        (replace(LIMITS, devices=9), "the ring's number of devices is 10, above"),
        (replace(LIMITS, sizes={"w": 5000}), "a group 'loss' of 3 values, which this device does not have"),
        (
            replace(LIMITS, sizes={"w": 5001, "loss": 3}),
            "a group 'w' of 5000 values, which this device does not",
        ),
        (replace(LIMITS, clip=math.nan), "above this device's own limit of nan"),
    ],
)
def test_a_ring_beyond_the_owners_limits_is_refused_as_the_coordinators_fault(limits, sentence):
    with pytest.raises(RemoteProtocolError, match=sentence):
        limits.check(RING)


def test_equal_values_are_stated_and_compared_never_sent():
    RING.agree({"steps": 7, "more": 1})
    for values in ({"steps": 8}, {}):
        with pytest.raises(BadUpdate, match=r"'steps' is .* on this device and 7 in the round's ring"):
            RING.agree(values)
    assert replace(RING, equal={}).nbytes == RING.nbytes
