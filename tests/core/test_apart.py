"""Robust rules between the sums of groups of a secure round: each group's sum is decoded by itself."""

import weakref
from dataclasses import replace

import numpy as np
import pytest

from koinon_core.errors import BadBlob, UsageError
from koinon_core.ring import Sum
from koinon_core.secure.agreement import Agreement
from koinon_core.secure.apart import Apart, aggregate, sums_needed
from koinon_core.secure.sizing import Tuning
from koinon_core.secure.total import Total
from koinon_core.strategy import (
    NNM,
    CenteredClipping,
    CoordinateMedian,
    FedAdam,
    FedAvg,
    FedAvgUniform,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormBound,
    Prox,
    TrimmedMean,
    chain,
)
from koinon_core.strategy.closing import Into, step
from koinon_core.tensors import Tensors
from koinon_core.tiles import Gather, Held
from koinon_core.update import Head
from summing import Federation, added, plus, spec_of

MODEL = {
    "w": np.zeros((30, 40), np.float32), "b": np.linspace(-1, 1, 7), "bn.running_mean": np.zeros(6, np.float32),
    "bn.running_var": np.ones(6, np.float32),
}  # fmt: skip
GROUPS, SIZE = 5, 3


def federation(strategy=None, **settings):
    given = {"groups": GROUPS, "clients": GROUPS * SIZE, "codec": "exact", **settings}
    return Federation(
        spec_of(strategy or chain(FedAvg(), CoordinateMedian()), MODEL, **given), Tensors(MODEL)
    )


def changes(group, device, lie=0.0):
    draw = np.random.default_rng([group, device])
    common = np.random.default_rng(1)
    made = {}
    for n, a in MODEL.items():
        made[n] = (common.normal(size=a.shape) * 0.02 + draw.normal(size=a.shape) * 0.005 + lie).astype(
            a.dtype
        )
    return made


def told(fed, group, terms, lie=0.0, size=SIZE, scale=1.0):
    """(devices, what each made) of a group."""
    made = {}
    for i in range(size):
        learned = {n: a * scale for n, a in changes(group, i, lie if i == 0 else 0.0).items()}
        head = Head(examples=2 + i + group, training={"loss": float(group)})
        made[f"d{group}-{i}"] = fed.prepare(f"d{group}-{i}", terms, plus(fed.model, learned), head)
    return made


def round_of(fed, liars=(), sizes=(), **values):
    """(terms, the sums of the groups) of a round in which the first device of some groups lies."""
    terms = fed.terms(GROUPS * SIZE, groups=fed.spec.groups, **values)
    every = []
    for group in range(fed.spec.groups):
        made = told(fed, group, terms, 4.0 if group in liars else 0.0)
        every.append((added(terms, (p.blob for p in made.values())), sorted(made)))
    return terms, every


def total_of(fed, terms, every):
    return aggregate(fed.strategy, fed.layout, terms, iter(every), Held(fed.model))


def means(fed, terms, every):
    """What each group's sum says by itself, by section."""
    alone = [Total(fed.strategy, fed.layout, terms, s, d, Held(fed.model)) for s, d in every]
    return {f.name: np.stack([one.values(f.name, 0) for one in alone]) for f in fed.layout.update}


# -- the rule ---------------------------------------------------------------------------------------------------


def test_a_median_is_taken_of_every_coordinate_of_the_groups_means():
    fed = federation()
    terms, every = round_of(fed)
    total = total_of(fed, terms, every)
    for name, rows in means(fed, terms, every).items():
        assert np.array_equal(total.values(name, 0), np.median(rows, axis=0)), name


def test_within_a_group_examples_count_and_between_groups_each_counts_once():
    fed = federation()
    terms, every = round_of(fed)
    for group in range(GROUPS):
        weights = [2 + i + group for i in range(SIZE)]
        ws = np.stack([changes(group, i)["w"].ravel() for i in range(SIZE)])
        wanted = np.average(ws, axis=0, weights=weights)
        assert np.abs(means(fed, terms, every)["delta/w"][group] - wanted).max() < 1e-7
    total = total_of(fed, terms, every)
    assert (total.count, total.weight) == (GROUPS * SIZE, GROUPS)


