"""How the devices of a round are gathered and drawn: the run's machine, fact by fact."""

from dataclasses import replace

import numpy as np
import pytest

import koinon
from koinon_core import run as runs
from koinon_core.flow.best import Found
from koinon_core.round import effects
from koinon_core.round.machine import rebuild
from koinon_core.run.ending import watching
from koinon_core.selection import Seen

NAMES = [f"c{i}" for i in range(6)]


class Table:
    """A run and its devices; `feed` answers the machine's orders, but for the sum."""

    def __init__(self, selection, **settings):
        given = {
            "aggregation": "open",
            "min_clients": 2,
            "clients": 2,
            "join_wait": 5.0,
            "evaluate": False,
            **settings,
        }
        spec = koinon.Run("t", model={"w": np.zeros(2)}, rounds=300, selection=selection, **given).spec
        self.run, self.now, self.asked, self.stored = runs.Run(id="r", spec=spec, model="m0"), 0.0, [], {}
        self.do(runs.start(self.run))

    def feed(self, fact):
        self.do(runs.step(self.run, fact))

    def do(self, moved):
        self.run = moved.run
        self.stored.setdefault(self.run.number, []).extend(moved.records)
        for order in moved.orders:
            if isinstance(order, runs.Open):
                self.feed(runs.Opening(self.now, "00"))
            if isinstance(order, effects.Ask):
                self.asked.append((self.run.number, order.client))

    def offer(self, *names, evaluates=True, **traits):
        for name in names:
            self.feed(runs.Offered(self.now, name, evaluates, **traits))

    def tick(self, at):
        self.now = at
        self.feed(runs.Tick(at))

    def close(self, losses=None):
        """Everybody answers, and the sum is taken; then they offer themselves again."""
        number, those = self.run.number, sorted(self.run.round.update.asked)
        for client in those:
            self.feed(runs.Answered(self.now, client, number, f"d{client}"))
        seen = {c: Seen(int(c[1:]) + 1, (losses or {}).get(c)) for c in those}
        self.feed(runs.Folded(self.now, number, f"m{number}", seen=seen, evaluated=len(seen)))
        self.offer(*those)
        return those

    @property
    def drawn(self):
        return sorted(c for n, c in self.asked if n == self.run.number)


def test_a_round_is_drawn_when_all_that_are_expected_are_here():
    table = Table({"rule": "weighted"}, population=6)
    table.offer(*NAMES[:5])
    assert table.run.round is None
    assert table.run.waiting_for == "round 1 waits a moment for more devices: 5 are ready"
    table.offer(NAMES[5])
    assert len(table.drawn) == 2
    assert rebuild(table.stored[1]) == table.run.round


def test_a_round_is_drawn_of_those_who_are_here_when_the_wait_is_over():
    table = Table({"rule": "weighted"}, population=6)
    table.offer("c0")
    assert table.run.waiting_for == "round 1 waits for devices: 1 of at least 2 are ready"
    assert table.run.wakes_at is None
    table.offer("c1", "c2")
    assert table.run.wakes_at == 5.0
    table.tick(4.9)
    assert table.run.round is None
    table.tick(5.0)
    assert set(table.drawn) < {"c0", "c1", "c2"}


def test_the_same_devices_are_drawn_in_whatever_order_they_come():
    drawn = []
    for names in (NAMES, NAMES[::-1]):
        table = Table({"rule": "weighted"}, population=6)
        table.offer(*names)
        for _ in range(10):
            drawn.append(table.drawn)
            table.close()
    assert drawn[:10] == drawn[10:]
    assert len(set(map(tuple, drawn))) > 3


def test_a_wait_that_lost_its_quorum_begins_again():
    table = Table({"rule": "weighted"}, population=6)
    table.offer("c0", "c1")
    table.feed(runs.Gone(1.0, "c1"))
    assert table.run.wakes_at is None
    table.tick(9.0)
    table.offer("c2")
    assert table.run.wakes_at == 14.0


