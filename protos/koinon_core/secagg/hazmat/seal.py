"""Sealing: for one reader, who sees any change (AES-256-GCM, NIST SP 800-38D).

The nonce is always zero. That is safe if, and only if, a key seals one message and never another: two under one key
give away the difference of their plaintexts and the key that authenticates. So every key must be of one sender, one
receiver, one session and one purpose, which `hkdf` sees to when salt and info name them (A to B is another key than B
to A), and the sender must write the sealed bytes down before they leave and send those again, never seal anew.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from koinon_core.errors import BadBlob, UsageError

__all__ = ["KEY_BYTES", "TAG_BYTES", "seal", "unseal"]

KEY_BYTES = 32
TAG_BYTES = 16
_NONCE = bytes(12)


def seal(key: bytes, plain: bytes, aad: bytes) -> bytes:
    """`plain`, 16 bytes longer, under a key that is used this once. `aad` is not in it: the reader needs the same."""
    return _cipher(key).encrypt(_NONCE, plain, aad)


def unseal(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """What was sealed, if neither it nor `aad` changed by a bit and the key is the same; otherwise BadBlob."""
    try:
        return _cipher(key).decrypt(_NONCE, sealed, aad)
    except (InvalidTag, ValueError):
        raise BadBlob(
            f"{len(sealed)} sealed bytes do not authenticate; their sender sealed them for another session or reader, "
            "or somebody changed them on the way: do without them"
        ) from None


def _cipher(key: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise UsageError(f"a sealing key has {KEY_BYTES} bytes, not {len(key)}; derive it with `hkdf`")
    return AESGCM(key)
