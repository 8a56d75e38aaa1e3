"""How long a cold start takes: from starting the coordinator process to the first closed round with 2 clients that
do not train; and what the idle coordinator holds in memory."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import koinon
from report import arguments, coordinator, figure, report


def first_round() -> float:
    started = time.time()
    with coordinator() as (address, _):
        run = koinon.Run(
            "cold",
            model={"w": np.zeros(1000, np.float32)},
            aggregation="open",
            rounds=1,
            min_clients=2,
            clients=2,
            evaluate=False,
        ).create(address)
        device = Path(__file__).with_name("device.py")
        processes = [
            subprocess.Popen([sys.executable, device, address, "cold", f"c{i}", "1000"]) for i in range(2)
        ]
        run.wait()
        closed = run.rounds()[0].closed_at
        for process in processes:
            process.wait(30)
    return closed - started


def idle_rss() -> float:
    with coordinator() as (_, pid):
        time.sleep(1)
        status = Path(f"/proc/{pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> None:
    given = arguments(__doc__ or "", runs=5)
    report(
        "cold",
        {
            "first_round_s": figure([first_round() for _ in range(given.runs)], "s", 3.0),
            "idle_rss_mb": figure([idle_rss() for _ in range(given.runs)], "MiB", 120.0),
        },
        given.json,
    )


if __name__ == "__main__":
    main()
