"""What an update is made of, and what of it may not enter a sum."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from koinon_core.codec import decode, encode
from koinon_core.errors import BadBlob, UsageError
from koinon_core.schema import Field, Schema
from koinon_core.strategy import Base, FedAvg, FedBN, Scaffold, Up, chain
from koinon_core.tensors import Tensors
from koinon_core.update import Head, layout_of, pack_state, state_schema, unpack_state
from koinon_core.wire import convert

MODEL = Schema(
    (
        Field("n", (), "int64", "buffer"),
        Field("w", (2, 3), "float32"),
        Field("mean", (2,), "float64", "buffer"),
        Field("half", (4,), "float16"),
    )
)


@dataclass(frozen=True)
class Keeps(Base):
    names: tuple[str, ...] = ()

    def local(self, schema):
        return frozenset(self.names)


def sections(strategy) -> list[tuple[str, str]]:
    return [(f.name, f.dtype) for f in layout_of(MODEL, strategy).update]


def test_an_update_holds_changes_then_counters_then_extras():
    assert sections(Scaffold()) == [
        ("delta/w", "float32"), ("delta/half", "float32"), ("delta/mean", "float64"), ("count/n", "int64"),
        ("extra/control/w", "float32"), ("extra/control/half", "float32"),
    ]  # fmt: skip


def test_half_precision_travels_in_single_because_changes_would_round_away():
    assert dict(sections(FedAvg()))["delta/half"] == "float32"


def test_every_field_of_an_update_follows_the_rule_of_its_tensor():
    rules = {f.name: f.rule for f in layout_of(MODEL, FedAvg()).update}
    assert rules == {"delta/w": "mean", "delta/half": "mean", "delta/mean": "mean", "count/n": "max"}


def test_what_stays_local_is_in_no_section():
    layout = layout_of(MODEL, chain(Scaffold(), Keeps(("half", "n"))))
    assert layout.update.names() == ("delta/w", "delta/mean", "extra/control/w")
    assert layout.shared == ("w", "mean")
    assert layout.local == {"half", "n"}


def test_a_name_that_the_model_does_not_have_cannot_stay_local():
    with pytest.raises(UsageError, match="keeps 'absent' local, which the model does not have"):
        layout_of(MODEL, Keeps(("w", "absent")))


@pytest.mark.parametrize("strategy", [Keeps(("w", "half")), FedBN(keys=("w", "h*")), FedBN(keys=("*",))])
def test_an_update_without_a_parameter_is_refused(strategy):
    with pytest.raises(UsageError, match="nothing to federate"):
        layout_of(MODEL, strategy)


def test_a_model_without_tensors_is_refused():
    with pytest.raises(UsageError, match="nothing to federate"):
        layout_of(Schema(()), FedAvg())


def test_join_and_split_are_inverse_for_what_strategies_see():
    layout = layout_of(MODEL, Scaffold())
    rng = np.random.default_rng(0)
    params = Tensors({f.name: rng.standard_normal(f.shape).astype(f.dtype) for f in layout.params})
    up = Up(params, {"control": params * 2.0}, {"t": 1.0})
    joined = layout.join(up, Tensors({"mean": np.ones(2)}), Tensors({"n": np.array(3)}))
    layout.update.check(joined, "the update")
    assert joined["count/n"] == 3
    again = layout.split(joined, up.totals)
    assert (again.delta, dict(again.extra), again.totals) == (up.delta, dict(up.extra), up.totals)


# -- the head -----------------------------------------------------------------------------------------------


def check(head: Head, *, trained: bool = True, totals: dict | None = None) -> None:
    head.check(trained=trained, max_examples=100, totals=totals or {})


FULL = Head(
    examples=100, totals={"t": -2.0}, training={"loss": 0.5}, evaluation={"x" * 64: -1e30},
    evaluation_examples=100, steps=3,
)  # fmt: skip

BAD = [
    (Head(partial=True), {}, "over 0 examples is refused"),
    (Head(examples=1, training={"loss": 1e31}), {}, "metrics are numbers up to"),
    (Head(), {}, "over 0 examples is refused: this run takes 1 to 100 a device"),
    (Head(examples=-1), {}, "over -1 examples is refused"),
    (Head(examples=101), {}, "over 101 examples is refused"),
    (Head(examples=10**30), {}, "examples is refused"),
    (Head(examples=1, evaluation_examples=-1), {}, "an evaluation over -1 examples"),
    (Head(examples=1, evaluation_examples=101), {}, "an evaluation over 101 examples"),
    (Head(examples=1), {"t": 1.0}, r"the strategy sums \['t'\], the update has \[\]"),
    (Head(examples=1, totals={"t": 0.0}), {}, r"the strategy sums \[\], the update has \['t'\]"),
    (Head(examples=1, totals={"s": 0.0}), {"t": 1.0}, r"sums \['t'\], the update has \['s'\]"),
    (Head(examples=1, totals={"t": 1.5}), {"t": 1.0}, "the total 't' is 1.5, beyond the strategy's bound"),
    (Head(examples=1, totals={"t": -1.5}), {"t": 1.0}, "beyond the strategy's bound"),
    (Head(examples=1, totals={"t": math.nan}), {"t": 1.0}, "beyond the strategy's bound"),
    (Head(examples=1, totals={"t": math.inf}), {"t": 1.0}, "beyond the strategy's bound"),
    (
        Head(examples=1, training={"loss": math.nan}),
        {},
        "the metric 'loss' is nan: metrics are numbers up to",
    ),
    (Head(examples=1, evaluation={"acc": -math.inf}), {}, "the metric 'acc' is -inf"),
    (Head(examples=1, training={"x" * 65: 1.0}), {}, "the metric 'x{64}' is 1.0"),
    (Head(examples=1, training={str(i): 0.0 for i in range(65)}), {}, "65 metrics are more than the 64"),
    (Head(examples=1, evaluation={str(i): 0.0 for i in range(65)}), {}, "65 metrics are more than the 64"),
]


@pytest.mark.parametrize(("head", "totals", "sentence"), BAD)
def test_numbers_that_may_not_enter_a_sum_are_refused_with_the_reason(head, totals, sentence):
    with pytest.raises(BadBlob, match=sentence):
        check(head, totals=totals)


def test_numbers_at_their_limits_are_accepted():
    check(FULL, totals={"t": 2.0})
    check(Head(examples=1, training={str(i): 0.0 for i in range(64)}))


def test_an_evaluation_needs_no_examples_of_training_and_brings_no_totals():
    check(Head(evaluation_examples=5, evaluation={"acc": 1.0}), trained=False, totals={"t": 1.0})
    with pytest.raises(BadBlob, match="beyond the strategy's bound"):
        check(Head(totals={"u": 1.0}), trained=False, totals={"t": 1.0})


def test_a_head_comes_back_from_json():
    assert Head.from_json(FULL.to_json()) == FULL
    assert Head.from_json(Head().to_json()) == Head()
    early = replace(FULL, partial=True)
    assert Head.from_json(early.to_json()) == early
    assert convert.head_from(convert.head_to(early)) == early


def test_a_head_of_whole_work_is_written_as_it_always_was():
    """The seals of rows that an older version wrote are over these words."""
    assert list(Head().to_json()) == [
        "examples", "totals", "training", "evaluation", "evaluation_examples", "steps",
    ]  # fmt: skip


def test_work_that_was_stopped_early_is_refused_where_that_says_why():
    early = Head(examples=1, partial=True)
    check(early)
    with pytest.raises(BadBlob, match="stopped early, and this run takes whole work only"):
        early.check(trained=True, max_examples=1, totals={}, whole="this run takes whole work only")
    with pytest.raises(BadBlob, match="an evaluation is done or it is not"):
        check(Head(partial=True), trained=False)


# -- the state of a strategy --------------------------------------------------------------------------------

STATE = {
    "0.c": Tensors({"conv/w": np.arange(3.0), "b": np.array(1, np.float32)}),
    "1.steps": Tensors({"b": np.array(7)}),
}


@pytest.mark.parametrize("codec", ["raw", "lossless"])
def test_a_state_comes_back_through_a_container(codec):
    packed = pack_state(STATE)
    assert list(packed) == ["0.c/conv/w", "0.c/b", "1.steps/b"]
    schema = state_schema(STATE)
    assert unpack_state(decode(encode(packed, schema, codec), schema)) == STATE


def test_no_state_is_an_empty_set_of_tensors():
    assert unpack_state(pack_state({})) == {}
    assert len(state_schema({})) == 0