RULES = {
    "median": (CoordinateMedian(),), "trimmed": (TrimmedMean(f=1),), "krum": (Krum(f=1),),
    "multikrum": (MultiKrum(f=1),), "geometric": (GeometricMedian(),), "centred": (CenteredClipping(tau=1.0),),
    "bound": (NormBound(norm=1.0),), "nnm": (TrimmedMean(f=1), NNM(f=1)), "krum, uniform": (Krum(f=1),),
}  # fmt: skip


@pytest.mark.parametrize("codec", ["exact", "balanced"])
@pytest.mark.parametrize("case", RULES)
def test_every_rule_stands_a_group_with_a_liar(case, codec):
    average = FedAvgUniform() if "uniform" in case else FedAvg()
    fed = federation(chain(average, *RULES[case]), codec=codec, clip=1000)
    honest = means(fed, *round_of(fed))["delta/w"]
    found = total_of(fed, *round_of(fed, liars=[3])).values("delta/w", 0)
    plain = means(fed, *round_of(fed, liars=[3]))["delta/w"].mean(axis=0)
    off = np.linalg.norm(found - honest.mean(axis=0)) / np.linalg.norm(honest.mean(axis=0))
    assert off < 0.6
    assert np.linalg.norm(plain - honest.mean(axis=0)) > 4 * np.linalg.norm(found - honest.mean(axis=0))


def test_groups_are_judged_by_their_changes_and_buffers_are_joined_by_medians():
    fed = federation(chain(FedAvg(), Krum(f=1)))
    terms, every = round_of(fed)
    rows, total = means(fed, terms, every), total_of(fed, terms, every)
    chosen = [i for i in range(GROUPS) if np.array_equal(total.values("delta/w", 0), rows["delta/w"][i])]
    assert len(chosen) == 1
    assert np.array_equal(total.values("delta/b", 0), rows["delta/b"][chosen[0]])
    for name in ("delta/bn.running_mean", "delta/bn.running_var"):
        assert np.array_equal(total.values(name, 0), np.median(rows[name], axis=0))
    assert total.floored == {"bn.running_var"}


def test_numbers_are_added_over_all_groups():
    fed = federation()
    total = total_of(fed, *round_of(fed))
    weight = {g: sum(2 + i + g for i in range(SIZE)) for g in range(GROUPS)}
    examples = sum(weight.values())
    assert total.metrics["examples"] == examples
    assert total.metrics["train.loss"] == pytest.approx(sum(g * n for g, n in weight.items()) / examples)
    assert total.metrics["groups"] == GROUPS


def test_the_share_of_clipped_devices_is_over_all_groups():
    fed = federation(codec="balanced", clip=5)
    total = total_of(fed, *round_of(fed, liars=[0, 4]))
    assert total.metrics["clipped"] == pytest.approx(2 / (GROUPS * SIZE))


def test_the_step_goes_through_the_strategy_above():
    fed = federation(chain(FedAdam(lr=0.1), CoordinateMedian(), Prox()))
    terms, every = round_of(fed, liars=[1])
    into = Into(Gather(fed.layout.model), Gather(fed.shape.state), Gather(fed.shape.down))
    total = total_of(fed, terms, every)
    mean = {
        n: total.values(f"delta/{n}", 0).astype(MODEL[n].dtype).reshape(MODEL[n].shape) for n in ("w", "b")
    }
    state = {n: Tensors({w: fed.state[f"0.{n}/{w}"] for w in mean}) for n in ("m", "v")}
    d = Tensors(mean)
    m, v = state["m"] * 0.9 + d * (1 - 0.9), state["v"] * 0.99 + d * d * (1 - 0.99)
    closing = step(
        fed.strategy, fed.layout, fed.shape, terms, 0, Held(fed.model), Held(fed.state), total, into,
    )  # fmt: skip
    moved = m * 0.1 / (v.sqrt() + 1e-3)
    assert np.array_equal(into.model.tensors["w"], fed.model["w"] + moved["w"])
    assert closing.sum == total.digest()


