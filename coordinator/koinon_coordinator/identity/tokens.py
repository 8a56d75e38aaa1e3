"""Tokens: a secret that lets devices in, of which only the SHA-256 is kept.

The secret has 256 random bits, so a plain hash of it can be stored: there is nothing to guess.
"""

import secrets

from koinon_coordinator.store.people import TokenRow
from koinon_core.canonical import sha256
from koinon_core.errors import UsageError

__all__ = ["hash_of", "new_token"]

_MOST_USES = 100_000
_LONGEST = 90 * 86_400.0


def new_token(ttl: float, uses: int, label: str, by: str, now: float) -> tuple[TokenRow, str]:
    """(the row, the secret) of a token that lets `uses` devices in during `ttl` seconds. UsageError if that is none,
    or so much that it would be no bound."""
    if not 1 <= uses <= _MOST_USES:
        raise UsageError(f"a token lets 1 to {_MOST_USES} devices in, not {uses}")
    if not 0 < ttl <= _LONGEST:
        raise UsageError(f"a token is good for at most {_LONGEST / 86_400:g} days, not {ttl / 86_400:g}")
    secret = secrets.token_urlsafe(32)
    row = TokenRow(
        id=secrets.token_hex(8), hash=hash_of(secret), uses=uses, expires_at=now + ttl, created_at=now,
        created_by=by, label=label,
    )  # fmt: skip
    return row, secret


def hash_of(secret: str) -> str:
    """What is stored of a secret."""
    return sha256(secret.encode("utf-8", "surrogatepass"))
