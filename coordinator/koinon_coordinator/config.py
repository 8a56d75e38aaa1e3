"""What the coordinator is started with, checked before anything is opened."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from koinon_core.errors import UsageError

__all__ = ["Config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`listen` is HOST:PORT; `data` the folder for blobs, None for the one beside an SQLite file."""

    db: str
    listen: str
    data: Path | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        host, separator, port = self.listen.rpartition(":")
        if not separator or not port.isdigit() or int(port) > 65535:
            raise UsageError(f"--listen {self.listen!r} must be HOST:PORT, for example 127.0.0.1:8440")
        if not _loopback(host.strip("[]")):
            raise UsageError(
                f"--listen {self.listen!r} is not a loopback address: this version has no device identities yet, "
                "so it serves this machine only; use 127.0.0.1, and a tunnel that authenticates for others"
            )


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
