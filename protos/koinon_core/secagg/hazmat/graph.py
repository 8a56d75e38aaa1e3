"""Who shares with whom: the graph of a session, and the numbers k and t that make it safe.

Each device has k neighbours, with whom it shares masks and secrets; any t of them can give a secret back. Up to 64
devices, or 512 if `hardened`, the graph is complete: every device is a neighbour of all, itself included, k = n and
t = floor(2n/3) + 1. Above, it is a Harary ring: devices stand in a circle in an order that nobody could choose, and a
device's neighbours are the k/2 on either side (Bell et al. 2020, "Secure single-server aggregation with
(poly)logarithmic overhead", https://eprint.iacr.org/2020/704).

For a ring of n with A corrupt devices and D that drop out, k is the smallest even number for which

    connected   n(n-k-1)/2 * C(A+D, k) / C(n, k) < 2^-(sigma+1)     what is left of the ring has one piece
    private     P(corrupt neighbours > t1)       < 2^-(sigma+1)/n   too few to read a secret
    alive       P(neighbours that stay < t2)     < 2^-eta/n         enough to give it back

with numbers of neighbours hypergeometric and t2 >= t. Against a server that only looks, t = t1 + 1. A semi-malicious
one asks half of the neighbours for one secret of a device and half for the other: against it 2t > k + t1. These are
the rules of `graph_parameter_finder.cc` in google-parfait/federated-compute.

Both sides compute k and t, and a difference of one ends the session; so everything here is done in whole numbers, and
a rate is the decimal that it is written as. A last bit of `lgamma`, which machines do not agree on, decides nothing.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import Literal

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from koinon_core.errors import UsageError
from koinon_core.secagg.hazmat.derive import expand

__all__ = ["Parameters", "Server", "find", "neighbours", "parameters", "permutation"]

Server = Literal["semi-malicious", "semi-honest"]

_FEWEST = 3  # the sum of two says to each what the other's is
_MOST = 65535  # points that shares can be at
_COMPLETE = 64
_HARDENED = 512
_BITS = range(1, 129)  # that sigma and eta may be


@dataclass(frozen=True, slots=True)
class Parameters:
    """k neighbours for each device, of whom any t give a secret back."""

    k: int
    t: int


def parameters(
    n: int, gamma: float, delta: float, sigma: int = 40, eta: int = 30, hardened: bool = False
) -> Parameters:
    """The graph of `n` devices, of which a share `gamma` may be corrupt and `delta` drop out, under a semi-malicious
    server: broken with probability 2^-sigma at most, without a result with 2^-eta. In a ring, shares of n are rounded
    up.

    Raises UsageError for fewer than 3 devices, more than 65535 (512 if hardened), and rates that no graph withstands.
    """
    most = _HARDENED if hardened else _MOST
    if not _FEWEST <= n <= most:
        raise UsageError(f"a session of {n} devices cannot be; it needs from {_FEWEST} to {most}")
    if not (0 <= gamma < 1 and 0 <= delta < 1 and sigma in _BITS and eta in _BITS):
        raise UsageError(
            f"gamma {gamma} and delta {delta} must be shares below 1, sigma {sigma} and eta {eta} from 1 to 128 bits; "
            "change them in the run's terms"
        )
    # The decimal, not the binary fraction nearest to it: 0.29 of 100 devices are 29, on every machine.
    corrupt, dropped = n * Fraction(str(gamma)), n * Fraction(str(delta))
    if n <= _COMPLETE or hardened:
        return _complete(n, corrupt, dropped)
    if 10 * (corrupt + 2 * dropped) > 9 * n:
        raise UsageError(
            f"no ring withstands {gamma} corrupt and {delta} lost devices; gamma + 2 delta is at most 0.9: lower them"
        )
    return find(n, ceil(corrupt), ceil(dropped), sigma=sigma, eta=eta)


def _complete(n: int, corrupt: Fraction, dropped: Fraction) -> Parameters:
    """All with all. Here `corrupt` and `dropped` are at most so many of n, with certainty, and need no rounding up."""
    t = 2 * n // 3 + 1
    if 2 * t <= n + corrupt:
        raise UsageError(
            f"{n} devices with {float(corrupt):g} corrupt ones keep no secret that {t} can give back; lower gamma"
        )
    if n - t < int(dropped):
        raise UsageError(
            f"{n} devices of which {float(dropped):g} drop out leave fewer than the {t} that a sum takes; lower delta"
        )
    return Parameters(n, t)


@lru_cache(maxsize=256)
def find(
    n: int, corrupt: int, dropped: int, *, sigma: int = 40, eta: int = 30, server: Server = "semi-malicious"
) -> Parameters:
    """The smallest ring of `n` with `corrupt` devices and `dropped` ones. Raises UsageError if there is none."""
    honest = _Quantile(n, n - corrupt, sigma + 1)
    staying = _Quantile(n, n - dropped, eta)
    every, bad = 1, 1  # ordered draws of k devices out of all, and out of those corrupt or dropped
    for k in range(1, n - 1):
        honest.draw()
        staying.draw()
        every *= n - k + 1
        bad *= max(0, corrupt + dropped - k + 1)
        if k % 2 or n * (n - k - 1) * bad << sigma >= every:
            continue
        worst = k - honest.value
        t = worst + 1 if server == "semi-honest" else (worst + k) // 2 + 1
        if staying.value >= t:
            return Parameters(k, max(t, 2))
    raise UsageError(
        f"no ring of {n} devices withstands {corrupt} corrupt and {dropped} lost ones; "
        "lower gamma or delta, or ask for the hardened graph"
    )


class _Quantile:
    """Devices are drawn one by one out of `n`, `marked` of which count. After each draw, `value` is the smallest number
    for which P(counted <= value) >= 2^-bits / n, so that fewer than `value` are counted with less than that.

    One more draw moves it by 0 or 1, so a search over k carries it along: three whole numbers, exact, in units of one
    ordered draw: all there are, those with `value` counted, and those with at most that.
    """

    def __init__(self, n: int, marked: int, bits: int):
        self.n, self.marked, self.bits = n, marked, bits
        self.value = self.drawn = 0
        self._all = self._at = self._upto = 1

    def draw(self) -> None:
        n, marked, value, drawn = self.n, self.marked, self.value, self.drawn
        upto = self._upto * (n - drawn) - self._at * (marked - value)
        self._all *= n - drawn
        if (upto * n) << self.bits >= self._all:
            self._at = self._at * (drawn + 1) * (n - marked - drawn + value) // (drawn + 1 - value)
        else:
            self.value += 1
            self._at = self._at * (drawn + 1) * (marked - value) // (value + 1)
            upto += self._at
        self._upto = upto
        self.drawn += 1


def neighbours(position: int, n: int, k: int) -> tuple[int, ...]:
    """The positions, ascending, of the neighbours of `position` among `n`: k/2 on either side, without itself; if
    k == n, all positions, with itself. Raises UsageError if there is no such graph or position."""
    if not 0 <= position < n or not (k == n or (k % 2 == 0 and 2 <= k < n)):
        raise UsageError(
            f"position {position} of {n} has no {k} neighbours; k is even and below n, or n itself"
        )
    if k == n:
        return tuple(range(n))
    half = k // 2
    return tuple(sorted((position + step) % n for step in range(-half, half + 1) if step))


def permutation(n: int, seed: bytes) -> list[int]:
    """The numbers below `n` in an order drawn uniformly from `seed` (32 bytes): what stands at each position.

    Fisher-Yates from the last place down: place i swaps with place u mod (i + 1). Every u is the next four bytes,
    little-endian, of ChaCha20 (RFC 8439, zero nonce, from block 0) under HKDF-Expand of the seed; a u of the last,
    incomplete stretch of i + 1 numbers below 2^32 is passed over, so that no place is likelier than another.
    """
    if len(seed) != 32:
        raise UsageError(
            f"the seed of a permutation has 32 bytes, not {len(seed)}; hash what it is made from"
        )
    key = expand(seed, b"koinon.secagg/1 permutation")
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        fair = (1 << 32) // (i + 1) * (i + 1)
        while (drawn := int.from_bytes(stream.update(bytes(4)), "little")) >= fair:
            pass
        j = drawn % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order