# -- groups that cannot be read -----------------------------------------------------------------------------------


def spoil(sum_: Sum, weight=1 << 40) -> Sum:
    """Accounts that no devices can have."""
    accounts = sum_.lanes(sum_.ring.sections[-1])
    accounts[0] += np.uint64(weight)
    return sum_


def test_a_group_that_cannot_be_read_is_left_out_while_there_are_enough():
    fed = federation(groups=6, clients=6 * SIZE)
    terms, every = round_of(fed)
    wanted = np.median(means(fed, terms, every[:2] + every[3:])["delta/w"], axis=0)
    spoil(every[2][0])
    total = total_of(fed, terms, every)
    assert np.array_equal(total.values("delta/w", 0), wanted)
    assert (total.metrics["groups"], total.count) == (5, 5 * SIZE)


def test_with_fewer_than_the_rule_needs_there_is_no_model_and_it_is_said_why():
    fed = federation()
    terms, every = round_of(fed)
    spoil(every[2][0])
    with pytest.raises(
        BadBlob,
        match=r"^the sums of 4 groups can be read, and the run's rule is taken between 5 or more; .* weights",
    ):
        total_of(fed, terms, every)
    with pytest.raises(BadBlob, match=r"^the sums of 4 groups can be read"):
        total_of(fed, *(lambda t, e: (t, e[1:]))(*round_of(fed)))


def tuned(fed):
    """One round in which all is well, so that the next is sized to it."""
    terms, every = round_of(fed)
    fed.tuning, fed.number = total_of(fed, terms, every).tuning, 1
    return fed


def grown(fed, grows):
    """(terms, sums) of a tuned round in which the updates of some groups are far larger than in the last one."""
    terms, every = fed.terms(fed.spec.devices, groups=fed.spec.groups), []
    for group in range(fed.spec.groups):
        made = told(fed, group, terms, scale=60.0 if group in grows else 1.0)
        every.append((added(terms, (p.blob for p in made.values())), sorted(made)))
    return terms, every


def test_overflow_is_looked_for_in_every_group_and_costs_that_group():
    fed = tuned(federation(chain(FedAvg(), Krum(f=1)), groups=6, clients=18, codec="balanced", clip=1000))
    terms, every = grown(fed, {4})
    with pytest.raises(BadBlob, match=r"^overflowed"):
        Total(fed.strategy, fed.layout, terms, *every[4], Held(fed.model))
    total = total_of(fed, terms, every)
    assert (total.metrics["groups"], total.count) == (5, 15)


def test_where_no_group_can_be_spared_one_that_overflowed_is_a_liar_like_others():
    fed = tuned(federation(chain(FedAvg(), Krum(f=1)), codec="balanced", clip=1000))
    total = total_of(fed, *grown(fed, {4}))
    wanted = means(fed, *grown(fed, set()))["delta/w"]
    assert total.metrics["groups"] == 5
    assert any(np.array_equal(total.values("delta/w", 0), one) for one in wanted[:4])
    with pytest.raises(
        BadBlob, match=r"^overflowed: the sums of 2 of 5 groups are larger than the round was sized"
    ):
        total_of(fed, *grown(fed, {1, 4}))


def test_a_group_with_a_much_larger_sum_does_not_make_the_next_rounds_steps_coarse():
    fed = federation(chain(FedAvg(), TrimmedMean(f=1)), codec="balanced", clip=1000)
    known = Tuning.decode(total_of(fed, *round_of(fed)).tuning)
    lied = Tuning.decode(total_of(fed, *round_of(fed, liars=[2])).tuning)
    assert 0.5 < lied.rms["param"] / known.rms["param"] < 1.5
    both = Tuning.decode(total_of(fed, *round_of(fed, liars=[2, 3])).tuning)
    assert both.rms["param"] > 20 * known.rms["param"], "one more than the rule stands"


