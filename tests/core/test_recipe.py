"""Recipes: a strategy as data, in and out; and nothing else in."""

import json
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from koinon_core.canonical import canonical
from koinon_core.errors import NotFound, UsageError
from koinon_core.strategy import (
    Base,
    Clip,
    FedAdam,
    FedAvg,
    FedBN,
    FedProx,
    Prox,
    Scaffold,
    chain,
    dump,
    load,
    parse,
    register,
    show,
)  # fmt: skip
from koinon_core.strategy.registry import known, load_plugins, lookup

BUILT_IN = [name for name in known() if name.startswith("koinon.")]
HEADED = ("koinon.FedPer", "koinon.FedRep")  # there is no head that every model has
SET = [
    FedAvg(lr=0.5), FedAdam(lr=0.01, tau=1e-9), FedBN(keys=("*.norm*.*", "head.*")), FedBN(), Scaffold(option=1),
    FedProx(mu=0.25), chain(FedAdam(lr=0.01), Prox(mu=0.1), Clip(1.0), FedBN(keys=("a",))),
]  # fmt: skip
MADE = [*(lookup(n)(**{"keys": ("h.*",)} if n in HEADED else {}) for n in BUILT_IN), *SET]


@register
@dataclass(frozen=True)
class Owned(Base):
    revision: ClassVar[int] = 3
    on: bool = False
    steps: int = 1
    name: str = "x"
    sizes: "tuple[int, ...]" = ()
    rate: "float" = 0.5


def through_json(recipe):
    return json.loads(canonical(recipe))


def test_the_built_in_strategies_are_known():
    assert {"koinon.FedAvg", "koinon.FedAdam", "koinon.Scaffold", "koinon.FedBN"} <= set(BUILT_IN)


@pytest.mark.parametrize("strategy", MADE, ids=repr)
def test_a_strategy_comes_back_from_its_recipe(strategy):
    recipe = dump(strategy)
    assert load(recipe) == load(through_json(recipe)) == strategy
    assert dump(load(through_json(recipe))) == recipe


@pytest.mark.parametrize("strategy", MADE, ids=repr)
def test_a_strategy_comes_back_from_its_line_of_text(strategy):
    assert parse(show(dump(strategy))) == strategy


def test_a_recipe_says_name_revision_and_fields():
    assert dump(FedAvg(lr=0.5)) == {"name": "koinon.FedAvg", "revision": 1, "fields": {"lr": 0.5}}
    assert dump(FedProx(mu=0.5))["chain"][1] == {"name": "koinon.Prox", "revision": 1, "fields": {"mu": 0.5}}


def test_an_owners_strategy_goes_by_its_module():
    own = Owned(on=True, steps=2, name="y", sizes=(1, 2), rate=1.0)
    recipe = dump(own)
    assert recipe["name"] == f"{Owned.__module__}.Owned"
    assert recipe["revision"] == 3
    assert load(through_json(recipe)) == own


@pytest.mark.parametrize("what", [object(), FedProx, FedAvg, None, 5])
def test_only_registered_strategies_have_a_recipe(what):
    with pytest.raises(UsageError, match=r"is not registered: put @koinon\.register above it"):
        dump(what)


@pytest.mark.parametrize("value", [[1], {"a": 1}, (1, (2,)), object()])
def test_a_field_that_is_no_plain_value_has_no_recipe(value):
    with pytest.raises(UsageError, match=r"the field 'name' of Owned is a .*; a recipe holds numbers, text"):
        dump(Owned(name=value))


# -- recipes that cannot be loaded --------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", [1, 2, 4, None, "3"])
def test_another_revision_is_refused_with_both_numbers(theirs):
    recipe = {**dump(Owned()), "revision": theirs}
    with pytest.raises(UsageError, match=f"has revision {theirs} in the run and 3 here"):
        load(recipe)


def test_a_recipe_without_a_revision_is_of_the_first():
    assert load({"name": "koinon.FedAvg"}) == FedAvg()


