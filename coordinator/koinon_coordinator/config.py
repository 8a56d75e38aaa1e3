"""What the coordinator is started with, checked before anything is opened."""

import ipaddress
import re
import socket
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
    are those of Limits, the last two as text.

    `insecure` serves in plain text, on this machine only. Otherwise `folder` is the federation's (identity.home), and
    `enrol_listen` where devices enrol (HOST:PORT; None: at the port after `listen`'s; "": nowhere); `names` are hosts
    that the coordinator is reached at, `address` and `enrol_address` what devices are told where that differs from
    what this machine sees. `tls_cert`, `tls_key` and `client_ca` are an outside CA's files. `device_life` is how long a
    device's certificate is good, as text ("7d"). `health_listen` is where probes are answered ("": nowhere).
    `visit_period` is how often devices that do not stay attached come by, as text ("5m"),
    and `keepalive` how often silent connections are asked for a sign of life."""

    db: str
    listen: str
    insecure: bool = False
    folder: Path = Path("koinon-federation")
    enrol_listen: str | None = None
    names: tuple[str, ...] = ()
    address: str = ""
    enrol_address: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    device_life: str = "7d"
    health_listen: str = ""
    data: Path | None = None
    quota: str = ""
    plugins: tuple[str, ...] = ()
    uploads: int = 8
    device_rate: str = ""
    device_quota: str = ""
    visit_period: str = "5m"
    keepalive: str = ""

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

    @property
    def enrol_at(self) -> str:
        """Where devices enrol, HOST:PORT; "" for nowhere."""
        if self.enrol_listen is not None:
            return self.enrol_listen
        host, port = _parted("--listen", self.listen)
        return f"{host}:{port + 1 if port else 0}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Under which names and addresses this coordinator is reached, the one to be told to devices first."""
        own = _parted("--listen", self.listen)[0].strip("[]")
        wide = own in ("", "0.0.0.0", "::")  # noqa: S104 - compared, not listened on
        here = socket.gethostname()
        found = (*self.names, *(() if wide else (own,)), *((here,) if here.isascii() else ()))
        return tuple(dict.fromkeys((*found, "localhost", "127.0.0.1")))

    @property
    def device_seconds(self) -> float:
        """Seconds that a device's certificate is good for."""
        seconds = _seconds(self.device_life)
        if not 0 < seconds <= 400 * 86_400:
            raise UsageError(
                f"--device-life {self.device_life!r} is no life of a certificate; write for example 12h or 7d, at most "
                "400d"
            )
        return seconds

    @property
    def visit_seconds(self) -> float:
        """Seconds from one visit of a device that does not stay attached to the next."""
        seconds = _seconds(self.visit_period)
        if not 1 <= seconds <= 86_400:
            raise UsageError(
                f"--visit-period {self.visit_period!r} is no time between visits; write for example 90s or 5m, from 1s "
                "to 1d"
            )
        return seconds

    @property
    def keepalive_seconds(self) -> float:
        """Seconds after which a connection that says nothing is asked whether it lives."""
        if not self.keepalive:
            return 0.0  # as usual: service/listening.py
        seconds = _seconds(self.keepalive)
        if not 10 <= seconds <= 3600:
            raise UsageError(
                f"--keepalive {self.keepalive!r} is no such time; write for example 30s or 4m, from 10s to 1h"
            )
        return seconds

    @property
    def outside(self) -> tuple[Path, Path, Path] | None:
        """An outside CA's files: the server's certificate, its key, and the CA of everybody's."""
        files = (self.tls_cert, self.tls_key, self.client_ca)
        if files == (None, None, None):
            return None
        cert, key, ca = files
        if cert is None or key is None or ca is None:
            raise UsageError("--tls-cert, --tls-key and --client-ca go together; name all three")
        return cert, key, ca

    def __post_init__(self) -> None:
        _ = self.quota_bytes, self.limits, self.device_seconds, self.visit_seconds, self.outside
        _ = self.keepalive_seconds
        host, _ = _parted("--listen", self.listen)
        for option, listen in (
            ("--enrol-listen", self.enrol_listen),
            ("--health-listen", self.health_listen),
        ):
            if listen:
                _parted(option, listen)
        for option, address in (("--address", self.address), ("--enrol-address", self.enrol_address)):
            if address:
                _parted(option, address)
        if self.insecure and not _loopback(host.strip("[]")):
            raise UsageError(
                f"--listen {self.listen!r} is not a loopback address, and --insecure serves this machine only; use "
                "127.0.0.1, or make a federation (`koinon-coordinator init`) and leave --insecure out"
            )
        if self.insecure and (self.outside or self.enrol_listen):
            raise UsageError(
                "--insecure serves in plain text, without identities; it goes with no option of TLS"
            )


def _parted(option: str, text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{option} {text!r} must be HOST:PORT, for example 127.0.0.1:8440")
    return host, int(port)


def _seconds(text: str) -> float:
    """The seconds that an option's text means ("90s", "5m", "12h", "7d"); 0 for what means none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]] if found else 0.0


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
