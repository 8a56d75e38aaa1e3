"""Asynchronous runs: the buffered round and the run around it, in random worlds and by hand; and what a stale update
counts, by closed forms."""

import random
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

import koinon
import toy
from koinon_core import run as runs
from koinon_core.codec import Reader
from koinon_core.errors import UsageError
from koinon_core.round import effects, events
from koinon_core.round.machine import rebuild
from koinon_core.strategy.buffered import age_factor
from koinon_core.strategy.closing import Contribution
from koinon_core.tensors import Tensors
from koinon_core.tiles import Held
from koinon_core.update import Head


def spec(**settings):
    values = {
        "rounds": 3,
        "buffer": 2,
        "concurrency": 3,
        "evaluate": False,
        "staleness": 3,
        "lease": 8.0,
        "deadline": 60.0,
    }
    model, strategy = {"w": np.zeros(2)}, settings.pop("strategy", koinon.FedBuff())
    return koinon.Run(
        "async", model=model, strategy=strategy, aggregation="open", **{**values, **settings}
    ).spec


class World:
    """A run's machine with what a driver does around it. `given` is what each device works on, as it was told."""

    def __init__(self, **settings):
        self.now = 0.0
        self.run = runs.Run(id="r", spec=spec(**settings), model="m0")
        self.stored, self.given = defaultdict(list), {}
        self.told, self.counted, self.ages = [], Counter(), []
        self.fail, self.evaluated = (lambda: False), 1
        self.do(runs.start(self.run))

    def feed(self, fact) -> None:
        self.do(runs.step(self.run, fact))

    def do(self, moved) -> None:
        self.run = moved.run
        self.stored[moved.run.number] += moved.records
        assert rebuild(self.stored[moved.run.number]) == moved.run.round
        r = moved.run.round
        if r is not None and not r.over:
            assert len(r.update.awaited) <= r.terms.concurrency
        for order in moved.orders:
            self.told.append(order)
            match order:
                case runs.Open():
                    self.feed(runs.Opening(self.now, f"i{self.run.number}"))
                case effects.Ask(client):
                    self.given[client] = self.run.round.terms.round
                case effects.Receipt(client, number, "NOT_COUNTED") | effects.Cancel(client, number):
                    if self.given.get(client) == number:
                        del self.given[client]
                case effects.Fold(accepted):
                    r = self.run.round
                    assert accepted == r.accepted
                    self.ages += [r.age(c) for c in accepted]
                    number = self.run.number
                    if self.fail():
                        self.feed(runs.Unfoldable(self.now, number, "made no model"))
                    else:
                        self.counted.update((r.round_of(c), c) for c in accepted)
                        self.feed(runs.Folded(self.now, number, f"m{number}", evaluated=self.evaluated))

    def offer(self, *clients, engaged: int = 0) -> None:
        for client in clients:
            self.feed(runs.Offered(self.now, client, engaged=engaged))

    def answer(self, client) -> None:
        number = self.given[client]
        self.feed(runs.Answered(self.now, client, number, f"d-{client}-{number}"))


def test_a_device_that_is_free_gets_work_at_once_and_no_more_work_than_the_concurrency_allows():
    world = World()
    world.offer("a", "b", "c", "d")
    assert world.given == {"a": 1, "b": 1, "c": 1}
    world.answer("b")
    assert world.given["d"] == 1, "the place that became free"


def test_whoever_works_when_the_buffer_is_full_goes_on_and_counts_in_a_later_one():
    world = World()
    world.offer("a", "b", "c")
    world.answer("a")
    world.answer("b")
    assert world.run.number == 2
    assert world.run.round.round_of("c") == 1
    assert world.run.round.age("c") == 1
    world.offer("a")
    assert world.given == {"a": 2, "b": 1, "c": 1}
    world.answer("c")
    world.answer("a")
    assert world.run.number == 3
    assert world.counted == {(1, "a"): 1, (1, "b"): 1, (1, "c"): 1, (2, "a"): 1}
    assert world.ages == [0, 0, 0, 1]
    assert not any(isinstance(o, effects.Cancel) for o in world.told)


