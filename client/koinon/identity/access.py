"""How somebody gets at a coordinator: at which address, and with which credentials, or in plain text.

What is said goes before what stands in the environment, and that before what lies where credentials usually lie. Plain
text is for this machine alone, and only where it was asked for.
"""

import ipaddress
import os
import time
from dataclasses import dataclass
from pathlib import Path

from koinon.identity.folder import IDENTITY, Credentials
from koinon.outbox import _home
from koinon.outbox.files import safe
from koinon_core.errors import NotFound, UsageError

__all__ = ["LOCAL", "Access", "device_access", "device_folder", "operator_access"]

LOCAL = "127.0.0.1:8440"
"""Where a coordinator is, if nobody says otherwise."""
_DEVICE, _OPERATOR, _INSECURE = "KOINON_CREDENTIALS", "KOINON_OPERATOR", "KOINON_INSECURE"


@dataclass(frozen=True, slots=True)
class Access:
    """The coordinator's HOST:PORT, and what to show there; None: plain text."""

    address: str
    credentials: Credentials | None


def device_access(
    address: str | None = None, name: str | None = None, *, credentials: Path | None = None,
    insecure: bool | None = None, state: Path | None = None,
) -> Access:  # fmt: skip
    """How a device gets at its coordinator; `state` is the folder under which devices keep their memory.

    UsageError, saying how to enrol, if it has no credentials and nobody asked for plain text; and if they are another
    device's, or not valid now.
    """
    if _plain(credentials, insecure, _DEVICE):
        return _in_plain_text(address)
    folder = credentials or _named_in(_DEVICE) or _enrolled(name, state)
    if folder is None:
        raise NotFound(
            f"{f'device {name!r}' if name else 'this device'} has no credentials: ask an operator for a token and run "
            f"`koinon enrol{f' --name {name}' if name else ''}`; {_LOOPBACK_ONLY}"
        )
    found = Credentials(folder)
    if found.identity.kind == "operator":
        raise UsageError(f"the credentials in {folder} are an operator's; a device needs its own")
    if name and name != found.id:
        raise UsageError(
            f"the credentials in {folder} are those of {found.id!r}, not of {name!r}: a device has the name that it "
            "enrolled with"
        )
    return _with(found, address)


def operator_access(
    address: str | None = None, *, credentials: Path | None = None, insecure: bool | None = None
) -> Access:
    """How an operator gets at a coordinator. UsageError if there are no credentials and nobody asked for plain text,
    or if they are not valid now."""
    if _plain(credentials, insecure, _OPERATOR):
        return _in_plain_text(address)
    usual = [
        Path(os.environ.get("KOINON_FEDERATION") or "koinon-federation") / "admin",
        _config() / "operator",
    ]
    folder = credentials or _named_in(_OPERATOR) or next((f for f in usual if (f / "tls.pem").exists()), None)
    if folder is None:
        raise UsageError(
            f"there are no operator's credentials in {usual[0]} or {usual[1]}: name their folder with --credentials or "
            f"{_OPERATOR} (`koinon-coordinator init` makes the first); {_LOOPBACK_ONLY}"
        )
    found = Credentials(folder)
    if found.identity.kind == "device":
        raise UsageError(f"the credentials in {folder} are a device's; operators have their own")
    return _with(found, address)


def device_folder(name: str, state: Path | None = None) -> Path:
    """Where a device keeps what is its own; its credentials are in "identity" there."""
    return (state or _home()) / safe(name)


_LOOPBACK_ONLY = (
    "on this machine alone, a coordinator that was started with --insecure can be talked to in plain text "
    f"(--insecure, insecure=True, or {_INSECURE}=1)"
)


def _plain(credentials: Path | None, insecure: bool | None, variable: str) -> bool:
    """Whether plain text was asked for."""
    if insecure and credentials:
        raise UsageError(f"say either where the credentials are ({credentials}) or insecure, not both")
    if insecure is not None or credentials:
        return bool(insecure)
    return not os.environ.get(variable) and os.environ.get(_INSECURE, "").lower() in ("1", "true", "yes")


def _in_plain_text(address: str | None) -> Access:
    address = address or os.environ.get("KOINON_ADDRESS") or LOCAL
    host = address.rpartition(":")[0].strip("[]")
    if not _loopback(host):
        raise UsageError(
            f"{address!r} is not on this machine, and plain text (--insecure, {_INSECURE}) never leaves it; enrol, and "
            "leave that out"
        )
    return Access(address, None)


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _with(credentials: Credentials, address: str | None) -> Access:
    credentials.check(time.time())
    return Access(address or os.environ.get("KOINON_ADDRESS") or credentials.address or LOCAL, credentials)


def _named_in(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _enrolled(name: str | None, state: Path | None) -> Path | None:
    """Where this device's credentials usually are; without a name, those of the only one that enrolled here."""
    if name:
        folder = device_folder(name, state) / "identity"
        return folder if (folder / IDENTITY).exists() else None
    found = sorted(path.parent for path in (state or _home()).glob(f"*/identity/{IDENTITY}"))
    if len(found) > 1:
        names = ", ".join(Credentials(folder).id for folder in found[:5])
        raise UsageError(
            f"several devices enrolled on this machine ({names}); say which one this is: name=, --name"
        )
    return found[0] if found else None


def _config() -> Path:
    given = os.environ.get("XDG_CONFIG_HOME")
    return (
        Path(given or os.path.expanduser("~/.config")) / "koinon"
    )  # where there is no home, it is not there