@pytest.mark.parametrize(
    "name", ["koinon.FedAvgg", "FedSgd", "os.system", "koinon.Chain", "koinon.Base", "", None, []]
)
def test_an_unknown_name_is_not_found_and_the_known_ones_are_listed(name):
    with pytest.raises(
        NotFound,
        match=r"there is no strategy .*\(there are .*koinon\.CenteredClipping, koinon\.Clip, .*--plugin",
    ):
        load({"name": name, "revision": 1, "fields": {}})


def fedavg(**values):
    return {"name": "koinon.FedAvg", "revision": 1, "fields": values}


UNLOADABLE = [
    (fedavg(learning=1.0), r"koinon\.FedAvg has no field 'learning'; it has lr"),
    ({"name": "koinon.FedAdam", "fields": {"beta": 0.5}}, r"no field 'beta'; did you mean 'beta2'\?"),
    ({"name": "koinon.FedAvgM", "fields": {"betas": 0.5}}, r"did you mean 'beta'\?"),
    ({"name": "koinon.FedAvg", "fields": {1: 2}}, "no field 1"),
    (fedavg(lr="fast"), "lr must be a float, not 'fast'"),
    (fedavg(lr=None), "lr must be a float, not None"),
    (fedavg(lr=True), "lr must be a float, not True"),
    (fedavg(lr=[1.0]), "lr must be a float"),
    (fedavg(lr={}), "lr must be a float"),
    (fedavg(lr=float("nan")), "lr must be a float, not nan"),
    (fedavg(lr=float("inf")), "lr must be a float, not inf"),
    (fedavg(lr=10**400), "lr must be a float"),
    ({"name": "koinon.Scaffold", "fields": {"option": 2.0}}, "option must be a int"),
    ({"name": "koinon.Scaffold", "fields": {"option": 3}}, "option is 1"),
    ({"name": "koinon.FedAvgM", "fields": {"beta": "x"}}, "beta must be a float"),
    ({"name": "koinon.FedBN", "fields": {"keys": "*"}}, "keys must be a tuple"),
    ({"name": "koinon.FedBN", "fields": {"keys": None}}, "keys must be a tuple"),
    ({"name": "koinon.FedBN", "fields": {"keys": ["a", 1]}}, "keys must be a tuple"),
    ({"name": "koinon.FedAvg", "fields": None}, "which is no table"),
    ({"name": "koinon.FedAvg", "fields": ["lr"]}, "which is no table"),
    ({"name": "koinon.FedAvg", "fields": "lr"}, "which is no table"),
    ({"chain": []}, "at least one strategy"),
    ({"chain": None}, "a chain is a list of recipes, not None"),
    ({"chain": 5}, "a chain is a list"),
    ({"chain": "FedAvg"}, "a chain is a list"),
    ({"chain": {}}, "a chain is a list"),
    ({"chain": [None]}, "not a strategy's recipe: None"),
    ({"chain": ["koinon.FedAvg"]}, "not a strategy's recipe: 'koinon.FedAvg'"),
    ({"chain": [fedavg(), fedavg()]}, "FedAvg and FedAvg both set the weight"),
    *(
        (junk, "not a strategy's recipe")
        for junk in (None, [], [fedavg()], "koinon.FedAvg", 5, 0.5, True, ())
    ),
]


@pytest.mark.parametrize(("recipe", "sentence"), UNLOADABLE)
def test_a_recipe_that_cannot_be_is_refused(recipe, sentence):
    with pytest.raises(UsageError, match=sentence):
        load(recipe)


def test_fields_annotated_with_text_are_checked_too():
    for wrong in ({"rate": "x"}, {"on": 1}, {"steps": True}, {"name": 5}, {"rate": None}):
        with pytest.raises(UsageError, match="must be a"):
            load({**dump(Owned()), "fields": wrong})


def test_a_chain_nested_without_end_is_refused():
    recipe = fedavg()
    for _ in range(5000):
        recipe = {"chain": [recipe]}
    with pytest.raises(UsageError, match="nested too deeply"):
        load(recipe)


def test_chains_within_a_chain_are_flattened():
    assert load({"chain": [{"chain": [dump(Prox())]}, dump(FedAvg())]}) == chain(Prox(), FedAvg())


