"""Asynchronous runs of which only sums are seen: who is summed together, by hand and in random worlds."""

import random
from collections import Counter, defaultdict
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

import koinon
import toy
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.errors import UsageError
from koinon_core.round import effects, events
from koinon_core.round.machine import rebuild
from koinon_core.secure.aged import aged
from koinon_core.secure.sizing import Tuning
from koinon_core.tiles import Held


def spec(**settings):
    values = {
        "rounds": 9, "buffer": 3, "concurrency": 9, "min_clients": 3, "evaluate": False, "staleness": 5, "lease": 8.0,
        "deadline": 60.0, "phase": 10.0, "codec": "exact", "patience": 50,
    }  # fmt: skip
    model, strategy = {"w": np.zeros(2)}, settings.pop("strategy", koinon.FedBuff())
    return koinon.Run(
        "async", model=model, strategy=strategy, aggregation="secure", **{**values, **settings}
    ).spec


class World:
    """A run's machine with what a driver does around it. `given` is what each device works on as it was told, `asked`
    what it is to say in a session: (round, collection)."""

    def __init__(self, **settings):
        self.now = 0.0
        self.run = runs.Run(id="r", spec=spec(**settings), model="m0")
        self.stored, self.given, self.asked = defaultdict(list), {}, {}
        self.told, self.counted, self.sums = [], Counter(), []
        self.fail = lambda: False
        self.do(runs.start(self.run))

    def feed(self, fact) -> None:
        self.do(runs.step(self.run, fact))

    def do(self, moved) -> None:
        before, self.run = self.run.round, moved.run
        self.stored[moved.run.number] += moved.records
        r = moved.run.round
        if r is not None and (r.over or len(self.stored[moved.run.number]) % 16 == 0):
            assert rebuild(self.stored[moved.run.number]) == r
        if r is not None and not r.over and r.buffered:
            assert len(r.busy) <= r.terms.concurrency
            self.check_cohort(before, r)
        for order in moved.orders:
            self.told.append(order)
            match order:
                case runs.Open():
                    self.feed(runs.Opening(self.now, f"i{self.run.number}"))
                case effects.Ask(client, collection):
                    if client in self.run.round.working:
                        self.given[client], _ = self.run.round.terms.round, self.asked.pop(client, None)
                    elif self.run.round.stage == collection and self.run.round.awaits(client):
                        self.asked[client] = (self.run.round.round_of(client), collection)
                case effects.Receipt(client, number, "COUNTED" | "NOT_COUNTED") | effects.Cancel(
                    client, number
                ):
                    if self.given.get(client) == number:
                        del self.given[client]
                        self.asked.pop(client, None)
                case effects.Fold(accepted):
                    self.fold(accepted)

    def fold(self, accepted) -> None:
        r, number = self.run.round, self.run.number
        assert accepted == r.accepted
        self.sums.append([(r.round_of(c), c) for c in accepted])
        assert len({r.round_of(c) for c in accepted}) == 1, "one model"
        assert r.terms.quorum <= len(accepted) <= self.run.spec.devices
        assert 0 <= r.age(accepted[0]) <= self.run.spec.staleness
        if why := self.fail():
            self.feed(runs.Unfoldable(self.now, number, f"made no model: {why}"))
        else:
            self.counted.update(self.sums[-1])
            self.feed(runs.Folded(self.now, number, f"m{number}"))

    def check_cohort(self, before, r) -> None:
        """Nobody is left behind by a session whom no later sum could hide; and nobody waits who can be in none."""
        left = Counter(r.round_of(c) for c in (*r.working, *r.ready))
        assert all(n >= r.terms.quorum for number, n in left.items() if number < r.terms.round), left
        if before is None or before.cohort or not r.cohort:
            return
        (number,) = {r.round_of(c) for c in r.cohort}
        assert left[number] == 0 or left[number] >= r.terms.quorum

    def offer(self, *clients, engaged: int = 0) -> None:
        for client in clients:
            self.feed(runs.Offered(self.now, client, engaged=engaged))

    def say(self, client, collection: str = "keys", missing=()) -> None:
        number, attempt = self.given[client], self.run.round.masking.attempt
        if collection == "keys" and client not in self.run.round.cohort:
            attempt = 0
        self.asked.pop(client, None)
        digest = sha256(f"{collection}-{client}-{number}-{attempt}".encode())
        self.feed(runs.Voiced(self.now, client, number, attempt, collection, digest, missing))

    def ready(self, *clients) -> None:
        for client in clients:
            self.say(client)

    def session(self) -> None:
        """Everybody says what the session asks for, to its end."""
        while self.asked:
            client = min(self.asked)
            self.say(client, self.asked[client][1])


