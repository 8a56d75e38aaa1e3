"""What must be in order before anything else can be: the clock, the credentials, edge.toml, and who looks after all."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import koinon_core
from koinon.identity.folder import TLS_KEY, Credentials
from koinon_core.errors import KoinonError
from koinon_edge.doctor.finding import Finding
from koinon_edge.doctor.patient import Patient
from koinon_edge.notify import Notifier
from koinon_edge.probe import Files

__all__ = ["clock", "credentials", "settings", "systemd"]

_DAY = 86400.0
_SAID = "what is to be done is in that sentence"
_UNITS = ("etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")


def clock(files: Files, now: float) -> Finding:
    """Whether the clock can be right: it is later than when this was installed, and something keeps it."""
    said = _day(now)
    if now < _installed():
        return Finding(
            "clock", "bad", f"it is {said} by this machine's clock, which is before this program was installed",
            "set it (`timedatectl set-ntp true`): no certificate is valid at a wrong time",
        )  # fmt: skip
    timesync = files.root / "run/systemd/timesync"
    if (timesync / "synchronized").exists():
        return Finding("clock", "ok", f"{said}, and kept by systemd-timesyncd")
    if timesync.exists():
        advice = "see that a time server can be reached (`timedatectl timesync-status`)"
        return Finding(
            "clock", "warn", f"{said}, and not synchronised since this machine was started", advice
        )
    return Finding(
        "clock", "unknown", f"{said}; systemd-timesyncd does not run, so that nothing says who keeps it"
    )


def _installed() -> float:
    """When this program's files were written: no later moment is before it."""
    return Path(koinon_core.__file__).stat().st_mtime


def credentials(folder: Path | None, now: float) -> tuple[Credentials | None, Finding]:
    """Whether the device's credentials are whole, valid, and renewed in time."""
    if folder is None:
        return None, Finding(
            "credentials", "bad", "this device has none, or edge.toml names another",
            "ask an operator for a token and run `koinon-edge enrol`",
        )  # fmt: skip
    try:
        found = Credentials(folder)
    except KoinonError as error:
        return None, Finding("credentials", "bad", str(error), _SAID)
    try:
        found.check(now)
    except KoinonError as error:
        return found, Finding("credentials", "bad", str(error), _SAID)
    return found, _standing(found, now)


def _standing(found: Credentials, now: float) -> Finding:
    said, left = found.certificate, (found.certificate.end - now) / _DAY
    until = f"valid until {_day(said.end)}, {left:.1f} days from now"
    late = said.due + (said.end - said.due) / 4
    key = (found.folder / TLS_KEY).stat()
    if key.st_mode & 0o077:
        advice = f"chmod 600 {found.folder / TLS_KEY}"
        return Finding(
            "credentials", "warn", f"other users of this machine may read {TLS_KEY}; {until}", advice
        )
    if found.identity.outside:
        return Finding("credentials", "ok", f"{until}; an outside CA renews them")
    if now > late:
        return Finding(
            "credentials", "warn", f"{until}; they should have been renewed on {_day(said.due)}",
            "the daemon renews them while it is connected: see what is said of the network, and that it runs",
        )  # fmt: skip
    return Finding("credentials", "ok", f"{until}; to be renewed from {_day(said.due)} on")


def settings(read: Callable[[], object] | None) -> Finding:
    """Whether edge.toml can be read and makes sense."""
    if read is None:
        return Finding(
            "edge.toml", "unknown", "there is none to look at", "write one: `koinon-edge run --help`"
        )
    try:
        read()
    except KoinonError as error:
        return Finding("edge.toml", "bad", str(error), "correct that line")
    except OSError as error:
        return Finding(
            "edge.toml", "bad", f"it cannot be read: {error.strerror}", "see to its place and its rights"
        )
    return Finding("edge.toml", "ok", "it makes sense")


def systemd(files: Files, patient: Patient) -> Finding:
    """Whether somebody starts the daemon again, and notices when it hangs."""
    notifier = Notifier.from_environment(patient.environment)
    if notifier.heard:
        guarded = notifier.watchdog_every is not None
        said = "systemd is told how the daemon is" + (", and its watchdog waits for word" if guarded else "")
        advice = "" if guarded else "set WatchdogSec= in its unit: a daemon that hangs is started again then"
        return Finding("systemd", "ok" if guarded else "warn", said, advice)
    for place in _UNITS:
        if (files.root / place / "koinon-edge.service").exists():
            return Finding("systemd", "ok", f"/{place}/koinon-edge.service looks after the daemon")
    return Finding(
        "systemd", "unknown", "this was not started by systemd, and it has no unit of ours",
        "install deploy/systemd/koinon-edge.service, so that the daemon comes back by itself",
    )  # fmt: skip


def _day(moment: float) -> str:
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return "a date that there is not"
