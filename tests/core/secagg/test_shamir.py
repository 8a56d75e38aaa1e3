"""Shares: any t give the secret back, fewer say nothing; against arithmetic that shares no code.

The vector that google-parfait/federated-compute publishes is over the prime field of 2^31 + 11: it does not apply here.
"""

import os
import random
from functools import reduce
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg.hazmat.shamir import combine, lagrange, reconstruct, split

EVERY_LIMB = np.arange(65536, dtype="<u2").tobytes()


def slow_mul(a: int, b: int) -> int:
    product = 0
    while b:
        product ^= a * (b & 1)
        a = a << 1 ^ (0x1100B if a & 0x8000 else 0)
        b >>= 1
    return product


def slow_inverse(a: int) -> int:
    # Fermat: a^(2^16 - 2).
    power, result = a, 1
    for _ in range(15):
        power = slow_mul(power, power)
        result = slow_mul(result, power)
    return result


def limbs(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)]


def slow_split(secret: bytes, threshold: int, point: int, tail: bytes) -> bytes:
    rows = [limbs((secret + tail)[i * len(secret) :][: len(secret)]) for i in range(threshold)]
    share = []
    for coefficients in zip(*rows, strict=True):
        value = 0
        for coefficient in reversed(coefficients):
            value = slow_mul(value, point) ^ coefficient
        share.append(value)
    return b"".join(value.to_bytes(2, "little") for value in share)


def slow_weight(points: list[int], j: int) -> int:
    others = [x for x in points if x != points[j]]
    return reduce(slow_mul, (slow_mul(x, slow_inverse(x ^ points[j])) for x in others), 1)


@st.composite
def shared(draw):
    points = draw(st.lists(st.integers(1, 65535), min_size=2, max_size=9, unique=True))
    threshold = draw(st.integers(2, len(points)))
    secret = draw(st.integers(1, 20).flatmap(lambda n: st.binary(min_size=2 * n, max_size=2 * n)))
    return secret, threshold, points


@given(shared(), st.randoms(use_true_random=False))
def test_a_share_is_the_value_of_the_polynomial(drawn, source):
    secret, threshold, points = drawn
    tail = source.randbytes(len(secret) * (threshold - 1))
    shares = split(secret, threshold, points, lambda size: tail[:size])
    assert shares == [slow_split(secret, threshold, point, tail) for point in points]


def test_a_share_is_written_in_little_endian():
    # Secret 0x0201, slope 0x0403: at 1 their sum, at 2 the slope doubled.
    shares = split(b"\x01\x02", 2, [1, 2], lambda size: b"\x03\x04")
    assert [share.hex() for share in shares] == ["0206", "070a"]


@given(shared(), st.randoms(use_true_random=False))
def test_any_threshold_of_the_shares_give_the_secret_back(drawn, source):
    secret, threshold, points = drawn
    shares = dict(zip(points, split(secret, threshold, points, source.randbytes), strict=True))
    chosen = source.sample(points, threshold)
    assert reconstruct({point: shares[point] for point in chosen}, threshold) == secret
    assert reconstruct(shares, threshold) == secret


def test_every_pattern_of_holders_of_a_small_session():
    points = [1, 2, 3, 4, 5]
    secret = os.urandom(64)
    shares = dict(zip(points, split(secret, 4, points, os.urandom), strict=True))
    for size in (4, 5):
        for held in combinations(points, size):
            assert reconstruct({point: shares[point] for point in held}, 4) == secret
    for held in combinations(points, 3):
        assert reconstruct({point: shares[point] for point in held}, 3) != secret


@pytest.mark.parametrize(("n", "threshold"), [(100, 67), (700, 400)])
def test_large_sessions(n, threshold):
    points = random.Random(n).sample(range(1, 65536), n)
    secret = os.urandom(64)
    shares = dict(zip(points, split(secret, threshold, points, os.urandom), strict=True))
    for held in (points[:threshold], points[-threshold:]):
        assert reconstruct({point: shares[point] for point in held}, threshold) == secret