def test_nobody_is_given_work_alone_and_then_all_who_come_get_it_at_once():
    world = World()
    world.offer("a", "b")
    assert not world.given
    world.offer("c")
    assert world.given == {"a": 1, "b": 1, "c": 1}
    world.offer("d")
    assert world.given["d"] == 1, "it has company"
    assert "0 devices have one, and 4 devices are at work" in world.run.waiting_for


def test_the_quick_are_summed_and_the_slow_go_on_and_are_summed_in_their_turn():
    world = World()
    world.offer(*"abcdef")
    world.ready("a", "b")
    assert world.run.round.stage == "keys"
    world.ready("c")
    assert world.run.round.cohort == {"a", "b", "c"}
    world.ready("e")  # while the session goes on
    world.session()
    assert world.sums == [[(1, "a"), (1, "b"), (1, "c")]]
    assert world.run.number == 2
    assert set(world.run.round.ready) == {"e"}
    world.offer("a", "b", "c")
    assert world.given == {"a": 2, "b": 2, "c": 2, "d": 1, "e": 1, "f": 1}
    world.ready("a", "b")
    world.ready("d", "f")
    assert world.run.round.cohort == {"d", "e", "f"}, "one model's devices, never those of two"
    world.session()
    assert world.run.number == 3
    assert set(world.run.round.ready) == {"a", "b"}
    assert world.sums[-1] == [(1, "d"), (1, "e"), (1, "f")]
    assert not any(isinstance(o, effects.Cancel) for o in world.told)
    kept = [events.load(*events.dump(event)) for event in world.stored[3]]
    assert rebuild(kept) == world.run.round


def test_a_session_that_would_leave_too_few_behind_waits_for_them_and_takes_them_in():
    world = World()
    world.offer(*"abcd")
    world.ready("a", "b", "c")
    assert not world.run.round.cohort, "d alone could never be summed"
    world.ready("d")
    assert world.run.round.cohort == set("abcd")


def test_whoever_is_waited_for_has_its_time_and_no_more():
    world = World()
    world.offer(*"abcd")
    world.ready("a", "b", "c")
    for at in range(4, 60, 4):
        world.feed(runs.Progressed(float(at), "d"))
    world.now = 60.0
    assert world.run.wakes_at == 60.0
    world.feed(runs.Tick(60.0))
    assert world.run.round.cohort == {"a", "b", "c"}
    assert (
        effects.Receipt("d", 1, "NOT_COUNTED", "it had 60 s for its work, and did not answer") in world.told
    )


def test_too_few_that_are_left_of_an_older_model_are_told_so():
    world = World()
    world.offer(*"abcdef")
    world.ready("a", "b", "c")
    world.session()
    world.ready("d")
    world.feed(runs.Resigned(0.0, "e", 1, "DECLINED", "no"))
    told = {
        o.client: o.reason
        for o in world.told
        if isinstance(o, effects.Receipt) and o.verdict == "NOT_COUNTED"
    }
    assert told["e"] == "no"
    assert (
        told["d"]
        == told["f"]
        == "only 2 devices are left that worked on what round 1 gave, too few for a sum"
    )
    world.offer("d", "e", "f")
    assert world.given["d"] == world.given["f"] == 2


