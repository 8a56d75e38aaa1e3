"""The graph of a session: published figures, the rules in slow arithmetic, and who is whose neighbour."""

from fractions import Fraction
from math import ceil, comb, floor

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import example, given, settings
from hypothesis import strategies as st

from koinon_core.errors import UsageError
from koinon_core.secagg.hazmat.derive import expand
from koinon_core.secagg.hazmat.graph import Parameters, find, neighbours, parameters, permutation

SIZES = (16, 32, 64, 100, 128, 256, 512, 1000, 2000, 4096, 10000)
# gamma, delta, then k/t for each size; sigma = 40, eta = 30, shares of n rounded down.
SEMI_HONEST = """
.05 .05   2/2   4/2   8/4  12/6  14/7  24/13  30/16  34/18  36/19  36/20  38/21
.05 .20   4/2   8/2  16/4  22/6  26/7  38/13  50/19  56/22  62/24  64/25  66/26
.10 .10   4/2   8/4  14/7 22/11 26/13  40/21  46/25  52/28  56/30  58/31  60/32
.10 .30   6/2  14/4  26/7 36/11 42/13  68/25  88/33 102/39 112/43 118/45 126/48
.20 .10   6/4  10/7 20/13 32/21 36/24  54/34  66/41  76/47  80/49  86/52  90/55
.20 .20   8/4  14/7 26/13 42/21 50/26  74/39  98/51 112/59 122/64 130/68 136/71
.33 .33  12/6 22/11 44/22 68/34 86/43 152/78 230/118 310/159 382/196 432/221 480/246
"""
SEMI_MALICIOUS = """
.05 .05   2/2   4/3  10/7 16/11 20/14  38/26  52/36  62/43  64/44  70/48  74/51
.05 .20   8/5  14/8 28/16 46/26 58/33  94/54 140/83 182/109 210/126 230/138 248/149
.10 .10   4/3  10/7 20/14 32/22 38/26  70/48  94/64 114/78 126/86 138/94 144/98
.20 .10   6/5 14/11 26/20 42/32 50/38  92/68 130/95 162/118 184/134 202/147 216/157
"""


def rows(server: str, table: str):
    for line in table.split("\n"):
        if line:
            gamma, delta, *cells = line.split()
            for n, cell in zip(SIZES, cells, strict=True):
                yield server, n, Fraction("0" + gamma), Fraction("0" + delta), cell


def find_floor(n: int, gamma: str | Fraction, delta: str | Fraction, **kwargs) -> str:
    found = find(n, floor(n * Fraction(gamma)), floor(n * Fraction(delta)), **kwargs)
    return f"{found.k}/{found.t}"


@pytest.mark.parametrize(
    ("server", "n", "gamma", "delta", "wanted"),
    [*rows("semi-honest", SEMI_HONEST), *rows("semi-malicious", SEMI_MALICIOUS)],
)
def test_the_tables_of_the_design(server, n, gamma, delta, wanted):
    assert find_floor(n, gamma, delta, server=server) == wanted


@pytest.mark.parametrize(
    ("server", "gamma", "delta", "figures"),
    [
        ("semi-honest", "0.45", "0.45", {100: "92/46", 1000: "822/417", 10**4: "3494/1771"}),
        ("semi-honest", "0.33", "0.33", {10: "8/4", 100: "68/34", 1000: "286/150", 10**4: "422/221"}),
        ("semi-honest", "0.05", "0.33", {10: "4/2", 100: "28/6", 1000: "72/24", 10**5: "96/32"}),
        ("semi-honest", "0.33", "0.05", {10: "4/4", 100: "34/29", 10**4: "92/70", 10**6: "110/83"}),
        ("semi-malicious", "0.3", "0.3", {100: "92/62", 1000: "872/584", 10**4: "4822/3230"}),
        ("semi-malicious", "0.05", "0.33", {10: "8/5", 1000: "398/223", 10**6: "970/545"}),
        ("semi-malicious", "0.33", "0.05", {10: "4/4", 100: "42/37", 1000: "132/109", 10**4: "178/146"}),
    ],
)
def test_the_figures_of_federated_computes_own_tests(server, gamma, delta, figures):
    # graph_parameter_finder_test.cc; there eta is 20.
    assert {n: find_floor(n, gamma, delta, eta=20, server=server) for n in figures} == figures


def below(n: int, marked: int, k: int, value: int) -> Fraction:
    """P(fewer than `value` of k draws are marked)."""
    return Fraction(sum(comb(marked, i) * comb(n - marked, k - i) for i in range(value)), comb(n, k))


