"""What it costs that nothing is lost, and how soon a round goes on after a crash.

resume           the coordinator is killed in the middle of a round, and started again after an outage; seconds from
                 the start of the new process until the round that was open is closed
round, commits   a round of ten devices with every commit synced, and the same without (durability_cost_ms is the
                 difference); transactions a round (updates that arrive together share one); PostgreSQL beside it
dropout          1,000 devices, of which 30 % never answer, each round another 30 %: every round closes by its
                 deadline, every device that was told so is in the sum once, and the coordinator's memory is flat
"""

import asyncio
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
import numpy as np
import structlog
from sqlalchemy import event

import koinon
from koinon.link import CHANNEL_OPTIONS
from koinon.operator import Operator
from koinon_coordinator.federation import Federation
from koinon_coordinator.service import serve
from koinon_coordinator.store import Store
from koinon_core import codec
from koinon_core.canonical import sha256
from koinon_core.schema import schema_of
from koinon_core.spec import RunSpec
from koinon_core.tensors import Tensors
from koinon_core.wire import convert
from koinon_core.wire.methods import FLEET
from koinon_core.wire.v1 import fleet_pb2 as pb
from report import arguments, coordinator, figure, report

DEVICES = 10


# -- how soon a round goes on ---------------------------------------------------------------------------------


def device(address: str, name: str, gate: threading.Event | None = None) -> threading.Thread:
    """A named device with a memory; with a gate, its second round waits for that."""

    def work() -> None:
        with koinon.join(address, run="bench", name=name) as session:
            model = {"w": np.zeros(1000, np.float32)}
            for task in session.tasks(model):
                if gate is not None and task.round == 2:
                    gate.wait()
                model["w"] += 0.01
                task.submit(examples=1)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def resume(outage: float) -> float:
    """Seconds until the open round is closed."""
    with tempfile.TemporaryDirectory() as folder:
        gate = threading.Event()
        with coordinator(Path(folder)) as (address, process):
            koinon.Run(
                "bench", model={"w": np.zeros(1000, np.float32)}, rounds=3, min_clients=4, clients=4, evaluate=False,
                aggregation="open",
            ).create(address)  # fmt: skip
            threads = [device(address, f"c{i}", gate if i else None) for i in range(4)]
            with Operator(address) as operator:
                while not any(
                    p.status == "staged"
                    for r in operator.get("bench").rounds
                    for p in r.participants
                    if r.number == 2
                ):
                    time.sleep(0.01)
            os.kill(process, 9)
        time.sleep(outage)
        gate.set()  # what was trained meanwhile is handed in as soon as somebody is there
        started = time.time()
        with coordinator(Path(folder), listen=address) as (address, _), Operator(address) as operator:
            for thread in threads:
                thread.join(60)
            rounds = operator.get("bench").rounds
            assert [r.status for r in rounds] == ["closed"] * 3
            assert all(p.status == "counted" for r in rounds for p in r.participants)
        return rounds[1].closed_at - started


# -- what durability costs ------------------------------------------------------------------------------------


