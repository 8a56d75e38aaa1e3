"""What the coordinator is started with, checked before anything is opened."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from koinon_core.errors import UsageError

__all__ = ["Config", "Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What transfers may take: `uploads` are written at a time, the others wait; one device moves at most `rate` bytes
    a second and `quota` bytes a round, both directions together (0: as many as it likes)."""

    uploads: int = 8
    rate: int = 0
    quota: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """`listen` is HOST:PORT; `data` the folder for blobs, None for the one beside an SQLite file; `quota` the most that
    the folder may hold, as text ("20 GB"; empty: as much as the disk has); `uploads`, `device_rate` and `device_quota`
    are those of Limits, the last two as text."""

    db: str
    listen: str
    data: Path | None = None
    quota: str = ""
    plugins: tuple[str, ...] = ()
    uploads: int = 8
    device_rate: str = ""
    device_quota: str = ""

    @property
    def quota_bytes(self) -> int | None:
        if not self.quota:
            return None
        return _bytes(
            "--quota", self.quota, "leaves no room for anything; leave it out to use all of the disk"
        )

    @property
    def limits(self) -> Limits:
        if self.uploads < 1:
            raise UsageError(f"--uploads {self.uploads} lets nobody upload; it is at least 1")
        moot = "lets no device move anything; leave it out to set no limit"
        return Limits(
            uploads=self.uploads,
            rate=_bytes("--device-rate", self.device_rate, moot) if self.device_rate else 0,
            quota=_bytes("--device-quota", self.device_quota, moot) if self.device_quota else 0,
        )

    def __post_init__(self) -> None:
        _ = self.quota_bytes, self.limits
        host, separator, port = self.listen.rpartition(":")
        if not separator or not port.isdigit() or int(port) > 65535:
            raise UsageError(f"--listen {self.listen!r} must be HOST:PORT, for example 127.0.0.1:8440")
        if not _loopback(host.strip("[]")):
            raise UsageError(
                f"--listen {self.listen!r} is not a loopback address: this version has no device identities yet, "
                "so it serves this machine only; use 127.0.0.1, and a tunnel that authenticates for others"
            )


def _bytes(option: str, text: str, moot: str) -> int:
    """The bytes that an option's `text` means; `moot` is what is wrong with none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{option} {text!r} is no size; write for example 500MB or 20GB")
    if not float(found[1]):
        raise UsageError(f"{option} {text!r} {moot}")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