def holds(n: int, k: int, corrupt: int, dropped: int, sigma: int, eta: int) -> int | None:
    """The threshold of the smallest ring, by the definition: no recurrence, nothing carried along."""
    pieces = Fraction(n * (n - k - 1) * comb(corrupt + dropped, k), 2 * comb(n, k))
    if pieces >= Fraction(1, 2 << sigma):
        return None
    t1 = next(t for t in range(-1, k + 1) if 1 - below(n, corrupt, k, t + 1) < Fraction(1, n * 2 << sigma))
    t2 = next(t for t in range(k, -1, -1) if below(n, n - dropped, k, t) < Fraction(1, n << eta))
    t = next(t for t in range(k + 2) if 2 * t > k + t1)
    return t if t <= t2 else None


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 90), st.floats(0, 0.4), st.floats(0, 0.25), st.integers(5, 60), st.integers(5, 40))
@example(50, 0.3, 0.0, 20, 1)  # here and below the ring would come apart at a smaller k that passes all else
@example(200, 0.1, 0.0, 40, 30)
@example(200, 0.0, 0.1, 40, 5)
def test_the_ring_is_the_smallest_one_that_the_rules_allow(n, gamma, delta, sigma, eta):
    corrupt, dropped = floor(gamma * n), floor(delta * n)
    allowed = ((k, holds(n, k, corrupt, dropped, sigma, eta)) for k in range(2, n - 1, 2))
    wanted = next((Parameters(k, t) for k, t in allowed if t is not None), None)
    try:
        found = find(n, corrupt, dropped, sigma=sigma, eta=eta)
    except UsageError:
        found = None
    assert found == wanted


def test_no_server_collects_both_secrets_of_a_device():
    # With k/t = 46/26, enough to satisfy the mean, six corrupt neighbours give both; 94/64 takes 34 of them.
    n, corrupt = 512, 51
    for k, t, wanted in ((46, 26, False), (94, 64, True)):
        both = 1 - below(n, corrupt, k, 2 * t - k)
        assert (both * n < Fraction(1, 1 << 41)) == wanted


@pytest.mark.parametrize(
    ("n", "wanted"), [(100, "32/22"), (500, "94/64"), (1000, "114/78"), (10**4, "144/98")]
)
def test_the_ring_of_a_run(n, wanted):
    found = parameters(n, 0.1, 0.1)
    assert f"{found.k}/{found.t}" == wanted


def test_shares_of_devices_are_decimals_and_rounded_up():
    assert ceil(0.07 * 100) == 8  # which is what a float makes of it
    assert find(100, 7, 10) != find(100, 8, 10)
    assert parameters(100, 0.07, 0.1) == find(100, 7, 10)
    assert parameters(100, 0.0701, 0.1) == find(100, 8, 10)
    assert parameters(101, 0.1, 0.1) == find(101, 11, 11) != find(101, 10, 10)


def test_sigma_and_eta_are_those_asked_for():
    assert parameters(1000, 0.1, 0.1, sigma=60) == find(1000, 100, 100, sigma=60) != find(1000, 100, 100)
    assert parameters(1000, 0.1, 0.1, eta=20) == find(1000, 100, 100, eta=20) != find(1000, 100, 100)


def test_small_graphs_are_complete_and_a_hardened_one_may_be_larger():
    assert [parameters(n, 0.1, 0.0) for n in (3, 10, 64)] == [
        Parameters(3, 3), Parameters(10, 7), Parameters(64, 43)
    ]  # fmt: skip
    assert [n - parameters(n, 0.1, 0.0).t for n in range(3, 11)] == [0, 1, 1, 1, 2, 2, 2, 3]
    assert parameters(65, 0.1, 0.1).k < 65
    assert parameters(65, 0.1, 0.1, hardened=True) == Parameters(65, 44)
    assert parameters(512, 0.33, 0.33, hardened=True) == Parameters(512, 342)


