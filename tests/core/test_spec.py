"""The spec of a run: everything that is known to fail later is refused when it is submitted."""

import json
import math
from dataclasses import FrozenInstanceError, asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import UsageError
from koinon_core.schema import Field, Schema
from koinon_core.spec import RunSpec
from koinon_core.strategy import FedAvg, FedBN, Scaffold, dump

SCHEMA = Schema((Field("w", (2,), "float32"), Field("n", (), "int64", "buffer")))
BASE = {"name": "first", "strategy": dump(FedAvg()), "schema": SCHEMA.to_json(), "rounds": 3}


def spec(**values) -> RunSpec:
    return RunSpec.make(**{**BASE, "aggregation": "open", **values})


def test_a_run_needs_a_name_a_strategy_a_schema_and_rounds():
    assert spec().check()[0] == FedAvg()
    for key in BASE:
        with pytest.raises(UsageError, match=f"the run's config is incomplete: .*{key}"):
            RunSpec.make(**{k: v for k, v in BASE.items() if k != key})


REFUSED = [
    # keys
    ({"min_client": 3}, r"has no key 'min_client'; did you mean 'min_clients'\?"),
    ({"dead_line": 3}, r"did you mean 'deadline'\? \(your own go under \[config\]\)"),
    ({"zzz": 3}, "no key 'zzz'; there are name, strategy, schema, rounds, min_clients"),
    ({"cls": 3}, "has no key 'cls'"),
    ({"self": 3}, "has no key 'self'"),
    # types
    ({"rounds": "3"}, "rounds = '3' in the run's config must be int"),
    ({"rounds": 3.0}, "rounds = 3.0 in the run's config must be int"),
    ({"rounds": True}, "rounds = True in the run's config must be int"),
    ({"rounds": None}, "rounds = None"),
    ({"clients": True}, r"clients = True in the run's config must be int \| None"),
    ({"clients": 2.0}, r"clients = 2.0 in the run's config must be int \| None"),
    ({"population": "9"}, r"population = '9' in the run's config must be int \| None"),
    ({"evaluate": 1}, "evaluate = 1 in the run's config must be bool"),
    ({"evaluate": None}, "evaluate = None"),
    ({"deadline": "5"}, "deadline = '5' in the run's config must be float"),
    ({"deadline": True}, "deadline = True in the run's config must be float"),
    ({"bound": None}, "bound = None in the run's config must be float"),
    ({"name": 5}, "name = 5 in the run's config must be str"),
    ({"codec": None}, "codec = None in the run's config must be str"),
    ({"codec": ["raw"]}, r"codec = \['raw'\]"),
    ({"config": None}, r"the run's \[config\] must be a table, not NoneType"),
    ({"config": [1]}, r"the run's \[config\] must be a table, not list"),
    # ranges
    *(({key: 0}, f"{key} must be at least 1, it is 0") for key in
      ("rounds", "min_clients", "max_clients", "max_examples", "patience")),
    ({"seed": -1}, "seed must be at least 0, it is -1"),
    ({"join_wait": -0.1}, "join_wait must be at least 0, it is -0.1"),
    ({"over_selection": 0.9}, "over_selection must be at least 1, it is 0.9"),
    ({"over_selection": math.nan}, "over_selection must be at least 1, it is nan"),
    ({"over_selection": math.inf}, "over_selection must be a finite number"),
    ({"over_selection": math.inf, "clients": 4}, "over_selection must be a finite number"),
    ({"over_selection": 1e308, "clients": 4}, "over_selection = .* is no number"),
    ({"join_wait": math.inf}, "join_wait must be a finite number"),
    *(({key: bad}, f"{key} must be a number above 0") for key in ("deadline", "lease", "bound")
      for bad in (0, -1.0, math.nan, math.inf)),
    ({"rounds": 1 << 63}, "rounds in the run's config has more than 63 bits"),
    ({"seed": 10**400}, "seed in the run's config has more than 63 bits"),
    ({"clients": 10**400}, "clients in the run's config has more than 63 bits"),
    ({"deadline": 10**400}, "deadline = 1000"),
    # what cannot go together
    ({"clients": 1}, "clients = 1 can never have min_clients = 2; raise clients or lower min_clients"),
    ({"clients": 0}, "clients = 0 can never have min_clients = 2"),
    ({"clients": -4, "min_clients": 1}, "clients = -4 can never have"),
    ({"clients": 5, "min_clients": 6}, "clients = 5 can never have min_clients = 6"),
    ({"max_clients": 1}, "max_clients = 1 is below min_clients = 2"),
    ({"population": 1}, "population = 1 is smaller than min_clients = 2"),
    ({"population": 0, "min_clients": 1}, "population = 0 is smaller than min_clients = 1"),
    # what there is not
    ({"aggregation": "sum"}, "aggregation = 'sum' must be open or secure"),
    ({"aggregation": []}, r"aggregation = \[\] must be open or secure"),
    ({"groups": 0}, "groups must be at least 1"),
    ({"groups": 2}, "groups belong to secure aggregation"),
    ({"codec": "gzip"}, "there is no codec 'gzip'; this version has balanced, compact, fine, lossless, raw, thin"),
    # names
    *(({"name": bad}, "a run cannot be called .*use letters, digits") for bad in
      ("", "-a", ".a", "a b", "a/b", "../a", "a\n", "é", "a" * 65)),
    # plain values
    ({"config": {"x": math.nan}}, r"the run's \[config\] must hold plain values"),
    ({"config": {"x": object}}, r"the run's \[config\] must hold plain values"),
    ({"config": {"x": "\ud800"}}, r"the run's \[config\] must hold plain values"),
    ({"strategy": {"lr": math.inf}}, r"the run's \[strategy\] must hold plain values"),
    ({"schema": [["\ud800", [1], "float32", "param"]]}, r"the run's \[schema\] must hold plain values"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "sentence"), REFUSED, ids=lambda v: repr(v)[:50])