def test_who_still_works_on_the_last_round_is_not_waited_for():
    table = Table({"rule": "weighted"}, population=6, deadline=30.0, min_clients=1, lease=1000.0)
    table.offer(*NAMES)
    slow, quick = table.drawn
    table.feed(runs.Answered(1.0, quick, 1, "d"))
    table.tick(30.0)
    table.feed(runs.Folded(30.0, 1, "m1"))
    assert table.run.gather.expected == 5
    table.offer(quick)
    assert table.run.number == 2
    assert slow not in table.drawn


def test_who_declined_is_waited_for_as_it_comes_back_at_once():
    table = Table({"rule": "weighted"}, population=6, min_clients=1)
    table.offer(*NAMES)
    one, other = table.drawn
    table.feed(runs.Resigned(0.0, one, 1, "DECLINED"))
    table.feed(runs.Answered(0.0, other, 1, "d"))
    table.feed(runs.Folded(0.0, 1, "m1"))
    table.offer(other)
    assert (table.run.gather.expected, table.run.number) == (6, 1)
    table.offer(one)
    assert table.run.number == 2


def test_heavier_devices_are_drawn_more_often():
    table = Table({"rule": "weighted"}, population=6)
    for i, name in enumerate(NAMES):
        table.feed(runs.Offered(0.0, name, labels={"weight": str(1 + 19 * (i == 0))}))
    often = 0
    for _ in range(40):
        often += "c0" in table.drawn
        number, those = table.run.number, table.drawn
        for client in those:
            table.feed(runs.Answered(0.0, client, number, "d"))
        table.feed(runs.Folded(0.0, number, f"m{number}"))
        for client in those:
            table.feed(runs.Offered(0.0, client, labels={"weight": "20" if client == "c0" else "1"}))
    assert often >= 36


def test_over_selection_draws_more_and_waits_for_the_first():
    table = Table({"rule": "weighted"}, population=6, over_selection=2.0)
    table.offer(*NAMES)
    assert len(table.drawn) == 4
    assert table.run.round.goal == 2


def test_where_fewer_are_here_than_would_be_asked_nobody_waits_again():
    table = Table({"rule": "weighted"}, population=6, over_selection=2.0)
    table.offer(*NAMES[:3])
    table.tick(5.0)
    assert table.drawn == NAMES[:3]
    assert table.run.round.goal == 2


def test_a_coin_decides_for_each_device_and_a_short_draw_is_drawn_again():
    table = Table({"rule": "poisson", "q": 0.34}, population=6, clients=None)
    table.offer(*NAMES)
    sizes, short = [], 0
    while len(sizes) < 30:
        sizes.append(len(table.drawn))
        assert table.run.round.goal == sizes[-1] >= 2
        before = table.run.number
        table.close()
        short += table.run.number - before - 1
    assert len(set(sizes)) > 2
    assert short > 5
    assert table.run.streak == 0
    abandoned = [e for events in table.stored.values() for e in events if type(e).__name__ == "Unfoldable"]
    assert len(abandoned) >= short
    assert "of 6 devices, and min_clients needs 2: another is drawn" in abandoned[0].reason


def test_a_poisson_draw_waits_until_it_is_worth_its_round():
    table = Table({"rule": "poisson", "q": 0.5}, population=6, clients=None)
    table.offer(*NAMES[:3])
    assert table.run.waiting_for == "round 1 waits for devices: 3 of at least 4 (at q = 0.5) are ready"
    table.tick(1e6)
    assert table.run.round is None


def test_power_of_choice_asks_d_devices_and_takes_the_largest_losses():
    table = Table({"rule": "power-of-choice", "d": 4}, population=6)
    table.offer(*NAMES)
    assert table.run.round.terms.kind == "evaluate"
    asked = table.drawn
    assert len(asked) == 4
    losses = dict(zip(asked, (0.1, 3.0, None, 2.0), strict=True))
    table.close(losses)
    assert (table.run.number, table.run.closed, table.run.round.terms.kind) == (2, 0, "train")
    assert table.drawn == sorted([asked[1], asked[3]])
    table.close()
    assert (table.run.number, table.run.closed, table.run.round.terms.kind) == (3, 1, "evaluate")
    assert table.run.scores == {}


