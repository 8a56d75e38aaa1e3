"""Certificates: the federation's CA, what it issues, and what a peer's certificate says.

All keys are P-256 (FIPS 186-5). A certificate names its holder by a SPIFFE URI in its SAN alone, and is good for one
purpose: a device's cannot be a server's. Of a CSR (PKCS #10) only the key is taken, never a name or an extension.
Whatever is issued is good from some minutes ago on, for those whose clock is behind.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)  # fmt: skip
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from koinon_core.errors import BadBlob, UsageError
from koinon_core.identity import check_name, parse_spiffe, spiffe

__all__ = [
    "Authority",
    "Issued",
    "check_pair",
    "key_pem",
    "new_key",
    "peer_of",
    "request_key",
    "spki",
    "spki_of",
]

_EARLIER = timedelta(minutes=5)
_CA_LIFE = timedelta(days=3650)
_MOST_CSR = 8 * 1024


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate (PEM) and when it ends (seconds since 1970)."""

    pem: bytes
    expires_at: float


class Authority:
    """A CA: its certificate and its key, both PEM. UsageError if they are none, or do not belong together."""

    def __init__(self, certificate: bytes, key: bytes):
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate)
            loaded = load_pem_private_key(key, password=None)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"the CA's certificate or key cannot be read ({error}); restore ca.pem and ca.key"
            ) from None
        if (
            not isinstance(loaded, ec.EllipticCurvePrivateKey)
            or loaded.public_key() != self._certificate.public_key()
        ):
            raise UsageError("ca.key is not the key of ca.pem; restore both from one backup")
        self._key, self.pem = loaded, certificate

    @classmethod
    def make(cls, domain: str, now: float) -> Authority:
        """A new CA for a trust domain, self-signed, good for ten years."""
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Koinon {domain}"[:64])])
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        made = (
            _builder(name, name, key.public_key(), now, _CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(made.public_bytes(Encoding.PEM), key_pem(key))

    @property
    def der(self) -> bytes:
        return self._certificate.public_bytes(Encoding.DER)

    @property
    def key(self) -> bytes:
        """The private key, PEM."""
        return key_pem(self._key)

    def peer(
        self, domain: str, kind: str, name: str, key: ec.EllipticCurvePublicKey, now: float, life: float
    ) -> Issued:
        """A certificate for a device or an operator, good for `life` seconds."""
        uri = x509.UniformResourceIdentifier(spiffe(domain, kind, name))
        return self._issue(key, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, now, life)

    def server(self, names: Iterable[str], key: ec.EllipticCurvePublicKey, now: float, life: float) -> Issued:
        """A certificate for a coordinator that is reached under these host names and addresses."""
        return self._issue(
            key, [_host(n) for n in dict.fromkeys(names)], ExtendedKeyUsageOID.SERVER_AUTH, now, life
        )

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        now: float,
        life: float,
    ) -> Issued:
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = (
            _builder(x509.Name([]), self._certificate.subject, key, now, timedelta(seconds=life))
            # Critical, because it is the only name that there is (RFC 5280, 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Issued(made.public_bytes(Encoding.PEM), made.not_valid_after_utc.timestamp())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, life: timedelta
) -> x509.CertificateBuilder:
    begins = datetime.fromtimestamp(now, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins - _EARLIER)
        .not_valid_after(begins + life)
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise UsageError(
            f"{name[:80]!r} is no host name; write names that are not ASCII in their xn-- form"
        ) from None


# -- keys -----------------------------------------------------------------------------------------------------


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PKCS #8, PEM, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def check_pair(certificate: bytes, key: bytes) -> None:
    """UsageError unless a private key (of any kind) is a certificate's; both PEM."""
    try:
        theirs = x509.load_pem_x509_certificate(certificate).public_key()
        if load_pem_private_key(key, password=None).public_key() != theirs:
            raise ValueError("the key is another certificate's")
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"the server's certificate and key cannot be used: {error}") from None


def spki(key: ec.EllipticCurvePublicKey) -> bytes:
    """The DER of a public key: what a device's proof is over."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_of(certificate: bytes) -> bytes:
    """The DER of the public key in a certificate (PEM), of any kind."""
    key = x509.load_pem_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def request_key(csr: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key of a CSR (DER) that this key signed; BadBlob otherwise."""
    if len(csr) > _MOST_CSR:
        raise BadBlob(f"a CSR of {len(csr)} bytes is none of ours: they have at most {_MOST_CSR}")
    try:
        request = x509.load_der_x509_csr(csr)
        key, signed = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadBlob(f"the CSR cannot be read ({type(error).__name__}); it is DER, PKCS #10") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadBlob("the CSR's key is not on P-256; make such a one")
    if not signed:
        raise BadBlob(
            "the CSR is not signed by the key that is in it; whoever sent it does not have that key"
        )
    return key


# -- peers ----------------------------------------------------------------------------------------------------


def peer_of(certificate: bytes, domain: str, *, common_names: bool) -> tuple[str, str]:
    """(kind, name) that a certificate (PEM) says, after the connection has verified it. With `common_names` a device
    may be named by its subject's common name alone, as outside CAs do. BadBlob if it names nobody of this domain."""
    try:
        read = x509.load_pem_x509_certificate(certificate)
        uris = _uris(read)
        named = [str(a.value) for a in read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except ValueError:
        raise BadBlob("the certificate of this connection cannot be read; have another one made") from None
    if len(uris) == 1:
        of, kind, name = parse_spiffe(uris[0])
        if of != domain:
            raise BadBlob(f"the certificate is of the trust domain {of!r}, and this federation is {domain!r}")
        return kind, name
    if common_names and not uris and len(named) == 1:
        try:
            return "device", check_name(named[0])
        except UsageError as error:
            raise BadBlob(f"the certificate's common name cannot be a device's: {error}") from None
    raise BadBlob("the certificate names no device and no operator (one SPIFFE URI in its SAN)")


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith("spiffe:")
    ]