def test_a_device_has_one_update_in_a_buffer_and_gets_its_next_work_when_that_is_over():
    world = World()
    world.offer("a")
    world.answer("a")
    world.offer("a")
    assert sum(isinstance(o, effects.Ask) for o in world.told) == 1
    world.feed(runs.Answered(0.0, "a", 1, "d-a-1"))
    assert world.told[-1] == effects.Receipt("a", 1, "STAGED"), "the same update again"
    world.offer("b")
    world.answer("b")
    assert world.given["a"] == 2


def test_what_is_older_than_the_run_takes_is_cancelled_by_name():
    world = World(staleness=1, rounds=5)
    world.offer("slow", "a", "b")
    for _ in range(2):
        world.answer("a")
        world.answer("b")
        world.offer("a", "b")
    cancelled = [o for o in world.told if isinstance(o, effects.Cancel)]
    assert [(o.client, o.round) for o in cancelled] == [("slow", 1)]
    assert "2 versions old" in cancelled[0].reason
    world.feed(runs.Answered(0.0, "slow", 1, "late"))
    assert world.told[-1] == runs.Recall("slow", 1), "what was stored of it is said"


def test_a_device_has_its_time_and_a_silent_one_loses_its_place():
    world = World(concurrency=1)
    world.offer("a", "b")
    assert world.given == {"a": 1}
    world.feed(runs.Progressed(5.0, "a"))
    world.feed(runs.Tick(9.0))
    assert world.given == {"a": 1}
    world.feed(runs.Tick(13.0))
    assert world.run.round.update.awaited == {"b"}, "the lease of a ran out"
    for at in range(14, 80, 4):
        world.feed(runs.Progressed(float(at), "b"))
    world.feed(runs.Tick(73.0))
    said = [o.reason for o in world.told if isinstance(o, effects.Receipt)]
    assert "60 s for its work" in said[-1]


def test_whoever_fell_silent_may_come_back_in_the_same_round_with_its_work_or_without():
    world = World(buffer=1, concurrency=2)
    world.offer("a", "b")
    world.now = 20.0
    world.feed(runs.Tick(20.0))
    assert world.run.round.silent == {"a", "b"}
    world.feed(runs.Offered(20.0, "a", engaged=1))
    assert world.run.round.update.awaited == {"a"}
    assert world.run.leases["a"] == 28.0
    world.offer("b")
    assert world.run.round.update.awaited == {"a", "b"}
    world.feed(runs.Answered(20.0, "a", 1, "d"))
    assert world.counted == {(1, "a"): 1}


def test_a_round_that_all_leave_by_their_own_word_gives_up_after_its_time_and_the_run_in_the_end():
    world = World(buffer=2, rounds=9, patience=2)
    for number in (1, 2):
        world.offer("a", "b")
        assert world.run.number == number
        for client in ("a", "b"):
            world.feed(runs.Resigned(world.now, client, number, "DECLINED", "no"))
        world.offer("a", "b")
        assert not world.run.round.update.awaited, "nobody is asked the same again and again"
        world.now += 61.0
        world.feed(runs.Tick(world.now))
    assert world.run.status == "failed"
    assert "was left by the 2 devices" in world.run.reason


def test_a_buffer_that_does_not_fill_asks_for_its_quorum_after_its_deadline():
    world = World(buffer=5, min_clients=2)
    world.offer("a", "b")
    world.answer("a")
    world.feed(runs.Tick(61.0))
    assert not world.run.round.over
    assert "1 of 2 are in" in world.run.waiting_for
    world.now = 62.0
    world.offer("c")
    world.answer("c")
    assert world.run.number == 2
    assert world.counted == {(1, "a"): 1, (1, "c"): 1}


def test_a_device_that_lost_its_work_gets_what_is_newest_and_what_it_then_sends_counts_as_that():
    world = World(rounds=9)
    world.offer("c", "a", "b")
    world.answer("a")
    world.answer("b")
    world.offer("c", engaged=1)  # it reconnected, and still has it
    assert world.given["c"] == 1
    world.offer("c")  # it was killed while it trained
    assert world.given["c"] == 2
    assert world.run.round.age("c") == 0
    world.feed(runs.Answered(0.0, "c", 1, "from before"))
    assert world.told[-1] == runs.Recall("c", 1)
    world.answer("c")
    assert world.run.round.update.heard == {"c": "d-c-2"}


