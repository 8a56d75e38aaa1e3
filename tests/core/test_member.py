"""The device's half of a round: state is committed on COUNTED and on nothing else, whatever order messages come in."""

import random

import pytest

import toy
from koinon_core.round import member as m


def play(*events):
    """(member, all effects) after `events`."""
    state, did = m.Member(), []
    for event in events:
        state, effects = m.step(state, event)
        did += effects
    return state, did


def asked(number=1):
    return m.Asked(toy.terms(number))


def test_a_round_from_offer_to_commit():
    state, did = play(
        m.Offered(), asked(), m.Submitted("d1"), m.Receipted(1, "STAGED"), m.Receipted(1, "COUNTED")
    )
    assert [type(e).__name__ for e in did] == ["Offer", "Begin", "Answer", "Commit"]
    assert state.stage == "idle"


def test_staged_commits_nothing():
    state, did = play(m.Offered(), asked(), m.Submitted("d1"), m.Receipted(1, "STAGED"))
    assert state.stage == "staged"
    assert not any(isinstance(e, m.Commit | m.Drop) for e in did)


def test_after_a_reconnection_the_same_answer_is_sent_again_until_its_fate_is_known():
    state, did = play(m.Offered(), asked(), m.Submitted("d1"), m.Receipted(1, "STAGED"), m.Reconnected())
    assert did[-1] == m.Answer(1, "d1")
    state, effects = m.step(state, m.Receipted(1, "NOT_COUNTED", "late"))
    assert effects == (m.Drop(1, "late"),)
    assert m.step(state, m.Reconnected())[1] == ()


def test_a_cancelled_round_drops_what_is_submitted_late():
    _, did = play(m.Offered(), asked(), m.Interrupted(1, "over"), m.Submitted("d1"))
    assert did[-1] == m.Drop(1, "over")
    assert not any(isinstance(e, m.Answer) for e in did)


def test_giving_up_a_cancelled_round_says_nothing_more():
    _, did = play(m.Offered(), asked(), m.Interrupted(1, "over"), m.GaveUp("DECLINED", ""))
    assert not any(isinstance(e, m.Resign) for e in did)


def test_work_for_the_next_round_waits_for_the_last_ones_receipt():
    state, did = play(m.Offered(), asked(1), m.Submitted("d1"), m.Offered(), asked(2))
    assert did[-1] == m.Answer(1, "d1"), "it asks what became of the update first"
    state, effects = m.step(state, m.Receipted(1, "COUNTED"))
    assert [type(e).__name__ for e in effects] == ["Commit", "Begin"]
    assert state.round == 2


def test_work_for_the_next_round_ends_the_one_under_way():
    state, did = play(m.Offered(), asked(1), asked(2))
    assert isinstance(did[-1], m.Interrupt)
    state, effects = m.step(state, m.Submitted("d1"))
    assert isinstance(effects[0], m.Drop)
    state, effects = m.step(state, m.Offered())
    assert effects == (m.Begin(toy.terms(2)),)


def test_messages_about_other_rounds_change_nothing():
    state, _ = play(m.Offered(), asked(2), m.Submitted("d2"))
    for event in (m.Receipted(1, "COUNTED"), m.Interrupted(1, "x"), asked(1), asked(2)):
        assert m.step(state, event) == (state, ())


@pytest.mark.parametrize("seed", range(200))
def test_every_update_is_settled_exactly_once_in_random_conversations(seed):
    dice = random.Random(seed)
    state, sent, settled, begun = m.Member(), set(), [], []
    newest = 0
    for _ in range(300):
        choices = [m.Offered(), m.Reconnected()]
        if state.stage == "working":
            choices += [m.Submitted(f"d{state.round}")] * 3 + [m.GaveUp("DECLINED", "")]
        if state.stage in ("offered", "sent", "staged", "working"):
            newest += dice.random() < 0.5
            choices.append(asked(newest))
        choices += [
            m.Receipted(dice.randint(0, newest + 1), dice.choice(["STAGED", "COUNTED", "NOT_COUNTED"]), "r"),
            m.Interrupted(dice.randint(0, newest + 1), "over"),
        ]
        state, effects = m.step(state, dice.choice(choices))
        for effect in effects:
            match effect:
                case m.Begin(terms):
                    assert terms.round not in sent | set(settled), "no work that was handed in is done again"
                    begun.append(terms.round)
                case m.Answer(number, digest):
                    assert digest == f"d{number}"
                    assert number not in settled, "nothing is sent after its fate is known"
                    sent.add(number)
                case m.Commit(number):
                    assert number in sent, "nothing is committed that was not sent"
                    settled.append(number)
                case m.Drop(number):
                    settled.append(number)
    assert len(settled) == len(set(settled)), "every update is settled once"
    assert begun == sorted(begun)
