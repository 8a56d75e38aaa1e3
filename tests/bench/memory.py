"""What a round costs the coordinator in memory: models of 100 and 400 MB, 4 to 16 devices, FedAdam.

Memory is RssAnon, sampled while the rounds run: what the process has for itself. Pages of files that the kernel keeps
do not count. The run is created over the wire too, and its model is read and written tile by tile like all others.

coordinator_peak_mb_N        the most, with 100 MB of parameters and N devices
coordinator_peak_mb_400mb_4  the same with 400 MB and 4 devices
spread                       the largest of the first three to the smallest
device_beyond_its_copy_mb    what a device with 100 MB in a torch module needs beyond `import torch` and the module
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

import koinon
from report import arguments, coordinator, figure, report

MB = 1 << 20


def anonymous(pid: int) -> float:
    """The process's RssAnon in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this kernel does not say what a process has for itself")


class Peak:
    """Watches a process; `most` is the highest that was seen."""

    def __init__(self, pid: int):
        self.most, self._pid, self._over = 0.0, pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            self.most = max(self.most, anonymous(self._pid))
            time.sleep(0.01)


def peak(megabytes: int, devices: int, rounds: int, codec: str) -> tuple[float, float]:
    """(MB at most, MB before the run was there)."""
    parameters = megabytes * 1_000_000 // 4
    with coordinator() as (address, pid):
        idle = anonymous(pid)
        with Peak(pid) as watched:
            run = koinon.Run(
                "bench", model={"w": np.zeros(parameters, np.float32)}, strategy=koinon.FedAdam(), rounds=rounds,
                aggregation="open",
                min_clients=devices, clients=devices, max_examples=16, evaluate=False, codec=codec,
            ).create(address)  # fmt: skip
            sender = Path(__file__).with_name("senders.py")
            command = [sys.executable, sender, address, "bench", str(devices), str(parameters)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRPC_ENABLE_FORK_SUPPORT": "0"}
            subprocess.run(command, check=True, env=environment)
            run.wait()
        return watched.most, idle


def device(megabytes: int, rounds: int) -> float:
    """MB that a device needs beside torch and its own copy of the model."""
    parameters = megabytes * 1_000_000 // 4
    with coordinator() as (address, _):
        koinon.Run(
            "bench", model={"weight": np.zeros((parameters // 1000, 1000), np.float32)}, rounds=rounds,
            aggregation="open",
            min_clients=1, clients=1, max_examples=16, evaluate=False,
        ).create(address)  # fmt: skip
        command = [
            sys.executable,
            Path(__file__).with_name("torch_device.py"),
            address,
            "bench",
            str(parameters),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        told = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
        return float(told.stdout)


def main() -> None:
    given = arguments(__doc__ or "", rounds=2)
    figures, peaks = {}, []
    for devices in (4, 8, 16):
        most, idle = peak(100, devices, given.rounds, "raw")
        peaks.append(most)
        figures[f"coordinator_peak_mb_{devices}"] = figure([most], "MB", 400)
    figures["spread"] = figure([max(peaks) / min(peaks)], "x", 1.05)
    for codec in ("raw", "balanced"):
        most, idle = peak(400, 4, given.rounds, codec)
        figures[f"coordinator_peak_mb_400mb_4_{codec}"] = figure([most], "MB", 400)
    figures["device_beyond_its_copy_mb"] = figure([device(100, given.rounds)], "MB", 100)
    figures["idle_mb"] = figure([idle], "MB")
    report("memory", figures, given.json)


if __name__ == "__main__":
    main()
