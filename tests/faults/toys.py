"""Toy Q in bad weather: worlds whose devices train, so that a strategy's closed form says where the run must end.

The coordinator with its store and ledger and the devices with their memory are the real ones. In each round the
coordinator is killed once: at a commit, or while updates are out. Of ten updates three are never made, cut off on their
way, or sent by a device that dies. Whatever is counted twice, not at all, or by one side alone moves the end.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import toy
from koinon_coordinator.store import Store
from koinon_core import codec
from koinon_core.strategy import Scaffold, Strategy
from koinon_core.strategy.protocol import State

from .gadget import Gadget
from .house import House, Killed
from .laws import Laws
from .world import Mix, World

__all__ = ["Toy", "ToyWorld"]

_MOMENTS = ("store.begun", "store.written", "store.committed", "updates are out")
_CALM = Mix(*(0.0,) * 12)
_PERSONAL = 400
"""Steps of a model of one's own: it is to be where it belongs by the end."""


@dataclass(frozen=True)
class Toy:
    """A strategy on toy Q. With `all_of_them` a round waits for the four of them, and makes no model of fewer.
    `wrong` devices make their state final before they hear of it."""

    strategy: Strategy
    steps: Sequence[int]
    all_of_them: bool = True
    secure: bool = False
    lost: float = 0.3
    wrong: bool = False

    def __call__(self, seed: int, folder: Path, empty: Path, rounds: int, rule: str = "") -> "ToyWorld":
        return ToyWorld(self, seed, folder, empty, rounds)


class ToyWorld(World):
    """One run of a `Toy`. `x` is what came of it, `own` what devices keep, and `kills` where the coordinator died."""

    clears_up = 20_000.0

    def __init__(self, given: Toy, seed: int, folder: Path, empty: Path, rounds: int):
        super().__init__(seed, folder, empty, rounds)
        self.given, self.secure, self.liars, self.n = given, given.secure, {}, 4
        self.asynchronous = False
        self.mix = replace(_CALM, slow=self.mix.slow, late=self.mix.late)
        self.longest = 3.0
        some: dict[str, Any] = (
            {} if given.all_of_them else {"min_clients": 3 if given.secure else 2, "clients": 3}
        )
        if given.secure:
            some |= {"phase": 15.0, "attempts": 3, "delta": 0.2}
        self.run = toy.toy_run(
            given.strategy, rounds, "run", evaluate=False, patience=10_000, deadline=30.0, lease=10.0, join_wait=2.0,
            aggregation="secure" if given.secure else "open", **some,
        )  # fmt: skip
        self.laws = _ToyLaws(self)
        self.kills: Counter[str] = Counter()
        self.x = float("nan")
        self.own: dict[int, State] = {}
        self._due_at: list[tuple[str, int]] = []
        self._planned = self._hits = 0
        self._when = random.Random(f"kills {seed}")
        self.tried = self.lost = 0

    def device(self, index: int) -> Gadget:
        return _ToyGadget(self, index, self.folder)

    # -- a crash a round --------------------------------------------------------------------------------------

    def _due(self, moment: str) -> bool:
        """Whether this is the moment at which this round's crash was drawn to be."""
        rows = self.laws.sql("SELECT number FROM runs")
        number = rows[0][0] if rows else 0
        if self.calm or not number:
            return False
        if number != self._planned:
            # A round that was over before its crash leaves it to the next one.
            self._due_at.append((_MOMENTS[number % len(_MOMENTS)], self._when.randint(1, 2)))
            self._planned, self._hits = number, 0
        if not self._due_at:
            return False
        self._hits += moment == self._due_at[0][0]
        if self._hits < self._due_at[0][1]:
            return False
        self._due_at.pop(0)
        self._hits = 0
        self.kills[moment] += 1
        return True

    def _at_store(self, name: str) -> Callable[[str], None]:
        def action(about: str) -> None:
            if isinstance(self.acting, House) and self._due(name):
                self.tell(f"killed at {name} of {about!r}")
                raise Killed

        return action

    def fate(self) -> str:
        """What becomes of an update."""
        self.tried += 1
        if not self.happens(self.given.lost):
            return ""
        self.lost += 1
        return self.dice.choice(["declined", "cut", "dies"])

    def goes_out(self) -> None:
        """An update is about to leave a device."""
        if self._due("updates are out"):
            for house in list(self.houses):
                self.later(
                    self.dice.uniform(0.0, 0.1), lambda house=house: house.die("while updates are out")
                )


class _ToyGadget(Gadget):
    """A device of toy Q, on a bad line."""

    world: ToyWorld
    _fate = ""

    def learn(self, task: Any) -> None:
        given, i = self.world.given, self.index
        if task.kind == "train":
            self._fate = self.world.fate()
            if self._fate == "declined":
                return
        steps = {"measure": 1, "personal": _PERSONAL}.get(task.kind, given.steps[i])
        for _ in range(steps):
            task.descend({"x": np.array([toy.gradient(i, float(self.model["x"][0]))])}, lr=toy.ETA)
        self.world.goes_out()
        task.submit(examples=toy.N[i])
        if given.wrong and self.talk._sent is not None and self.talk._sent.pending is not None:
            self.talk.state = self.talk._sent.pending

    def _send_update(self, said: Any, update: Any) -> None:
        fate, self._fate = self._fate, ""
        if fate == "cut" and self.stream is not None:
            self.stream.cut("with an update on its way")
        elif fate == "dies":
            self.world.later(0.0, lambda: self.die("with an update on its way"))
        super()._send_update(said, update)


class _ToyLaws(Laws):
    """The laws of every world, but for sums that are worked out from powers of two."""

    world: ToyWorld

    def _devices_follow(self) -> None:
        if isinstance(self.world.given.strategy, Scaffold) and not self.world.given.wrong:
            super()._devices_follow()

    def _check_model(self, store: Store, number: int, row: list[Any], expected: float) -> float:
        if row[3]:
            made = codec.decode(store.bytes(row[0]), self.world.run.spec.model, "the model")
            self.world.x = float(made["x"][0])
        self.world.own = {g.index: g.talk.state for g in self.world.gadgets}
        return self.world.x
