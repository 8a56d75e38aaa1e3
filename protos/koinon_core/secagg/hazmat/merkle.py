"""One digest of a list, and short proofs of what is in it: the tree of RFC 6962, section 2.1, over SHA-256.

Leaves and nodes are hashed with different first bytes, so that no node can be shown as a leaf. A proof for any number
of leaves is the hashes of the largest subtrees that have none of them, from left to right: 32 bytes each, at most
log2(n) for a leaf, and nothing else, so its length follows from n and the positions.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256

from koinon_core.errors import BadBlob, UsageError

__all__ = ["HASH_BYTES", "check", "prove", "root"]

HASH_BYTES = 32
_MOST = 1 << 32  # leaves: a proof's walk is as deep as the number of its bits


def root(leaves: Sequence[bytes]) -> bytes:
    """The digest of a list, 32 bytes; that of no leaves is the SHA-256 of nothing."""
    if not leaves:
        return sha256().digest()
    # A row at a time. What has no partner moves up as it is, which gives the tree of the RFC.
    row = [_leaf(leaf) for leaf in leaves]
    while len(row) > 1:
        paired = [_node(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)]
        row = paired + row[len(paired) * 2 :]
    return row[0]


def prove(leaves: Sequence[bytes], indices: Iterable[int]) -> bytes:
    """That the leaves at `indices` are where they are. Raises UsageError if there are none, or outside the list."""
    shown = sorted(set(indices))
    if not shown or shown[0] < 0 or shown[-1] >= len(leaves):
        raise UsageError(f"a proof is of one or more of {len(leaves)} leaves; ask for positions from 0")
    proof: list[bytes] = []

    def hidden(start: int, stop: int) -> bytes:
        proof.append(root(leaves[start:stop]))
        return proof[-1]

    _walk(0, len(leaves), shown, lambda i: _leaf(leaves[i]), hidden)
    return b"".join(proof)


def check(root: bytes, n: int, leaves: Mapping[int, bytes], proof: bytes) -> None:
    """Return if `leaves`, by position, are in the list of `n` that has this `root`; otherwise raise BadBlob.

    Nothing is allocated for `n`, however large: the work is that of the leaves shown.
    """
    shown = sorted(leaves)
    if n > _MOST or not shown or shown[0] < 0 or shown[-1] >= n:
        raise BadBlob(
            f"what is shown is not some of the leaves of a list of {n}, which has at most {_MOST}; "
            "its sender must show leaves that the list has"
        )
    rest = memoryview(proof)

    def hidden(start: int, stop: int) -> bytes:
        nonlocal rest
        if len(rest) < HASH_BYTES:
            raise BadBlob(
                f"a proof of {len(proof)} bytes is too short for its leaves; its sender must send all of it"
            )
        node, rest = bytes(rest[:HASH_BYTES]), rest[HASH_BYTES:]
        return node

    found = _walk(0, n, shown, lambda i: _leaf(leaves[i]), hidden)
    if found != root or rest:
        raise BadBlob(
            f"a proof of {len(shown)} of {n} leaves does not lead to the root that was announced; "
            "its sender shows different lists to different readers: do not go on with it"
        )


def _walk(
    start: int,
    stop: int,
    shown: Sequence[int],
    leaf: Callable[[int], bytes],
    hidden: Callable[[int, int], bytes],
) -> bytes:
    """The hash of leaves `start` to `stop`. Whoever proves and whoever checks walk alike, so they agree on what is in a
    proof and in which order."""
    if not shown:
        return hidden(start, stop)
    if stop - start == 1:
        return leaf(start)
    middle = start + (1 << (stop - start - 1).bit_length() - 1)  # the largest power of two that is smaller
    cut = bisect_left(shown, middle)
    left = _walk(start, middle, shown[:cut], leaf, hidden)
    return _node(left, _walk(middle, stop, shown[cut:], leaf, hidden))


def _leaf(leaf: bytes) -> bytes:
    return sha256(b"\0" + leaf).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()
