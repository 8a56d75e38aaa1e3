"""Whether the coordinator can be reached, by name and through the proxy, and whether the two believe each other."""

import base64
import socket
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from koinon_edge.doctor.finding import Finding
from koinon_edge.doctor.patient import Patient, within
from koinon_edge.doctor.tls import shake

__all__ = ["LONGEST", "address_of", "network", "proxy_of"]

LONGEST = 5.0
"""Seconds for each step."""
_TOPIC = "network"
_LONGEST_ANSWER = 16 * 1024


class _Failed(Exception):
    """It ends here, with what was found."""

    def __init__(self, finding: Finding):
        super().__init__(finding.found)
        self.finding = finding


def address_of(text: str) -> tuple[str, int] | None:
    """(host, port) of HOST:PORT; None where it is none."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    return (host, int(port)) if host and port.isdecimal() and 0 < int(port) < 65536 else None


def proxy_of(patient: Patient, host: str) -> str:
    """The proxy by which gRPC goes to `host`: the one that edge.toml names, or the environment's, as gRPC reads it."""
    if patient.proxy:
        return patient.proxy
    given = patient.environment
    around = given.get("no_grpc_proxy") or given.get("no_proxy") or ""
    if any(host.endswith(end) for end in (part.strip() for part in around.split(",")) if end):
        return ""
    return next(filter(None, (given.get(n) for n in ("grpc_proxy", "https_proxy", "http_proxy"))), "")


def network(patient: Patient, address: str, now: float) -> list[Finding]:
    """Whether `address` (HOST:PORT) answers, and whether it and the credentials belong together."""
    target = address_of(address)
    if target is None:
        if not address:
            return [
                Finding(
                    _TOPIC, "unknown", "nothing says where the coordinator is", "enrol, or give its address"
                )
            ]
        return [Finding(_TOPIC, "bad", f"{address!r} is no HOST:PORT", "correct the address in edge.toml")]
    try:
        return within(4 * LONGEST, lambda: _reached(patient, address, target, now))
    except TimeoutError:  # each step answers a little, and never enough
        return [
            Finding(
                _TOPIC, "bad", f"{address} cannot be reached in {4 * LONGEST:.0f} s", "see to this network"
            )
        ]


def _reached(patient: Patient, address: str, target: tuple[str, int], now: float) -> list[Finding]:
    proxy = proxy_of(patient, target[0])
    try:
        connection = _through(proxy, target) if proxy else _connect(target, "the coordinator")
    except _Failed as failed:
        return [failed.finding]
    way = f"{address} can be reached" + (" through the proxy" if proxy else "")
    with connection:
        reached = Finding(_TOPIC, "ok", way)
        if patient.credentials is None:
            return [reached]
        return [reached, shake(connection, target[0], patient.credentials, now, LONGEST)]


def _connect(target: tuple[str, int], what: str) -> socket.socket:
    host, port = target
    try:  # in a thread: a name server that never answers is waited for by the resolver for as long as it likes
        found = within(LONGEST, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (TimeoutError, socket.gaierror, UnicodeError) as error:
        why = (
            "the name server does not answer" if isinstance(error, TimeoutError) else "no such name is known"
        )
        raise _Failed(
            Finding(
                _TOPIC, "bad", f"{what} {host} is not found by its name: {why}", "see to this machine's DNS"
            )
        ) from None
    said: OSError = OSError("it has no address")
    for family, kind, protocol, _, where in found[:4]:
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(LONGEST / min(len(found), 4))
        try:
            connection.connect(where)
        except OSError as error:
            connection.close()
            said = error
            continue
        connection.settimeout(LONGEST)
        return connection
    raise _Failed(_unreached(what, host, port, said))


def _unreached(what: str, host: str, port: int, error: OSError) -> Finding:
    if isinstance(error, ConnectionRefusedError):
        found, advice = "refuses connections", "see that it runs, and that this is its address and port"
    elif isinstance(error, TimeoutError):
        found, advice = (
            "does not answer",
            "a firewall may be between: one outgoing TCP connection must be let through",
        )
    else:
        found, advice = (
            f"cannot be reached: {error.strerror or error}",
            "see to this machine's network and its routes",
        )
    return Finding(_TOPIC, "bad", f"{what} at {host}:{port} {found}", advice)


def _through(proxy: str, target: tuple[str, int]) -> socket.socket:
    """A connection to `target` by the CONNECT of an HTTP proxy (RFC 9110, 9.3.6)."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port = None, 0
    if not host:
        advice = "write it as http://HOST:PORT in edge.toml or the environment"
        raise _Failed(Finding(_TOPIC, "bad", "the proxy's address is none", advice))
    connection = _connect((host, port), "the proxy")
    try:
        connection.sendall(_connect_by(target, parts.username, parts.password))
        status = _status(connection)
    except OSError:
        connection.close()
        advice = f"see that {host}:{port} is an HTTP proxy"
        raise _Failed(Finding(_TOPIC, "bad", "the proxy answers nothing to CONNECT", advice)) from None
    if status.startswith("2"):
        return connection
    connection.close()
    advice = f"whoever runs it must allow CONNECT to {target[0]}:{target[1]}"
    if status == "407":
        advice = "it wants a name and a password: write the proxy as http://NAME:PASSWORD@HOST:PORT"
    raise _Failed(
        Finding(_TOPIC, "bad", f"the proxy refuses with {status or 'something that is no HTTP'}", advice)
    )


def _connect_by(target: tuple[str, int], name: str | None, password: str | None) -> bytes:
    where = f"[{target[0]}]:{target[1]}" if ":" in target[0] else f"{target[0]}:{target[1]}"
    headers: Mapping[str, str] = {"Host": where}
    if name is not None:
        pair = f"{unquote(name)}:{unquote(password or '')}".encode()
        headers = {**headers, "Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    said = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    return f"CONNECT {where} HTTP/1.1\r\n{said}\r\n".encode()


def _status(connection: socket.socket) -> str:
    """The status of its answer ("" where it is no HTTP), read to the end of the headers and not further: what comes
    after is the coordinator's."""
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte or len(answer) > _LONGEST_ANSWER:
            break
        answer += byte
    words = answer.split(None, 2)
    good = len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit()
    return words[1].decode() if good else ""
