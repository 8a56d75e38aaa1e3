"""What it takes to move a model to four devices and four updates back: 40 MB and 400 MB of raw fp32.

In the same run, the limit: ONE bare gRPC stream between two processes that carries the same bytes, down and then up,
and whose receiver writes, hashes and fsyncs them. Both over plain TCP on this machine; there is no TLS in the product
yet, so there is none in the reference.

ratio_*      whole rounds, from opening to the commit of the new model, to the bare stream's seconds: with the devices'
             decoding and encoding and the coordinator's sum
transfers_*  of these, what the transfers took: from the first piece to the last, of all devices, down and up
"""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import numpy as np

import koinon
from report import arguments, coordinator, figure, report

DEVICES = 4
PIECE = 1 << 20
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


# -- rounds -----------------------------------------------------------------------------------------------------


def rounds(parameters: int, count: int) -> tuple[list[float], list[float], int]:
    """(seconds of each round, seconds of its transfers, bytes of one round), after a first one that is not counted."""
    with tempfile.TemporaryDirectory() as folder, coordinator() as (address, _):
        draw = np.random.default_rng(1)
        run = koinon.Run(
            "bench", model={"w": draw.standard_normal(parameters, np.float32)}, aggregation="open", rounds=count + 1,
            min_clients=DEVICES, clients=DEVICES, max_examples=16, evaluate=False, codec="raw", downlink="snapshot",
        ).create(address)  # fmt: skip
        device = Path(__file__).with_name("transfer_device.py")
        files = [Path(folder) / f"c{i}.json" for i in range(DEVICES)]
        processes = [
            subprocess.Popen(
                [sys.executable, device, address, "bench", f"c{i}", str(parameters), file],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for i, file in enumerate(files)
        ]
        for process in processes:
            if process.wait():  # with one of four gone, the run would wait for ever
                for other in processes:
                    other.kill()
                raise SystemExit("a device failed")
        run.wait()
        closed = [r for r in run.rounds() if r.status == "closed"][1:]
        noted = [json.loads(file.read_text()) for file in files]
    moving = [
        sum(
            max(one[way][number][1] for one in noted) - min(one[way][number][0] for one in noted)
            for way in ("download", "upload")
        )
        for number in range(1, count + 1)
    ]
    return [r.closed_at - r.opened_at for r in closed], moving, closed[0].bytes_up + closed[0].bytes_down


# -- the limit --------------------------------------------------------------------------------------------------


class Sink:
    """Where the bare stream's bytes go."""

    def __init__(self) -> None:
        self._file, self._hash = tempfile.TemporaryFile(buffering=0), hashlib.sha256()  # noqa: SIM115 - closed by finish

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)

    def finish(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


async def bare_server(pieces: int) -> None:
    """The other end of the bare stream, until its standard input ends."""
    data = os.urandom(PIECE)

    async def up(requests, context):
        sink = Sink()
        async for message in requests:
            sink.write(message)
        sink.finish()
        return b""

    async def down(request, context):
        for _ in range(pieces):
            yield data

    server = grpc.aio.server(options=OPTIONS)
    rows = {
        "up": grpc.stream_unary_rpc_method_handler(up),
        "down": grpc.unary_stream_rpc_method_handler(down),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("s", rows)])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


async def _once(port: int, pieces: int) -> float:
    data = os.urandom(PIECE)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        await channel.channel_ready()
        started = time.perf_counter()
        sink = Sink()
        async for message in channel.unary_stream("/s/down")(b""):
            sink.write(message)
        sink.finish()
        call = channel.stream_unary("/s/up")()
        for _ in range(pieces):
            await call.write(data)
        await call.done_writing()
        await call
        return time.perf_counter() - started


def bare(nbytes: int, count: int) -> list[float]:
    """Seconds for `nbytes` over one stream, half of them down and half of them up."""
    pieces = nbytes // 2 // PIECE
    command = [sys.executable, __file__, "--serve", str(pieces)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        times = [asyncio.run(_once(port, pieces)) for _ in range(count + 1)]
        server.communicate("")
    return times[1:]


def main() -> None:
    given = arguments(__doc__ or "", rounds=5, large=2, serve=0)
    if given.serve:
        asyncio.run(bare_server(given.serve))
        return
    figures = {}
    for name, parameters, count in (
        ("40mb", 10_000_000, given.rounds),
        ("400mb", 100_000_000, given.large),
    ):
        if not count:
            continue
        seconds, moving, nbytes = rounds(parameters, count)
        limit = bare(nbytes, count)
        middle = sorted(limit)[len(limit) // 2]
        figures |= {
            f"ratio_{name}": figure([one / middle for one in seconds], "x", 1.3),
            f"transfers_{name}": figure([one / middle for one in moving], "x"),
            f"round_{name}_s": figure(seconds, "s"),
            f"bare_{name}_s": figure(limit, "s"),
            f"bytes_{name}": figure([float(nbytes)], "B"),
        }
    report("transfer", figures, given.json)


if __name__ == "__main__":
    main()
