"""The ring of a round: proven where nothing is known, then sized to the last sum, and watched."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon_core.errors import BadBlob, UsageError
from koinon_core.ring.sizing import nmse
from koinon_core.secure.agreement import Agreement
from koinon_core.secure.levels import LEVELS
from koinon_core.secure.parts import Part
from koinon_core.secure.sizing import Tuning, ring_of, step_of
from koinon_core.strategy import FedAvg, Scaffold, Work
from koinon_core.tensors import Tensors
from koinon_core.update import Head
from summing import Federation, error, plus, spec_of

PARAM = Part(name="param", size=50_000, bound=64.0, noisy=True)
NUMBERS = Part(name="numbers", size=9, bound=2.0**20, rule="sum")


def ring(level="balanced", devices=10, max_weight=64, clip=16.0, tuning=None, part=PARAM):
    return ring_of(
        (part, NUMBERS), LEVELS[level], devices=devices, max_weight=max_weight, clip=clip, tuning=tuning
    )


def last(devices=10, weight=320, rms=1e-3, step=None):
    steps = {} if step is None else {"param": step}
    return Tuning(devices=devices, weight=weight, rms={"param": rms}, steps=steps)


def sized(level, devices, tuning, max_weight=64):
    """The ring's rotated group, and its range in sigmas of the sum that it is sized for."""
    group = ring(level, devices, max_weight, tuning=tuning).groups[0]
    sigma = (
        tuning.rms["param"] * tuning.weight / tuning.devices * devices / 2.0 ** (max_weight - 1).bit_length()
    )
    return group, 2.0 ** (group.bits - 1) * step_of(group) / sigma


@pytest.mark.parametrize("level", ["balanced", "fine", "compact"])
@pytest.mark.parametrize("devices", [3, 100, 1024])
@pytest.mark.parametrize("clip", [2.0**-30, 1e-3, 16.0, 1e4])
def test_the_first_round_is_wide_and_provably_never_wraps(level, devices, clip):
    group = ring(level, devices, clip=clip).groups[0]
    assert (group.bits, group.wraps) == (32, 0.0)
    assert devices * group.most < 2.0**31
    if clip > 1:
        assert devices * group.most > 2.0**30.8, "and no finer than it must be"