def test_a_run_that_cannot_be_is_refused_with_the_reason(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        spec(**values)


def test_values_at_their_limits_are_accepted():
    spec(
        name="a" * 64, rounds=1, min_clients=1, clients=1, max_clients=1, over_selection=1, join_wait=0, patience=1,
        max_examples=1, population=1, seed=(1 << 63) - 1, deadline=1e-9,
    ).check()  # fmt: skip


@pytest.mark.parametrize("key", ["over_selection", "join_wait", "deadline", "lease", "bound"])
def test_a_whole_number_of_seconds_is_a_number_of_seconds(key):
    made = spec(**{key: 3})
    assert (getattr(made, key), type(getattr(made, key))) == (3.0, float)
    assert made.encoded == spec(**{key: 3.0}).encoded


# -- what needs the strategy --------------------------------------------------------------------------------

UNCHECKED = [
    (
        {"strategy": dump(Scaffold())},
        r"koinon\.Scaffold\(.*\) divides by the number of all devices: set population",
    ),
    ({"strategy": {"chain": [dump(Scaffold()), {"name": "koinon.Prox", "fields": {}}]}}, "set population"),
    ({"clients": 4, "population": 3}, "population = 3 is smaller than a round's 4 devices"),
    (
        {"clients": 4, "over_selection": 1.5, "population": 5},
        "population = 5 is smaller than a round's 6 devices",
    ),
    ({"strategy": {"name": "koinon.FedSgd"}}, r"there is no strategy 'koinon\.FedSgd'"),
    ({"strategy": {"name": "koinon.FedAvg", "revision": 2}}, "revision 2 in the run and 1 here"),
    ({"strategy": None}, "not a strategy's recipe: None"),
    ({"strategy": "koinon.FedAvg"}, "not a strategy's recipe"),
    ({"strategy": dump(FedBN())}, "FedBN found no normalisation layer"),
    ({"strategy": dump(FedBN(keys=("*",)))}, "nothing to federate"),
    ({"schema": []}, "nothing to federate"),
    ({"schema": None}, "not a schema"),
    ({"schema": [["n", [], "int64", "buffer"]]}, "nothing to federate"),
    ({"schema": [["w", [math.pi], "float32", "param"]]}, "not a schema"),
    ({"schema": [["w", [1] * 65, "float32", "param"]]}, "dimensions"),
    ({"max_examples": (1 << 63) - 1}, "does not fit in 63 bits: lower max_examples"),
    ({"bound": 1e300}, "does not fit in 63 bits"),
    ({"clients": (1 << 62) + 1}, "does not fit in 63 bits"),
]


@pytest.mark.parametrize(("values", "sentence"), UNCHECKED, ids=lambda v: repr(v)[:60])
def test_a_run_that_its_strategy_or_model_cannot_have_is_refused_at_submission(values, sentence):
    made = spec(**values)
    with pytest.raises(UsageError, match=sentence):
        made.check()


def test_scaffold_with_its_population_is_accepted():
    strategy, layout = spec(strategy=dump(Scaffold()), population=10).check()
    assert strategy == Scaffold()
    assert layout.update.names() == ("delta/w", "count/n", "extra/control/w")


def test_the_sum_is_sized_for_the_most_devices_that_a_round_may_have():
    assert spec().devices == 1024
    assert spec(max_clients=7).devices == 7
    assert spec(clients=10, over_selection=1.25).devices == 13
    assert (spec().grid, spec(clients=4, max_examples=4).grid) == (26, 40)


# -- there and back -----------------------------------------------------------------------------------------

plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(
        st.characters(codec="utf-8")
    )),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text("abé"), inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip


