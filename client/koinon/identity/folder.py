"""A folder of credentials, of a device or of an operator.

    tls.key       the private key of the connection (P-256, PEM)
    tls.pem       its certificate, with the chain; renewed in place
    ca.pem        who may vouch for the coordinator
    identity.json who this is, where it enrolled, and for a device: whom it believes, and whom it has met; an operator's
                  certificate says enough without it
    ed25519.key   a device's key for life (PEM)
    entry.json    its line in the roster

The folder is its user's own (0700, files 0600). A file is replaced as a whole, so that a reader sees the old one or the
new one. Of an outside CA's credentials the first three are links to where that CA's tools put them.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from koinon.identity import keys
from koinon.outbox.files import make, sync
from koinon_core.errors import BadBlob, StoreError, UsageError

__all__ = ["Credentials", "Identity", "private_folder", "store_operator", "write"]

TLS_KEY, CERTIFICATE, CA, SIGNING_KEY, ENTRY, IDENTITY = (
    "tls.key", "tls.pem", "ca.pem", "ed25519.key", "entry.json", "identity.json",
)  # fmt: skip
_CLOCK_MAY_DIFFER = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """identity.json. `kind` is "device" or "operator", `address` the coordinator's HOST:PORT ("": not known),
    `roster_key` the key (hex) that signs the roster: the coordinator's or, if `pinned`, the owner's. `known` is whom
    this device has met (koinon_core.identity.Trust). `outside`: the certificate is not the coordinator's to renew."""

    id: str
    kind: str
    domain: str
    address: str = ""
    roster_key: str = ""
    pinned: bool = False
    outside: bool = False
    known: Mapping[str, str] = field(default_factory=dict)

    @property
    def encoded(self) -> bytes:
        return json.dumps(asdict(self), indent=2, sort_keys=True).encode() + b"\n"


class Credentials:
    """What is in `folder`. UsageError if there are no credentials or they are not whole.

    The certificate may be replaced while this is in use: whoever connects asks for it anew.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._lock = threading.Lock()
        self.reload()

    @property
    def id(self) -> str:
        """The device's or the operator's name."""
        return self.identity.id

    @property
    def address(self) -> str:
        """The coordinator that it enrolled at, HOST:PORT; "" if that is not known."""
        return self.identity.address

    def reload(self) -> None:
        """Read it all again: an outside CA's tools, or another enrolment, may have replaced it."""
        self.ca, self.chain, self.tls_key = self._read(CA), self._read(CERTIFICATE), self._read(TLS_KEY)
        self.certificate = keys.certificate(self.chain)
        self.identity = self._read_identity()
        if self.certificate.spki != keys.spki_of(self.tls_key):
            raise UsageError(
                f"the key and the certificate in {self.folder} do not belong together; enrol again with --again"
            )

    def check(self, now: float) -> None:
        """UsageError if the certificate is not valid at `now` (seconds since 1970)."""
        if now >= self.certificate.end:
            again = (
                "its CA must issue a new one"
                if self.identity.outside
                else "ask an operator for a token, and run `koinon enrol --again`"
                if self.identity.kind == "device"
                else "ask an admin for new credentials"
            )
            raise UsageError(
                f"the certificate of {self.id!r} in {self.folder} ended on {_day(self.certificate.end)}, and this "
                f"machine's clock says {_day(now)}; {again}, or set the clock"
            )
        if now < self.certificate.start - _CLOCK_MAY_DIFFER:
            raise UsageError(
                f"the certificate of {self.id!r} in {self.folder} is valid from {_day(self.certificate.start)} on, and "
                f"this machine's clock says {_day(now)}; set the clock"
            )

    # -- of a device ------------------------------------------------------------------------------------------

    @property
    def signing_key(self) -> bytes:
        """The private Ed25519 key, 32 bytes."""
        return keys.private_signing_key(self._read(SIGNING_KEY))

    @property
    def entry(self) -> bytes:
        """The line in the roster, encoded."""
        return self._read(ENTRY)

    def renewed(self, certificate: bytes, ca: bytes, entry: bytes) -> None:
        """Keep what the coordinator gave (PEM, PEM, encoded; empty: nothing new). BadBlob if it is another's."""
        if certificate:
            found = keys.certificate(certificate)
            if found.spki != self.certificate.spki or found.id != self.id:
                raise BadBlob(
                    "the coordinator sent a certificate that is not this one's; the old one is kept"
                )
        with self._lock, _locked(self.folder):
            if self._read(TLS_KEY) != self.tls_key:
                return  # enrolled again meanwhile: that is newer than what this was asked for
            # The CA first: a certificate of a new one must not stand beside the old one alone.
            for name, content in (
                (CA, ca if certificate else b""),
                (CERTIFICATE, certificate),
                (ENTRY, entry),
            ):
                if content and content != self._read(name):
                    write(self.folder / name, content)
            self.reload()

    def change(self, **values: Any) -> None:
        """Write identity.json with these values; of `known`, what is new is added to what is there."""
        with self._lock, _locked(self.folder):
            now = self._read_identity()  # another process may have written it since
            known = {**now.known, **values.pop("known", {})}
            self.identity = replace(now, known=known, **values)
            write(self.folder / IDENTITY, self.identity.encoded)

    def forget(self, other: str) -> bool:
        """Let another device have another key than the one that was met; False if it never was."""
        with self._lock, _locked(self.folder):
            known = dict(self._read_identity().known)
            there = known.pop(other, None) is not None
            self.identity = replace(self._read_identity(), known=known)
            write(self.folder / IDENTITY, self.identity.encoded)
        return there

    # -- reading ----------------------------------------------------------------------------------------------

    def _read_identity(self) -> Identity:
        says = self.certificate
        if says.kind == "operator" and not (self.folder / IDENTITY).exists():
            return Identity(id=says.id, kind=says.kind, domain=says.domain)
        data = self._read(IDENTITY)
        try:
            value = json.loads(data)
            return Identity(**{f.name: value[f.name] for f in fields(Identity) if f.name in value})
        except (ValueError, TypeError):
            raise UsageError(
                f"{self.folder / IDENTITY} cannot be read; restore it, or enrol again with --again"
            ) from None

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"there are no credentials in {self.folder}: {name} is missing; `koinon enrol` makes a device's, "
                "`koinon operator create` an operator's"
            ) from None
        except OSError as error:
            raise UsageError(f"{self.folder / name} cannot be read: {error.strerror}") from error


def _day(moment: float) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def store_operator(folder: Path, key: bytes, certificate: bytes, ca: bytes, address: str) -> None:
    """Write an operator's credentials (all in PEM), and where their coordinator is."""
    private_folder(folder)
    said = keys.certificate(certificate)
    who = Identity(id=said.id, kind="operator", domain=said.domain, address=address)
    for name, content in ((TLS_KEY, key), (CERTIFICATE, certificate), (CA, ca), (IDENTITY, who.encoded)):
        write(folder / name, content)


def private_folder(folder: Path) -> None:
    """Make a folder of its user's own. StoreError if that cannot be."""
    with _disk(folder):
        make(folder)
        folder.chmod(0o700)


def write(path: Path, content: bytes) -> None:
    """Replace a file by `content`, durably, for its user alone. StoreError if the disk does not let us."""
    new = path.with_name(f"{path.name}.new")
    with _disk(path.parent):
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync(path.parent)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with _disk(folder):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"credentials cannot be kept in {folder}: {error.strerror or error}; see that its user may write there and "
            "that there is room"
        ) from error
