"""A run on a real store and a real ledger, in virtual time: what the driver and its devices do, without a network."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from alembic.script import ScriptDirectory

import koinon
from koinon_coordinator.book import Item
from koinon_coordinator.closing import Plan, first_version
from koinon_coordinator.driver import Driver
from koinon_coordinator.federation import Federation
from koinon_coordinator.ledger import Ledger
from koinon_coordinator.store import Change, Part, RunRow, Store, UpdateRow
from koinon_coordinator.store.schema import _config
from koinon_core import codec, failpoints
from koinon_core import run as runs
from koinon_core.blob import Blob
from koinon_core.canonical import sha256
from koinon_core.tensors import Tensors
from koinon_core.tiles import Held
from koinon_core.update import Head

__all__ = ["LARGE", "REVISION", "Clock", "Lab", "driven", "files", "noise", "raising", "until"]

REVISION = ScriptDirectory.from_config(_config()).get_current_head()
"""The newest revision of the tables."""

LARGE = 20_000
"""Values of a model that is too large for a row: 80 kB of noise, which nothing compresses."""


def noise(seed: int, size: int) -> Any:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


class Clock:
    """Seconds since 1970, which pass when they are told to."""

    def __init__(self, now: float = 1000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


class Lab:
    """One run and its devices c0, c1, ...; `take_up` goes on with a stored one."""

    def __init__(self, store: Store, ledger: Ledger, clock: Clock, devices: int):
        self.store, self.ledger, self.clock = store, ledger, clock
        self.names = [f"c{i}" for i in range(devices)]

    @classmethod
    def create(
        cls, store: Store, name: str = "r", *, devices: int = 3, size: int = 3, clock: Clock | None = None,
        **settings: Any,
    ) -> "Lab":  # fmt: skip
        values = {
            "rounds": 100, "min_clients": devices, "clients": devices, "max_examples": 16, "codec": "raw",
            "evaluate": False, "aggregation": "open", **settings,
        }  # fmt: skip
        described = koinon.Run(name, model={"w": noise(1, size)}, **values)
        plan, clock = Plan.of(described.spec), clock or Clock()
        version, contents = first_version(store, plan, Held(described.model))
        run_id = sha256(name.encode())[:32]
        return cls(store, Ledger.create(store, plan, clock, run_id, version, contents), clock, devices)

    @classmethod
    def take_up(cls, store: Store, row: RunRow, *, devices: int = 3, clock: Clock | None = None) -> "Lab":
        clock = clock or Clock()
        return cls(store, Ledger.take_up(store, row, clock)[0], clock, devices)

    @property
    def run(self) -> runs.Run:
        return self.ledger.run

    @property
    def row(self) -> RunRow:
        return self.store.run(self.run.id)

    def open(self) -> "Lab":
        """All devices offer; the round asks them."""
        self.turn(*(runs.Offered(self.clock(), name) for name in self.names))
        return self

    def turn(self, *facts: runs.Fact | Item) -> None:
        self.clock.now += 1.0
        self.ledger.turn([fact if isinstance(fact, Item) else Item(fact) for fact in facts])

    def data(self, client: str, number: int | None = None) -> bytes:
        """The bytes of a device's update: the same whenever it is asked."""
        schema = self.ledger.plan.layout.update
        seed = int(client[1:]) + 100 * (self.run.number if number is None else number)
        (field,) = schema
        return codec.encode(Tensors({field.name: noise(seed, field.size)}), schema, "raw")

    def update(self, client: str, data: bytes | None = None) -> UpdateRow:
        """A verified update; a large one is uploaded."""
        data = self.data(client) if data is None else data
        digest, large = sha256(data), len(data) > 1 << 16
        if large:
            self.upload(client, data)
        number = self.run.number
        return UpdateRow(
            client, number, digest, len(data), "raw", Head(examples=1), self.clock(), None if large else data
        )

    def upload(self, client: str, data: bytes) -> None:
        incoming = self.store.uploads.receive(self.part(client), sha256(data), len(data))
        if incoming is not None:
            with incoming:
                incoming.write(data[incoming.offset :])
                incoming.finish()

    def part(self, client: str, number: int | None = None) -> Part:
        return Part(self.run.id, self.run.number if number is None else number, client)

    def answer(self, client: str) -> None:
        update = self.update(client)
        self.turn(Item(runs.Answered(self.clock(), client, self.run.number, update.digest), update=update))

    def close(self) -> "Lab":
        """Everybody who is awaited answers."""
        assert self.run.round is not None
        for name in sorted(self.run.round.update.awaited):
            self.answer(name)
        return self

    def rounds(self, number: int) -> "Lab":
        """So many whole rounds more."""
        for _ in range(number):
            self.open().close()
        return self

    def change(self, **values: Any) -> Change:
        """A change of the test's own, beside the ledger's."""
        return Change(self.run, at=self.clock(), epoch=self.ledger.epoch, before=self.run, **values)


@contextmanager
def raising(name: str, error: BaseException, about: str = "", times: int = 1) -> Iterator[None]:
    """A failpoint at which `error` is raised."""
    left = times

    def action(said: str) -> None:
        nonlocal left
        if said.startswith(about) and left:
            left -= 1
            raise error

    failpoints.arm(name, action)
    try:
        yield
    finally:
        failpoints.disarm()


@asynccontextmanager
async def driven(store: Store, **settings: Any) -> AsyncIterator[tuple[Federation, runs.Run]]:
    """A federation that drives one run, without a network."""
    federation = Federation(store)
    started, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(federation.run(started, stop))
    await started.wait()
    try:
        described = koinon.Run("r", model={"w": np.zeros(3)}, rounds=9, **settings)
        model = codec.encode(Tensors(described.model), described.spec.model, "raw")
        yield federation, await federation.create(described.spec, Blob.of(model).window, len(model))
    finally:
        stop.set()
        await task


async def until(driver: Driver, condition: Callable[[], bool]) -> None:
    """Wait until the driver's run is so."""
    changed = driver.watch()
    async with asyncio.timeout(20):
        while not condition():
            changed.clear()
            await changed.wait()


def files(root: Path) -> set[Path]:
    """Files below a folder, but for what the folder itself needs."""
    found = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return {path.relative_to(root) for path in found if path.name not in ("lock", "owner")}
