"""What a round costs when nobody trains: 10 client processes, 1,000 fp32 parameters, real gRPC, SQLite FULL. With
--secure 1, a secure round of enrolled devices over mutual TLS: five collections where an open round has one.

In the same run, the limit of what it stands on: ten bare bidirectional gRPC streams with a 4 KB payload each way
and one SQLite commit.
"""

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import numpy as np

import koinon
from report import arguments, coordinator, federation, figure, report


def rounds(clients: int, size: int, count: int, warmup: int, secure: bool) -> list[float]:
    """Seconds between the closes of consecutive rounds."""
    with tempfile.TemporaryDirectory() as folder:
        served = federation(Path(folder), clients) if secure else coordinator(Path(folder))
        with served as (address, _):
            run = koinon.Run(
                "bench", model={"w": np.zeros(size, np.float32)}, rounds=count + warmup, min_clients=clients,
                clients=clients, max_examples=16, evaluate=False, aggregation="secure" if secure else "open",
            ).create(address)  # fmt: skip
            device = Path(__file__).with_name("device.py")
            processes = [
                subprocess.Popen([sys.executable, device, address, "bench", f"c{i}", str(size)])
                for i in range(clients)
            ]
            run.wait()
            for process in processes:
                process.wait(30)
            closed = [r.closed_at for r in run.rounds() if r.status == "closed"]
    return [b - a for a, b in pairwise(closed)][warmup - 1 :]


async def bare(clients: int, count: int) -> list[float]:
    """The limit: the same payload up and down ten streams, and one commit, in one process."""
    payload = bytes(4096)
    with tempfile.TemporaryDirectory() as folder:
        db = sqlite3.connect(Path(folder) / "limit.db", isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("CREATE TABLE t (x BLOB)")

        async def echo(requests, context):
            async for _ in requests:
                yield payload

        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(echo)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("s", {"m": handler})])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(clients)
        ]
        calls = [c.stream_stream("/s/m")() for c in channels]

        async def one(call) -> None:
            await call.write(payload)
            await call.read()

        times = []
        for _ in range(count):
            started = time.perf_counter()
            await asyncio.gather(*(one(c) for c in calls))
            db.execute("INSERT INTO t VALUES (?)", (payload,))
            times.append(time.perf_counter() - started)
        for call in calls:
            call.cancel()
        for channel in channels:
            await channel.close()
        await server.stop(None)
    return times


def main() -> None:
    given = arguments(__doc__ or "", clients=10, parameters=1000, rounds=30, warmup=5, secure=0)
    measured = rounds(given.clients, given.parameters, given.rounds, given.warmup, bool(given.secure))
    limit = asyncio.run(bare(given.clients, given.rounds))
    report(
        "round --secure" if given.secure else "round",
        {
            "median_round_s": figure(measured, "s", 0.1 if given.secure else 0.025),
            "bare_streams_and_commit_s": figure(limit, "s"),
        },
        given.json,
    )


if __name__ == "__main__":
    main()
