"""The daemon's process: everything put together. `koinon-edge run` becomes this (`python -m koinon_edge.run`), so that
what reads a command line is not in a daemon's memory for months."""

import asyncio
import ipaddress
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from koinon.profile import profile
from koinon_core.errors import KoinonError
from koinon_edge import probe
from koinon_edge.daemon import Daemon
from koinon_edge.gate import Budget, Gate, Network, Networks
from koinon_edge.life import LifeFile
from koinon_edge.metering import Sampler, choose
from koinon_edge.notify import Notifier
from koinon_edge.place import Place, found
from koinon_edge.probe.nvml import gpus_of
from koinon_edge.program import sweep
from koinon_edge.settings import Settings, load
from koinon_edge.shift import proxied
from koinon_edge.watching import Watching

__all__ = ["assemble", "main"]

_log = logging.getLogger("koinon.edge")
_GRACE = 12.0  # seconds for the owner's program when the daemon ends; all of it has 30


def assemble(settings: Settings, place: Place, root: Path = Path("/"), clock: Any = time.time) -> Daemon:
    """The daemon of a device, on this machine or (`root`) on another one's tree of files."""
    life = LifeFile(place.edge / "life.json", clock)
    budget = Budget(
        place.edge / "budget.json", settings.gate.bytes_day, settings.gate.bytes_month, settings.gate.zone
    )
    networks: Callable[[], Network] = Networks(probe.Files(root), settings.network.metered_interfaces)
    if root == Path("/") and _is_here(place.access.address):
        networks = lambda: Network("lo", False, False, True, "the coordinator is on this machine")  # noqa: E731 - a value
    # Each reads files of its own: one that is held up by a sensor holds up nobody else.
    gate = Gate(settings.gate, probe.Files(root), place.folder, networks, budget)
    own, measured = probe.Files(root), probe.Files(root)
    return Daemon(
        settings, place, life, gate, Watching(Sampler(choose(measured, gpus_of(measured))), budget, clock),
        Notifier.from_environment(), profile(),
        condition=lambda: _condition(own, place, life), visits=lambda: _visits(settings, own, networks), clock=clock,
    )  # fmt: skip


def _is_here(address: str) -> bool:
    """Whether that is an address of this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _condition(files: probe.Files, place: Place, life: LifeFile) -> Mapping[str, Any]:
    """What the device says of itself where it attends: what is not known is left out."""
    heat, level = probe.hottest(probe.zones(files)).value, probe.battery(files).level.value
    space = os.statvfs(place.folder)
    said = {
        "heat": heat, "battery": level, "disk_free_mb": space.f_bavail * space.f_frsize / 1e6, "state": life.now.state,
        "board": probe.model(files)[:64],
    }  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


def _visits(settings: Settings, files: probe.Files, networks: Callable[[], Network]) -> bool:
    """Whether to check in shortly instead of staying attached: on a battery, and where bytes cost money."""
    if settings.network.attach != "auto":
        return settings.network.attach == "never"
    return probe.battery(files).mains is False or bool(networks().metered)


def main(arguments: list[str] | None = None) -> int:
    """`run CONFIG [ROOT]`: until SIGTERM or SIGINT."""
    given = sys.argv[1:] if arguments is None else arguments
    # The journal has times of its own.
    style = "%(message)s" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=style, stream=sys.stderr)
    try:
        settings = load(Path(given[0]))
        os.environ.update(proxied(settings.network))
        place = found(settings)
        with place.occupy():
            sweep(place.runtime)
            daemon = assemble(settings, place, Path(given[1]) if len(given) > 1 else Path("/"))
            asyncio.run(_run(daemon))
    except KoinonError as error:
        print(f"koinon-edge: {error}", file=sys.stderr)
        return error.exit
    return 0


async def _run(daemon: Daemon) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    _log.info("device %s: %s", daemon.place.name, daemon.life.now.state)
    await daemon.run(_GRACE)


if __name__ == "__main__":
    raise SystemExit(main())