def test_a_device_that_does_not_evaluate_is_never_a_candidate_and_why_says_so():
    table = Table({"rule": "power-of-choice", "d": 4}, population=6)
    table.offer(*NAMES[:5], evaluates=False)
    table.offer("c5")
    table.tick(100.0)
    assert table.run.round is None
    assert "5 attached may not be in it: c0 (it does not evaluate: session.tasks(model, evaluate=...))" in (
        table.run.waiting_for
    )


def test_candidates_that_do_not_come_back_are_replaced_by_others():
    table = Table({"rule": "power-of-choice", "d": 3}, population=6)
    table.offer(*NAMES)
    asked, number = table.drawn, table.run.number
    for client in asked:
        table.feed(runs.Answered(0.0, client, number, "d"))
    table.feed(runs.Folded(0.0, number, "m0", seen={c: Seen(0, 1.0) for c in asked}, evaluated=3))
    table.offer(asked[0])
    for client in asked[1:]:
        table.feed(runs.Gone(0.0, client))
    assert table.run.wakes_at == 5.0
    table.tick(5.0)
    assert table.run.round.terms.kind == "evaluate"
    assert not set(table.drawn) & set(asked[1:])


def test_a_draw_of_those_who_were_asked_tells_a_new_coordinator_nothing_of_the_others():
    table = Table({"rule": "power-of-choice", "d": 3}, population=6)
    table.run = replace(table.run, number=1, gather=None, scores={"c0": 1.0, "c1": 2.0, "c2": 3.0})
    table.do(runs.start(table.run))
    table.offer("c0", "c1", "c2")
    assert table.drawn == ["c1", "c2"]
    table.close()
    assert table.run.gather.expected == 6
    table.offer("c3", "c4", "c5")
    assert len(table.drawn) == 3


def test_the_latest_losses_choose_where_they_are_reported_and_new_devices_come_first():
    table = Table({"rule": "power-of-choice", "d": 6, "loss": "latest"}, population=6)
    table.offer(*NAMES)
    losses = {"c0": 1.0, "c1": 5.0, "c2": 2.0, "c3": 4.0, "c4": 3.0}
    met = set()
    for _ in range(3):  # until all six were seen
        met |= set(table.drawn)
        table.close(losses)
    assert met == set(NAMES)
    assert table.drawn == ["c1", "c3"]
    table.close({"c1": 0.5, "c3": 4.0})
    assert table.drawn == ["c3", "c4"]
    assert "c5" in table.run.seen  # it was counted and reported none: it comes last


def test_examples_of_earlier_rounds_weigh_and_new_devices_weigh_as_the_others_do():
    table = Table({"rule": "weighted", "by": "examples"}, population=6)
    table.offer(*NAMES)
    for _ in range(200):
        table.close()
    found = {c: sum(client == c for n, client in table.asked if n > 20) for c in ("c0", "c5")}
    assert found["c5"] > 2 * found["c0"] > 0


@pytest.mark.parametrize("rule", [{}, {"rule": "weighted"}], ids=str)
def test_who_does_not_match_is_never_in_a_round(rule):
    table = Table({**rule, "labels": {"site": "ward-*"}, "at_least": {"memory_mb": 4096}})
    table.offer("c0", labels={"site": "lab"}, able={"memory_mb": 8192.0})
    table.offer("c1", labels={"site": "ward-7"}, able={"memory_mb": 2048.0})
    table.offer("c2", labels={"site": "ward-7"}, able={"memory_mb": 4096.0})
    assert "1 of at least 2" in table.run.waiting_for
    assert (
        "2 attached may not be in it: c0 (its label site is 'lab', not 'ward-*'), c1 (it says that it has memory_mb = "
        "2048, and 4096 is the least)"
    ) in table.run.waiting_for
    table.offer(
        "c0", labels={"site": "ward-1"}, able={"memory_mb": 8192.0}
    )  # an operator wrote another label on it
    table.tick(5.0)
    assert table.drawn == ["c0", "c2"]


