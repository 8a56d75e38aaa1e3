"""What the coordinator is started with, checked before anything is opened."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from koinon_core.errors import UsageError

__all__ = ["Config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`listen` is HOST:PORT; `data` the folder for blobs, None for the one beside an SQLite file; `quota` the most that
    the folder may hold, as text ("20 GB"; empty: as much as the disk has)."""

    db: str
    listen: str
    data: Path | None = None
    quota: str = ""
    plugins: tuple[str, ...] = ()

    @property
    def quota_bytes(self) -> int | None:
        return _bytes(self.quota) if self.quota else None

    def __post_init__(self) -> None:
        _ = self.quota_bytes
        host, separator, port = self.listen.rpartition(":")
        if not separator or not port.isdigit() or int(port) > 65535:
            raise UsageError(f"--listen {self.listen!r} must be HOST:PORT, for example 127.0.0.1:8440")
        if not _loopback(host.strip("[]")):
            raise UsageError(
                f"--listen {self.listen!r} is not a loopback address: this version has no device identities yet, "
                "so it serves this machine only; use 127.0.0.1, and a tunnel that authenticates for others"
            )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"--quota {text!r} is no size; write for example 500MB or 20GB")
    if not float(found[1]):
        raise UsageError(f"--quota {text!r} leaves no room for anything; leave it out to use all of the disk")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
