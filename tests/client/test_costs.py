"""What a device says of its costs: as much as its owner allows, and never at the price of its work."""

import logging
import math
from typing import Any

import pytest

from koinon.costs import allowed, message
from koinon.policy import Policy
from koinon_core.costs import Phase, Spent
from koinon_core.errors import UsageError

METER: dict[str, Any] = {
    "phases": {
        "train": {"joules": 900.0, "above_idle": 800.0, "seconds": 60.0, "missing": 0.25},
        "upload": {"joules": None, "above_idle": None, "seconds": 2.0, "missing": 1.0},
    },
    "scope": "the whole module", "source": "ina3221", "bytes_up": 4000, "bytes_down": 8000,
}  # fmt: skip
SPENT = Spent.from_json(METER)
TRAIN = SPENT.phases["train"]


def test_in_an_open_run_all_of_it_is_said():
    assert allowed(SPENT, Policy(), secure=False) == SPENT
    said = message("id", 3, METER, Policy(), False)
    assert (said.spent.run, said.spent.round, said.spent.bytes_up) == ("id", 3, 4000)
    phases = {phase.name: phase for phase in said.spent.phases}
    assert phases["train"].joules == 900.0
    assert not phases["upload"].HasField("joules")


def test_in_a_secure_run_nothing_of_it_is_unless_the_owner_lists_it():
    assert allowed(SPENT, Policy(), secure=True) is None
    assert message("id", 3, METER, Policy(), True) is None
    seconds = allowed(SPENT, Policy(clear=("seconds",)), secure=True)
    assert seconds == Spent(phases={"train": Phase(seconds=60.0), "upload": Phase(seconds=2.0)})
    energy = allowed(SPENT, Policy(clear=("energy",)), secure=True)
    assert energy.phases["train"] == Phase(joules=900.0, above_idle=800.0, missing=0.25)
    assert (energy.scope, energy.bytes_up, energy.seconds) == ("the whole module", None, None)
    assert allowed(SPENT, Policy(clear=("bytes",)), secure=True) == Spent(bytes_up=4000, bytes_down=8000)
    assert allowed(SPENT, Policy(clear=("energy", "seconds", "bytes")), secure=True) == SPENT


def test_where_nothing_is_known_nothing_is_said():
    assert message("id", 3, {"phases": {"train": {"joules": None}}, "scope": "x"}, Policy(), False) is None
    assert message("id", 3, {"phases": {}, "bytes_up": 0}, Policy(), False).spent.HasField("bytes_up")


def test_what_no_device_can_have_measured_costs_nobody_the_round(caplog):
    caplog.set_level(logging.WARNING, "koinon")
    wrong = {**METER, "phases": {"train": {"joules": -5.0, "seconds": 1.0}}}
    assert message("id", 3, wrong, Policy(), False) is None
    assert "joules of phase 'train' are said to be -5.0" in caplog.text
    nan = {**METER, "phases": {"train": {"joules": math.nan, "seconds": 1.0}}, "scope": "x" * 100}
    said = message("id", 3, nan, Policy(), False)
    assert not said.spent.phases[0].HasField("joules")
    assert said.spent.scope == "x" * 64


def test_an_owner_who_misspells_what_may_be_said_is_told(tmp_path):
    file = tmp_path / "device.toml"
    file.write_text('clear = ["energy", "bytes"]\n')
    assert Policy.load(file).clear == ("energy", "bytes")
    file.write_text('clear = ["watts"]\n')
    with pytest.raises(
        UsageError, match=r"names 'watts'; what a round's work has cost is energy, seconds, bytes"
    ):
        Policy.load(file)
    file.write_text("clear = true\n")
    with pytest.raises(UsageError, match="is no such setting"):
        Policy.load(file)
