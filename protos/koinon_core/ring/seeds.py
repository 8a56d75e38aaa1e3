"""Public and secret randomness of a round, as bytes that both sides can make again.

Everything here is a function of its arguments: HKDF-SHA256 (RFC 5869) gives a key for each purpose, ChaCha20
(RFC 8439) a stream of bytes for each key and number. Which rotation and which coordinates a round uses follows
from its terms, so that nobody chooses them; the dither follows from run, round and device, so that a crash, a
retry or another attempt encodes the very same bytes.
"""

from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from koinon_core.canonical import canonical
from koinon_core.errors import UsageError

__all__ = ["KEY_BYTES", "Seeds", "derive", "keystream"]

KEY_BYTES = 32
_SALT = b"koinon ring 1"
_LONGEST = 1 << 32


def derive(material: bytes, *purpose: str | int) -> bytes:
    """32 bytes: HKDF-SHA256 of `material` with `purpose` in canonical JSON, which no two purposes share."""
    info = canonical(list(purpose))
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=_SALT, info=info).derive(material)


def keystream(key: bytes, stream: int, count: int) -> NDArray[np.uint8]:
    """`count` bytes of ChaCha20 under a 32-byte key, from block 0. `stream` is the nonce: a number below 2^96, so
    that any tile's bytes are at hand without those before. At most 4 GiB, far from the counter's end."""
    if not 0 <= count <= _LONGEST:
        raise UsageError(f"a keystream of {count} bytes was asked for; ask for at most {_LONGEST} at a time")
    block_and_nonce = bytes(4) + stream.to_bytes(12, "little")
    out = np.zeros(count, np.uint8)
    Cipher(ChaCha20(key, block_and_nonce), mode=None).encryptor().update_into(out.data, out.data)
    return out


@dataclass(frozen=True, slots=True)
class Seeds:
    """The keys of one round. `terms` are 32 bytes that follow from its terms, and `run` is what runs differ by."""

    terms: bytes
    run: str
    round: int

    def __post_init__(self) -> None:
        if len(self.terms) != KEY_BYTES:
            raise UsageError(f"the digest of a round's terms has {KEY_BYTES} bytes, not {len(self.terms)}")

    def shared(self, label: str, group: str) -> bytes:
        """The key of what all devices of the round do alike: `label` is signs, subset or check."""
        return derive(self.terms, "shared", self.round, label, group)

    def dither(self, device: str, group: str) -> bytes:
        """The public key of one device's dither: the coordinator makes the same, and subtracts it."""
        return derive(canonical([self.run, self.round, device]), "dither", group)

    def rounding(self, secret: bytes, group: str) -> bytes:
        """The secret key of one device's stochastic rounding, from 32 or more random bytes of its own."""
        if len(secret) < KEY_BYTES:
            raise UsageError(
                f"the secret of private rounding has {len(secret)} bytes; draw {KEY_BYTES} from os.urandom"
            )
        return derive(secret, "rounding", self.run, self.round, group)
