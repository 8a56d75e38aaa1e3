"""Secret sharing: n shares of a secret, any t of which give it back, and fewer say nothing (Shamir 1979).

A secret is cut into limbs of 16 bits, little-endian, and each limb is the value at 0 of a polynomial over GF(2^16)
whose other t - 1 coefficients are random; a share is the values at one point, as long as the secret. Sixteen bits are a
whole field here, so every share of 32 random bytes is 32 uniform bytes, with nothing drawn twice and nothing biased.
Several secrets with the same points and threshold are shared at once by joining them.

Nothing here tells a wrong share from a right one: compare what comes out with a commitment.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg.hazmat.agree import Entropy, draw
from koinon_core.secagg.hazmat.field import EXP, LOG, ORDER

__all__ = ["combine", "lagrange", "reconstruct", "split"]

Limbs = NDArray[np.uint16]

_LIMB = "<u2"
_AT_ONCE = 1 << 16  # products that are in flight: half a megabyte of indices stays in L2


def split(secrets: bytes, threshold: int, points: Sequence[int], entropy: Entropy) -> list[bytes]:
    """A share for each of `points` (distinct, 1 to 65535), as long as `secrets`, which has an even number of bytes.

    Draws len(secrets) * (threshold - 1) bytes. Raises UsageError for a threshold below 2 or above the number of points.
    """
    if not 2 <= threshold <= len(points):
        raise UsageError(
            f"a threshold of {threshold} does not fit {len(points)} shares; choose one from 2 to that"
        )
    if not secrets or len(secrets) % 2:
        raise UsageError(f"a secret to share has an even number of bytes, not {len(secrets)}; pad it")
    x = LOG[_distinct(points)]
    tail = draw(entropy, len(secrets) * (threshold - 1))
    coefficients = LOG[np.frombuffer(secrets + tail, _LIMB).reshape(threshold, -1)]
    shares = np.empty((len(points), coefficients.shape[1]), _LIMB)
    rows = max(1, _AT_ONCE // threshold)
    for start in range(0, len(points), rows):
        stop = start + rows
        powers = x[start:stop, None] * np.arange(threshold) % ORDER
        for limb, logs in enumerate(coefficients.T):
            shares[start:stop, limb] = np.bitwise_xor.reduce(EXP.take(powers + logs), axis=1)
    return [share.tobytes() for share in shares]


def reconstruct(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secrets, from the `threshold` shares of the smallest points; `shares` are by point.

    Raises BadBlob if there are fewer, or if they are not of one even length.
    """
    if threshold < 2:
        raise UsageError(
            f"a threshold is at least 2, not {threshold}; use the one that the secret was split with"
        )
    if len(shares) < threshold:
        raise BadBlob(
            f"{len(shares)} shares are too few for a secret that needs {threshold}; wait for more holders"
        )
    points = tuple(sorted(shares)[:threshold])
    return combine(lagrange(points), [shares[point] for point in points])


@lru_cache(
    maxsize=16
)  # a complete graph has one set of points; a ring's many are cheaper to make than to keep
def _weights(points: tuple[int, ...]) -> Limbs:
    elements = _distinct(points)
    logs = LOG[elements]
    top = logs.sum() - logs
    bottom = np.empty_like(top)
    rows = max(1, _AT_ONCE // len(points))
    for start in range(0, len(points), rows):
        # A point and itself are zero apart, whose logarithm is a multiple of ORDER, and so no factor.
        bottom[start : start + rows] = LOG[elements[start : start + rows, None] ^ elements].sum(axis=1)
    weights = np.asarray(EXP[(top - bottom) % ORDER])
    weights.setflags(write=False)
    return weights


def lagrange(points: Sequence[int]) -> Limbs:
    """What each share at `points` counts in the value at 0, in their order: the same for all secrets with these points,
    and kept, for a server asks for the same ones again and again."""
    return _weights(tuple(points))


def combine(weights: Limbs, shares: Sequence[bytes]) -> bytes:
    """The secrets: the sum of `shares`, each by its weight. Raises BadBlob if shares are not of one even length."""
    lengths = sorted({len(share) for share in shares})
    if len(shares) != len(weights) or len(lengths) != 1 or lengths[0] % 2 or not lengths[0]:
        raise BadBlob(
            f"{len(shares)} shares of {lengths} bytes are not {len(weights)} of one even length; "
            "whoever holds the odd ones must send what it was given"
        )
    limbs = np.frombuffer(b"".join(shares), _LIMB).reshape(len(weights), -1)
    products = EXP.take(LOG.take(limbs) + LOG[weights][:, None])
    secrets: Limbs = np.bitwise_xor.reduce(products, axis=0)
    return secrets.astype(_LIMB).tobytes()


def _distinct(points: Sequence[int]) -> NDArray[np.int64]:
    if len(set(points)) != len(points) or not all(1 <= point <= ORDER for point in points):
        raise UsageError(
            f"the points of shares are distinct numbers from 1 to {ORDER}; number the holders from 1"
        )
    return np.asarray(points, np.int64)