@pytest.mark.parametrize("n", range(4, 65))
def test_a_complete_graph_keeps_a_secret_from_as_many_as_it_says(n):
    # As many corrupt ones as still leave 2t > n + corrupt pass, one more does not.
    most = 2 * (2 * n // 3 + 1) - n - 1
    assert parameters(n, (most + 0.9) / n, 0.0).k == n
    with pytest.raises(UsageError, match="lower gamma"):
        parameters(n, (most + 1.1) / n, 0.0)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((2, 0.1, 0.1), "from 3 to 65535"),
        ((0, 0.1, 0.1), "from 3 to 65535"),
        ((65536, 0.1, 0.1), "from 3 to 65535"),
        ((10, 0.6, 0.0), "lower gamma"),
        ((10, 0.1, 0.4), "lower delta"),
        ((100, 0.4, 0.3), "at most 0.9"),
        ((10**4, 0.0, 0.46), "at most 0.9"),
        ((100, -0.1, 0.1), "below 1"),
        ((100, 0.1, 1.0), "below 1"),
        ((100, float("nan"), 0.1), "below 1"),
        ((100, 0.1, float("inf")), "below 1"),
        ((100, 0.1, 0.1, 0), "from 1 to 128 bits"),
        ((100, 0.1, 0.1, 40, 129), "from 1 to 128 bits"),
        ((513, 0.1, 0.1, 40, 30, True), "from 3 to 512"),
    ],
)
def test_a_graph_that_cannot_be_is_refused(args, match):
    with pytest.raises(UsageError, match=match):
        parameters(*args)


def test_a_ring_that_no_k_makes_safe_is_refused():
    with pytest.raises(UsageError, match="no ring of 100 devices withstands 50 corrupt and 40 lost"):
        find(100, 50, 40)


def test_neighbours_stand_on_either_side():
    assert neighbours(0, 10, 4) == (1, 2, 8, 9)
    assert neighbours(9, 10, 2) == (0, 8)
    assert neighbours(5, 10, 6) == (2, 3, 4, 6, 7, 8)
    assert neighbours(1, 3, 3) == (0, 1, 2)


@given(st.integers(3, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, (n - 1) // 2))))
def test_whoever_is_my_neighbour_has_me_for_one(drawn):
    n, half = drawn
    graph = [neighbours(position, n, 2 * half) for position in range(n)]
    for position, mine in enumerate(graph):
        assert len(set(mine)) == 2 * half
        assert list(mine) == sorted(mine)
        assert position not in mine
        assert all(position in graph[other] for other in mine)
        assert {min((other - position) % n, (position - other) % n) for other in mine} == set(
            range(1, half + 1)
        )


@pytest.mark.parametrize(
    ("position", "n", "k"), [(-1, 10, 4), (10, 10, 4), (0, 10, 5), (0, 10, 0), (0, 10, 12), (0, 10, -2)]
)
def test_there_are_no_neighbours_of_nobody_nor_an_odd_number(position, n, k):
    with pytest.raises(UsageError, match="k is even and below n"):
        neighbours(position, n, k)


def slow_permutation(n: int, seed: bytes) -> tuple[list[int], int]:
    """The same from its description, drawing places by hand; and how many numbers were passed over."""
    key = expand(seed, b"koinon.secagg/1 permutation")
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(4 * (n + 50)))
    numbers = (int.from_bytes(stream[i : i + 4], "little") for i in range(0, len(stream), 4))
    order, passed = list(range(n)), 0
    for i in reversed(range(1, n)):
        number = next(numbers)
        while number >= 2**32 - 2**32 % (i + 1):
            number = next(numbers)
            passed += 1
        order[number % (i + 1)], order[i] = order[i], order[number % (i + 1)]
    return order, passed


def test_a_permutation_is_the_same_for_ever():
    assert permutation(8, bytes(range(32))) == [2, 1, 0, 4, 5, 6, 3, 7]
    assert permutation(1, bytes(32)) == [0]


@given(st.integers(1, 300), st.binary(min_size=32, max_size=32))
def test_a_permutation_has_every_device_once_and_is_as_described(n, seed):
    order = permutation(n, seed)
    assert sorted(order) == list(range(n))
    assert order == slow_permutation(n, seed)[0]


def test_a_number_that_would_favour_a_place_is_passed_over():
    seed = bytes([4]) + bytes(31)
    order, passed = slow_permutation(65535, seed)
    assert passed == 1
    assert permutation(65535, seed) == order


def test_all_orders_are_equally_likely():
    counts: dict[tuple[int, ...], int] = {}
    for number in range(4800):
        order = tuple(permutation(4, number.to_bytes(32, "little")))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    # Chi squared with 23 degrees of freedom: above 49.7 once in a thousand.
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 49.7


def test_the_seed_of_a_permutation_has_32_bytes():
    with pytest.raises(UsageError, match="not 31"):
        permutation(5, bytes(31))
