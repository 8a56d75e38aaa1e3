"""One way to write a value as bytes, so that a digest of it means the same on every machine."""

import hashlib
import json
from typing import Any

__all__ = ["canonical", "digest_of", "sha256"]


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, shortest floats; NaN and Inf are refused (ValueError)."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256(data: bytes | memoryview) -> str:
    """The SHA-256 of `data`, in hex: the name of a blob."""
    return hashlib.sha256(data).hexdigest()


def digest_of(value: Any) -> str:
    """The SHA-256 of `value`'s canonical JSON, in hex."""
    return sha256(canonical(value))