def test_the_newest_models_quorum_is_enough_once_the_round_had_its_time():
    world = World(buffer=5, concurrency=5)
    world.offer(*"abc")
    world.ready(*"abc")
    assert not world.run.round.cohort, "others may still come"
    world.feed(runs.Tick(60.0))
    assert world.run.round.cohort == set("abc")


def test_a_session_that_gives_up_costs_its_own_devices_alone():
    world = World(attempts=1)
    world.offer(*"abcdef")
    world.ready("a", "b", "c", "d")
    for client in ("a", "b"):
        world.say(client, "shares")
    world.feed(runs.Resigned(0.0, "c", 1, "FAILED", "no power"))
    assert world.run.number == 2
    assert rebuild(world.stored[1]).reason.startswith("gave up")
    assert set(world.run.round.ready) == {"d"}
    assert world.run.round.working == {"e", "f"}
    lost = {o.client for o in world.told if isinstance(o, effects.Receipt) and o.verdict == "NOT_COUNTED"}
    assert lost == {"a", "b", "c"}
    world.ready("e", "f")
    world.session()
    assert world.sums == [[(1, "d"), (1, "e"), (1, "f")]]


def test_another_attempt_is_among_the_same_and_others_advertise_meanwhile():
    world = World(buffer=4, concurrency=9)
    world.offer(*"abcdefgh")
    world.ready(*"abcd")
    for client in "abc":
        world.say(client, "shares")
    world.feed(runs.Resigned(0.0, "d", 1, "FAILED", "no power"))
    r = world.run.round
    assert (r.stage, r.masking.attempt) in {("keys", 1), ("masked", 0)}
    world.ready("e")
    assert set(world.run.round.ready) == {"e"}
    world.session()
    assert world.sums[0] == [(1, "a"), (1, "b"), (1, "c")]


def test_a_device_that_waits_and_is_gone_has_a_lease_to_come_back_in():
    world = World()
    world.offer(*"abcdef")
    world.ready("a", "b")
    assert not {"a", "b"} & world.run.leases.keys(), "nothing is expected of them"
    world.feed(runs.Gone(1.0, "a"))
    assert world.run.leases["a"] == 9.0
    world.feed(runs.Offered(5.0, "a", engaged=1))
    assert "a" not in world.run.leases
    world.feed(runs.Gone(6.0, "b"))
    world.say("b")  # said before it was cut off, and read after
    assert world.run.leases["b"] == 8.0
    for client in "cdef":
        world.feed(runs.Progressed(10.0, client))
    world.feed(runs.Tick(14.5))
    assert world.run.round.silent == {"b"}
    assert set(world.run.round.ready) == {"a"}
    world.now = 15.0
    world.feed(runs.Offered(15.0, "b", engaged=1))
    assert "b" in world.run.round.working
    world.say("b")
    assert list(world.run.round.ready) == ["a", "b"]


def test_a_device_that_lost_what_it_had_done_is_given_work_anew():
    world = World()
    world.offer(*"abcdef")
    world.ready("a")
    world.offer("a")  # its memory is gone
    assert not world.run.round.ready
    assert "a" in world.run.round.working
    world.ready("b", "c", "a")
    assert world.run.round.cohort == set("abc")


def test_what_is_older_than_the_run_takes_is_not_summed():
    world = World(staleness=0)
    world.offer(*"abcdef")
    world.ready("a", "b", "c", "d")
    world.session()
    told = {o.client: type(o) for o in world.told if getattr(o, "reason", "").startswith("its work is 1")}
    assert told == dict.fromkeys("def", effects.Receipt)


