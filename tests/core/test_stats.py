"""What a device measured of its update: which figures there can be, and that they arrive as they were said."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import BadBlob
from koinon_core.update import Stats
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

FIGURES = st.floats(0, 1e100)
SOUND = st.builds(
    Stats, parameters=st.integers(0, 1 << 48), nmse=FIGURES, norm=FIGURES, encode_s=st.floats(0, 1e7)
)


@given(SOUND)
def test_what_can_be_measured_is_taken_and_is_the_same_on_the_wire_and_as_json(stats):
    stats.check()
    encoded = convert.stats_to(stats).SerializeToString()
    assert convert.stats_from(pb.Stats.FromString(encoded)) == stats
    assert Stats.from_json(json.loads(json.dumps(stats.to_json()))) == stats


def test_an_answer_without_them_says_that_nothing_was_measured():
    assert convert.stats_from(pb.Answer().stats) == Stats() == Stats.from_json({})
    Stats().check(most=0)


@pytest.mark.parametrize("name", ["nmse", "norm", "encode_s"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9, 1e200])
def test_what_is_no_figure_is_refused_by_name(name, value):
    with pytest.raises(BadBlob, match=r"the update's .* is said to be"):
        Stats(**{name: value}).check()


@pytest.mark.parametrize("parameters", [-1, 7, (1 << 64) - 1])
def test_nobody_encodes_more_elements_than_an_update_has(parameters):
    Stats(parameters=6).check(most=6)
    with pytest.raises(BadBlob, match="there are 0 to 6"):
        Stats(parameters=parameters).check(most=6)


def test_parameters_that_no_machine_holds_are_refused_whatever_the_run():
    with pytest.raises(BadBlob):
        Stats(parameters=(1 << 48) + 1).check()


def test_bits_are_those_of_the_bytes_over_the_parameters():
    assert Stats(parameters=16).bits(10) == 5.0
    assert Stats().bits(10) == 0.0