names = st.sampled_from([*BUILT_IN, "koinon.Nothing", "chain"])
keys = st.sampled_from(
    ["name", "revision", "fields", "chain", *{f.name for n in BUILT_IN for f in fields(lookup(n))}]
)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), names)
junk = st.recursive(
    plain, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip
nearly = st.fixed_dictionaries({"name": names}, optional={"fields": st.dictionaries(keys, junk, max_size=2)})


@given(st.one_of(junk, nearly, st.fixed_dictionaries({"chain": st.lists(nearly, max_size=3)})))
def test_whatever_comes_makes_a_strategy_that_can_be_written_down_or_a_usage_error(recipe):
    try:
        strategy = load(recipe)
    except UsageError:
        return
    assert load(through_json(dump(strategy))) == strategy


# -- a line of text -----------------------------------------------------------------------------------------

LINES = {
    "FedAvg": FedAvg(),
    "koinon.FedAvg": FedAvg(),
    " koinon.FedAvg() ": FedAvg(),
    "FedAvg(0.5)": FedAvg(lr=0.5),
    "FedAvg(lr=-1e-3)": FedAvg(lr=-1e-3),
    "koinon.FedAdam(0.01, tau=1e-4)": FedAdam(lr=0.01, tau=1e-4),
    "FedProx": FedProx(),
    "koinon.FedProx(0.5, lr=2.0)": FedProx(mu=0.5, lr=2.0),
    "FedBN(keys=('*.norm*.*',))": FedBN(keys=("*.norm*.*",)),
    "FedBN(['a', 'b'])": FedBN(keys=("a", "b")),
    "chain(FedAvg)": FedAvg(),
    "koinon.chain(koinon.FedAdam(lr=0.01), Clip(1.0))": chain(FedAdam(lr=0.01), Clip(1.0)),
    "chain(FedProx(mu=0.5), chain(Clip, FedBN()))": chain(FedAvg(), Prox(mu=0.5), Clip(), FedBN()),
    "chain(\n  FedAvg(),\n  Clip(2.0),\n)": chain(FedAvg(), Clip(2.0)),
}


@pytest.mark.parametrize(("text", "strategy"), LINES.items())
def test_a_line_of_text_names_a_strategy(text, strategy):
    assert parse(text) == strategy


def test_an_owners_strategy_is_parsed_by_its_full_name():
    assert parse(f"{Owned.__module__}.Owned(steps=4)") == Owned(steps=4)


NOT_A_STRATEGY = [
    "", " ", "\0", "\ud800", "5", "'FedAvg'", "None", "FedAvg()()", "FedAvg;", "FedAvg = 1", "import os",
    "FedAvg() FedAvg()", "[FedAvg()]", "(FedAvg(), Clip())", "lambda: FedAvg()", "FedAvg() if True else Clip()",
    "FedAvg() or Clip()", "[FedAvg() for _ in (1,)]", "(x := FedAvg())", "f'{FedAvg()}'", "await FedAvg()",
    "FedAvg().lr", "FedAvg.__init__", "FedAvg().__class__", "koinon.FedAvg.__subclasses__()",
    "koinon.__import__('os')", "__import__('os').system('true')", "eval('FedAvg()')", "open('/etc/passwd')",
    "os.system('true')", "koinon.koinon.FedAvg()", "[FedAvg][0]()", "{'a': FedAvg}['a']()", "(lambda: 0)()",
    "FedAvg(lr=__import__('os'))", "FedAvg(lr=lambda: 1)", "FedAvg(lr=[x for x in (1,)])", "FedAvg(lr=1 + 1)",
    "FedAvg(lr=10 ** 9)", "FedAvg(lr=lr)", "FedAvg(lr=FedAvg())", "FedAvg(lr='1')", "FedAvg(lr=1j)",
    "FedAvg(lr=1e999)", "FedAvg(lr={[]: 1})", "FedAvg(lr={1: 2})", "FedAvg(lr=set())", "FedAvg(lr=b'1')",
    "FedAvg(*[1.0])", "FedAvg(**{'lr': 1.0})", "FedAvg(1.0, 2.0)", "FedAvg(1.0, lr=1.0)", "FedAvg(lr=1, lr=2)",
    "FedProx(1.0, 2.0, 3.0)", "FedProx(mu='x')", "FedProx(mu=-1.0)", "FedProx(nu=1.0)", "FedProx(mu=1, mu=2)",
    "FedBN(keys='*')", "FedBN(keys=(1,))", "FedBN(keys=[[]])", "Clip(0)", "Chain((FedAvg(),))",
    "chain", "chain()", "chain(1)", "chain(*[FedAvg()])", "chain(FedAvg(), x=1)", "chain([FedAvg()])",
    "chain(FedAvg(), FedAdam())", "chain(FedAvg(), __import__('os'))", "chain.__class__",
    "FedAvg(lr=" + "9" * 5000 + ")", "(" * 1000, "-" * 50_000 + "1", "a" + ".a" * 5000,
    "FedAvg(lr=" + "-" * 3000 + "1)", "chain(" * 90 + "1" + ")" * 90,
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_A_STRATEGY, ids=lambda t: repr(t[:50]))
def test_anything_else_is_refused_and_never_run(text):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("FedAvg(lrr=1.0)", r"FedAvg has no field 'lrr'; did you mean 'lr'\?"),
        ("FedProx(muu=1.0)", r"FedProx has no field 'muu'; did you mean 'mu'\?"),
        (
            "FedAvgg()",
            r"no strategy 'koinon\.FedAvgg' here; did you mean 'koinon\.FedAvg'\?.*koinon\.FedAvg, ",
        ),
        ("chain(FedAvg(), Clip(nrm=1.0))", r"Clip has no field 'nrm'; did you mean 'norm'\?"),
        ("FedAvg(lr=1 + 1)", "the fields of FedAvg must be plain values"),
        ("FedAsync(a=inf)", r"must be plain values \(a finite number, .*\), and inf is none"),
        ("chain(FedAvg(), x=1)", "a chain has parts and no fields; it was given 'x'"),
        ("FedAvg(lr=1, lr=2)", "gives a field twice"),
        ("5", r"write for example 'koinon\.FedAvg\(\)'"),
    ],
)
def test_a_refusal_says_what_to_write(text, sentence):
    with pytest.raises(UsageError, match=sentence):
        parse(text)