@pytest.mark.parametrize("evaluate", [True, False])
def test_whoever_goes_on_at_the_end_of_a_run_is_told_whatever_comes_then(evaluate):
    world = World(rounds=1, evaluate=evaluate)
    for client in "abcdef":
        world.feed(runs.Offered(0.0, client, evaluates=True))
    world.ready("a", "b", "c", "d")
    world.session()
    assert (world.run.kind, world.run.status) == (
        ("evaluate", "running") if evaluate else ("train", "finished")
    )
    told = {
        o.client: type(o) for o in world.told if getattr(o, "reason", "") == "the run needs no more updates"
    }
    assert told == dict.fromkeys("def", effects.Receipt)


def test_a_cancelled_run_tells_everybody():
    world = World()
    world.offer(*"abcdefg")
    world.ready("a", "b", "c", "d")
    world.feed(runs.Cancelled(0.0, "enough"))
    told = {o.client for o in world.told if isinstance(o, effects.Receipt) and o.verdict == "NOT_COUNTED"}
    assert told == set("abcdefg")


def test_a_new_owner_gives_everybody_their_time_also_those_who_wait():
    world = World()
    world.offer(*"abcdef")
    world.ready("a", "b")
    world.feed(runs.TakenUp(500.0, 480.0))
    assert world.run.leases == dict.fromkeys("abcdef", 508.0)
    assert world.run.round.wakes_at == 540.0
    world.now = 501.0
    world.ready("c")
    due = world.run.round.masking.now.deadline
    world.feed(runs.TakenUp(600.0, 90.0))
    assert world.run.round.masking.now.deadline == due + 90.0


def test_when_what_was_said_is_lost_those_go_on_who_had_said_nothing():
    world = World()
    world.offer(*"abcdefgh")
    world.ready("a", "b", "c", "d")
    world.feed(runs.Unfoldable(0.0, 1, "lost what its devices said", forgotten=True))
    assert world.run.number == 2
    assert world.run.round.working == set("efgh")
    assert {o.client for o in world.told if isinstance(o, effects.Receipt)} == set("abcd")


def test_a_sum_larger_than_its_round_was_sized_for_says_the_same_of_all_who_were_given_that():
    """Or each of their sums would fail, one after the other, while a wide round is open."""
    world = World()
    world.offer(*"abcdefgh")
    world.ready(*"abcd")
    world.fail = lambda: "overflowed: the sum of 'param' is larger than the round was sized for"
    world.session()
    assert world.run.number == 2
    told = {o.client for o in world.told if isinstance(o, effects.Receipt) and o.verdict == "NOT_COUNTED"}
    assert told == set("abcdefgh")
    assert not world.run.round.taken


def test_a_device_that_is_killed_over_and_over_holds_nobody_up_for_longer_than_its_time():
    world = World(deadline=30.0)
    world.offer(*"abcd")
    world.ready("a", "b", "c")
    for at in range(2, 40, 2):
        world.now = float(at)
        world.offer("d")  # it has lost its work, and gets it again
        world.feed(runs.Tick(world.now))
        if world.run.round.cohort:
            break
    assert world.run.round.cohort == {"a", "b", "c"}
    assert world.now == 30.0


def test_who_is_given_the_same_again_hears_how_much_of_its_time_is_over():
    world = World(deadline=30.0)
    world.offer(*"abcd")
    world.now = 12.0
    world.offer("d")
    assert world.run.round.elapsed(world.now, "d") == 12.0
    assert world.run.round.elapsed(world.now, "nobody") == 0.0


def test_a_late_sum_says_nothing_of_how_many_would_evaluate():
    world = World()
    world.run = replace(world.run, evaluators=4)
    world.offer(*"abc")
    world.ready(*"abc")
    world.session()
    assert world.sums
    assert world.run.evaluators == 4


def test_the_operator_reads_who_waits_for_whom():
    world = World()
    world.offer("a", "b")
    assert "2 that are free wait for others: work is given to 3 or more together" in world.run.waiting_for
    world.offer("c", "d")
    assert "free" not in world.run.waiting_for
    world.ready("a", "b", "c")
    assert (
        "and 1 device is at work (a sum without the last of them would leave too few" in world.run.waiting_for
    )


