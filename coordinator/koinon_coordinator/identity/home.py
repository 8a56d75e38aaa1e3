"""The federation's folder, as `koinon-coordinator init` makes it.

    ca.pem, ca.key    the federation's CA (not where an outside CA issues certificates)
    roster.key        the Ed25519 key (PEM) that signs the roster
    admin/            the first admin's credentials: tls.key, tls.pem, ca.pem
    federation.json   the trust domain and the first admin's name; written last, so that a folder is whole or none

It is its user's own (0700, files 0600): whoever reads ca.key can be anybody in the federation.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from koinon_coordinator.identity import pki
from koinon_core.errors import Conflict, StoreError, UsageError
from koinon_core.identity import check_domain, check_name

__all__ = ["OPERATOR_LIFE", "Home"]

_STATE, _CA, _CA_KEY, _ROSTER = "federation.json", "ca.pem", "ca.key", "roster.key"
_ADMIN = "admin"
OPERATOR_LIFE = 90 * 86_400.0
"""Seconds for which an operator's certificate is good."""


class Home:
    """An initialised folder. `authority` is None where an outside CA issues the certificates; `roster_key` is the
    private Ed25519 key, 32 bytes."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            said = json.loads(self._read(_STATE))
            self.domain, self.admin = check_domain(said["domain"]), check_name(said["admin"])
            outside = bool(said["outside"])
            roster = load_pem_private_key(self._read(_ROSTER), password=None)
            if not isinstance(roster, Ed25519PrivateKey):
                raise TypeError("it is of another kind")
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f"{folder} cannot be read as a federation's folder ({error}); restore it from a backup"
            ) from None
        self.roster_key = roster.private_bytes_raw()
        self.authority = None if outside else pki.Authority(self._read(_CA), self._read(_CA_KEY))

    @classmethod
    def init(
        cls, folder: Path, domain: str, now: float, *, admin: str = _ADMIN, outside: bool = False
    ) -> Home:
        """Make a federation's folder. Without a `domain` one is drawn. Conflict if there is a federation already."""
        if (folder / _STATE).exists():
            raise Conflict(
                f"{folder} is a federation's folder already; its keys are not made twice (name another --dir)"
            )
        domain = check_domain(domain or f"koinon-{secrets.token_hex(4)}")
        check_name(admin)
        private_folder(folder)
        if not outside:
            authority = pki.Authority.make(domain, now)
            write(folder / _CA, authority.pem)
            write(folder / _CA_KEY, authority.key)
        roster = Ed25519PrivateKey.generate()
        write(folder / _ROSTER, roster.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        state = {"admin": admin, "domain": domain, "outside": outside}
        write(folder / _STATE, json.dumps(state, indent=2).encode() + b"\n")
        home = cls(folder)
        if not outside:
            home.issue_admin(folder / _ADMIN, now)
        return home

    def issue_admin(self, folder: Path, now: float) -> None:
        """Write credentials of the first admin into `folder`. UsageError where an outside CA must make them."""
        if self.authority is None:
            raise UsageError(
                f"an outside CA issues this federation's certificates; have it issue one to operator {self.admin!r}"
            )
        key = pki.new_key()
        issued = self.authority.peer(
            self.domain, "operator", self.admin, key.public_key(), now, OPERATOR_LIFE
        )
        private_folder(folder)
        for name, content in (
            ("tls.key", pki.key_pem(key)), ("tls.pem", issued.pem), ("ca.pem", self.authority.pem),
        ):  # fmt: skip
            write(folder / name, content)

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise UsageError(
                f"{self.folder / name} is missing: `koinon-coordinator init --dir {self.folder}` makes a federation "
                "(and --insecure serves this machine alone, in plain text)"
            ) from None
        except OSError as error:
            raise UsageError(f"{self.folder / name} cannot be read: {error.strerror}") from error


def private_folder(folder: Path) -> None:
    """Make a folder that is its user's own. StoreError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made its user's own folder: {error.strerror}") from error


def write(path: Path, content: bytes) -> None:
    """Replace a file as a whole, durably, for its user alone. StoreError if the disk does not let us."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        parent = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise StoreError(
            f"{path} cannot be written: {error.strerror}; see to room and rights there"
        ) from error