def test_a_paused_run_gives_no_more_work_and_takes_what_is_under_way():
    world = World()
    world.offer("a", "b", "c")
    world.feed(runs.Paused(0.0))
    world.answer("a")
    world.answer("b")
    world.offer("a", "b")
    assert world.run.number == 2
    assert world.given == {"a": 1, "b": 1, "c": 1}, "nothing new"
    world.answer("c")
    world.feed(runs.Resumed(0.0))
    assert (world.given["a"], world.given["b"]) == (2, 2)


def test_a_step_that_makes_no_model_loses_its_updates_and_nobody_elses_work():
    world = World(rounds=9)
    world.fail = lambda: world.run.number == 1
    world.offer("a", "b", "c")
    world.answer("a")
    world.answer("b")
    assert world.run.number == 2
    assert world.run.round.age("c") == 0, "no model was made since"
    world.fail = lambda: False
    world.answer("c")
    assert world.run.round.update.heard == {"c": "d-c-1"}


def test_a_recovered_run_begins_with_nobody_at_work():
    world = World()
    world.offer("a", "b")
    world.feed(runs.Recovered(1.0, 7))
    assert world.run.number == 8
    assert not world.run.round.taken
    assert {(o.client, o.round) for o in world.told if isinstance(o, effects.Cancel)} == {("a", 1), ("b", 1)}


def test_a_new_owner_gives_everybody_the_time_that_nobody_owned_the_run():
    world = World()
    world.offer("a")
    world.feed(runs.TakenUp(500.0, 480.0))
    assert world.run.round.wakes_at == 60.0 + 480.0
    assert world.run.leases == {"a": 508.0}


def test_the_last_model_is_evaluated_and_whoever_still_works_is_told():
    world = World(rounds=1, evaluate=True)
    for client in ("a", "b", "c"):
        world.feed(runs.Offered(0.0, client, evaluates=True))
    world.answer("a")
    world.answer("b")
    assert world.run.kind == "evaluate"
    assert not world.run.round.buffered
    cancelled = [o for o in world.told if isinstance(o, effects.Cancel)]
    assert [(o.client, o.round, o.reason) for o in cancelled] == [("c", 1, "the run needs no more updates")]


@pytest.mark.parametrize("block", range(4))
def test_in_random_worlds_nothing_counts_twice_and_no_work_is_forgotten(block):
    finished = 0
    for seed in range(block * 25, block * 25 + 25):
        dice = random.Random(seed)
        world = World(
            rounds=dice.randint(2, 8), buffer=dice.randint(1, 4), concurrency=dice.randint(0, 5), min_clients=1,
            staleness=dice.randint(0, 4),
        )  # fmt: skip
        world.fail = lambda dice=dice: dice.random() < 0.1
        for _ in range(2500):
            if world.run.over:
                break
            client, luck = f"c{dice.randrange(6)}", dice.random()
            if luck < 0.35:
                world.offer(client, engaged=world.given.get(client, 0) if dice.random() < 0.3 else 0)
            elif luck < 0.7 and client in world.given:
                number = world.given[client] if dice.random() < 0.9 else dice.randint(1, world.run.number)
                world.feed(runs.Answered(world.now, client, number, f"d-{client}-{number}"))
            elif luck < 0.75 and client in world.given:
                world.feed(runs.Resigned(world.now, client, world.given[client], "DECLINED"))
            elif luck < 0.8:
                world.feed(runs.Gone(world.now, client))
            elif luck < 0.9:
                world.feed(runs.Paused(world.now) if dice.random() < 0.3 else runs.Resumed(world.now))
            else:
                world.now += dice.uniform(0, 9)
                world.feed(runs.Tick(world.now))
        finished += world.run.status == "finished"
        assert not world.counted or max(world.counted.values()) == 1
        assert all(0 <= age <= world.run.spec.staleness for age in world.ages)
        awaited = world.run.round.update.awaited if not world.run.over else frozenset()
        assert awaited <= set(world.given), "whoever is awaited was told so"
    assert finished > 10


def test_what_is_stored_of_a_buffered_round_is_read_back():
    world = World()
    world.offer("a", "b", "c")
    world.answer("a")
    world.answer("b")
    stored = [events.load(*events.dump(event)) for event in world.stored[2]]
    assert any(isinstance(event, events.Carried) for event in stored)
    assert rebuild(stored) == world.run.round


