"""One world: a seed, its mix of faults, a run, and what becomes of it."""

import asyncio
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import structlog

import koinon
from koinon import conversation
from koinon.masking import Masking
from koinon.outbox import updates
from koinon_coordinator import ledger
from koinon_coordinator.store import drafts
from koinon_core import codec, failpoints
from koinon_core import run as runs
from koinon_core.blob import Blob
from koinon_core.errors import StoreError

from .gadget import Gadget
from .house import House, Killed, template
from .laws import Laws
from .loop import Loop

__all__ = ["Mix", "World", "rounds_in", "run_world"]

HOUR = 3600.0


@dataclass(frozen=True)
class Mix:
    """What goes wrong in a world: chances per occasion, drawn once per seed, so that each seed is another weather."""

    kill_in_store: float  # at each failpoint of the store
    error_in_store: float  # ... an error, before or after it happened
    kill_in_outbox: float
    cut: float  # a stream, each second
    kill_house: float  # each second
    kill_device: float
    freeze: float  # a coordinator stops for a while, and another may take its runs
    corrupt: float
    decline: float
    late: float  # what was under way on a cut stream arrives all the same
    skew: float  # a coordinator's clock after a restart
    slow: float  # a job in a worker thread
    power: float = 0.0  # a device loses its power, each second
    lie: float = 0.0  # that one of the devices deals, or gives back, wrong shares
    fall: float = 0.0  # a device dies with a word of a secure round on its lips
    forge: float = 0.0  # a coordinator asks a device for more than it may

    @classmethod
    def draw(cls, dice: random.Random) -> "Mix":
        def some(most: float) -> float:
            return dice.random() ** 3 * most if dice.random() < 0.6 else 0.0

        return cls(
            some(0.02), some(0.03), some(0.02), some(0.1), some(0.05), some(0.05), some(0.01), some(0.05),
            some(0.05), some(1.0), some(1.0), some(1.0),
        )  # fmt: skip


