"""Key agreement: two devices that know each other's public key have a secret that nobody else has (X25519, RFC 7748).

A public key from the wire may be a point of low order, which gives the same secret, zero, with every private key: it is
refused, so that whoever sent it gains nothing.
"""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from koinon_core.errors import BadBlob, UsageError

__all__ = ["KEY_BYTES", "Entropy", "draw", "exchange", "generate", "public_of"]

KEY_BYTES = 32

Entropy = Callable[[int], bytes]
"""Gives that many random bytes: `os.urandom` in the product, something repeatable in test vectors."""


def draw(entropy: Entropy, size: int) -> bytes:
    """`size` bytes of `entropy`; UsageError if it gives any other number, for a short key would be a weak one."""
    drawn = entropy(size)
    if len(drawn) != size:
        raise UsageError(f"the entropy gave {len(drawn)} bytes where {size} were asked for; pass os.urandom")
    return drawn


def generate(entropy: Entropy) -> tuple[bytes, bytes]:
    """A new key pair, (private, public), 32 bytes each. The private one is as drawn: clamping is the exchange's."""
    private = draw(entropy, KEY_BYTES)
    return private, public_of(private)


def public_of(private: bytes) -> bytes:
    """The public key, 32 bytes, of a private one."""
    return _private(private).public_key().public_bytes_raw()


def exchange(private: bytes, public: bytes) -> bytes:
    """The shared secret, 32 bytes: not uniform, so derive keys from it and use it for nothing else.

    Raises BadBlob for a `public` that is not of 32 bytes or of low order, UsageError for a `private` of the wrong
    length.
    """
    mine = _private(private)
    if len(public) != KEY_BYTES:
        raise BadBlob(
            f"a public X25519 key has {KEY_BYTES} bytes, not {len(public)}; its owner must send the whole key"
        )
    try:
        return mine.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        # RFC 7748, section 6.1: the check for the all-zero value, which the library makes.
        raise BadBlob(
            "a public X25519 key is a point of low order, with which no secret can be shared; "
            "its owner must draw a new one"
        ) from None


def _private(private: bytes) -> X25519PrivateKey:
    if len(private) != KEY_BYTES:
        raise UsageError(
            f"a private X25519 key has {KEY_BYTES} bytes, not {len(private)}; pass the one that `generate` gave"
        )
    return X25519PrivateKey.from_private_bytes(private)