def test_a_paused_run_that_is_taken_up_hears_again_of_those_who_waited():
    world = World(rounds=1)
    world.offer(*"abcdefg")
    world.ready("a", "b", "c", "d")
    world.feed(runs.Paused(0.0))
    world.session()
    assert world.run.round.over
    assert set(world.run.round.ready) == {"d"}
    run = replace(world.run, status="running", spec=spec(rounds=2))  # more of it is wanted by now
    moved = runs.step(run, runs.Opening(1.0, "i2", frozenset("d")))
    assert moved.run.round.working == set("defg")
    assert not moved.run.round.ready, "it says its keys again when it comes back"


@pytest.mark.parametrize("block", range(4))
def test_in_random_worlds_sums_are_of_one_model_and_of_enough_and_no_work_is_forgotten(block):
    finished, sums = 0, 0
    for seed in range(block * 25, block * 25 + 25):
        dice = random.Random(seed)
        buffer = dice.randint(3, 5)
        world = World(
            rounds=dice.randint(2, 6), buffer=buffer, concurrency=dice.randint(buffer, 11), min_clients=3,
            staleness=dice.randint(0, 4), attempts=dice.randint(1, 3),
        )  # fmt: skip
        world.fail = lambda dice=dice: dice.random() < 0.1
        for _ in range(3000):
            if world.run.over:
                break
            client, luck = f"c{dice.randrange(11)}", dice.random()
            if luck < 0.25:
                world.offer(client, engaged=world.given.get(client, 0) if dice.random() < 0.97 else 0)
            elif luck < 0.45:
                if client not in world.given:
                    continue
                number = world.given[client] if dice.random() < 0.9 else dice.randint(1, world.run.number)
                attempt = dice.choice([0, 0, 0, world.run.round.masking.attempt])
                digest = sha256(f"keys-{client}-{number}-{attempt}".encode())
                world.feed(runs.Voiced(world.now, client, number, attempt, "keys", digest))
            elif luck < 0.9:
                if world.asked:
                    client = dice.choice(sorted(world.asked))
                    world.say(client, world.asked[client][1])
            elif luck < 0.91:
                if client in world.given:
                    world.feed(runs.Resigned(world.now, client, world.given[client], "DECLINED"))
            elif luck < 0.93:
                world.feed(runs.Gone(world.now, client))
            elif luck < 0.95:
                world.feed(runs.Paused(world.now) if dice.random() < 0.2 else runs.Resumed(world.now))
            elif luck < 0.97:
                world.now += dice.uniform(0, 5)
                for one in sorted(world.given):
                    if dice.random() < 0.9:
                        world.feed(runs.Progressed(world.now, one))
                world.feed(runs.Tick(world.now))
        finished += world.run.status == "finished"
        sums += len(world.sums)
        assert not world.counted or max(world.counted.values()) == 1
        awaited = world.run.round.update.awaited if not world.run.over else frozenset()
        assert awaited <= set(world.given), "whoever is awaited was told so"
    assert finished > 20
    assert sums > 60


# -- what an old sum counts ---------------------------------------------------------------------------------------


class Sum:
    """A sum of two devices' changes of one tensor, and of one that a strategy sends beside it."""

    count, weight, totals, evaluated, floored = 2, 5.0, {}, 2, frozenset({"v"})
    tuning = Tuning(devices=2, weight=5, rms={"param": 0.25}, steps={"param": 0.5}).encoded
    metrics: ClassVar = {"train.loss": 1.0, "eval.loss": 2.0}
    sections: ClassVar = {
        "delta/w": np.array([1.0, -2.0]),
        "extra/c/w": np.array([4.0, 8.0]),
        "count/n": np.array([7]),
    }

    def values(self, name: str, offset: int):
        return self.sections[name]

    def digest(self) -> str:
        return "ab" * 32


