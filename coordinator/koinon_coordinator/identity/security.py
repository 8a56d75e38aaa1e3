"""What a coordinator serves with: who may connect, what it shows them, and what it gives to those it lets in.

The server's own certificate is made at the start, or is an outside CA's; either is looked after while connections come:
ours is made anew at two thirds of its life, an outside one is read again when its file changes.
"""

import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from koinon_coordinator.config import Config
from koinon_coordinator.identity import pki
from koinon_coordinator.identity.home import OPERATOR_LIFE, Home
from koinon_core.errors import UsageError
from koinon_core.identity import Entry, Token

__all__ = ["DEVICE_LIFE", "Outside", "Pair", "Security"]

DEVICE_LIFE = 7 * 86_400.0
_SERVER_LIFE = 30 * 86_400.0


class Pair(NamedTuple):
    """A private key and its certificate chain, PEM."""

    key: bytes
    chain: bytes


class Outside:
    """An outside CA's files: this server's certificate and key, and the CA that issues everybody's."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path):
        self._certificate, self._key, self._stamp = certificate, key, (0, 0)
        self.ca = _content(client_ca)

    def read(self) -> Pair | None:
        """The pair, if it was not read yet or was replaced since. UsageError while it cannot be read, or does not
        belong together: whoever replaces both files does that one after the other."""
        stamp = (_changed(self._certificate), _changed(self._key))
        if stamp == self._stamp:
            return None
        pair = Pair(_content(self._key), _content(self._certificate))
        pki.check_pair(pair.chain, pair.key)
        self._stamp = stamp
        return pair


class Security:
    """A federation's identities, as a coordinator uses them. `names` are the hosts that it is reached at, the one
    that devices use first, `enrol_listen` where it lets devices in (HOST:PORT; "": nowhere), `address`
    and `enrol_address` how devices reach its listeners, if that is not what it finds itself (`found`). A device's
    certificate is good for `device_life` seconds. `clock` gives seconds since 1970, and is the wall's: certificates are
    compared with other machines' clocks."""

    def __init__(
        self,
        home: Home,
        names: tuple[str, ...],
        *,
        outside: Outside | None = None,
        enrol_listen: str = "",
        address: str = "",
        enrol_address: str = "",
        device_life: float = DEVICE_LIFE,
        clock: Callable[[], float] = time.time,
    ):
        if (home.authority is None) != (outside is not None):
            raise UsageError(
                "--tls-cert, --tls-key and --client-ca go with a folder that was made by `koinon-coordinator init "
                "--outside-ca`, and every such folder needs them"
            )
        self.domain, self.admin, self.clock = home.domain, home.admin, clock
        self.authority, self._outside = home.authority, outside
        self._roster, self._names, self._life = home.roster_key, names, device_life
        self.enrol_listen = enrol_listen if outside is None else ""
        self.address, self.enrol_address = address, enrol_address
        self.enrol_port = 0
        self._pair: Pair | None = None
        self._due, self._guard = 0.0, Lock()

    @classmethod
    def of(cls, config: Config) -> "Security":
        """As a coordinator's configuration says. UsageError, with the way out, if there is no federation there."""
        outside = Outside(*config.outside) if config.outside else None
        return cls(
            Home(config.folder), config.hosts, outside=outside, enrol_listen=config.enrol_at,
            address=config.address, enrol_address=config.enrol_address, device_life=config.device_seconds,
        )  # fmt: skip

    @property
    def enrols(self) -> bool:
        """Whether devices are let in by tokens; an outside CA does that itself."""
        return self.authority is not None

    @property
    def roster_key(self) -> bytes:
        """The public key that signs the roster."""
        return Ed25519PrivateKey.from_private_bytes(self._roster).public_key().public_bytes_raw()

    @property
    def ca(self) -> bytes:
        """The CA that everybody's certificates are of, PEM."""
        if self._outside is not None:
            return self._outside.ca
        assert self.authority is not None
        return self.authority.pem

    def found(self, port: int, enrol_port: int) -> None:
        """The listeners are there: devices reach them under the first name, at these ports (0: there is none)."""
        host = f"[{self._names[0]}]" if ":" in self._names[0] else self._names[0]
        self.address = self.address or f"{host}:{port}"
        self.enrol_port = enrol_port
        if enrol_port:
            self.enrol_address = self.enrol_address or f"{host}:{enrol_port}"

    def pair(self) -> Pair:
        """This server's key and certificate: another one whenever that is due. May be called from any thread.
        UsageError while an outside CA's cannot be used."""
        with self._guard:
            if self._outside is not None:
                self._pair = self._outside.read() or self._pair
            elif self.clock() >= self._due:
                self._pair = self._made()
            assert self._pair is not None
            return self._pair

    def _made(self) -> Pair:
        assert self.authority is not None
        key, now = pki.new_key(), self.clock()
        issued = self.authority.server(self._names, key.public_key(), now, _SERVER_LIFE)
        self._due = now + _SERVER_LIFE * 2 / 3
        return Pair(pki.key_pem(key), issued.pem)

    def peer(self, certificate: bytes) -> tuple[str, str]:
        """(kind, name) of whoever shows this certificate (PEM). BadBlob if it names nobody of this federation."""
        return pki.peer_of(certificate, self.domain, common_names=self._outside is not None)

    def issue(self, kind: str, name: str, key: ec.EllipticCurvePublicKey) -> pki.Issued:
        """A certificate. UsageError where an outside CA issues them."""
        if self.authority is None:
            raise UsageError("an outside CA issues this federation's certificates; ask there")
        life = self._life if kind == "device" else OPERATOR_LIFE
        return self.authority.peer(self.domain, kind, name, key, self.clock(), life)

    def entry(self, name: str, key: bytes) -> Entry:
        """A new device's line in the roster, signed by this coordinator."""
        made = Entry(id=name, key=key, domain=self.domain, since=int(self.clock()))
        return made.signed_by(self._roster)

    def token(self, id_: str, secret: str) -> Token:
        """A token as its bearer needs it. UsageError where nobody enrols by one."""
        if self.authority is None or not self.enrol_address:
            raise UsageError(
                "this coordinator has no enrolment listener, so a token would let nobody in (--enrol-listen)"
            )
        return Token(
            id=id_, secret=secret, ca=self.authority.der, domain=self.domain, address=self.enrol_address,
            roster_key=self.roster_key,
        )  # fmt: skip


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1  # never what was there before: whoever reads it says what is wrong
