"""The run's machine in random worlds: devices that come, answer, stammer, fall silent and lie, under a virtual
clock. After every step the laws of the design are checked."""

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

import koinon
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.round import effects
from koinon_core.round.machine import rebuild
from koinon_core.selection import Seen


@dataclass
class World:
    """One random world around one run."""

    seed: int
    devices: int = 6
    now: float = 0.0
    run: runs.Run = None  # type: ignore[assignment]
    stored: dict = field(default_factory=lambda: defaultdict(list))
    receipts: dict = field(default_factory=lambda: defaultdict(list))
    asked: dict = field(default_factory=dict)
    folds: dict = field(default_factory=dict)
    steps: int = 0
    selection: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        quorum = self.dice.randint(1, 3)
        drawn = {"selection": self.selection}
        if self.selection.get("rule") == "poisson":
            drawn |= {"population": self.devices, "clients": None, "over_selection": 1.0}
        elif self.selection:
            drawn |= {"clients": quorum + 1}
        settings = {
            "rounds": self.dice.randint(1, 6), "min_clients": quorum,
            "clients": self.dice.choice([None, self.dice.randint(quorum, 5)]), "deadline": 30.0, "lease": 8.0,
            "join_wait": 2.0,
            "over_selection": self.dice.choice([1.0, 1.5]), "evaluate": self.dice.random() < 0.5, "patience": 4,
        }  # fmt: skip
        spec = koinon.Run(
            "world",
            model={"w": np.zeros(2)},
            aggregation="open",
            **settings | (drawn if self.selection else {}),
        ).spec
        self.run = runs.Run(id="r", spec=spec, model="m0")
        self.do(runs.start(self.run))

    # -- what a driver does ----------------------------------------------------------------------------------

    def feed(self, fact: runs.Fact) -> None:
        self.steps += 1
        self.do(runs.step(self.run, fact))

    def do(self, moved: runs.Moved) -> None:
        before = self.run
        self.run = moved.run
        self.stored[moved.run.number] += moved.records
        self.check(before, moved)
        for order in moved.orders:
            match order:
                case runs.Open():
                    self.feed(runs.Opening(self.now, f"{self.dice.getrandbits(64):x}"))
                case effects.Ask(client):
                    self.asked[client] = self.run.number
                case effects.Receipt(client, number, verdict):
                    if verdict != "STAGED":
                        self.receipts[number, client].append(verdict)
                case effects.Fold(accepted):
                    self.folds[self.run.number] = accepted
                    if self.dice.random() < 0.1:
                        self.feed(runs.Unfoldable(self.now, self.run.number, "made no model"))
                    else:
                        seen = {c: Seen(1, float(sha256(c.encode())[0] < "8")) for c in accepted}
                        if not self.selection:
                            seen = {}
                        made = f"m{self.run.number}"
                        self.feed(
                            runs.Folded(self.now, self.run.number, made, seen=seen, evaluated=len(seen))
                        )

    def check(self, before: runs.Run, moved: runs.Moved) -> None:
        run = moved.run
        assert run.number in (before.number, before.number + 1), "rounds are numbered without gaps"
        assert rebuild(self.stored[run.number]) == run.round, "folding the stored events rebuilds the round"
        if run.round is not None and run.round.stage in ("folding", "closed"):
            assert run.round.accepted == self.folds.get(run.number, run.round.accepted), (
                "the sum never changes"
            )
            assert len(run.round.accepted) >= run.round.terms.quorum, "no sum over fewer than the quorum"
            assert set(run.round.accepted) <= run.round.update.asked
        if not run.over:
            live = run.round is not None and (not run.round.over or run.status == "paused")
            opening = any(isinstance(o, runs.Open) for o in moved.orders)
            folding = any(isinstance(o, effects.Fold) for o in moved.orders)
            assert live or opening or folding or run.round is None or run.gather is not None
            if run.gather is not None:
                assert run.gather.until is None or run.wakes_at is not None, "a gathering wakes up"
            due = run.wakes_at
            waits_for_quorum = run.round is not None and run.round.stage == "joined" and due is None
            if live and not waits_for_quorum and run.round.stage != "folding":
                assert due is not None or run.round.over, "every wait but the one for a quorum has an end"

    # -- what the world does ---------------------------------------------------------------------------------

    def live(self) -> None:
        client = f"c{self.dice.randrange(self.devices)}"
        number = self.asked.get(client, 0)
        choice = self.dice.random()
        if choice < 0.35:
            self.feed(runs.Offered(self.now, client, True, number if self.dice.random() < 0.3 else 0))
        elif choice < 0.75 and number:
            digest = f"d{number}" if self.dice.random() < 0.9 else "other"
            self.feed(runs.Answered(self.now, client, number, digest))
        elif choice < 0.80 and number:
            self.feed(runs.Resigned(self.now, client, number, "DECLINED"))
        elif choice < 0.84:
            self.feed(runs.Gone(self.now, client))
        elif choice < 0.86:
            self.feed(runs.Answered(self.now, "mallory", self.run.number, "d"))
        elif choice < 0.90:
            self.feed(runs.Progressed(self.now, client))
        elif choice < 0.92:
            self.feed(runs.Paused(self.now) if self.dice.random() < 0.5 else runs.Resumed(self.now))
        else:
            self.now += self.dice.uniform(0, 12)
            self.feed(runs.Tick(self.now))


