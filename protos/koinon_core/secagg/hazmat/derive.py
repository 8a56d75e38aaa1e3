"""Keys from secrets: HKDF with SHA-256 (RFC 5869), in one step or its second half alone."""

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from koinon_core.errors import UsageError

__all__ = ["expand", "hkdf"]

_HASH = 32
_LONGEST = 255 * _HASH  # one byte counts the blocks


def hkdf(secret: bytes, *, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """`length` bytes of key from a secret that need not be uniform. `salt` says where it holds, `info` what for.

    Raises UsageError for more than 8160 bytes, or none.
    """
    _check(length)
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)


def expand(key: bytes, info: bytes, length: int = 32) -> bytes:
    """`length` bytes of key from a `key` that is uniform already, of 32 bytes or more: HKDF-Expand.

    Raises UsageError for a shorter key, for more than 8160 bytes, or none.
    """
    _check(length)
    if len(key) < _HASH:
        raise UsageError(
            f"a key to expand has at least {_HASH} bytes, not {len(key)}; derive it with `hkdf` first"
        )
    return HKDFExpand(algorithm=SHA256(), length=length, info=info).derive(key)


def _check(length: int) -> None:
    if not 1 <= length <= _LONGEST:
        raise UsageError(f"a derived key has 1 to {_LONGEST} bytes, not {length}; ask for less at a time")