@given(
    st.sampled_from(["balanced", "fine", "compact"]), st.integers(3, 2000), st.floats(1e-9, 10.0),
    st.integers(1, 64),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_tuned_round_has_room_and_an_error_below_its_levels(level, devices, rms, weight):
    tuning = last(devices, devices * weight, rms)
    group, c = sized(level, devices, tuning)
    if group.grid == 40:
        return  # finer than a ring's steps are
    assert nmse(devices, group.bits, c) <= 1.5 * LEVELS[level].error
    # It takes a sum a quarter larger than the last before more wrap than four times what is stated.
    assert math.erfc(c / 1.25 / math.sqrt(2)) < 4 * group.wraps
    assert math.erfc(c / 4.2 / math.sqrt(2)) > 4 * group.wraps


def test_bits_are_the_levels_and_more_where_more_devices_come():
    bits = {
        n: [sized(level, n, last(n, n))[0].bits for level in LEVELS if level != "exact"]
        for n in (10, 100, 1000, 5000)
    }
    assert bits == {10: [8, 12, 8], 100: [8, 12, 8], 1000: [10, 13, 9], 5000: [11, 14, 10]}


def test_a_sum_of_more_devices_than_the_last_has_a_wider_range():
    few, many = (sized("fine", n, last(10, 320))[0] for n in (10, 20))
    assert step_of(many) * 2.0**many.bits == pytest.approx(2 * step_of(few) * 2.0**few.bits, rel=0.3)


def test_steps_grow_by_no_more_than_two_and_bits_make_up_for_the_rest():
    before, _ = sized("balanced", 10, last())
    after, d = sized("balanced", 10, last(rms=1e-2, step=step_of(before)))
    assert step_of(after) <= 2 * step_of(before) < step_of(after) * 2
    assert after.bits > before.bits
    assert d > 4
    free, _ = sized("balanced", 10, last(rms=1e-2))
    assert (free.bits, step_of(free) > 4 * step_of(before)) == (8, True)


def test_a_sum_of_nothing_is_followed_by_a_wide_round():
    assert ring(tuning=last(rms=0.0)) == ring(tuning=None)


@pytest.mark.parametrize("rms", [1e-300, 1e-30, 1e-12])
def test_a_sum_of_almost_nothing_has_the_finest_steps_that_there_are(rms):
    group = ring(tuning=last(rms=rms)).groups[0]
    assert group.grid >= 36
    assert group.bits == 8


def test_a_sum_that_no_ring_holds_is_refused_in_a_sentence():
    with pytest.raises(UsageError, match="the last sum of group 'param' was too large for any ring"):
        ring(tuning=last(rms=1e12))
    with pytest.raises(UsageError, match="clip = 1e"):
        ring(clip=1e9, devices=100)


def test_exact_groups_have_the_finest_grid_on_which_their_sum_fits():
    for devices, max_weight in ((3, 1), (10, 64), (1024, 1 << 16)):
        made = ring("exact", devices, max_weight)
        param, numbers = made.groups
        assert (param.bits, param.grid, param.rotated) == (64, 24, False)
        assert devices * (2.0**20 * 2**numbers.grid + 1) < 2.0**63
        assert numbers.grid == 40 or devices * (2.0**20 * 2 ** (numbers.grid + 1) + 1) >= 2.0**63
        assert made.subset == 1
    with pytest.raises(UsageError, match="does not fit in 64 bits in group 'param': lower max_examples"):
        ring("exact", 1 << 16, 1 << 20)


def test_what_is_carried_from_round_to_round_comes_back_from_its_text():
    tuning = last(step=0.25)
    assert Tuning.decode(tuning.encoded) == tuning
    assert Tuning.decode("") is None
    assert json.loads(tuning.encoded)["version"] == 1


@pytest.mark.parametrize(
    "text",
    ["{}", "5", "[]", "{", '{"version":1}', '{"version":2,"devices":1,"weight":1,"rms":{}}',
     '{"version":1,"devices":0,"weight":1,"rms":{}}', '{"version":1,"devices":1,"weight":1,"rms":{"w":-1}}',
     '{"version":1,"devices":1,"weight":1,"rms":{"w":NaN}}', '{"version":1,"devices":1,"weight":1,"rms":{"w":"x"}}',
     '{"version":1,"devices":1,"weight":1,"rms":[]}', '{"version":1,"devices":1,"weight":1,"rms":{},"x":1}',
     "[" * 100_000],
    ids=lambda t: t[:40],
)  # fmt: skip
def test_any_other_text_is_refused(text):
    with pytest.raises(BadBlob, match="not the sizes of a secure round's sum"):
        Tuning.decode(text)


# -- over many rounds -----------------------------------------------------------------------------------------

MODEL = {"w": np.zeros((100, 130), np.float32), "b": np.zeros(50, np.float32)}
NOISY = ("w", "b")


def rounds(codec, devices, scales):
    """The error of each round's sum, for updates of these sizes."""
    fed = Federation(spec_of(FedAvg(), MODEL, codec=codec, clip=1e4), Tensors(MODEL))
    draw = np.random.default_rng(11)
    shared = {n: draw.standard_normal(MODEL[n].shape) * s for n, s in (("w", 1e-2), ("b", 1.0))}
    found = []
    for scale in scales:
        terms, made, wanted = fed.terms(devices), {}, 0.0
        for i in range(devices):
            change = {
                n: ((a + draw.standard_normal(a.shape) * 1e-2) * scale).astype(np.float32)
                for n, a in shared.items()
            }
            weight = 1 + i % 7
            # As the device measures it: what it began with is rounded to float32, too.
            end = plus(fed.model, change)
            wanted = wanted + weight * np.concatenate(
                [(end[n].astype(float) - fed.model[n]).ravel() for n in NOISY]
            )
            made[f"d{i}"] = fed.prepare(f"d{i}", terms, end, Head(examples=weight))
        before = fed.model
        total, _ = fed.close(terms, made)
        assert before.keys() == fed.model.keys()
        step = np.concatenate([total.values(f"delta/{n}", 0) for n in NOISY]).astype(float)
        found.append(error(step, wanted / total.weight))
    return found


DRIFTS = {
    "shrinking": [0.85**r for r in range(20)],
    "growing": [1.2**r for r in range(20)],
    "up and down": [1.0 + 0.25 * math.sin(r) for r in range(20)],
}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize(
    ("codec", "devices", "within"), [("balanced", 20, 0.01), ("fine", 100, 3e-4), ("compact", 20, 7.5)]
)
def test_twenty_rounds_of_updates_that_change_in_size_never_overflow(drift, codec, devices, within):
    found = rounds(codec, devices, DRIFTS[drift])
    assert max(found) < within


@pytest.mark.parametrize("factor", [0.97, 1.0, 1.1])
def test_eight_bits_are_enough_for_sixty_four_devices(factor):
    assert max(rounds("balanced", 64, [factor**r for r in range(12)])) < 0.01


@pytest.mark.parametrize("codec", ["balanced", "fine", "compact"])
def test_a_sum_three_times_as_large_as_the_last_is_an_overflow_and_makes_no_model(codec):
    with pytest.raises(
        BadBlob, match=r"^overflowed: the sum of 'param' is larger than the round was sized for"
    ):
        rounds(codec, 64 if codec == "balanced" else 100, [1.0, 1.0, 1.0, 6.0])


def test_one_device_that_doubles_the_sum_is_noticed():
    fed = Federation(spec_of(FedAvg(), MODEL, max_examples=64), Tensors(MODEL))
    draw = np.random.default_rng(0)
    made = {
        f"d{i}": {n: (draw.standard_normal(a.shape) * 1e-2).astype(np.float32) for n, a in MODEL.items()}
        for i in range(30)
    }
    fed.learn(made)
    fed.learn(made)
    model = fed.model
    made["d7"] = {n: a * 20 for n, a in made["d7"].items()}
    with pytest.raises(BadBlob, match=r"^overflowed"):
        fed.learn(made)
    assert fed.model is model
    fed.tuning = ""
    fed.learn(made)
    assert fed.model is not model, "and a wide round takes it"


def test_every_group_has_a_step_of_its_own():
    fed = Federation(spec_of(Scaffold(option=1), MODEL, population=5), Tensors(MODEL))
    for number in range(2):
        terms, made = fed.terms(4), {}
        for i in range(4):
            draw = np.random.default_rng(10 * number + i)
            gradient = Tensors(
                {n: (draw.standard_normal(a.shape) * 0.3).astype(np.float32) for n, a in MODEL.items()}
            )
            end = plus(fed.model, {n: draw.standard_normal(a.shape) * 1e-3 for n, a in MODEL.items()})
            work = Work(examples=3, steps=1, results={"gradient": gradient})
            made[f"d{i}"] = fed.prepare(f"d{i}", terms, end, Head(examples=3), work)
        fed.close(terms, made)
    steps = {g.name: step_of(g) for g in Agreement.of(fed.terms(4)).ring.groups if g.rotated}
    assert steps["extra/control"] / steps["param"] == pytest.approx(300 * 2**0.5, rel=0.3)


def test_what_is_averaged_beside_the_delta_may_be_as_much_longer_as_its_values_may_be_larger():
    extra = Part(name="extra/control", size=50_000, bound=1024.0, noisy=True)
    made = ring_of((PARAM, extra, NUMBERS), LEVELS["fine"], devices=10, max_weight=1, clip=2.0, tuning=None)
    assert [g.bound for g in made.groups] == [2.0, 32.0, NUMBERS.bound]