pieces = st.sampled_from(
    ["koinon.", "FedAvg", "FedProx", "FedBN", "chain", "(", ")", "(", ")", "lr=", "keys=", "mu=", "1", "0.5",
     "'a'", ",", "[", "]", "{", "}", ":", "*", "**", ".", "-", "lambda ", "None", "True", "\n", " ", "#", "\\"]
)  # fmt: skip


@given(st.one_of(st.text(), st.lists(pieces, max_size=12).map("".join)))
@example("FedBN(['a'])")
def test_no_text_raises_anything_but_a_usage_error(text):
    try:
        strategy = parse(text)
    except UsageError:
        return
    assert parse(show(dump(strategy))) == strategy


# -- the registry -------------------------------------------------------------------------------------------


def test_only_frozen_dataclasses_can_be_registered():
    @dataclass
    class Loose:
        lr: float = 1.0

    class Plain:
        pass

    for wrong in (Loose, Plain):
        with pytest.raises(UsageError, match="must be a frozen dataclass: its fields are its recipe"):
            register(wrong)


def test_a_plugin_that_is_not_there_is_refused_by_name():
    with pytest.raises(UsageError, match="the plugin 'no_such_module_here' cannot be imported"):
        load_plugins(["no_such_module_here"])


@register
@dataclass(frozen=True)
class Optional(Base):
    most: int | None = None


def test_a_field_that_may_be_nothing_takes_nothing_else_but_its_type():
    assert parse(f"{__name__}.Optional(most=3)").most == 3
    assert parse(f"{__name__}.Optional(most=None)").most is None
    for wrong in ("'x'", "2.5", "True"):
        with pytest.raises(UsageError, match="most must be a"):
            parse(f"{__name__}.Optional(most={wrong})")
