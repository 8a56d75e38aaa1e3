"""The chain of what was counted, what devices make of it, and the audit log."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import koinon
import toy
from koinon_core import audit
from koinon_core import run as runs
from koinon_core.audit import Entry
from koinon_core.canonical import digest_of
from koinon_core.history import Pin, Standing, extend, judge, judge_standing, link_of, walk
from koinon_core.round import events
from koinon_core.round.machine import rebuild
from koinon_core.round.terms import Terms

# -- the chain ------------------------------------------------------------------------------------------------


def a_round(at: float = 0.0, *, incarnation: str = "00", digest: str = "d", order: str = "ab", **folded: str):
    """A closed round of two devices."""
    terms = toy.terms(1, goal=2, quorum=2, incarnation=incarnation)
    heard = [events.Heard(at + 2, c, "update", f"{digest}-{c}") for c in order]
    made = {"model": "m", "state": "s", "sum": "x", **folded}
    return rebuild(
        [
            events.Opened(at, terms),
            *(events.Heard(at + 1, c, "joined") for c in "ab"),
            *heard,
            events.Folded(at + 3, **made),
        ]
    )


def test_a_link_knows_no_time_no_order_and_no_chance():
    assert link_of(a_round()) == link_of(a_round(1e9, incarnation="ff", order="ba"))


@pytest.mark.parametrize("other", [{"digest": "e"}, {"model": "n"}, {"state": "t"}, {"sum": "y"}])
def test_a_link_knows_every_fact(other):
    assert link_of(a_round()) != link_of(a_round(**other))


LINKS = st.dictionaries(st.integers(1, 40), st.text("abcdef0123456789", min_size=4, max_size=4), max_size=20)


@given(LINKS, st.integers(1, 40))
def test_walking_in_two_steps_is_walking_in_one(links, middle):
    there = walk("start", links, 1, middle)
    assert walk(there, links, middle, 41) == walk("start", links, 1, 41)


def terms(round_: int, head: str = "", **values) -> Terms:
    return toy.terms(round_, head=head, **values)


@given(LINKS, st.integers(1, 30), st.integers(0, 10), st.randoms())
def test_a_device_follows_what_goes_on_from_what_it_saw_and_nothing_else(links, seen, further, dice):
    before = walk("genesis", links, 1, seen)
    pin = Pin().move(terms(seen, before, incarnation="i1"), 1)
    now = seen + further + 1
    honest = terms(now, walk("genesis", links, 1, now), incarnation="i2")
    proof = {n: link for n, link in links.items() if n >= seen}
    assert judge(pin, honest, proof) == ("follow", "")
    assert judge(pin, terms(seen, before, incarnation="i1"), {})[0] == "follow", (
        "asked again after a reconnection"
    )
    standing = Standing(round=now, head=honest.head)
    assert judge_standing(pin, standing, {n: d for n, d in proof.items() if n < now}) == ""
    inside = [n for n in proof if n < now]
    if inside:  # one link of them is another one: another history
        n = dice.choice(inside)
        forged = {**links, n: digest_of("forged")}
        other = terms(now, walk("genesis", forged, 1, now))
        assert judge(pin, other, {k: v for k, v in forged.items() if k >= seen})[0] == "follow", (
            "forged after the pin"
        )
        assert judge(pin, other, proof)[0] == "prove"
        assert judge_standing(pin, Standing(round=now, head=other.head), proof)


def test_an_older_database_is_refused():
    pin = Pin().move(terms(17, "h16", incarnation="i"), 3)
    assert judge(pin, terms(15, "h14"), {})[0] == "refuse"
    assert judge(pin, terms(17, "h16", incarnation="other"), {}) == ("refuse", "round 17 was opened twice")
    assert "knows 15 rounds" in judge_standing(pin, Standing(round=15, head="h14"), {})
    assert judge_standing(pin, Standing(round=17, head="h16"), {}) == ""
    assert judge_standing(pin, Standing(round=17, head="other"), {}) != ""


def test_a_recovered_run_is_followed_above_what_the_device_saw():
    pin = Pin().move(terms(17, "h16"), 3)
    assert judge(pin, terms(18, "other", recovery=1), {})[0] == "follow"
    assert judge(pin, terms(17, "other", recovery=1), {})[0] == "refuse", (
        "nobody takes part in one round twice"
    )
    recovered = pin.move(terms(18, "other", recovery=1), 3)
    assert judge(recovered, terms(19, "h18"), {})[0] == "refuse", "the run before its recovery"
    assert judge_standing(recovered, Standing(round=40, head="h"), {}) != ""


def test_a_device_without_a_memory_follows_anybody():
    assert judge(Pin(), terms(5, "h4"), {})[0] == "follow"
    assert judge_standing(Pin(), Standing(), {}) == ""


def test_a_pin_survives_json_and_fields_of_a_later_version():
    pin = Pin(round=3, incarnation="i", head="h", recovery=1, epoch=9)
    assert Pin.from_json({**pin.to_json(), "later": 1}) == pin


def test_the_terms_of_an_older_version_keep_their_digest():
    """Rounds that were opened before there were histories are still open under the digest that devices have."""
    old = terms(3)
    assert b"head" not in old.encoded
    assert b"recovery" not in old.encoded
    newer = old.encoded.replace(b'"kind"', b'"kin":7,"kind"')
    assert Terms.decode(newer).digest != old.digest, "what is agreed to is what came"
    assert Terms.decode(newer).round == 3


# -- the audit log --------------------------------------------------------------------------------------------


def log(n: int = 4) -> list[Entry]:
    """A log of a run with `n` rounds."""
    entries, head = [], "genesis"

    def enter(kind: str, about: dict) -> None:
        last = entries[-1] if entries else Entry(0, b"", "")
        entries.append(audit.append(last.number, last.hash, 1.5 * len(entries), kind, about))

    enter("created", {"head": head, "model": "m"})
    for number in range(1, n + 1):
        facts = {"round": number, "accepted": [["a", "d"]]}
        head = extend(head, digest_of(facts))
        enter("opened", {"round": number})
        enter("ended", {"facts": facts, "head": head, "reason": ""})
    return entries


def test_a_log_holds():
    report = audit.verify(log())
    assert (report.problems, report.entries, report.rounds) == ([], 9, 4)
    assert report.head == log()[-1].value["head"]


@given(st.integers(0, 8), st.integers(0, 200), st.integers(0, 7))
def test_no_bit_of_a_log_can_be_changed(entry, byte, bit):
    entries = log()
    text = bytearray(entries[entry].text)
    text[byte % len(text)] ^= 1 << bit
    entries[entry] = replace(entries[entry], text=bytes(text))
    assert audit.verify(entries).problems


@given(st.integers(0, 8))
def test_no_entry_can_be_left_out_or_doubled(entry):
    entries = log()
    missing = audit.verify(entries[:entry] + entries[entry + 1 :])
    assert missing.problems or missing.entries == 8, (
        "only the last one goes unnoticed: that is what heads are pinned for"
    )
    assert audit.verify(entries[: entry + 1] + entries[entry:]).problems


def test_a_log_that_was_written_anew_does_not_have_the_heads_that_its_facts_make():
    entries = log()
    value = entries[4].value
    value["facts"]["accepted"] = [["mallory", "d"]]
    for key in ("at", "kind", "number"):
        value.pop(key)
    forged = audit.append(entries[3].number, entries[3].hash, 6.0, "ended", value)
    (problem,) = audit.verify([*entries[:4], forged]).problems
    assert "does not follow from its facts" in problem


# -- the run machine ------------------------------------------------------------------------------------------


def a_run(**settings) -> runs.Run:
    given = {"rounds": 5, "min_clients": 2, "clients": 2, "deadline": 30.0, "lease": 8.0, **settings}
    spec = koinon.Run("r", model={"w": np.zeros(2)}, aggregation="open", evaluate=False, **given).spec
    run = runs.start(runs.Run(id="r", spec=spec, model="m0", head="genesis")).run
    for client in "ab":
        run = runs.step(run, runs.Offered(0.0, client)).run
    run = runs.step(run, runs.Opening(1.0, "i1")).run
    assert run.round.stage == "update"
    return run


def close(run: runs.Run, at: float) -> runs.Moved:
    for client in "ab":
        run = runs.step(run, runs.Answered(at, client, run.number, f"d{run.number}")).run
    return runs.step(run, runs.Folded(at, run.number, f"m{run.number}", "", "s", "x"))


def test_who_takes_a_run_up_gives_everybody_a_whole_lease_and_the_round_its_time():
    run = a_run()
    assert run.leases == {"a": 9.0, "b": 9.0}
    moved = runs.step(run, runs.TakenUp(500.0, 490.0))
    assert moved.run.leases == {"a": 508.0, "b": 508.0}
    assert moved.run.round.update.deadline == run.round.update.deadline + 490.0
    assert moved.records == (events.TakenUp(500.0, 490.0),), "and that is stored"
    idle = runs.step(close(run, 5.0).run, runs.TakenUp(500.0, 490.0))
    assert idle.records == (), "what changes nothing is not"


def test_the_head_grows_by_a_link_with_every_round_that_is_over():
    run = a_run()
    moved = close(run, 5.0)
    after = moved.run
    assert list(after.links) == [1]
    assert after.head == extend("genesis", after.links[1])
    opened = runs.step(after, runs.Opening(6.0, "i2")).run
    assert (opened.round.terms.round, opened.round.terms.head) == (2, after.head)
    gone = runs.step(opened, runs.Cancelled(7.0, "enough")).run
    assert gone.head == extend(after.head, gone.links[2]), "an abandoned round is in it too"


def test_a_recovered_run_opens_a_round_that_no_device_has_seen():
    run = a_run()
    for client, number in (("a", 4), ("b", 6)):
        run = runs.step(run, runs.Ahead(2.0, client, number)).run
    assert "2 devices (b first) have seen round 6 of another history" in run.waiting_for
    moved = runs.step(run, runs.Recovered(3.0))
    assert [type(e) for e in moved.records] == [events.Cancelled]
    assert (moved.run.status, moved.run.streak, moved.run.closed) == ("running", 0, 0)
    assert moved.orders[-1] == runs.Open(7)
    opened = runs.step(moved.run, runs.Opening(4.0, "i2")).run
    assert (opened.number, opened.round.terms.recovery, opened.ahead) == (7, 1, {})


def test_a_paused_run_is_recovered_and_stays_paused():
    run = runs.step(a_run(), runs.Paused(2.0)).run
    run = runs.step(run, runs.Recovered(3.0, beyond=9)).run
    assert run.status == "paused"
    assert run.round.stage == "abandoned"
    resumed = runs.step(run, runs.Resumed(4.0))
    assert resumed.orders == (runs.Open(10),)


def test_after_a_restart_the_next_round_waits_for_those_who_were_in_the_last():
    """Without `clients` a round asks all attached devices; right after a restart none of them is back yet."""
    run = a_run()
    run = close(replace(run, spec=replace(run.spec, clients=None)), 5.0).run
    for client in "ab":
        run = runs.step(run, runs.Offered(5.5, client)).run
    run = runs.step(run, runs.Opening(6.0, "i2")).run
    for client in "ab":
        run = runs.step(run, runs.Answered(7.0, client, 2, "d")).run
    restarted = runs.step(replace(run, devices={}), runs.TakenUp(8.0, 1.0)).run
    closed = runs.step(restarted, runs.Folded(8.0, 2, "m2", "", "s", "x")).run
    assert runs.step(closed, runs.Opening(8.0, "i3")).run.round.goal == 2


def test_an_evaluation_expects_those_who_evaluated_and_gives_up_on_them_after_a_lease():
    run = a_run(rounds=1)
    run = replace(run, spec=replace(run.spec, evaluate=True), devices={})
    for client in "ab":
        run = runs.step(run, runs.Answered(5.0, client, 1, "d")).run
    moved = runs.step(run, runs.Folded(6.0, 1, "m1", "", "s", "x", evaluated=2))
    opened = runs.step(moved.run, runs.Opening(6.0, "i2")).run
    assert (opened.round.terms.kind, opened.round.goal, opened.wakes_at) == ("evaluate", 2, 14.0)
    one = runs.step(opened, runs.Offered(7.0, "a", True)).run
    assert one.wakes_at == 9.0, "and no longer than a moment once one is there"
    ended = runs.step(opened, runs.Tick(14.0)).run
    assert (ended.status, ended.round.reason) == ("finished", "waited in vain: 0 of at least 1 came")
    nobody = runs.step(run, runs.Folded(6.0, 1, "m1", "", "s", "x")).run
    assert nobody.status == "finished", "where nobody evaluates there is nothing to wait for"


def test_a_backup_of_the_round_that_counted_the_device_is_older_than_the_device():
    """Number and head are as the device saw them; that the round is over is not known there."""
    pin = Pin().move(terms(2, "h1", incarnation="i"), 1)
    standing = Standing(round=2, head="h1")
    assert judge_standing(pin, standing, {}, settled=1) == ""
    assert "counted in round 2" in judge_standing(pin, standing, {}, settled=2)
    over = Standing(round=3, head=extend("h1", "l2"))
    assert judge_standing(pin, over, {2: "l2"}, settled=2) == ""


def test_a_device_that_follows_again_is_not_counted_among_those_that_stay_away():
    run = runs.step(a_run(), runs.Ahead(2.0, "a", 9)).run
    assert run.ahead == {"a": 9}
    assert runs.step(run, runs.Offered(3.0, "a")).run.ahead == {}
    assert runs.step(run, runs.Gone(3.0, "a")).run.ahead == {}


def test_after_a_recovery_no_device_need_know_what_is_given_up():
    run = runs.step(a_run(), runs.Ahead(2.0, "a", 9)).run
    assert runs.step(run, runs.Recovered(3.0)).run.remembered == 1


def test_a_log_whose_end_was_cut_off_is_not_what_the_run_says():
    entries = log()
    ends = entries[-1].number, entries[-1].hash
    assert audit.verify(entries, ends).problems == []
    (problem,) = audit.verify(entries[:-1], ends).problems
    assert "it ends after entry 8, and 9 were written" in problem
    assert audit.verify(entries, (4, "other")).problems
