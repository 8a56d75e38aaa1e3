"""Who is who: a device's entry in the roster, what another device believes of one, and how somebody is let in.

A device has two keys. Its TLS key (P-256) is certified by the federation's CA and says who is at the other end of a
connection; its Ed25519 key is for life, signs what the device says to others, and stands in the roster. At enrolment
one proof binds the two: the Ed25519 key signs the TLS key and the name.

An `Entry` is a line of the roster; it is signed by the coordinator's roster key or, in a federation that is pinned, by
a key that its owner keeps offline. A `Trust` is what one device believes: it knows the roster key and the keys of all
that it ever met, so that nobody can be given another key behind its back. A `Token` lets devices in; it pins the CA, so
that its bearer is not let into another federation.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from koinon_core.canonical import canonical
from koinon_core.errors import BadBlob, UsageError

__all__ = [
    "KEY", "Entry", "Token", "Trust", "check_domain", "check_name", "parse_spiffe", "proof_message", "prove", "spiffe",
    "verify",
]  # fmt: skip

KEY = 32
"""Bytes of an Ed25519 key, of either half."""
_SIGNATURE = 64
_MOST = 4096  # bytes of an entry, and far more than one needs
_MOST_TOKEN = 16 * 1024
_MOST_NUMBER = (1 << 53) - 1  # what every JSON reader keeps exactly
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_ENTRY = b"koinon.identity/1 entry"
_PROOF = b"koinon.identity/1 proof"
_TOKEN = "koinon-token-1."  # noqa: S105 - how the text of every token begins
_KINDS = ("device", "operator")


# -- names ----------------------------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """`name`, if a device or an operator may have it; UsageError otherwise."""
    if not _NAME.fullmatch(name) or not name.strip("."):
        raise UsageError(
            f"{name[:80]!r} is no name: use 1 to 64 letters, digits, '.', '_' and '-', not dots alone"
        )
    return name


def check_domain(domain: str) -> str:
    """`domain`, if a federation may have it as its trust domain; UsageError otherwise."""
    if not _DOMAIN.fullmatch(domain):
        raise UsageError(
            f"{domain[:80]!r} is no trust domain: use 1 to 128 small letters, digits, '.', '_' and '-', for example "
            "hospitals.example.org"
        )
    return domain


def spiffe(domain: str, kind: str, name: str) -> str:
    """The URI of a device or an operator (SPIFFE ID: spiffe://DOMAIN/KIND/NAME). UsageError for what cannot be one."""
    if kind not in _KINDS:
        raise UsageError(f"an identity is a {' or an '.join(_KINDS)}, not a {kind[:20]!r}")
    return f"spiffe://{check_domain(domain)}/{kind}/{check_name(name)}"


def parse_spiffe(uri: str) -> tuple[str, str, str]:
    """(domain, kind, name) of a SPIFFE ID of ours; BadBlob for every other text."""
    domain, _, path = uri.removeprefix("spiffe://").partition("/")
    kind, _, name = path.partition("/")
    try:
        if spiffe(domain, kind, name) == uri:
            return domain, kind, name
    except UsageError:
        pass
    raise BadBlob(
        f"{uri[:200]!r} is no identity of Koinon's (spiffe://DOMAIN/device/NAME or .../operator/NAME)"
    )


# -- keys -----------------------------------------------------------------------------------------------------


def proof_message(token_id: str, spki: bytes, id: str) -> bytes:  # noqa: A002 - its name on the wire
    """What a device's Ed25519 key signs to say that it and a TLS key are the same device's: the token that lets it in
    ("" where it has a certificate already), the DER of its P-256 public key, and its name."""
    return _PROOF + canonical([token_id, spki.hex(), id])


def prove(private: bytes, token_id: str, spki: bytes, id: str) -> bytes:  # noqa: A002 - as above
    """The proof itself, 64 bytes."""
    return _private(private).sign(proof_message(token_id, spki, id))


def verify(public: bytes, signature: bytes, message: bytes, what: str) -> None:
    """Return if the holder of `public` signed `message`; BadBlob that names `what` otherwise."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise BadBlob(
            f"{what} is not signed by the key it should be; it was forged or damaged on its way"
        ) from None


def _private(private: bytes) -> Ed25519PrivateKey:
    if len(private) != KEY:
        raise UsageError(f"a private Ed25519 key has {KEY} bytes, not {len(private)}; pass the whole key")
    return Ed25519PrivateKey.from_private_bytes(private)


# -- the roster -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A device's line in the roster. `key` is its public Ed25519 key (32 bytes), `since` when it was enrolled (seconds
    since 1970), `version` grows with every signing by an owner, and `signature` (64 bytes) is over `statement`."""

    id: str
    key: bytes
    domain: str
    since: int
    version: int = 1
    signature: bytes = b""

    def __post_init__(self) -> None:
        if len(self.key) != KEY or len(self.signature) not in (0, _SIGNATURE):
            raise BadBlob("an entry's key has 32 bytes and its signature 64 or none; it is not whole")
        if not 1 <= len(self.id) <= 128 or not self.id.isprintable():
            raise BadBlob("an entry names its device, in 1 to 128 printable characters; this one does not")
        if self.domain and not (_DOMAIN.fullmatch(self.domain) and _NAME.fullmatch(self.id)):
            raise BadBlob(f"{self.id[:80]!r} of {self.domain[:80]!r} is no device's identity")
        if not (0 <= self.since <= _MOST_NUMBER and 1 <= self.version <= _MOST_NUMBER):
            raise BadBlob(f"the entry of {self.id!r} has a version or a date that cannot be")

    @classmethod
    def loose(cls, id: str, private: bytes) -> "Entry":  # noqa: A002 - the field's name
        """The entry that a device signs itself, for a federation without identities: plain text, on one machine."""
        key = _private(private).public_key().public_bytes_raw()
        return cls(id=id, key=key, domain="", since=0).signed_by(private)

    @classmethod
    def decode(cls, data: bytes) -> "Entry":
        """An entry as `encoded` wrote it, byte for byte; BadBlob for anything else. Its signature is not checked."""
        value = _fields(
            data,
            _MOST,
            {"id": str, "key": str, "domain": str, "since": int, "version": int, "signature": str},
        )
        entry = cls(**{**value, "key": _bytes(value["key"]), "signature": _bytes(value["signature"])})
        if entry.encoded != data:
            raise BadBlob("an entry is not written as entries are; it was changed on its way")
        return entry

    @property
    def encoded(self) -> bytes:
        """Canonical JSON, with the key and the signature in hex."""
        return canonical({**self._said, "signature": self.signature.hex()})

    @property
    def statement(self) -> bytes:
        """What its signature is over."""
        return _ENTRY + canonical(self._said)

    @property
    def _said(self) -> dict[str, Any]:
        return {
            "id": self.id, "key": self.key.hex(), "domain": self.domain, "since": self.since, "version": self.version,
        }  # fmt: skip

    def signed_by(self, private: bytes) -> "Entry":
        """The same entry, signed with a roster key (32 bytes)."""
        return replace(self, signature=_private(private).sign(self.statement))


class Trust:
    """What one device believes about entries: those of its `domain` that the `roster_key` signed.

    Of everybody met before, the key is known, and another one is refused: a change needs the owner's key (`pinned`) and
    a version above the one that was met; where the coordinator holds the roster key, it needs a person, who makes the
    device forget the old one. `least_version` is a floor under the versions of all entries: an owner who takes a
    device off the roster signs the others anew and raises it.

    `known` maps ids to what `news` said of them, "VERSION:KEY" with the key in hex; whoever has a `Trust` keeps what is
    in its `news` for the next one.
    """

    def __init__(
        self,
        domain: str,
        roster_key: bytes | None,
        *,
        pinned: bool = False,
        known: Mapping[str, str] = {},
        least_version: int = 0,
    ):
        if bool(domain) != (roster_key is not None):
            raise UsageError(
                "a federation with identities has a trust domain and a roster key, one without has neither"
            )
        self.domain, self.pinned, self.least_version = domain, pinned, least_version
        self._roster_key = roster_key
        self._known = dict(known)
        self.news: dict[str, str] = {}
        """What was met for the first time, or with a newer version; the caller remembers it."""

    @classmethod
    def loose(cls) -> "Trust":
        """For a federation without identities: every entry that signs itself. It believes in nobody's name."""
        return cls("", None)

    def __call__(self, entry: bytes) -> tuple[str, bytes]:
        """(id, public Ed25519 key) of an encoded entry; BadBlob if it is not to be believed."""
        one = Entry.decode(entry)
        if one.domain != self.domain:
            raise BadBlob(
                f"the entry of {one.id!r} is of domain {one.domain!r}, not of {self.domain!r}; it is refused"
            )
        verify(self._roster_key or one.key, one.signature, one.statement, f"the entry of {one.id!r}")
        if self._roster_key is not None:
            self._remember(one)
        return one.id, one.key

    def _remember(self, one: Entry) -> None:
        if one.version < self.least_version:
            raise BadBlob(
                f"the entry of {one.id!r} has version {one.version}, and the roster is at {self.least_version} by now; "
                "its device must renew it"
            )
        met = self._known.get(one.id)
        if met is not None:
            version, key = _met(met)
            if one.version < version:
                raise BadBlob(
                    f"the entry of {one.id!r} has version {one.version}, and version {version} was met before; its "
                    "device must renew it"
                )
            if one.key != key and not (self.pinned and one.version > version):
                raise BadBlob(
                    f"the key of {one.id!r} is not the one that was met before; if that device was really set up anew, "
                    "forget the old key on this one"
                )
        now = f"{one.version}:{one.key.hex()}"
        if met != now:
            self._known[one.id] = self.news[one.id] = now


def _met(text: str) -> tuple[int, bytes]:
    version, _, key = text.rpartition(":")
    if not re.fullmatch(r"(\d{1,16})?", version):
        raise BadBlob(
            f"what was remembered of a device's key, {text[:20]!r}..., is damaged; restore the identity's folder"
        )
    return int(version or 0), _bytes(key)


# -- tokens ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What lets a device in, a number of times, for a while. `ca` is the DER of the federation's CA certificate,
    `address` the HOST:PORT that enrols, `roster_key` (32 bytes) the key that signs the roster."""

    id: str
    secret: str = field(repr=False)
    ca: bytes = field(repr=False)
    domain: str
    address: str
    roster_key: bytes

    @property
    def text(self) -> str:
        """The token as a person hands it on: one line."""
        value = {
            "id": self.id, "secret": self.secret, "ca": base64.b64encode(self.ca).decode(), "domain": self.domain,
            "address": self.address, "roster_key": self.roster_key.hex(),
        }  # fmt: skip
        return _TOKEN + base64.urlsafe_b64encode(canonical(value)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Token":
        """A token from its text; BadBlob, which never shows it, if it is none."""
        text = text.strip()
        if not text.startswith(_TOKEN) or len(text) > _MOST_TOKEN:
            raise BadBlob(
                f"this is no token: a token begins with {_TOKEN}; pass what `koinon token create` printed"
            )
        body = text.removeprefix(_TOKEN)
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            names = ("id", "secret", "ca", "domain", "address", "roster_key")
            value = _fields(data, _MOST_TOKEN, dict.fromkeys(names, str))
            token = cls(
                **{
                    **value,
                    "ca": base64.b64decode(value["ca"], validate=True),
                    "roster_key": _bytes(value["roster_key"]),
                }
            )
        except (binascii.Error, ValueError, BadBlob):
            raise BadBlob(
                "this token is not whole; pass all that `koinon token create` printed, in one line"
            ) from None
        if len(token.roster_key) != KEY or not _DOMAIN.fullmatch(token.domain):
            raise BadBlob("this token names no federation; have a new one made")
        return token


# -- reading --------------------------------------------------------------------------------------------------


def _fields(data: bytes, most: int, kinds: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object with exactly these fields of these types; BadBlob otherwise."""
    if len(data) > most:
        raise BadBlob(f"an entry or token of {len(data)} bytes is none of ours: they have at most {most}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise BadBlob("an entry or token is not the JSON it should be; it was damaged on its way") from None
    if not isinstance(value, dict) or {name: type(v) for name, v in value.items()} != dict(kinds):
        raise BadBlob(
            "an entry or token does not have the fields it should have; its sender is another version"
        )
    return value


def _bytes(text: str) -> bytes:
    if not re.fullmatch(r"(?:[0-9a-f]{2})*", text):
        raise BadBlob("an entry or token has a key that is not written in hex; it was damaged on its way")
    return bytes.fromhex(text)
