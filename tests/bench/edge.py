"""What the edge daemon takes: of its device's memory, processor and network while it is idle, of an LTE link while it
hands in an update, and of the coordinator that a hundred of it are attached to.

idle_rss_mb, idle_cpu      the daemon with its identity, attached and not asked: resident memory, share of one core
start_s                    from the start of the process until it is ready (sd_notify)
idle_kb_a_day              what it sends in a day, on the wire of its TLS connection: pings every 240 s, and renewals
lte_time_ratio             a 40 MB update over 100 ms and 5 Mbit/s, cut every 5 MB: seconds until it has arrived, to
                           size / bandwidth
lte_counted_ratio          the same until the coordinator has summed it and said so
lte_bytes_ratio            bytes that it sent for it, to its size
lte_short_cuts             the same, cut every 200 KB: whether it arrives (1)
fleet_rss_mb, fleet_cpu    a coordinator with 100 of them attached: resident memory more than without, share of a core
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import koinon
from daemons import QUIET, SCRIPT
from proxy import Fault, Proxy
from report import arguments, coordinator, federation, figure, report

TICK = os.sysconf("SC_CLK_TCK")
DAY = 86_400.0
LTE = {"delay": 0.05, "rate": 625_000.0}


def rss(pid: int) -> float:
    """Resident megabytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1024


def seconds_of(pid: int) -> float:
    """Of the processor, so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICK


@contextlib.contextmanager
def daemon(
    folder: Path, name: str, address: str, *, credentials: bool, size: int = 5
) -> Iterator[tuple[int, float]]:
    """(process id, seconds until it was ready) of a daemon with a task for the run toy."""
    place = folder / f"edge-{name}"
    place.mkdir()
    (place / "train.py").write_text(
        SCRIPT.format(before="pass", step="rng.normal(size=" + str(size) + ")", size=size).replace(
            "model =", "rng = np.random.default_rng(1)\nmodel ="
        )
    )
    state = os.environ["KOINON_STATE"]
    (place / "edge.toml").write_text(
        f'name = "{name}"\naddress = "{address}"\nstate = "{state}"\n'
        f'[tasks.toy]\ncommand = ["{sys.executable}", "train.py"]\n{QUIET}'
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        where = place / "notify"
        told.bind(str(where))
        told.settimeout(60)
        environment = {**os.environ, "NOTIFY_SOCKET": str(where)}
        if credentials:
            environment.pop("KOINON_INSECURE", None)
        with (place / "log").open("wb") as log:
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "koinon_edge.run", place / "edge.toml"],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            while b"READY=1" not in told.recv(4096):
                continue
            ready = time.perf_counter() - began
            while b"ELIGIBLE" not in told.recv(4096):
                continue
            yield process.pid, ready
        finally:
            process.terminate()
            process.wait(40)


def idle(seconds: float) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            federation(folder, 1, "--keepalive", "4m") as (address, _),
            Proxy(int(address.rpartition(":")[2])) as proxy,
        ):
            started = []
            for _ in range(3):
                with daemon(folder / _folder(folder), "c0", proxy.address, credentials=True) as (pid, ready):
                    started.append(ready)
            with daemon(folder / _folder(folder), "c0", proxy.address, credentials=True) as (pid, ready):
                time.sleep(30)  # the handshake, the roster's entry, and everything that happens once
                sent, used, began = proxy.carried["up"], seconds_of(pid), time.perf_counter()
                time.sleep(seconds)
                took = time.perf_counter() - began
                sent, used = proxy.carried["up"] - sent, seconds_of(pid) - used
                memory = rss(pid)
    return {
        "start_s": figure(started, "s", 1.0),
        "idle_rss_mb": figure([memory], "MB", 60.0),
        "idle_cpu": figure([100 * used / took], "%", 0.1),
        "idle_kb_a_day": figure([sent / took * DAY / 1e3], "KB", 80.0),
    }


def _folder(folder: Path) -> str:
    made = tempfile.mkdtemp(dir=folder)
    return Path(made).name


def lte(cut: int, megabytes: int) -> tuple[float, float, float]:
    """To what the link could do at best: the seconds until all of an update of so many megabytes has arrived, those
    until it is counted, and the bytes that were sent for it."""
    size = megabytes * 1_000_000 // 8
    os.environ.pop("KOINON_OPERATOR", None)
    with tempfile.TemporaryDirectory() as name, coordinator(Path(name)) as (address, _):
        folder = Path(name)
        with (
            Proxy(int(address.rpartition(":")[2])) as proxy,
            daemon(folder, "lte", proxy.address, credentials=False, size=size) as _,
        ):
            koinon.Run(
                "toy", model={"x": np.zeros(size)}, rounds=1, min_clients=1, clients=1, aggregation="open", codec="raw",
                evaluate=False, deadline=3600, max_examples=16,
            ).create(address)  # fmt: skip
            life = next(Path(os.environ["KOINON_STATE"]).glob("lte*")) / "edge" / "life.json"
            while '"PACKING"' not in life.read_text():
                time.sleep(0.01)
            proxy.fault = Fault(**LTE, cut_up=cut, every=True)
            sent, began = proxy.carried["up"], None
            seen, arrived = sent, 0.0
            while '"DONE"' not in life.read_text():
                if began is None and proxy.carried["up"] - sent > 20_000:
                    began = time.perf_counter()
                if proxy.carried["up"] > seen + 1000:  # what comes after it are words
                    seen, arrived = proxy.carried["up"], time.perf_counter()
                time.sleep(0.01)
            best, counted = size * 8 / LTE["rate"], time.perf_counter()
            assert began is not None
            return (
                (arrived - began) / best,
                (counted - began) / best,
                (proxy.carried["up"] - sent) / (size * 8),
            )


def fleet(count: int) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name, coordinator(Path(name)) as (address, pid):
        before = rss(pid)
        with contextlib.ExitStack() as all_:
            for i in range(count):
                all_.enter_context(daemon(Path(name), f"d{i}", address, credentials=False))
            time.sleep(10)
            used, began = seconds_of(pid), time.perf_counter()
            time.sleep(30)
            share = (seconds_of(pid) - used) / (time.perf_counter() - began)
            after = rss(pid)
    return {
        "fleet_rss_mb": figure([after - before], "MB"),
        "fleet_cpu": figure([100 * share], "%"),
    }


def main() -> None:
    given = arguments(__doc__ or "", idle=600, megabytes=40, fleet=100)
    figures = idle(float(given.idle))
    time_ratio, counted_ratio, bytes_ratio = lte(5_000_000, given.megabytes)
    figures["lte_time_ratio"] = figure([time_ratio], "", 1.15)
    figures["lte_counted_ratio"] = figure([counted_ratio], "")
    figures["lte_bytes_ratio"] = figure([bytes_ratio], "", 1.05)
    lte(200_000, min(given.megabytes, 10))
    figures["lte_short_cuts"] = figure([1.0], "")
    figures |= fleet(given.fleet)
    report("edge", figures, given.json)


if __name__ == "__main__":
    main()