# -- what an old update counts ------------------------------------------------------------------------------------


def stepped(strategy, updates, w: float, versions: dict[int, float], version: int) -> float:
    """x after a buffer of updates: (what the device made of x, how old the model was that it began with)."""
    x = Tensors({"x": np.array([w])})
    half = toy.half(strategy, x)
    t = toy.terms(version + 1, concurrency=4, version=version, staleness=10, bound=64.0)
    contributions = []
    for i, (y, age) in enumerate(updates):
        base = versions[version - age]
        began = toy.terms(version - age + 1, concurrency=4, version=version - age, bound=64.0)
        made = half.prepare(
            state={}, down={}, work=koinon.Work(examples=1), start=Held({"x": np.array([base])}),
            end=Held({"x": np.array([y])}), terms=began, head=Head(examples=1), client=f"c{i}",
        )  # fmt: skip
        reader = Reader(made.blob.window, made.blob.size, half.layout.update)
        contributions.append(Contribution(f"c{i}", made.head, reader, age, Held({"x": np.array([base])})))
    outcome = toy.closed(strategy, half.layout, t, x, {}, 4, contributions)
    return float(outcome.model["x"][0])


def test_fedbuff_adds_what_is_discounted_and_divides_by_all_of_the_buffer():
    versions = dict.fromkeys(range(20), 0.0)
    x = stepped(koinon.FedBuff(), [(-1.0, 0), (-2.0, 3)], 0.0, versions, 8)
    versions[9] = x
    x = stepped(koinon.FedBuff(), [(1.0, 8), (x - 0.5, 0)], x, versions, 9)
    assert x == pytest.approx(-13 / 12, abs=1e-9)


def test_fedasync_mixes_the_models_of_devices_whatever_they_began_with():
    x, versions = 0.0, {n: 0.1 * n for n in range(20)}
    for version, (y, age) in enumerate([(1.0, 0), (2.0, 3), (-1.0, 8)], start=10):
        versions[version] = x
        x = stepped(koinon.FedAsync(alpha=0.6), [(y, age)], x, versions, version)
    assert x == pytest.approx(0.616, abs=1e-9)


def test_fedasyncs_other_rules():
    hinge = koinon.FedAsync(rule="hinge", a=10, b=4)
    assert [hinge.discount(tau) for tau in (0, 4, 5, 6)] == [1.0, 1.0, 1 / 11, 1 / 21]
    assert koinon.FedAsync(rule="constant").discount(9) == 1.0


def test_an_age_is_a_factor_for_any_rule_of_a_chain():
    strategy = koinon.chain(koinon.FedAvg(), koinon.Staleness(exponent=1.0))
    versions = dict.fromkeys(range(5), 0.0)
    assert stepped(strategy, [(4.0, 3), (3.0, 0)], 0.0, versions, 3) == pytest.approx(
        (4 / 4 + 3) / 2, abs=1e-9
    )
    assert age_factor(strategy, 2) == pytest.approx(1 / 3, abs=1e-12)
    assert age_factor(strategy, 2) * 2**40 == round(age_factor(strategy, 2) * 2**40)


def test_without_an_age_a_buffer_is_a_round():
    versions = {0: 0.3}
    asynchronous = stepped(koinon.FedBuff(), [(1.0, 0), (0.5, 0)], 0.3, versions, 0)
    assert asynchronous == stepped(koinon.FedAvgUniform(), [(1.0, 0), (0.5, 0)], 0.3, versions, 0)


# -- what does not go together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"strategy": koinon.Scaffold(), "population": 9}, "Scaffold keeps a state on devices"),
        ({"strategy": koinon.FedDyn(), "population": 9}, "FedDyn keeps a state on devices"),
        ({"strategy": koinon.FedNova()}, "FedNova divides by sums"),
        (
            {
                "strategy": koinon.chain(koinon.FedAvg(), koinon.Krum(), koinon.Staleness()),
                "min_clients": 5,
                "buffer": 5,
            },
            "knows no age",
        ),
        (
            {"strategy": koinon.chain(koinon.FedAvg(), koinon.Krum()), "buffer": 6, "min_clients": 4},
            "needs 5 updates",
        ),
        ({"clients": 4}, "give concurrency"),
        ({"selection": {"rule": "weighted"}}, "no round chooses its devices"),
        ({"over_selection": 1.5}, "give concurrency"),
        ({"min_clients": 3}, "more than the buffer of 2"),
        ({"buffer": 0}, "is about asynchronous runs"),
        ({"buffer": 0, "concurrency": 0, "staleness": 10}, "FedBuff weighs updates by their age"),
    ],
)
def test_what_an_asynchronous_run_cannot_have_is_refused_in_one_sentence(settings, why):
    with pytest.raises(UsageError, match=why):
        spec(**settings).check()


