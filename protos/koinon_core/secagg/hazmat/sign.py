"""Signatures: who said it, under a key that was enrolled (Ed25519, RFC 8032).

What is signed must say what it is about: `message` begins with its purpose and names the session, or a signature of
one thing could be shown as one of another.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg.hazmat.agree import Entropy, draw

__all__ = ["KEY_BYTES", "SIGNATURE_BYTES", "generate", "public_of", "sign", "verify"]

KEY_BYTES = 32
SIGNATURE_BYTES = 64


def generate(entropy: Entropy) -> tuple[bytes, bytes]:
    """A new key pair, (private, public), 32 bytes each."""
    private = draw(entropy, KEY_BYTES)
    return private, public_of(private)


def public_of(private: bytes) -> bytes:
    """The public key, 32 bytes, of a private one."""
    return _private(private).public_key().public_bytes_raw()


def sign(private: bytes, message: bytes) -> bytes:
    """The signature, 64 bytes: the same for the same key and message, so that signing again says nothing new."""
    return _private(private).sign(message)


def verify(public: bytes, signature: bytes, message: bytes) -> None:
    """Return if whoever holds the private half of `public` signed `message`; otherwise raise BadBlob."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise BadBlob(
            f"an Ed25519 key has {KEY_BYTES} bytes and a signature {SIGNATURE_BYTES}, "
            f"not {len(public)} and {len(signature)}; whoever sent them must send them whole"
        )
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise BadBlob(
            f"a signature is not that of key {public.hex()[:16]} under this message; "
            "whoever sent it must sign with the key that is enrolled"
        ) from None


def _private(private: bytes) -> Ed25519PrivateKey:
    if len(private) != KEY_BYTES:
        raise UsageError(
            f"a private Ed25519 key has {KEY_BYTES} bytes, not {len(private)}; pass the one that `generate` gave"
        )
    return Ed25519PrivateKey.from_private_bytes(private)
