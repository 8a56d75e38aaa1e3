"""A device as others see it in a secure round: its line in the roster, its signature, and whom it believes."""

from functools import cached_property
from pathlib import Path
from typing import Protocol

from koinon.identity import keys
from koinon.identity.access import Access
from koinon.identity.folder import SIGNING_KEY, Credentials, private_folder, write
from koinon_core.errors import UsageError
from koinon_core.identity import Entry, Trust
from koinon_core.secagg.hazmat.sign import sign

__all__ = ["DeviceIdentity", "identity_of"]


class _Holder(Protocol):
    """Where a key and its entry are."""

    @property
    def signing_key(self) -> bytes: ...
    @property
    def entry(self) -> bytes: ...


class DeviceIdentity:
    """The device `id`: koinon_core.secagg's `Identity`, with the `trust` that goes with it.

    Whom `trust` meets for the first time is in the folder once `remember` was called, and then another key under that
    name is refused, whoever signed it.
    """

    def __init__(self, id: str, trust: Trust, holder: _Holder, credentials: Credentials | None = None):  # noqa: A002 - the roster's word
        self.id, self.trust = id, trust
        self._holder, self._credentials = holder, credentials

    @classmethod
    def of(cls, credentials: Credentials) -> "DeviceIdentity":
        """The device that enrolled."""
        who = credentials.identity
        try:
            roster_key = bytes.fromhex(who.roster_key)
        except ValueError:
            raise UsageError(
                f"the roster key in {credentials.folder} is damaged; enrol again with --again"
            ) from None
        trust = Trust(who.domain, roster_key, pinned=who.pinned, known=who.known)
        return cls(who.id, trust, credentials, credentials)

    @classmethod
    def loose(cls, name: str, folder: Path | None = None) -> "DeviceIdentity":
        """A device that nobody vouches for, in a federation in plain text on one machine: its key is drawn when it is
        first asked for, and stays in `folder`, if there is one."""
        return cls(name, Trust.loose(), _Loose(name, folder))

    @property
    def entry(self) -> bytes:
        """Its line in the roster, encoded: the newest that it was given."""
        return self._holder.entry

    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature over `message`, 64 bytes."""
        return sign(self._key, message)

    @cached_property
    def _key(self) -> bytes:
        """For life, so it is read once; and not before it is needed."""
        return self._holder.signing_key

    def remember(self) -> None:
        """Keep whom `trust` met for the first time. StoreError if the disk does not let us."""
        if self._credentials is not None and self.trust.news:
            self._credentials.change(known=dict(self.trust.news))
        self.trust.news.clear()


class _Loose:
    def __init__(self, name: str, folder: Path | None):
        self._name, self._folder = name, folder

    @cached_property
    def signing_key(self) -> bytes:
        path = self._folder / SIGNING_KEY if self._folder else None
        if path is None:
            return keys.private_signing_key(keys.new_signing_key())
        if not path.exists():
            private_folder(path.parent)
            write(path, keys.new_signing_key())
        return keys.private_signing_key(path.read_bytes())

    @cached_property
    def entry(self) -> bytes:
        return Entry.loose(self._name, self.signing_key).encoded


def identity_of(access: Access, name: str, folder: Path | None = None) -> DeviceIdentity:
    """Who a device is, whichever way it gets at its coordinator; `folder` is where a loose one keeps its key."""
    if access.credentials is None:
        return DeviceIdentity.loose(name, folder)
    return DeviceIdentity.of(access.credentials)