@pytest.mark.parametrize(
    "make",
    [
        lambda: koinon.FedBuff(exponent=-1.0), lambda: koinon.Staleness(exponent=float("inf")),
        lambda: koinon.FedAsync(alpha=0.0), lambda: koinon.FedAsync(rule="linear"), lambda: koinon.FedAsync(b=-1),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(make):
    with pytest.raises(UsageError):
        make()


# -- silence, pauses and late words -------------------------------------------------------------------------------


def test_who_fell_silent_is_told_nothing_and_what_it_hands_in_counts_as_long_as_the_round_is_open():
    world = World(buffer=2, concurrency=1)
    world.offer("a", "b")
    world.feed(runs.Tick(9.0))
    assert world.run.round.update.awaited == {"b"}
    assert not [o for o in world.told if isinstance(o, effects.Receipt)], "or it could count what it dropped"
    assert world.run.wants("a", 1), "its bytes may come"
    world.answer("a")
    world.answer("b")
    assert world.counted == {(1, "a"): 1, (1, "b"): 1}


def test_who_comes_back_gets_no_place_that_another_has():
    world = World(buffer=2, concurrency=1)
    world.offer("a", "b")
    world.feed(runs.Tick(9.0))
    world.offer("a", engaged=1)
    assert world.run.round.update.awaited == {"b"}
    world.answer("b")
    assert world.run.round.update.awaited == {"a"}, "it has its place again, and no other work"
    assert sum(isinstance(o, effects.Ask) for o in world.told) == 2
    world.answer("a")
    assert world.counted == {(1, "a"): 1, (1, "b"): 1}


def test_who_was_silent_to_the_end_is_told_that_nobody_waits():
    world = World(buffer=1, concurrency=1)
    world.offer("a", "b")
    world.feed(runs.Tick(9.0))
    world.answer("b")
    cancelled = [(o.client, o.round) for o in world.told if isinstance(o, effects.Cancel)]
    assert cancelled == [("a", 1)]
    world.feed(runs.Answered(9.0, "a", 1, "d"))
    assert world.told[-1] == runs.Recall("a", 1)


def test_who_was_told_that_it_is_late_is_not_asked_for_the_same_again():
    world = World(buffer=2, concurrency=2, lease=100.0)
    world.offer("a")
    world.feed(runs.Tick(61.0))
    assert [(o.client, o.verdict) for o in world.told if isinstance(o, effects.Receipt)] == [
        ("a", "NOT_COUNTED")
    ]
    assert world.run.number == 2, "nobody else was there"
    world = World(buffer=2, concurrency=2, lease=100.0)
    world.offer("a")
    world.now = 30.0
    world.offer("b")
    world.feed(runs.Tick(61.0))
    world.offer("a")
    world.offer("a", engaged=1)
    assert world.run.round.update.awaited == {"b"}
    world.feed(runs.Answered(61.0, "a", 1, "d"))
    assert not world.run.round.update.heard


def test_a_round_that_had_its_time_asks_whoever_is_free_before_it_gives_up_what_it_has():
    world = World(buffer=2, concurrency=1, min_clients=2, lease=100.0)
    world.offer("a", "b", "c")
    world.now = 30.0
    world.answer("a")
    world.feed(runs.Tick(61.0))
    assert world.run.round.update.deadline is None
    (second,) = world.run.round.update.awaited
    (third,) = {"b", "c"} - {second}
    world.feed(runs.Resigned(61.0, second, 1, "DECLINED"))
    assert world.run.round.update.awaited == {third}
    world.answer(third)
    assert world.counted == {(1, "a"): 1, (1, third): 1}


def test_who_leaves_with_older_work_may_have_this_rounds():
    world = World(buffer=1, concurrency=2)
    world.offer("a", "b")
    world.answer("a")
    world.feed(runs.Resigned(0.0, "b", 1, "DECLINED"))
    world.offer("b")
    assert world.given["b"] == 2


def test_a_paused_run_neither_ends_nor_evaluates():
    world = World(rounds=1, evaluate=True)
    for client in ("a", "b", "c"):
        world.feed(runs.Offered(0.0, client, evaluates=True))
    world.feed(runs.Paused(0.0))
    assert "paused" in world.run.waiting_for
    world.answer("a")
    world.answer("b")
    assert (world.run.number, world.run.kind, world.run.status) == (1, "train", "paused")
    world.feed(runs.Resumed(0.0))
    assert (world.run.number, world.run.kind, world.run.status) == (2, "evaluate", "running")


def test_a_new_owner_of_a_round_that_is_being_summed_gives_the_same_time():
    world = World()
    world.fail = lambda: None  # nobody answers
    world.offer("a", "b", "c")
    r = replace(world.run.round, stage="folding")
    run = runs.step(replace(world.run, round=r, leases={}), runs.TakenUp(500.0, 480.0)).run
    assert run.leases == {"a": 508.0, "b": 508.0, "c": 508.0}
    assert {work.since for work in run.round.taken.values()} == {480.0}
    assert run.wakes_at is None
    assert runs.step(run, runs.Tick(600.0)).run == run, "nobody is late while a sum is taken"


def test_a_silent_device_whose_update_came_is_not_one_that_left():
    world = World(buffer=2, concurrency=1, min_clients=2)
    world.offer("a")
    world.feed(runs.Tick(9.0))
    world.answer("a")
    world.feed(runs.Tick(61.0))
    assert world.run.number == 1, "it waits for a second device"
    assert not world.run.round.update.left
    world.now = 62.0
    world.offer("b")
    world.answer("b")
    assert world.counted == {(1, "a"): 1, (1, "b"): 1}


def test_a_model_that_is_far_from_the_newest_is_cut_to_the_bound_and_costs_nobody_else_anything():
    versions = {0: -60.0, **dict.fromkeys(range(1, 9), 60.0)}
    x = stepped(
        koinon.FedAsync(alpha=1.0, rule="constant"), [(-60.0, 5), (60.0, 0)], 60.0, {**versions, 0: -60.0}, 5
    )
    assert x == pytest.approx(60.0 + (-64.0 + 0.0) / 2, abs=1e-6)


def test_the_last_model_is_evaluated_by_who_is_there_whatever_the_last_buffer_held():
    world = World(rounds=3, evaluate=True, evaluate_every=5)
    world.evaluated = 0
    for client in ("a", "b", "c"):
        world.feed(runs.Offered(0.0, client, evaluates=True))
    while world.run.kind == "train":
        for client in ("a", "b", "c"):
            if client in world.given and client in world.run.round.update.awaited:
                world.answer(client)
            world.feed(runs.Offered(0.0, client, evaluates=True))
    assert world.run.round.terms.goal == 3


def test_what_was_measured_of_an_older_model_is_in_no_mean_and_no_distribution_of_this_one():
    def client(session):
        model = {"x": np.zeros(1)}
        pace = int(session.client[-1])
        for task in session.tasks(model, evaluate=lambda m: {"v": float(m["x"][0]), "examples": 1}):
            task.descend({"x": model["x"] - 1.0 - pace}, lr=0.3)
            task.submit(examples=1)

    run = koinon.Run(
        "d", model={"x": np.zeros(1)}, strategy=koinon.FedBuff(), rounds=20, buffer=3, aggregation="open",
        codec="raw", distribution=True, evaluate=False,
    )  # fmt: skip
    done = koinon.simulate(run, client, clients=6, faults=koinon.Faults(delay=5.0), seed=1)
    spread = [m for m in done.metrics.values() if "eval.v.max" in m]
    assert spread
    for metrics in spread:
        assert metrics["eval.v.min"] - 1e-9 <= metrics["eval.v"] <= metrics["eval.v.max"] + 1e-9
    assert max(m.get("staleness", 0) for m in done.metrics.values()) > 0
