"""Keys and certificates: P-256 for connections, Ed25519 for what a device says to others. All of it is PyCA's."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from koinon_core.errors import BadBlob, UsageError
from koinon_core.identity import parse_spiffe

__all__ = [
    "Certificate", "certificate", "new_signing_key", "new_tls_key", "pem_of", "private_signing_key", "public_pem",
    "public_signing_key", "read_public", "request", "spki_of",
]  # fmt: skip

_PEM, _DER = serialization.Encoding.PEM, serialization.Encoding.DER
_SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What a certificate says: who it is for, the public key (DER), and from when to when it is valid (seconds since
    1970). Of an outside CA's without a SPIFFE ID, `id` is its common name, and `kind` and `domain` are empty."""

    id: str
    kind: str
    domain: str
    spki: bytes
    start: float
    end: float

    @property
    def due(self) -> float:
        """When it is time for the next one: at two thirds of its life."""
        return self.start + (self.end - self.start) * 2 / 3


def new_tls_key() -> bytes:
    """A fresh P-256 key, as PEM (PKCS #8)."""
    return _pem(ec.generate_private_key(ec.SECP256R1()))


def new_signing_key() -> bytes:
    """A fresh Ed25519 key, as PEM (PKCS #8)."""
    return _pem(ed25519.Ed25519PrivateKey.generate())


def _pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def request(tls_key: bytes, name: str) -> tuple[bytes, bytes]:
    """(the CSR, the public key) of a TLS key in PEM, both as DER. The CSR is signed by the key; its name is for people
    who look at it, the federation goes by the key alone."""
    key = _private(tls_key, "the TLS key")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError("the TLS key is not one on an elliptic curve; enrol again, and it is made anew")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(_DER), key.public_key().public_bytes(_DER, _SPKI)


def spki_of(tls_key: bytes) -> bytes:
    """The public half of a TLS key in PEM, as DER; an outside CA's may be of any kind."""
    return _private(tls_key, "the TLS key").public_key().public_bytes(_DER, _SPKI)


def private_signing_key(pem: bytes) -> bytes:
    """The 32 bytes of a private Ed25519 key in PEM. UsageError if it is none."""
    key = _private(pem, "the Ed25519 key")
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError("the key is not an Ed25519 one; `koinon roster keygen` makes an owner's")
    return key.private_bytes_raw()


def public_signing_key(private: bytes) -> bytes:
    """The 32 public bytes that belong to 32 private ones."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def public_pem(public: bytes) -> bytes:
    """A public Ed25519 key (32 bytes) as PEM."""
    return ed25519.Ed25519PublicKey.from_public_bytes(public).public_bytes(_PEM, _SPKI)


def read_public(file: Path) -> bytes:
    """The 32 bytes of the public Ed25519 key in a PEM file. UsageError if there is none."""
    try:
        key = serialization.load_pem_public_key(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError:
        key = None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise UsageError(f"{file} holds no public Ed25519 key in PEM; `koinon roster keygen` writes one")
    return key.public_bytes_raw()


def pem_of(certificate: bytes) -> bytes:
    """A certificate in DER as PEM. BadBlob if it is none."""
    try:
        return x509.load_der_x509_certificate(certificate).public_bytes(_PEM)
    except ValueError:
        raise BadBlob("the federation's CA certificate cannot be read; have a new token made") from None


def certificate(pem: bytes) -> Certificate:
    """What the first certificate in `pem` says. BadBlob if there is none."""
    try:
        one = x509.load_pem_x509_certificate(pem)
        domain, kind, name = _named(one)
        return Certificate(
            id=name, kind=kind, domain=domain, spki=one.public_key().public_bytes(_DER, _SPKI),
            start=_seconds(one.not_valid_before_utc), end=_seconds(one.not_valid_after_utc),
        )  # fmt: skip
    except ValueError:
        raise BadBlob("a certificate cannot be read; enrol again, or ask who issued it") from None


def _named(one: x509.Certificate) -> tuple[str, str, str]:
    try:
        names = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    for uri in uris:
        if uri.startswith("spiffe://"):
            return parse_spiffe(uri)
    common = one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return "", "", str(common[0].value) if common else ""


def _seconds(moment: datetime.datetime) -> float:
    return moment.timestamp()


def _private(pem: bytes, what: str) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        raise UsageError(f"{what} cannot be read: it is no private key in PEM without a passphrase") from None