def test_a_device_whose_label_changed_leaves_the_round_that_it_waits_for():
    table = Table({"labels": {"site": "a"}}, clients=None)
    table.offer("c0", labels={"site": "a"})
    table.offer("c1", labels={"site": "a"})
    assert table.run.round.joined.heard.keys() == {"c0", "c1"}
    table.feed(runs.Labelled(0.0, "c0", {"site": "b"}))
    assert table.run.round.joined.heard.keys() == {"c1"}
    assert table.run.round.joined.deadline is None
    table.feed(runs.Labelled(0.0, "c0", {"site": "a"}))
    assert table.run.round.joined.heard.keys() == {"c0", "c1"}
    table.offer("c0", labels={"site": "b"})
    assert table.run.round.joined.heard.keys() == {"c1"}
    table.feed(runs.Labelled(0.0, "c9", {"site": "a"}))  # which is not here
    assert table.run.devices.keys() == {"c0", "c1"}
    assert rebuild(table.stored[1]) == table.run.round


def test_a_label_that_is_written_while_devices_are_gathered_counts_in_the_draw():
    table = Table({"rule": "weighted", "labels": {"site": "a"}}, population=3)
    table.offer("c0", "c1", "c2", labels={"site": "b"}, able={"cores": 2.0})
    assert "3 attached may not be in it" in table.run.waiting_for
    for name in ("c0", "c2"):
        table.feed(runs.Labelled(0.0, name, {"site": "a"}))
    assert table.drawn == ["c0", "c2"]


def test_a_label_that_is_written_while_a_device_works_makes_it_no_readier():
    table = Table({"rule": "weighted", "labels": {"site": "a"}}, population=2)
    table.offer("c0", "c1", labels={"site": "a"})
    assert table.drawn == ["c0", "c1"]
    table.feed(runs.Labelled(0.0, "c0", {"site": "a", "weight": "2"}))
    assert not table.run.devices["c0"].ready
    assert table.run.round.update.asked == {"c0", "c1"}


def test_a_run_that_is_paused_draws_nobody():
    table = Table({"rule": "weighted"}, population=6)
    table.offer(*NAMES[:3])
    table.feed(runs.Paused(0.0))
    table.offer(*NAMES[3:])
    table.tick(100.0)
    assert table.run.round is None
    table.feed(runs.Resumed(100.0))
    assert len(table.drawn) == 2


def test_a_coordinator_that_has_just_begun_waits_for_everybody():
    table = Table({"rule": "weighted"}, population=6)
    table.offer(*NAMES)
    expected = []
    for _ in range(3):
        table.close()
        expected.append(table.drawn)
    again = Table({"rule": "weighted"}, population=6)
    again.run = replace(again.run, number=1, closed=1, gather=None)  # as it is read from a database
    again.do(runs.start(again.run))
    again.offer(*NAMES[::-1])
    assert again.run.number == 2
    assert again.drawn == expected[0]


def test_an_early_stop_while_devices_gather_ends_the_run():
    best = {"metric": "central.loss", "patience": 1}
    table = Table({"rule": "weighted"}, population=6, best=best)
    table.offer(*NAMES)
    table.offer = lambda *names: None  # nobody comes back for more
    table.close()
    assert table.run.gather is not None
    table.feed(runs.Measured(0.0, 1, 1.0))
    table.feed(runs.Measured(0.0, 2, 2.0))
    assert table.run.status == "finished"
    assert "no better in 1 measurements than 1 of round 1" in table.run.reason


def test_a_model_that_is_asked_about_again_counts_once():
    """An abandoned round makes the same model be asked about again: that says nothing of how runs get on."""
    run = Table({"rule": "weighted"}, best={"metric": "eval.loss", "patience": 2}).run
    for measured in [(0, 5.0), (0, 5.5), (0, 6.0), (2, 3.0), (2, 4.0)]:
        run = watching(run, measured)
    assert run.best == Found(4.0, 2)
    assert run.trains