def test_a_tuned_round_has_small_lanes_and_finds_the_same_up_to_rounding():
    fed = tuned(federation(codec="balanced"))
    terms, every = round_of(fed)
    ring = Agreement.of(terms).ring
    assert [g.bits for g in ring.groups if g.rotated] == [8]
    exact = federation()
    wanted = total_of(exact, *round_of(exact)).values("delta/w", 0)
    found = total_of(fed, terms, every).values("delta/w", 0)
    assert np.sum((found - wanted) ** 2) / np.sum(wanted**2) < 0.05


# -- what is in memory, and what is told of it ----------------------------------------------------------------------


def test_equal_sums_have_equal_digests_and_one_changed_lane_another():
    fed = federation()
    wanted = total_of(fed, *round_of(fed)).digest()
    assert total_of(fed, *round_of(fed)).digest() == wanted
    terms, every = round_of(fed)
    every[1][0].lanes(every[1][0].ring.sections[0])[3] += np.uint64(1)
    assert total_of(fed, terms, every).digest() != wanted


def test_one_groups_lanes_are_in_memory_at_a_time():
    fed = federation()
    terms, every = round_of(fed)
    seen, most = [], []

    class Lanes:
        """A sum that can be seen to be there until nobody has it."""

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

    def sums():
        for sum_, devices in every:
            one = Lanes(sum_)
            seen.append(weakref.ref(one))
            yield one, devices
            del one
            most.append(sum(ref() is not None for ref in seen))

    Apart(fed.strategy, fed.layout, terms, sums(), Held(fed.model))
    assert most == [0] * GROUPS


# -- what is refused, and agreed ------------------------------------------------------------------------------------


def test_how_many_groups_a_rule_needs():
    assert sums_needed(FedAvg()) == 0
    assert sums_needed(chain(FedAvg(), CoordinateMedian())) == 5
    assert sums_needed(chain(FedAvg(), Krum(f=1))) == 5
    assert sums_needed(chain(FedAvg(), Krum(f=3), NNM(f=3))) == 9
    assert sums_needed(chain(FedAvg(), MultiKrum(f=1, m=7))) == 8


@pytest.mark.parametrize(
    ("rule", "groups", "needed"), [(Krum(f=1), 1, 5), (CoordinateMedian(), 4, 5), (Krum(f=3), 8, 9)]
)
def test_a_run_with_too_few_groups_is_refused_with_how_many_it_takes(rule, groups, needed):
    made = spec_of(chain(FedAvg(), rule), MODEL, groups=groups, clients=100)
    with pytest.raises(
        UsageError, match=f"{type(rule).__name__} .* groups = {groups}; set groups = {needed} or more"
    ):
        made.check()
    spec_of(chain(FedAvg(), rule), MODEL, groups=needed, clients=100).check()


def test_an_open_run_still_asks_for_devices():
    with pytest.raises(UsageError, match="raise min_clients"):
        spec_of(chain(FedAvg(), Krum(f=1)), MODEL, aggregation="open", min_clients=4).check()


def test_the_terms_of_training_say_how_many_sums_are_needed_and_others_are_as_before():
    fed = federation(groups=7, clients=22)
    agreed = Agreement.of(fed.terms(22, groups=7))
    assert agreed.apart == 5
    assert agreed.ring.devices == 4, "of the largest group"
    assert "apart" not in fed.spec.secure_terms("evaluate")
    assert Agreement.of(fed.terms(22, "evaluate", groups=7)).ring.devices == 22
    plain = Federation(spec_of(FedAvg(), MODEL, groups=7, clients=22), Tensors(MODEL))
    assert "apart" not in plain.spec.secure_terms("train")


@pytest.mark.parametrize("apart", [0, 1, -5, 1.0, True, "5", 1 << 20])
def test_terms_that_ask_for_an_impossible_number_of_sums_are_refused(apart):
    fed = federation()
    terms = fed.terms(15, groups=GROUPS)
    with pytest.raises(BadBlob, match="apart"):
        Agreement.of(replace(terms, secure={**terms.secure, "apart": apart}))


def test_a_group_has_at_least_min_clients_of_whom_nobody_is_seen_alone():
    fed = federation()
    config = Agreement.of(fed.terms(15, groups=GROUPS)).config(fed.terms(15, groups=GROUPS), 0)
    assert (config.groups, config.least) == (GROUPS, 3)