@pytest.mark.parametrize("block", range(10))
def test_the_laws_hold_in_random_worlds(block):
    ended = defaultdict(int)
    for seed in range(block * 60, block * 60 + 60):
        world = World(seed)
        while not world.run.over and world.steps < 2500:
            world.live()
        ended[world.run.status] += 1
        for (number, client), verdicts in world.receipts.items():
            assert verdicts.count("COUNTED") <= 1 or client in world.folds.get(number, ())
            if "COUNTED" in verdicts:
                assert client in world.folds[number], "only who is in the sum is told so"
    assert ended["finished"] > 0
    assert ended["finished"] + ended["failed"] + ended["paused"] == 60, dict(ended)


DRAWN = [
    {"rule": "weighted"}, {"rule": "weighted", "by": "examples"}, {"rule": "poisson", "q": 0.6},
    {"rule": "power-of-choice", "d": 6}, {"rule": "power-of-choice", "d": 6, "loss": "latest"},
]  # fmt: skip


@pytest.mark.parametrize("selection", DRAWN, ids=str)
def test_the_laws_hold_where_devices_are_drawn(selection):
    ended = defaultdict(int)
    for seed in range(60):
        world = World(seed, selection=selection)
        while not world.run.over and world.steps < 2500:
            world.live()
        ended[world.run.status] += 1
    assert ended["finished"] > 20
    assert ended["finished"] + ended["failed"] + ended["paused"] == 60, dict(ended)


def test_a_round_waits_for_its_quorum_without_end_and_says_so():
    world = World(1)
    world.run = replace(world.run)
    for _ in range(5):
        world.now += 1e6
        world.feed(runs.Tick(world.now))
    assert world.run.round.stage == "joined"
    assert "waits for devices: 0 of at least" in world.run.waiting_for


def test_the_draw_is_uniform_and_the_same_everywhere():
    names = [f"c{i}" for i in range(20)]
    first = sorted(names, key=lambda c: runs.rank(7, 1, c))[:5]
    backwards = names[::-1]
    assert first == sorted(backwards, key=lambda c: runs.rank(7, 1, c))[:5]
    drawn = defaultdict(int)
    for number in range(2000):
        for c in sorted(names, key=lambda c: runs.rank(7, number, c))[:5]:
            drawn[c] += 1
    assert all(abs(n - 500) < 100 for n in drawn.values()), dict(drawn)
