"""Whether a device and its coordinator believe each other: a handshake with the device's own credentials."""

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

from koinon.identity.folder import CA, CERTIFICATE, TLS_KEY
from koinon_edge.doctor.finding import Finding

__all__ = ["shake"]

_TOPIC = "TLS"
# The preface of HTTP/2 with empty settings (RFC 9113, 3.4): whoever lets us in answers with theirs.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_TOO_EARLY, _TOO_LATE = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED
_OTHER_CA = (2, 18, 19, 20, 21)  # nobody that we know has issued it
_OTHER_NAME = (62, 64)  # HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH


def shake(connection: socket.socket, host: str, folder: Path, now: float, longest: float) -> Finding:
    """What comes of a handshake over `connection`, which is used up by it. `now` is for the sentence alone: it is this
    machine's clock that decides."""
    try:
        context = _context(folder)
    except OSError as error:  # an SSLError is one
        return Finding(
            _TOPIC,
            "bad",
            f"the credentials in {folder} cannot be used: {error.strerror or error}",
            "enrol again",
        )
    try:
        connection.settimeout(longest)
        with context.wrap_socket(connection, server_hostname=host) as session:
            if session.selected_alpn_protocol() != "h2":
                return Finding(
                    _TOPIC, "bad", f"{host} does not speak HTTP/2 with us",
                    "something between (a proxy that looks into TLS, a load balancer) must let HTTP/2 through",
                )  # fmt: skip
            session.sendall(_PREFACE)
            answer = session.recv(1)
    except ssl.SSLCertVerificationError as error:
        return _distrusted(error, host, now)
    except TimeoutError:
        advice = "something else may listen there, or something between may hold TLS up"
        return Finding(_TOPIC, "bad", f"{host} does not go on with the handshake", advice)
    except OSError as error:
        return _refused(host, error)
    if not answer:
        return _refused(host, None)
    return Finding(_TOPIC, "ok", "the coordinator and this device's credentials believe each other")


def _context(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=str(folder / CA))
    context.load_cert_chain(str(folder / CERTIFICATE), str(folder / TLS_KEY), password=lambda: "")
    context.set_alpn_protocols(["h2"])
    return context


def _distrusted(error: ssl.SSLCertVerificationError, host: str, now: float) -> Finding:
    code, clock = error.verify_code, datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if code in (_TOO_EARLY, _TOO_LATE):
        when = "yet" if code == _TOO_EARLY else "any more"
        return Finding(
            _TOPIC, "bad", f"the coordinator's certificate is not valid {when} at this machine's clock ({clock})",
            "this machine's clock is off: set it; or, if it is right, the coordinator's certificate must be renewed",
        )  # fmt: skip
    if code in _OTHER_CA:
        return Finding(
            _TOPIC, "bad", f"another CA vouches for {host} than the one that this device enrolled with",
            "this is another federation's coordinator, or somebody between looks into TLS; if the federation has a new "
            "CA, enrol again with a new token",
        )  # fmt: skip
    if code in _OTHER_NAME:
        return Finding(
            _TOPIC, "bad", f"the coordinator's certificate is not for the name {host}",
            "use the address that the coordinator's operator gave out, or have the name added to its certificate",
        )  # fmt: skip
    return Finding(
        _TOPIC, "bad", f"the coordinator's certificate is not believed: {error.verify_message}",
        "show this to the coordinator's operator",
    )  # fmt: skip


def _refused(host: str, error: OSError | None) -> Finding:
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLError) and "WRONG_VERSION_NUMBER" in reason:
        advice = (
            "see that the address and port are the coordinator's, and that it does not serve in plain text"
        )
        return Finding(_TOPIC, "bad", f"what answers at {host} does not speak TLS", advice)
    why = f" ({reason.lower().replace('_', ' ')})" if reason else ""
    return Finding(
        _TOPIC, "bad", f"the coordinator ends the connection when it sees this device's certificate{why}",
        "the certificate may have ended or be another federation's: see the credentials, or enrol again",
    )  # fmt: skip
