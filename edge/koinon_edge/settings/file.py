"""Reading edge.toml: every key by name, and one sentence with its line for the first thing that is wrong."""

import difflib
import re
import tomllib
import zoneinfo
from pathlib import Path
from typing import Literal, cast

from koinon_core.errors import UsageError
from koinon_edge.settings.kinds import (
    GateSettings,
    NetworkSettings,
    Settings,
    SpoolSettings,
)
from koinon_edge.settings.lines import lines
from koinon_edge.settings.table import Table
from koinon_edge.settings.tasks import tasks
from koinon_edge.settings.windows import Window

__all__ = ["load"]

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):\d{1,5}")
_PROXY = re.compile(r"http://[^\s/]+:\d{1,5}/?")
_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)


def load(path: Path) -> Settings:
    """What the file at `path` says. UsageError, with the line, for what is wrong in it."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}); write it, or name another file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8; save it as such") from error
    text = text.replace("\r\n", "\n")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _PLACE.fullmatch(str(error))
        what, line = (found[1], found[2]) if found else (str(error), None)
        line = line or str(text.rstrip().count("\n") + 1)
        raise UsageError(
            f"{path} line {line}: this is not TOML ({what[:1].lower()}{what[1:]}); mend it"
        ) from error
    return _settings(Table(path, (), values, lines(text)))


def _settings(top: Table) -> Settings:
    address = top.text("address")
    if address is not None and not _ADDRESS.fullmatch(address):
        top.must("address", "HOST:PORT of the coordinator")
    settings = Settings(
        path=top.file,
        name=top.text("name"),
        address=address,
        credentials=top.place("credentials"),
        state=top.place("state"),
        tasks=tasks(top.table("tasks")),
        gate=_gate(top.table("gate")),
        network=_network(top.table("network")),
        spool=_spool(top.table("spool")),
    )
    top.done()
    return settings


def _gate(table: Table) -> GateSettings:
    usual = GateSettings()
    gate = GateSettings(
        mains=table.flag("mains", usual.mains),
        battery_min=table.number("battery_min", usual.battery_min, 0, 100),
        heat_start=table.number("heat_start", usual.heat_start, 0, 150),
        heat_pause=table.number("heat_pause", usual.heat_pause, 0, 150),
        heat_resume=table.number("heat_resume", usual.heat_resume, 0, 150),
        cpu_pressure_max=table.number("cpu_pressure_max", usual.cpu_pressure_max, 0, 100),
        gpu_load_max=table.number("gpu_load_max", usual.gpu_load_max, 0, 100),
        memory_min=_or(table.size("memory_min"), usual.memory_min),
        disk_min=_or(table.size("disk_min"), usual.disk_min),
        power_modes=table.texts("power_modes"),
        metered=table.flag("metered", usual.metered),
        roaming=table.flag("roaming", usual.roaming),
        bytes_day=table.size("bytes_day"),
        bytes_month=table.size("bytes_month"),
        windows=tuple(_window(table, text) for text in table.texts("windows")),
        zone=_zone(table),
        patience=table.duration("patience", usual.patience),
        unknown=cast(Literal["allow", "refuse"], table.choice("unknown", ("allow", "refuse"), usual.unknown)),
    )
    table.done()
    _in_order(table, gate)
    return gate


def _in_order(table: Table, gate: GateSettings) -> None:
    """What is too hot to go on must be hotter than what is cool enough to begin, or the device flaps."""
    for key, heat in (("heat_resume", gate.heat_resume), ("heat_start", gate.heat_start)):
        if heat >= gate.heat_pause:
            said = key if key in table.values else "heat_pause"
            table.wrong(said, f"{key} = {heat:g} must be below heat_pause = {gate.heat_pause:g}")


def _window(table: Table, text: str) -> Window:
    try:
        return Window.parse(text)
    except ValueError as error:
        table.wrong("windows", f"{text!r} in {table.name_of('windows')} is no window: {error}")


def _zone(table: Table) -> str:
    zone = table.text("zone", empty=True) or ""
    if not zone:
        return ""
    try:
        zoneinfo.ZoneInfo(zone)
    except (
        OSError,
        ValueError,
        KeyError,
    ):  # ZoneInfoNotFoundError is a KeyError, a folder of zones an OSError
        known = zoneinfo.available_timezones()
        near = difflib.get_close_matches(zone, known, n=1)
        if near:
            more = f"; did you mean {near[0]}?"
        else:
            more = ", as Europe/Berlin" if known else "; this machine knows none: install the package tzdata"
        table.must("zone", f"a time zone by its IANA name{more}")
    return zone


def _network(table: Table) -> NetworkSettings:
    usual = NetworkSettings()
    proxy = table.text("proxy", empty=True) or ""
    if proxy and not _PROXY.fullmatch(proxy):
        table.must("proxy", "http://HOST:PORT")
    attach = table.choice("attach", ("auto", "always", "never"), usual.attach)
    network = NetworkSettings(
        attach=cast(Literal["auto", "always", "never"], attach),
        bandwidth=table.size("bandwidth", least=1_000),
        proxy=proxy,
        metered_interfaces=table.texts("metered_interfaces", usual.metered_interfaces),
        keepalive=table.duration("keepalive", usual.keepalive, least=10),
    )
    table.done()
    return network


def _spool(table: Table) -> SpoolSettings:
    spool = SpoolSettings(quota=_or(table.size("quota", least=1_000_000), SpoolSettings().quota))
    table.done()
    return spool


def _or(size: int | None, usual: int) -> int:
    return usual if size is None else size
