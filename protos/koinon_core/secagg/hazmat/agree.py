"""Key agreement: two devices that know each other's public key have a secret that nobody else has (X25519, RFC 7748).

A public key from the wire may be a point of low order, which gives the same secret, zero, with every private key: it is
refused, so that whoever sent it gains nothing.
"""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from koinon_core.errors import BadBlob, UsageError

__all__ = [
    "KEY_BYTES", "Entropy", "Private", "check_public", "draw", "exchange", "generate", "load", "public_of",
]  # fmt: skip

KEY_BYTES = 32
Private = X25519PrivateKey
"""A private key that is loaded, which takes as long as an exchange does."""

_P = (1 << 255) - 19
# The points whose order divides 8, by their u: 0 (order 2), 1 and p - 1 (orders 4 and 1 or 4, by the curve or its
# twist), and two of order 8 (Bernstein, "Curve25519: new Diffie-Hellman speed records", 2006; cr.yp.to/ecdh.html).
_LOW_ORDER = frozenset(
    {
        0,
        1,
        _P - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)

_LOW = "a public X25519 key is a point of low order, with which no secret can be shared; its owner must draw a new one"

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


def load(private: bytes) -> Private:
    """A private key that is used more than once."""
    return _private(private)


def check_public(public: bytes) -> None:
    """Raise BadBlob for a key that `exchange` would refuse with any private one. Ten times faster than trying."""
    if len(public) != KEY_BYTES:
        raise BadBlob(
            f"a public X25519 key has {KEY_BYTES} bytes, not {len(public)}; its owner must send the whole key"
        )
    # RFC 7748, section 5: the highest bit is not read, and what is p or more is reduced.
    if (int.from_bytes(public, "little") & ((1 << 255) - 1)) % _P in _LOW_ORDER:
        raise BadBlob(_LOW)


def exchange(private: bytes | Private, public: bytes) -> bytes:
    """The shared secret, 32 bytes: not uniform, so derive keys from it and use it for nothing else.

    Raises BadBlob for a `public` that is not of 32 bytes or of low order, UsageError for a `private` of the wrong
    length.
    """
    mine = private if isinstance(private, Private) else _private(private)
    check_public(public)
    try:
        return mine.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        # RFC 7748, section 6.1: the check for the all-zero value, which the library makes too.
        raise BadBlob(_LOW) from None


def _private(private: bytes) -> X25519PrivateKey:
    if len(private) != KEY_BYTES:
        raise UsageError(
            f"a private X25519 key has {KEY_BYTES} bytes, not {len(private)}; pass the one that `generate` gave"
        )
    return X25519PrivateKey.from_private_bytes(private)