def at(version: int):
    """Terms of a round that opened with that many models."""
    return toy.terms(99, concurrency=9, version=version, staleness=9)


NEWEST, BASE = Held({"w": np.array([10.0, 10.0])}), Held({"w": np.array([13.0, 11.0], np.float32)})


def test_a_sum_counts_what_its_age_lets_it_and_its_devices_numbers_stay():
    one = aged(koinon.FedBuff(), Sum(), at(8), 5, NEWEST, None)
    assert one.values("delta/w", 0).tolist() == [0.5, -1.0]
    assert one.values("extra/c/w", 0).tolist() == [2.0, 4.0]
    assert one.values("count/n", 0).tolist() == [7]
    assert (one.count, one.weight, one.floored) == (2, 5.0, frozenset({"v"}))
    assert one.metrics == {"train.loss": 1.0, "updates": 2.0, "staleness": 3.0}, (
        "the older model was evaluated"
    )
    assert one.evaluated == 0
    assert Sum.sections["delta/w"].tolist() == [1.0, -2.0], "nothing is weighed twice"


def test_a_sum_of_the_newest_model_is_what_it_is():
    one = aged(koinon.FedBuff(), Sum(), at(8), 8, NEWEST, None)
    assert one.values("delta/w", 0).tolist() == [1.0, -2.0]
    assert one.metrics["eval.loss"] == 2.0
    assert one.evaluated == 2
    assert one.digest() != aged(koinon.FedBuff(), Sum(), at(8), 7, NEWEST, None).digest()


def test_where_models_are_mixed_a_sum_is_moved_by_how_far_its_model_is_from_the_newest():
    one = aged(koinon.FedAsync(alpha=0.6), Sum(), at(8), 5, NEWEST, BASE)
    assert one.values("delta/w", 0).tolist() == [(1.0 + 3.0) / 2, (-2.0 + 1.0) / 2]
    assert one.values("extra/c/w", 0).tolist() == [2.0, 4.0]


def test_the_next_round_is_sized_by_the_newest_model_of_which_there_was_a_sum():
    """Changes shrink as a run goes on; a late sum, of devices that began long ago, says nothing of the next."""
    first = aged(koinon.FedBuff(), Sum(), at(8), 5, NEWEST, None).tuning
    assert Tuning.decode(first) == Tuning(
        devices=2, weight=5, rms={"param": 0.25}, steps={"param": 0.5}, model=5
    )
    for version, kept in ((4, True), (5, False), (6, False)):
        known = Tuning(devices=9, weight=9, rms={"param": 1.0}, model=5).encoded
        made = aged(koinon.FedBuff(), Sum(), at(8), version, NEWEST, None, known).tuning
        assert (made == known) == kept


# -- what does not go together ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"keys": "early"}, "nobody waits for the slowest of them; use keys = 'ready'"),
        ({"groups": 2, "buffer": 6}, "would split the buffer of 6 updates"),
        ({"buffer": 8, "concurrency": 7}, "concurrency = 7 devices at work are fewer than the buffer of 8"),
        ({"buffer": 8, "concurrency": 0, "max_clients": 7}, "max_clients = 7 devices at work are fewer"),
        ({"min_clients": 4}, "min_clients = 4 is more than the buffer of 3"),
        ({"min_clients": 2}, "too few for a secure sum"),
        ({"strategy": koinon.Scaffold(), "population": 9}, "Scaffold keeps a state on devices"),
        ({"strategy": koinon.chain(koinon.FedAvg(), koinon.Krum(f=1))}, "Krum looks at single updates"),
        ({"retention": "keep"}, "would keep what single devices sent"),
    ],
)
def test_what_a_secure_asynchronous_run_cannot_have_is_refused_in_one_sentence(settings, why):
    with pytest.raises(UsageError, match=why):
        spec(**{"retention": "none", **settings}).check()