@contextmanager
def inside(
    url: str, folder: Path, synced: bool = True
) -> Iterator[tuple[str, Store, asyncio.AbstractEventLoop]]:
    """A coordinator in this process, whose store can be looked into, and its loop."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    store = Store(url, folder / "blobs")
    if not synced:
        event.listen(store.database.engine, "connect", _unsynced)
        store.database.engine.dispose()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    ports: list[int] = []
    there = threading.Event()

    def on_port(port: int) -> None:
        ports.append(port)
        there.set()

    thread = threading.Thread(
        target=lambda: loop.run_until_complete(serve(Federation(store), "127.0.0.1:0", stop, on_port))
    )
    thread.start()
    assert there.wait(20)
    try:
        yield f"127.0.0.1:{ports[0]}", store, loop
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        store.close()


def _unsynced(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")


def rounds(url: str, folder: Path, count: int, synced: bool = True) -> dict[str, list[float]]:
    """Seconds a round, transactions a round, and seconds a commit."""
    with inside(url, folder, synced) as (address, store, loop):
        handle = koinon.Run(
            "bench", model={"w": np.zeros(1000, np.float32)}, rounds=count + 5, min_clients=DEVICES, clients=DEVICES,
            aggregation="open",
            evaluate=False,
        ).create(address)  # fmt: skip
        crowd = _crowd(address, DEVICES, lambda number, index: True)
        asyncio.run_coroutine_threadsafe(crowd, loop).result()
        assert handle.wait()
        turns = store.database.counts["turn"] / (count + 5)
        closed = [r.closed_at for r in handle.rounds()]
        began = time.perf_counter()
        for i in range(50):
            store.see_device("probe", "", float(i))
        commit = (time.perf_counter() - began) / 50
    return {
        "round": [b - a for a, b in pairwise(closed)][5:],
        "turns": [turns],
        "commit": [commit],
    }


# -- a crowd of devices in one process ------------------------------------------------------------------------


async def _crowd(address: str, count: int, answers: Any) -> dict[tuple[int, str], set[str]]:
    """`count` devices on streams of their own; `answers(round, index)` says who does. Returns what they were told."""
    told: dict[tuple[int, str], set[str]] = defaultdict(set)
    channels = [
        grpc.aio.insecure_channel(address, options=[*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
        for _ in range(max(1, count // 50))
    ]
    tasks = [
        asyncio.create_task(_member(channels[i % len(channels)], i, count, answers, told))
        for i in range(count)
    ]
    await asyncio.gather(*tasks)
    for channel in channels:
        await channel.close()
    return told


async def _member(channel: Any, index: int, count: int, answers: Any, told: Any) -> None:
    name = f"c{index:04}"
    call = channel.stream_stream(
        FLEET.ATTEND.path, request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=FLEET.ATTEND.response.FromString,
    )()  # fmt: skip

    async def say(**message: Any) -> None:
        await call.write(pb.AttendRequest(messages=[pb.DeviceMessage(**message)]))

    await say(hello=convert.hello(name, f"instance-{index}"))
    await say(join=pb.Join(run="bench"))
    run, blob = "", b""
    while (response := await call.read()) is not grpc.aio.EOF:
        for message in response.messages:
            kind = message.WhichOneof("says")
            if kind == "joined":
                run = message.joined.run
                schema = RunSpec.decode(message.joined.spec).model
                size = schema.by_name["w"].size
                delta = np.zeros(size, np.float32)
                delta[index % size] = 1.0
                named = Tensors({"delta/w": delta})
                blob = codec.encode(named, schema_of(named), "lossless")
                await say(offer=pb.Offer(run=run))
            elif kind == "ask":
                ask = message.ask
                if not answers(ask.round, index):
                    continue
                update = pb.Content(digest=sha256(blob), size=len(blob), inline=blob)
                answer = pb.Answer(
                    run=run, round=ask.round, terms_digest=sha256(ask.terms), update=update, head=pb.Head(examples=1)
                )  # fmt: skip
                await call.write(
                    pb.AttendRequest(
                        messages=[pb.DeviceMessage(answer=answer), pb.DeviceMessage(offer=pb.Offer(run=run))]
                    )
                )
            elif kind == "receipt":
                told[message.receipt.round, name].add(pb.Verdict.Name(message.receipt.verdict))
            elif kind == "cancel":
                await say(offer=pb.Offer(run=run))
            elif kind == "ended":
                call.cancel()
                return


def dropout(devices: int, count: int, share: float, deadline: float) -> dict[str, list[float]]:
    """Memory and length of every round, and whether everything is counted once."""
    dice = random.Random(0)
    gone: dict[int, set[int]] = defaultdict(lambda: set(dice.sample(range(devices), round(share * devices))))
    with coordinator() as (address, process):
        handle = koinon.Run(
            "bench", model={"w": np.zeros(devices, np.float32)}, strategy=koinon.FedAvg(), rounds=count,
            aggregation="open",
            min_clients=devices // 2, clients=devices, deadline=deadline, max_examples=1, evaluate=False, join_wait=5.0,
            retention="none", models="1 rounds",
        ).create(address)  # fmt: skip
        memory: list[float] = []

        def watch() -> None:
            with Operator(address) as operator:
                for seen in operator.watch("bench"):
                    while len(memory) < seen.run.rounds_closed:
                        memory.append(_resident(process))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        told = asyncio.run(_crowd(address, devices, lambda number, index: index not in gone[number]))
        watcher.join(30)
        seen = handle.rounds()
        x = np.zeros(devices)
        for r in seen:
            assert r.status == "closed", r.reason
            counted = [p.client for p in r.participants if p.status == "counted"]
            assert len(counted) == len(set(counted))
            for p in r.participants:
                verdicts = told[r.number, p.client] - {"VERDICT_STAGED"}
                assert verdicts <= ({"VERDICT_COUNTED"} if p.status == "counted" else {"VERDICT_NOT_COUNTED"})
                staged = "VERDICT_STAGED" in told[r.number, p.client]
                assert not staged or p.status == "counted", "staged, and lost"
            for client in counted:
                x[int(client[1:])] += 1 / len(counted)
        np.testing.assert_allclose(handle.model()["w"], x, atol=1e-5)
        late = [r.closed_at - (r.asked_at + deadline) for r in seen]
    return {"memory": memory, "late": late, "counted": [float(len(counted))]}


def _resident(process: int) -> float:
    """Megabytes that the process has in memory."""
    text = Path(f"/proc/{process}/status").read_text()
    return next(float(line.split()[1]) / 1000 for line in text.splitlines() if line.startswith("VmRSS"))


def main() -> None:
    given = arguments(__doc__ or "", rounds=40, devices=1000, crowd_rounds=50, outage=30)
    resumed = [resume(outage) for outage in (0.0, 5.0, float(given.outage))]
    with tempfile.TemporaryDirectory() as folder:
        full = rounds(f"sqlite:///{folder}/full.db", Path(folder) / "full", given.rounds)
        off = rounds(f"sqlite:///{folder}/off.db", Path(folder) / "off", given.rounds, synced=False)
    crowd = dropout(given.devices, given.crowd_rounds, 0.3, 4.0)
    memory, settled = crowd["memory"], crowd["memory"][9:]
    slope = float(np.polyfit(np.arange(len(settled)), settled, 1)[0]) if len(settled) > 1 else 0.0
    cost = (statistics.median(full["round"]) - statistics.median(off["round"])) * 1e3
    figures = {
        "resume_s": {**figure(resumed, "s", 5.0), "value": max(resumed)},
        "round_full_s": figure(full["round"], "s"),
        "round_unsynced_s": figure(off["round"], "s"),
        "durability_cost_ms": figure([cost], "ms", 6.0),
        "commits_a_round": figure(full["turns"], "", 4.0),
        "commit_ms": figure([c * 1e3 for c in full["commit"]], "ms"),
        "crowd_late_s": {**figure(crowd["late"], "s", 2.0), "value": max(crowd["late"])},
        "crowd_memory_slope_mb": figure([slope], "MB", 1.0),
        "crowd_memory_mb": figure(memory, "MB"),
        "crowd_memory_50_to_10": figure([memory[-1] / memory[min(9, len(memory) - 1)]], "", 1.05),
    }
    figures |= postgresql(given.rounds)
    report("durability", figures, given.json)


def postgresql(count: int) -> dict[str, Any]:
    """The same rounds on PostgreSQL with fsync, where a server can be started."""
    try:
        import postgres
    except ImportError:
        return {}
    if postgres.programs() is None:
        return {}
    with (
        postgres.Postgres(durable=True) as server,
        server.database() as url,
        tempfile.TemporaryDirectory() as folder,
    ):
        seen = rounds(url, Path(folder), count)
    return {
        "postgresql_round_s": figure(seen["round"], "s"),
        "postgresql_commit_ms": figure([c * 1e3 for c in seen["commit"]], "ms"),
    }


if __name__ == "__main__":
    main()
