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