class World:
    """Everything there is. `tell` collects the story, which is printed where a law is broken."""

    clears_up = 1500.0
    """When the weather does, in seconds: what can end must end then."""

    def __init__(self, seed: int, folder: Path, empty: Path, rounds: int = 20, rule: str = ""):
        self.seed, self.folder = seed, folder
        self.dice, self._entropy = random.Random(seed), random.Random(f"entropy {seed}")
        self.mix = Mix.draw(self.dice)
        self.loop = Loop()
        self.loop.work = self._work
        self.calm = False
        self.failure: BaseException | None = None
        self.loop.set_exception_handler(
            lambda _, about: self.fail(about.get("exception") or AssertionError(str(about)))
        )
        self.story: list[str] = []
        self.keepsakes: list[Any] = []  # tasks of the dead, which nobody else remembers
        self.by_pool: dict[int, House] = {}
        self.acting: House | Gadget | None = None
        self.houses: list[House] = []
        self.gadgets: list[Gadget] = []
        self.db, self.data = folder / "koinon.db", folder / "blobs"
        shutil.copy(empty, self.db)
        dice = self.dice
        n = dice.randint(2, 5)
        quorum = dice.randint(1, n)
        clients = dice.choice([None, n, dice.randint(quorum, n)])
        more = dice.choice([1.0, 1.5]) if clients and clients * 1.5 <= n else 1.0
        self.evaluates = dice.random() < 0.3
        # As if all of it were large: contents and updates are files, and sums are taken in turns of their own. A
        # frozen coordinator's files are not its successor's, so then there are none.
        self.files = self.mix.freeze == 0 and dice.random() < 0.5
        self.slow_sums = dice.random() < 0.5
        self.longest = dice.choice([3.0, 3.0, 3.0, 25.0])  # training, in seconds
        self.preferred: House | None = None
        self.skewed = False
        self._troubles: list[float] = [0.0]
        self._dead: list[tuple[float, float]] = []
        deadline = dice.choice([15.0, 30.0, 60.0] if self.longest < 15 else [30.0, 60.0])
        # A large bound makes a coarse grid: what is sent is not what was computed.
        self.run = koinon.Run(
            "run", model={"x": np.zeros(1)}, strategy=koinon.Scaffold(), rounds=rounds, min_clients=quorum,
            aggregation="open",
            clients=clients, population=n, codec="raw", max_examples=1,
            bound=2.0**40, max_clients=8, deadline=deadline, lease=dice.choice([6.0, 20.0]),
            join_wait=dice.choice([0.0, 2.0]), over_selection=more, patience=10_000, evaluate=False,
            retention=dice.choice(["none", "2 rounds", "3 rounds", "keep"]), models=dice.choice(["keep", "none"]),
        )  # fmt: skip
        if rule and rule != "cohorts":
            self._draw(rule, n)
        self.secure = rule == "cohorts" or (seed % 3 == 2 and not rule)
        self.liars: dict[int, str] = {}
        self.asynchronous = rule == "cohorts" or (not self.secure and seed % 7 == 5)
        self.exponent = self.pauses = self._resume_at = 0.0
        self.mixes = False
        if self.secure and self.asynchronous:
            n = self._make_cohorts(rounds)
        elif self.secure:
            n = self._make_secure(rounds)
        elif self.asynchronous:
            self._make_asynchronous(n)
        self.n = n
        self.laws = Laws(self)

    def _draw(self, rule: str, n: int) -> None:
        """The same world over a run whose rounds are drawn. (Where losses are asked for, rounds close without a model,
        and other laws would hold.)"""
        spec = self.run.spec
        least = spec.quorum
        settings: dict[str, dict[str, Any]] = {
            "weighted": {"clients": spec.clients or least},
            "examples": {"clients": spec.clients or least, "rule": "weighted", "by": "examples"},
            "poisson": {"clients": None, "over_selection": 1.0, "q": max(least / n, 0.7)},
            "latest": {"clients": spec.clients or least, "rule": "power-of-choice", "d": n, "loss": "latest"},
        }
        chosen = {"rule": rule, **settings[rule]}
        others = {name: chosen.pop(name) for name in ("clients", "over_selection") if name in chosen}
        self.run.spec = replace(spec, selection=chosen, **others)

    def _make_secure(self, rounds: int) -> int:
        """The same weather over a run whose sums are secure; returns how many devices it has.

        The ring is fixed point, in which every power of two is exact."""
        dice, spec = self.dice, self.run.spec
        n = dice.choice([3, 4, 4, 5, 5, 6, 7])
        groups = 2 if n >= 6 and dice.random() < 0.5 else 1
        quorum = dice.choice([3, 3, max(3, n - 1), n]) if groups == 1 else 3
        clients = dice.choice([None, n])
        keys = dice.choice(["ready", "ready", "early"])
        more = 1.0
        if keys == "ready" and groups == 1 and n - 1 > quorum and dice.random() < 0.3:
            clients, more = n - 1, n / (n - 1)
        some = dice.random() ** 3
        self.mix = replace(
            self.mix, power=some * 0.05 if dice.random() < 0.5 else 0.0, lie=dice.choice([0.0, 0.0, 1.0]),
            forge=dice.choice([0.0, 0.0, 0.1]), fall=dice.choice([0.0, 0.03, 0.1]),
        )  # fmt: skip
        attempts = dice.randint(1, 3)
        # Where every device is needed, or none may drop out, one that lies could not but end every round.
        if self.happens(self.mix.lie) and n > 3 and quorum < n and groups == 1:
            self.liars[dice.randrange(n)] = lie = dice.choice(["shares", "reveal"])
            attempts = max(attempts, 2 if lie == "shares" else 1)
        self.run = koinon.Run(
            "run", model={"x": np.zeros(1)}, strategy=koinon.Scaffold(), rounds=max(2, rounds // 6),
            min_clients=quorum, clients=clients, population=n, max_clients=8, max_examples=1,
            aggregation="secure", codec="exact", keys=keys, groups=groups, attempts=attempts,
            phase=dice.choice([5.0, 15.0]), deadline=spec.deadline, lease=spec.lease, join_wait=spec.join_wait,
            over_selection=more, patience=10_000, evaluate=False, models=spec.models,
        )  # fmt: skip
        return n

    def _ages(self) -> koinon.Strategy:
        """What an update counts in an asynchronous world: a device's power of two whole; as its age lets it; or its
        model, mixed with the newest."""
        kind = self.dice.choice(["whole", "aged", "mixed"])
        self.exponent, self.mixes = float(kind == "aged"), kind == "mixed"
        if kind == "aged":
            return koinon.chain(koinon.FedAvg(), koinon.Staleness(exponent=1.0))
        return (
            koinon.FedAsync(alpha=0.5, rule="constant") if kind == "mixed" else koinon.FedBuff(exponent=0.0)
        )

    def _make_cohorts(self, rounds: int) -> int:
        """The same weather over a run that sees only sums, of devices that nobody waits for; returns how many there
        are."""
        self._make_secure(rounds)
        dice, spec, self.liars = self.dice, self.run.spec, {}
        n, buffer = dice.choice([4, 6, 6, 7, 8]), dice.choice([3, 3, 4])
        strategy = self._ages()
        self.pauses = dice.choice([0.0, 0.0, 0.02])
        self.mix = replace(self.mix, lie=0.0, slow=dice.choice([self.mix.slow, 3.0]))
        self.run = koinon.Run(
            "run", model={"x": np.zeros(1)}, strategy=strategy, rounds=max(2, rounds // 4), aggregation="secure",
            buffer=buffer, min_clients=3, concurrency=dice.choice([0, n, max(buffer, n - 1)]),
            staleness=dice.randint(0, 6), codec="exact", max_examples=1, max_clients=8, deadline=spec.deadline,
            lease=spec.lease, patience=10_000, evaluate=False, models=spec.models, attempts=spec.attempts,
            phase=spec.phase,
        )  # fmt: skip
        return n

    def _make_asynchronous(self, n: int) -> None:
        """The same weather over a run whose rounds wait for nobody in particular."""
        dice, spec = self.dice, self.run.spec
        buffer = dice.randint(1, min(3, n))
        strategy = self._ages()
        self.pauses = dice.choice([0.0, 0.0, 0.02])
        # Where turns take their time, more happens in each; and work that is longer than it may be is late.
        self.mix = replace(self.mix, slow=dice.choice([self.mix.slow, 3.0]))
        deadline = dice.choice([spec.deadline, spec.deadline, 8.0])
        self.run = koinon.Run(
            "run", model={"x": np.zeros(1)}, strategy=strategy, rounds=spec.rounds, aggregation="open",
            buffer=buffer, min_clients=dice.randint(1, buffer), concurrency=dice.randint(0, 5),
            staleness=dice.randint(0, 6), codec="raw", max_examples=1, max_clients=8, deadline=deadline,
            lease=spec.lease, patience=10_000, evaluate=self.evaluates, retention=spec.retention, models=spec.models,
        )  # fmt: skip

    def entropy(self, size: int) -> bytes:
        """What the operating system would draw: from the seed, too, but not with the dice of the weather."""
        return self._entropy.randbytes(size)

    # -- the dice ---------------------------------------------------------------------------------------------

    def happens(self, chance: float) -> bool:
        return not self.calm and chance > 0 and self.dice.random() < chance

    def delay(self) -> float:
        return self.dice.random() * 0.05

    def notices(self) -> float:
        """How long until an end of a stream knows that it is cut: at once, or after its keepalive."""
        return 0.0 if self.calm or self.dice.random() < 0.7 else self.dice.uniform(0, 15)

    def job_takes(self) -> float:
        return self.dice.uniform(0, 2.0) if self.happens(self.mix.slow * 0.1) else 0.001

    def trains_for(self) -> float:
        return self.dice.uniform(0.1, self.longest)

    def down_for(self) -> float:
        return self.dice.choice([0.5, 5.0, 30.0])

    def late_arrivals(self) -> bool:
        return self.happens(self.mix.late)

    def falls(self) -> bool:
        return self.happens(self.mix.fall)

    def forges(self) -> bool:
        return self.happens(self.mix.forge)

    def corrupts(self) -> bool:
        return self.happens(self.mix.corrupt)

    def declines(self) -> bool:
        return self.happens(self.mix.decline)

    # -- time -------------------------------------------------------------------------------------------------

    def later(self, delay: float, action: Callable[[], None]) -> None:
        self.loop.call_later(delay, action)

    def tell(self, what: str) -> None:
        self.story.append(f"{self.loop.now:9.3f} {what}")

    def trouble(self) -> None:
        """A coordinator may stop owning what it owned, now."""
        self._troubles.append(self.loop.now)

    def owned_until(self, since: float, until: float) -> float:
        """Up to when, of this time, a coordinator surely owned what it owned: its first trouble."""
        return min((at for at in self._troubles if since <= at <= until), default=until)

    def dead_between(self, start: float, end: float) -> float:
        """Seconds between the two in which there was no coordinator at all."""
        return sum(max(0.0, min(end, until) - max(start, since)) for since, until in self._dead)

    def fail(self, error: BaseException | None) -> None:
        """A law was broken, or something raised that nobody caught."""
        self.failure = self.failure or error or AssertionError("something went wrong in the loop")

    def ended(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and task.exception() is not None:
            self.fail(task.exception())

    # -- coordinators -----------------------------------------------------------------------------------------

    def reach(self) -> House | None:
        """The coordinator that a device's next attempt reaches, if any."""
        there = [h for h in self.houses if h.alive and not h.frozen and h.started.is_set()]
        if self.preferred in there:
            return self.preferred
        return self.dice.choice(there) if there else None

    def open_house(self, data: Path | None = None) -> None:
        skew = self.dice.choice([-HOUR, HOUR]) if self.happens(self.mix.skew) else 0.0
        self.skewed = self.skewed or skew != 0
        try:
            house = House(self, self.db, data or self.data, skew)
        except Killed:  # its very first transactions
            self.later(1.0, self.open_house)
            return
        except StoreError:  # the database did not answer: started again
            self.later(1.0, self.open_house)
            return
        self.tell(f"a coordinator starts{f', its clock {skew:+g} s off' if skew else ''}")
        if not self.houses:
            self._dead.append((self._troubles[-1], self.loop.now))
        self.houses.append(house)

    def house_died(self, house: House) -> None:
        self.trouble()
        self.houses.remove(house)
        if not self.houses:
            self.later(self.down_for() / 2, self.open_house)

    def _work(self, pool: Any, job: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self.by_pool[id(pool)].work(job, future)

    def device(self, index: int) -> Gadget:
        """A device of this world."""
        return Gadget(self, index, self.folder)

    # -- what goes wrong --------------------------------------------------------------------------------------

    def _weather(self) -> None:
        """Each second."""
        if self.calm:
            return
        mix = self.mix
        for house in list(self.houses):
            if self.happens(mix.kill_house):
                house.die("between two steps")
            elif self.happens(mix.freeze) and len(self.houses) == 1 and house.started.is_set():
                self._freeze(house)
        for gadget in self.gadgets:
            if gadget.stream is not None and self.happens(mix.cut):
                gadget.stream.cut("the network")
            if self.happens(mix.kill_device):
                gadget.die("between two steps")
            if self.happens(mix.power):
                gadget.lose_power()
        if self.happens(self.pauses):
            self.tell("the operator pauses the run")
            self._resume_at = self.loop.now + self.dice.choice([1.0, 20.0])
            self._operate(runs.Paused(0.0))
        self.later(1.0, self._weather)

    def _resume(self) -> None:
        """An operator asks until it is so."""
        if self.loop.now >= self._resume_at and self.laws.sql("SELECT status FROM runs") == [("paused",)]:
            self._operate(runs.Resumed(0.0))

    def _operate(self, wanted: runs.Paused | runs.Resumed) -> None:
        for house in self.houses:
            for driver in house.federation.drivers.values() if house.alive and not house.frozen else ():
                driver.tell(replace(wanted, at=self.loop.now + house.skew))

    def _freeze(self, house: House) -> None:
        """A coordinator stops; its devices come to another one, which may take its runs when its lease is over. Then it
        goes on as if nothing had been."""
        self.tell("the coordinator is frozen")
        self.trouble()
        house.freeze()
        for stream in list(house.streams):
            stream.cut("its coordinator is frozen")
        other = self.folder / f"blobs{len(self.by_pool)}"
        self.later(self.dice.uniform(31, 40), lambda: self.open_house(other))

        def thaw() -> None:
            if house.alive:
                self.tell("the frozen coordinator goes on")
                house.thaw()
                if self.dice.random() < 0.7:  # and the network finds it again first
                    self.preferred = house
                    for other_house in self.houses:
                        for stream in list(other_house.streams):
                            stream.cut("the network turns to another coordinator")
                    self.later(3.0, lambda: setattr(self, "preferred", None))

        self.later(self.dice.uniform(20, 60), thaw)
        # What is of no more use is stopped, by an operator who looks.
        self.later(90, lambda: house.die("by its operator"))

    def _at_store(self, name: str) -> Callable[[str], None]:
        def action(about: str) -> None:
            if not isinstance(self.acting, House):
                return
            if self.happens(self.mix.kill_in_store):
                self.tell(f"killed at {name} of {about!r}")
                raise Killed
            if self.happens(self.mix.error_in_store):
                self.tell(f"an error at {name} of {about!r}")
                self.trouble()
                raise StoreError("the database did not answer")

        return action

    def _at_outbox(self, name: str) -> Callable[[str], None]:
        def action(about: str) -> None:
            if isinstance(self.acting, Gadget) and self.happens(self.mix.kill_in_outbox):
                self.tell(f"{self.acting.name} killed at {name} of {about!r}")
                raise Killed

        return action

    # -- the whole --------------------------------------------------------------------------------------------

    def live(self) -> None:
        """From the first round to the last; AssertionError where a law is broken."""
        failpoints.arm("blob.removed", self.laws.removed)
        for name in failpoints.NAMES:
            if name.startswith("store."):
                failpoints.arm(name, self._at_store(name))
            elif name.startswith(("outbox.", "journal.")):
                failpoints.arm(name, self._at_outbox(name))
        with ExitStack() as undone:
            undone.callback(self._end)
            undone.callback(failpoints.disarm)
            undone.enter_context(patch("os.urandom", self.entropy))
            seeded = partial(Masking, entropy=self.entropy)
            undone.enter_context(patch.object(conversation, "Masking", seeded))
            runtime = (
                self.folder / "memory"
            )  # the devices' memory that a kill leaves, and a power cut does not
            runtime.mkdir()
            undone.enter_context(patch.dict(os.environ, RUNTIME_DIRECTORY=str(runtime)))
            if self.files:
                for module in (drafts, updates):
                    undone.enter_context(patch.object(module, "INLINE", 0))
            if self.slow_sums:
                undone.enter_context(patch.object(ledger, "_QUICK", 0))
            self.loop.run_until_complete(self._live())

    async def _live(self) -> None:
        self.calm = True
        self.open_house()
        await self.houses[0].started.wait()
        model = codec.encode(self.run.model, self.run.spec.model)
        window = Blob.of(model).window
        await self.houses[0].federation.create(self.run.spec, window, len(model))
        self.calm = False
        self.gadgets = [self.device(i) for i in range(self.n)]
        self.later(1.0, self._weather)
        while not self.laws.over():
            await asyncio.sleep(5.0)
            self._sound()
            self._resume()
            self.laws.check()
            self.calm = self.calm or self.loop.now > self.clears_up
            assert self.loop.now < self.clears_up + 4000, f"the run does not end: {self.laws.waiting_for()}"
        self.calm = True
        await asyncio.sleep(200.0)  # let everyone hear the end
        self._sound()
        for house in list(self.houses):
            house.die("at the end")
        self.laws.check_end()

    def _sound(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _end(self) -> None:
        for house in list(self.houses):
            house.alive = False
            house.store.close()
        for gadget in self.gadgets:
            gadget.alive = False
            gadget.outbox._lock.close()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(BaseException):
                self.loop.run_until_complete(task)
        self.loop.close()


_templates: dict[str, Path] = {}


def run_world(
    seed: int, rounds: int = 20, kind: Callable[[int, Path, Path, int, str], World] = World, rule: str = ""
) -> World:
    """Live through one world. AssertionError, with its story, where a law is broken."""
    logging.getLogger("koinon").setLevel(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    memory = Path("/dev/shm")
    root = memory if memory.is_dir() else None
    if "empty" not in _templates:
        _templates["empty"] = template(Path(tempfile.mkdtemp(prefix="koinon-", dir=root)))
    with tempfile.TemporaryDirectory(prefix="koinon-world-", dir=root) as folder:
        world = kind(seed, Path(folder), _templates["empty"], rounds, rule)
        try:
            world.live()
        except BaseException as error:
            told = "\n".join(world.story[-60:])
            again = f"python -m tests.faults --seed {seed}" if kind is World else f"{kind}"
            again += f" --rule {rule}" if rule else ""
            error.add_note(f"{world.mix}\n{told}\nseed {seed}: replay it with  {again}")
            raise
        return world


def rounds_in(seeds: Iterable[int]) -> int:
    """Live through these worlds; how many rounds they had. For another process: a broken law comes as text alone."""
    rounds = 0
    for seed in seeds:
        try:
            rounds += run_world(seed).laws.rounds_seen
        except BaseException as error:
            told = "\n".join(getattr(error, "__notes__", []))
            raise AssertionError(f"{type(error).__name__}: {error}\n{told}") from None
    return rounds
