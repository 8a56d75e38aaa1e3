"""A secure run: what it says where nothing was said, and what is refused when it is submitted, with the way out."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from koinon_core.errors import UsageError
from koinon_core.round.terms import Terms
from koinon_core.schema import schema_of
from koinon_core.secure.agreement import Agreement
from koinon_core.spec import RunSpec
from koinon_core.strategy import Base, FedAvg, Prox, Scaffold, chain, dump, register
from koinon_core.strategy.average import FedAvgUniform
from koinon_core.strategy.protocol import Need

MODEL = {
    "w": np.zeros((3, 4), np.float32), "bn.running_mean": np.zeros(3, np.float32),
    "bn.running_var": np.ones(3, np.float32),
    "bn.num_batches_tracked": np.array(0), "table": np.arange(4),
}  # fmt: skip
BASE = {
    "name": "r",
    "strategy": dump(FedAvg()),
    "schema": schema_of(MODEL).to_json(),
    "rounds": 3,
    "aggregation": "secure",
}


def spec(**values) -> RunSpec:
    return RunSpec.make(**{**BASE, **values})


def test_a_secure_run_has_defaults_that_suit_it():
    made = spec()
    made.check()
    assert (made.min_clients, made.max_examples, made.retention, made.codec) == (
        3,
        1 << 16,
        "none",
        "balanced",
    )
    assert made.updates_kept == 0
    assert made.snapshots == "lossless"
    asked = spec(min_clients=5, max_examples=1 << 20, retention="none")
    asked.check()
    assert (asked.min_clients, asked.max_examples) == (5, 1 << 20)
    assert RunSpec.make(**{**BASE, "aggregation": "open"}).max_examples == 1 << 20


def test_a_run_that_is_submitted_is_secure_unless_it_says_otherwise():
    said = {name: value for name, value in BASE.items() if name != "aggregation"}
    assert RunSpec.make(**said) == spec()
    assert (RunSpec.make(**said).aggregation, RunSpec.make(**said).min_clients) == ("secure", 3)
    assert RunSpec.make(**said, aggregation="open").min_clients == 2


def test_the_bytes_of_an_open_run_say_nothing_of_secure_ones():
    value = json.loads(RunSpec.make(**{**BASE, "aggregation": "open"}).encoded)
    assert not {"keys", "attempts", "gamma", "delta", "hardened", "phase", "clip", "metrics"} & value.keys()


def test_a_run_that_does_not_say_how_it_adds_up_stays_open_for_ever():
    value = json.loads(RunSpec.make(**{**BASE, "aggregation": "open"}).encoded)
    del value["aggregation"]
    assert RunSpec.decode(json.dumps(value).encode()).aggregation == "open"


def test_a_secure_run_comes_back_from_its_bytes():
    made = spec(
        clients=9, groups=2, codec="fine", keys="early", attempts=1, gamma=0.1, delta=0.3, phase=5, clip=2,
        metrics=["f1"],
        sections=[{"match": "count/table", "rule": "equal"}, {"match": "stat/*", "bound": 10}],
    )  # fmt: skip
    made.check()
    again = RunSpec.decode(made.encoded)
    assert again == made
    assert again.encoded == made.encoded
    assert again.metrics == ("f1",)
    assert (type(made.phase), type(made.clip)) == (float, float)


OPEN = "or set aggregation = 'open', on a network and a coordinator that you trust with single updates"
REFUSED = [
    ({"min_clients": 2}, f"min_clients = 2 is too few for a secure sum.*let 3 or more devices take part, {OPEN}"),
    ({"min_clients": 1, "clients": 1}, "min_clients = 1 is too few for a secure sum"),
    ({"clients": 2}, f"clients = 2 is too few for a secure sum.*let 3 or more devices take part, {OPEN}"),
    ({"max_clients": 2}, "max_clients = 2 is too few for a secure sum"),
    ({"clients": 5, "groups": 2}, "groups = 2 of at least min_clients = 3 are more than the 5 devices of a round"),
    ({"codec": "raw"}, "codec = 'raw' cannot be added up under masks; a secure run has one of balanced"),
    ({"codec": "lossless"}, f"codec = 'lossless' cannot be added up under masks.*, {OPEN}"),
    ({"codec": "thin"}, "codec = 'thin' cannot be added up"),
    ({"codec": "gzip"}, "codec = 'gzip' cannot be added up"),
    ({"retention": "keep"}, f"retention = 'keep' would keep what single devices sent; a secure run has 'none', {OPEN}"),
    ({"retention": "3 rounds"}, "retention = '3 rounds' would keep"),
    (
        {"sections": [{"match": "count/*", "rule": "max"}]},
        f"rule = 'max' of 'count/.' needs every device's value; use 'local' or 'equal', {OPEN}",
    ),
    ({"sections": [{"match": "param/*", "codec": "fine"}]}, "codec = 'fine' of 'param/.' would encode some tensors"),
    ({"sections": [{"match": "stat/*", "codec": "raw"}]}, "codec = 'raw' of 'stat/.'"),
    ({"hardened": True}, "hardened groups have up to 512 devices, and a round may have 1024"),
    ({"hardened": True, "clients": 513}, "and a round may have 513"),
    ({"keys": "late"}, "keys = 'late' is 'ready'"),
    ({"attempts": 0}, "attempts must be from 1 to 8, it is 0"),
    *(({name: bad}, f"{name} must be a share of the devices") for name in ("gamma", "delta")
      for bad in (-0.1, 1.0, 1, float("nan"))),
    *(({name: bad}, f"{name} must be a number above 0") for name in ("phase", "clip")
      for bad in (0, -1.0, float("inf"), float("nan"))),
    ({"gamma": "0"}, "gamma = '0' in the run's config must be float"),
    ({"hardened": 1}, "hardened = 1 in the run's config must be bool"),
    ({"metrics": "loss"}, "the run's metrics must be a list of names"),
    ({"metrics": ["loss", "loss"]}, "must be up to 64 different names"),
    ({"metrics": [5]}, "must be up to 64 different names"),
    ({"metrics": [[]]}, "must be up to 64 different names"),
    ({"metrics": ["a\n"]}, "must be up to 64 different names"),
    ({"metrics": [""]}, "must be up to 64 different names"),
    ({"metrics": [str(i) for i in range(65)]}, "must be up to 64 different names"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "sentence"), REFUSED, ids=lambda v: repr(v)[:60])
def test_what_cannot_be_secure_is_refused_with_the_way_out(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        spec(**values)


@register
@dataclass(frozen=True)
class Median(Base):
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SINGLE})


UNCHECKED = [
    ({"strategy": dump(Median())}, "Median looks at single updates, which a secure sum does not show"),
    ({"strategy": dump(chain(FedAvg(), Median()))}, "looks at single updates"),
    (
        {"strategy": dump(chain(Scaffold(), Prox())), "population": 2000, "codec": "compact"},
        "Scaffold keeps a state on each device that follows what was sent, and 'compact' sends one coordinate in 8",
    ),
    ({"clip": 1e9}, "clip = 1e.09 for 1024 devices leaves no step to round to in a wide round; lower clip"),
    ({"codec": "exact", "bound": 1e9, "clients": 1000}, "does not fit in 6"),
    ({"max_examples": 1 << 40, "bound": 1e-3}, "does not fit|add up beyond"),
]


@pytest.mark.parametrize(("values", "sentence"), UNCHECKED, ids=lambda v: repr(v)[:60])
def test_what_its_strategy_or_model_cannot_have_is_refused_at_submission(values, sentence):
    made = spec(**values)
    with pytest.raises(UsageError, match=sentence):
        made.check()


def test_strategies_without_a_state_may_leave_coordinates_out():
    for strategy in (FedAvg(), chain(FedAvg(), Prox())):
        assert Agreement.of(terms(spec(codec="compact", strategy=dump(strategy)))).ring.subset == 8


def terms(made: RunSpec, kind="train", tuning="", invited=None) -> Terms:
    return Terms(
        run="r", round=1, incarnation="00", kind=kind, aggregation="secure", groups=made.groups, goal=9,
        quorum=made.quorum, schema="", strategy="", model="", max_examples=made.max_examples, bound=1.0, grid=20,
        secure=made.secure_terms(kind, tuning, invited),
    )  # fmt: skip


def groups(made: RunSpec, kind="train"):
    return {g.name: g.size for g in Agreement.of(terms(made, kind)).ring.groups}


def test_the_groups_of_a_round_follow_from_layout_and_strategy():
    metrics = 2 * 2 * 2
    assert groups(spec()) == {"param": 12, "stat": 6, "numbers": 2 + metrics}
    assert groups(spec(partial=False)) == {"param": 12, "stat": 6, "numbers": 1 + metrics}
    assert groups(spec(metrics=[])) == {"param": 12, "stat": 6, "numbers": 2}
    assert groups(spec(strategy=dump(FedAvgUniform()))) == {"param": 12, "stat": 6, "numbers": 3 + metrics}
    assert groups(spec(strategy=dump(Scaffold()), population=2000)) == {
        "param": 12, "stat": 6, "extra/control": 12, "numbers": 3 + metrics,
    }  # fmt: skip
    assert groups(spec(), "evaluate") == {"numbers": 1 + metrics // 2}
    assert groups(spec(sections=[{"match": "stat/*", "rule": "local"}])) == {
        "param": 12,
        "numbers": 2 + metrics,
    }


def test_integers_stay_on_the_device_unless_they_are_said_to_be_equal():
    layout = spec().check()[1]
    assert layout.local == {"bn.num_batches_tracked", "table"}
    layout = spec(sections=[{"match": "count/table", "rule": "equal"}]).check()[1]
    assert layout.local == {"bn.num_batches_tracked"}
    assert layout.counters.names() == ("table",)


def test_a_ring_is_for_those_who_are_invited():
    made = spec(clients=10, over_selection=1.5)
    assert Agreement.of(terms(made)).ring.devices == 15
    assert Agreement.of(terms(made, invited=7)).ring.devices == 7
    assert Agreement.of(terms(made)).ring.max_weight == 1 << 16
    assert Agreement.of(terms(spec(strategy=dump(FedAvgUniform())))).ring.max_weight == 1


def test_the_session_of_a_group_has_at_least_the_runs_min_clients():
    made = spec(clients=40, groups=4, min_clients=5)
    agreed, known = Agreement.of(terms(made)), terms(made)
    assert (agreed.config(known, 0).least, agreed.config(known, 1).attempt) == (5, 1)