@given(
    config=st.dictionaries(st.text("abc"), plain), deadline=st.floats(1e-3, 1e6), seed=st.integers(0, 1 << 62),
    clients=st.one_of(st.none(), st.integers(2, 1000)), evaluate=st.booleans(),
)  # fmt: skip
def test_a_spec_comes_back_from_its_bytes(**values):
    made = spec(**values)
    again = RunSpec.decode(made.encoded)
    assert again == made
    assert again.encoded == made.encoded
    assert again.recipe_digest == made.recipe_digest
    assert again.model.digest == SCHEMA.digest


def test_the_bytes_hold_every_key_once_and_sorted():
    whole = spec(
        retention="keep", models="none", downlink="snapshot", sections=[{"match": "stat/*"}], keys="early", attempts=1,
        gamma=0.1, delta=0.2, hardened=True, phase=1, clip=2, metrics=["f1"], evaluate_every=2,
        best={"metric": "eval.f1"}, partial=False, distribution=True, clients=None, buffer=9, concurrency=3,
        staleness=2, selection={"labels": {"site": "a*"}},
    )  # fmt: skip
    value = json.loads(whole.encoded)
    # Bins are for secure runs, and this one is open.
    assert list(value) == sorted(f.name for f in fields(RunSpec) if f.name != "histograms")
    assert {**value, "histograms": {}} == {
        **asdict(whole), "sections": list(whole.sections), "metrics": ["f1"],
    }  # fmt: skip


def test_what_an_older_version_does_not_know_is_left_out_where_it_says_nothing():
    value = json.loads(spec().encoded)
    assert not {"retention", "models"} & value.keys()
    assert RunSpec.decode(spec().encoded) == spec()


@pytest.mark.parametrize(
    ("policy", "rounds"), [("keep", math.inf), ("none", 0), ("7 rounds", 7), ("1 round", 1), ("0 rounds", 0)]
)
def test_a_retention_is_a_number_of_rounds(policy, rounds):
    assert spec(retention=policy).updates_kept == rounds
    assert spec(models=policy).models_kept == rounds


@pytest.mark.parametrize("policy", ["", "all", "-1 rounds", "3", "3 days", "9999999999 rounds"])
def test_any_other_retention_is_refused_by_name(policy):
    with pytest.raises(
        UsageError, match=r"retention = .* must be 'keep', 'none', or for example '10 rounds'"
    ):
        spec(retention=policy)


def test_a_spec_is_not_changed_once_it_is_checked():
    with pytest.raises(FrozenInstanceError):
        spec().rounds = 0


def test_the_recipes_digest_follows_the_recipe():
    assert spec().recipe_digest == spec(name="other").recipe_digest
    assert spec().recipe_digest != spec(strategy=dump(FedAvg(lr=0.5))).recipe_digest


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", b"\xff\xfe", b"null", b"5", b"[]", b'"spec"', b"{", b"{}", b'{"name": "x"}', b'{"cls": 1}',
        b"[" * 100_000, b'{"config":' * 100_000, b"9" * 10_000,
        json.dumps({**BASE, "deadline": math.nan}).encode(), json.dumps({**BASE, "rounds": 10**400}).encode(),
        json.dumps({**BASE, "config": {"x": math.inf}}).encode(),
    ],
    ids=lambda d: repr(d[:30]),
)  # fmt: skip
def test_bytes_that_are_no_spec_raise_nothing_but_a_usage_error(data):
    with pytest.raises(UsageError):
        RunSpec.decode(data)


def deep(levels: int) -> dict:
    value: dict = {}
    for _ in range(levels):
        value = {"x": value}
    return value


@pytest.mark.parametrize("levels", [100, 500, 5000])
def test_a_config_that_is_too_deep_is_refused_or_can_be_written(levels):
    try:
        made = spec(config=deep(levels))
    except UsageError:
        return
    assert RunSpec.decode(made.encoded) == made


values_ = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)


@given(st.dictionaries(st.sampled_from([f.name for f in fields(RunSpec)]), values_, max_size=3))
def test_whatever_the_values_a_spec_is_made_or_a_usage_error_raised(values):
    try:
        made = spec(**values)
        made.check()
    except UsageError:
        return
    assert RunSpec.decode(made.encoded) == made
