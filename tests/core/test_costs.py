"""What a device says of itself for the operator (its condition, what a round has cost it): which figures there can be,
that they arrive as they were said, and that what is not known is never a 0."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.condition import Condition
from koinon_core.costs import Phase, Spent
from koinon_core.errors import BadBlob, RemoteProtocolError
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=64)
JOULES, SECONDS = st.none() | st.floats(0, 1e12), st.none() | st.floats(0, 1e7)
PHASE = st.builds(
    Phase, joules=JOULES, above_idle=st.none() | st.floats(-1e12, 1e12), seconds=SECONDS,
    missing=st.none() | st.floats(0, 1),
)  # fmt: skip
BYTES = st.none() | st.integers(0, (1 << 63) - 1)
SPENT = st.builds(
    Spent, phases=st.dictionaries(st.sampled_from(["download", "train", "encode", "upload"]), PHASE), scope=TEXT,
    source=TEXT, bytes_up=BYTES, bytes_down=BYTES,
)  # fmt: skip
CONDITION = st.builds(
    Condition, heat=st.none() | st.floats(-273, 1000), disk_free_mb=st.none() | st.floats(0, 1e12),
    battery=st.none() | st.floats(0, 100), state=TEXT, power_mode=TEXT, board=TEXT,
)  # fmt: skip


@given(SPENT)
def test_costs_are_the_same_on_the_wire_and_as_json(spent):
    spent.check()
    said = pb.Spent.FromString(convert.spent_to("r", 3, spent).SerializeToString())
    assert (said.run, said.round, convert.spent_from(said)) == ("r", 3, spent)
    assert Spent.from_json(json.loads(json.dumps(spent.to_json()))) == spent


@given(CONDITION)
def test_a_condition_is_the_same_on_the_wire_and_as_json(condition):
    said = pb.Condition.FromString(convert.condition_to(condition).SerializeToString())
    assert convert.condition_from(said) == condition
    assert Condition.from_json(json.loads(json.dumps(condition.to_json()))) == condition


def test_what_is_not_known_is_no_0():
    half = Spent(phases={"train": Phase(joules=4.0, seconds=2.0, missing=0.5), "upload": Phase(seconds=2.0)})
    assert (half.joules, half.seconds, half.missing) == (4.0, 4.0, 0.5)
    nobody = Spent(phases={"train": Phase(seconds=2.0)})
    assert (nobody.joules, nobody.missing, Spent().seconds) == (None, None, None)
    assert Spent(phases={"train": Phase(joules=0.0)}).joules == 0.0
    assert convert.spent_from(pb.Spent()) == Spent()
    assert Spent().to_json() == {"phases": {}}
    assert convert.condition_from(pb.Condition()) == Condition()
    assert not convert.condition_to(Condition()).HasField("heat")
    assert convert.condition_to(Condition(heat=0.0)).HasField("heat")
    assert not convert.hello("c", "i").HasField("condition")


def test_the_missing_share_of_a_round_is_that_of_its_time():
    phases = {
        "train": Phase(joules=9.0, seconds=9.0, missing=0.0),
        "upload": Phase(seconds=1.0, missing=1.0),
    }
    assert Spent(phases=phases).missing == pytest.approx(0.1)


def test_of_a_meter_what_is_no_finite_number_is_not_known():
    figures = {"joules": math.nan, "above_idle": None, "seconds": math.inf, "missing": "0.5"}
    found = Spent.from_json({"phases": {"train": figures}, "bytes_up": True, "bytes_down": 3.0})
    assert found == Spent(phases={"train": Phase()}, bytes_down=3)


@pytest.mark.parametrize("name", ["joules", "above_idle", "seconds", "missing"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e13])
def test_no_device_has_measured_what_is_no_figure(name, value):
    message = pb.Spent(phases=[pb.Phase(name="train", **{name: value})])
    with pytest.raises(RemoteProtocolError, match=r"of phase 'train' are said to be"):
        convert.spent_from(message)


@pytest.mark.parametrize(
    "message",
    [
        pb.Spent(phases=[pb.Phase(name="")]),
        pb.Spent(phases=[pb.Phase(name="a phase of many letters")]),
        pb.Spent(phases=[pb.Phase(name="a\nb")]),
        pb.Spent(phases=[pb.Phase(name=f"p{i}") for i in range(17)]),
        pb.Spent(phases=[pb.Phase(name="train"), pb.Phase(name="train", joules=1.0)]),
        pb.Spent(phases=[pb.Phase(name="train", joules=-1.0)]),
        pb.Spent(phases=[pb.Phase(name="train", missing=1.1)]),
        pb.Spent(scope="x" * 65),
        pb.Spent(source="\x1b[2J"),
        pb.Spent(bytes_up=1 << 63),
    ],
)
def test_costs_that_are_none_are_refused(message):
    with pytest.raises(RemoteProtocolError):
        convert.spent_from(message)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("heat", math.nan, "heat is nan"), ("heat", 1e6, "heat is 1"), ("disk_free_mb", -1.0, "free disk is -1"),
        ("battery", 101.0, "battery is 101"), ("state", "x" * 65, "state is said in at most 64"),
        ("board", "a\x00", "board is said in"), ("power_mode", "\n", "power mode is said in"),
    ],
)  # fmt: skip
def test_a_condition_that_no_device_can_be_in_is_refused_by_name(field, value, sentence):
    with pytest.raises(RemoteProtocolError, match=sentence):
        convert.condition_from(pb.Condition(**{field: value}))


def test_phases_have_short_names():
    with pytest.raises(BadBlob, match="1 to 16 printable characters"):
        Spent(phases={"x" * 17: Phase()}).check()
