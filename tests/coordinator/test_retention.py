"""What is kept of a run: all that replay needs for as long as the policy says, and nothing older."""

import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from koinon_coordinator.retention import Kept
from koinon_coordinator.store import ModelVersion


@dataclass
class Policy:
    """What of a RunSpec `Kept` looks at."""

    updates_kept: float
    models_kept: float
    reach: int = 0
    secure: bool = False


OUTCOMES = st.lists(st.sampled_from(["closed", "abandoned", "unheard", "evaluated"]), max_size=14)
KEPT = st.sampled_from([0, 1, 2, 3, 5, math.inf])


def base(made, number):
    """The round that made what round `number` stands on."""
    return max(r for r in made if r < number)


@given(OUTCOMES, KEPT, KEPT)
def test_what_replay_needs_is_there_and_nothing_older(outcomes, updates, models):
    policy = Policy(updates, models)
    kept = Kept((), (ModelVersion(0, "m0", "s0", "d0"),))
    made, heard, gone = [0], [], set()
    for number, outcome in enumerate(outcomes, 1):
        if outcome != "unheard":
            heard.append(number)
            kept = kept.with_round(number).with_round(number)
        if outcome == "closed":
            made.append(number)
            kept = kept.with_version(ModelVersion(number, f"m{number}", f"s{number}", f"d{number}"))
        kept, scrub = kept.after(policy, number)

        stood_on = {base(made, n) for n in range(max(1, math.floor(max(0, number - models)) + 1), number + 2)}
        states = {base(made, n) for n in range(max(1, math.floor(max(0, number - updates)) + 1), number + 2)}
        assert kept.rounds == tuple(n for n in heard if n > number - updates)
        assert {v.round for v in kept.versions} == stood_on
        assert {v.round for v in kept.versions if v.state and v.down} == stood_on & states
        for n in made[1:]:
            if n > number - min(updates, models):
                assert n in kept.rounds, f"round {n} can be replayed after round {number}"
                assert any(v.round == base(made, n) and v.state for v in kept.versions)
        assert kept.versions[-1] == ModelVersion(made[-1], f"m{made[-1]}", f"s{made[-1]}", f"d{made[-1]}")

        assert not gone & scrub.contents, "nothing goes twice"
        gone |= scrub.contents
        everything = {f"{kind}{n}" for n in made for kind in "msd"}
        left = {name for v in kept.versions for name in (v.digest, v.state, v.down) if name}
        assert gone == everything - left, "what is not kept is scrubbed, to the last content"
        assert kept.after(policy, number)[1].contents == set(), "what is over is over once"


def test_what_devices_still_work_on_is_kept_whatever_the_policy_says():
    """An asynchronous run: somebody works on what round 3 gave it while round 6 closes."""
    kept = Kept((1, 2, 3, 4, 5, 6), tuple(ModelVersion(n, f"m{n}", f"s{n}", f"d{n}") for n in range(7)))
    kept, scrub = kept.after(Policy(0, 0, reach=9), 6, at_work=3)
    assert kept.rounds == (3, 4, 5, 6)
    assert [v.round for v in kept.versions] == [2, 3, 4, 5, 6], (
        "the model of round 2 is what round 3 stood on"
    )
    assert all(v.down for v in kept.versions)
    assert [v.round for v in kept.after(Policy(0, 0, reach=9), 6)[0].versions] == [6]
    assert scrub.updates == (1, 2)


def test_updates_are_kept_for_as_long_as_a_round_that_sums_them():
    kept = Kept((1, 2, 3, 4, 5, 6), (ModelVersion(6, "m6"),))
    assert kept.after(Policy(2, math.inf, reach=3), 6)[0].rounds == (2, 3, 4, 5, 6)


def test_nothing_masked_outlives_its_session_whichever_round_gave_the_work():
    kept = Kept(
        (1, 2, 3),
        (ModelVersion(0, "m0"), ModelVersion(1, "m1"), ModelVersion(2, "m2"), ModelVersion(3, "m3")),
    )
    secure = Policy(0, 0, secure=True)
    for summed, gone in ((True, (1, 2, 3)), (False, ())):  # False: the session of round 3 is under way
        after, scrub = kept.after(secure, 3, at_work=1, summed=summed)
        assert scrub.updates == gone
        assert [v.round for v in after.versions] == [0, 1, 2, 3], "some device still works on the first"