@pytest.mark.parametrize("secret", [0, 1, 0x1234, 0xFFFF])
@pytest.mark.parametrize("point", [1, 2, 65535])
def test_one_share_of_two_is_any_value_equally_often_whatever_the_secret(secret, point):
    # 65536 secrets alike, each with one of all possible slopes: their shares are all possible values, each once.
    (share, _) = split(secret.to_bytes(2, "little") * 65536, 2, [point, 7], lambda size: EVERY_LIMB)
    assert sorted(limbs(share)) == list(range(65536))


def test_two_shares_of_three_leave_every_secret_equally_likely():
    # Whatever the two are, each value of the third belongs to another secret.
    shares = {3: b"\x11\x22" * 65536, 500: b"\x33\x44" * 65536, 9: EVERY_LIMB}
    assert sorted(limbs(reconstruct(shares, 3))) == list(range(65536))


def test_the_randomness_is_asked_for_once_and_all_of_it():
    asked = []

    def entropy(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    split(bytes(64), 5, range(1, 8), entropy)
    assert asked == [4 * 64]
    with pytest.raises(UsageError, match="gave 10 bytes where 64"):
        split(bytes(32), 3, [1, 2, 3], lambda size: bytes(10))


@settings(max_examples=30)
@given(st.lists(st.integers(1, 65535), min_size=2, max_size=6, unique=True))
def test_the_weights_are_those_of_lagrange_in_the_order_of_the_points(points):
    assert lagrange(points).tolist() == [slow_weight(points, j) for j in range(len(points))]


def test_weights_serve_for_all_secrets_with_the_same_points():
    points = [5, 1, 9]
    weights = lagrange(points)
    for secret in (os.urandom(32), os.urandom(64), bytes(2)):
        assert combine(weights, split(secret, 3, points, os.urandom)) == secret
    with pytest.raises(ValueError, match="read-only"):
        weights[0] = 1


def test_a_wrong_share_gives_another_secret_and_no_error():
    secret, points = os.urandom(32), [1, 2, 3]
    shares = dict(zip(points, split(secret, 2, points, os.urandom), strict=True))
    shares[1] = bytes([shares[1][0] ^ 1]) + shares[1][1:]
    assert reconstruct(shares, 2) != secret
    assert reconstruct({2: shares[2], 3: shares[3]}, 2) == secret


@pytest.mark.parametrize(
    ("shares", "match"),
    [
        ({1: b"ab", 2: b"cd"}, "2 shares are too few for a secret that needs 3"),
        ({}, "0 shares are too few"),
        ({1: b"ab", 2: b"cd", 3: b"cdef"}, r"of \[2, 4\] bytes"),
        ({1: b"abc", 2: b"cde", 3: b"fgh"}, r"of \[3\] bytes"),
        ({1: b"", 2: b"", 3: b""}, r"of \[0\] bytes"),
    ],
)
def test_shares_that_are_too_few_or_of_unequal_length_are_refused(shares, match):
    with pytest.raises(BadBlob, match=match):
        reconstruct(shares, 3)


@pytest.mark.parametrize(
    ("secret", "threshold", "points", "match"),
    [
        (b"ab", 1, [1, 2], "threshold of 1 does not fit 2"),
        (b"ab", 3, [1, 2], "threshold of 3 does not fit 2"),
        (b"abc", 2, [1, 2], "even number of bytes, not 3"),
        (b"", 2, [1, 2], "even number of bytes, not 0"),
        (b"ab", 2, [1, 1], "distinct numbers"),
        (b"ab", 2, [0, 1], "distinct numbers"),
        (b"ab", 2, [1, 65536], "distinct numbers"),
        (b"ab", 2, [-1, 1], "distinct numbers"),
    ],
)
def test_what_cannot_be_shared_is_refused(secret, threshold, points, match):
    with pytest.raises(UsageError, match=match):
        split(secret, threshold, points, os.urandom)


def test_what_cannot_be_asked_back_is_refused():
    with pytest.raises(UsageError, match="at least 2, not 1"):
        reconstruct({1: b"ab"}, 1)
    with pytest.raises(UsageError, match="distinct numbers"):
        reconstruct({0: b"ab", 1: b"cd"}, 2)
