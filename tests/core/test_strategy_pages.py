"""Every built-in strategy has its page under docs/strategies/: its settings are the fields, its errors are raised in
the words that are quoted, and its example runs."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import koinon
from catalogue import BUILT_IN
from core.test_strategy_table import DEVICES, MODEL, OPTIMIZERS, Named, cells, optimizers, played
from koinon.adapt import adapt
from koinon.torch.lora import add_lora
from koinon_core.errors import KoinonError
from koinon_core.strategy.registry import known, lookup

PAGES = Path(__file__).parents[2] / "docs" / "strategies"
OURS = [lookup(name) for name in known() if name.startswith("koinon.")]


def page(kind) -> str:
    return (PAGES / f"{kind.__name__.lower()}.md").read_text()


def test_every_registered_strategy_has_a_page_and_no_page_is_left_over():
    assert {path.stem for path in PAGES.glob("*.md")} == {kind.__name__.lower() for kind in OURS}
    assert set(OURS) == BUILT_IN.keys()


@pytest.mark.parametrize("kind", OURS, ids=lambda k: k.__name__)
def test_a_page_is_short_and_has_its_strategys_name(kind):
    lines = page(kind).splitlines()
    assert lines[0] == f"# {kind.__name__}"
    assert 40 <= len(lines) <= 85
    assert all(len(line) <= 130 for line in lines if not line.startswith("|"))


@pytest.mark.parametrize("kind", OURS, ids=lambda k: k.__name__)
def test_the_settings_of_a_page_are_the_fields_with_their_defaults(kind):
    settings = page(kind).partition("## Settings")[2].partition("##")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| .+ \|$", settings, re.MULTILINE)
    assert rows == [(field.name, repr(field.default)) for field in dataclasses.fields(kind)]


def quoted(text: str) -> list[str]:
    """The block quotes of a page, each on one line."""
    found = re.findall(r"(?:^> .*\n)+", text, re.MULTILINE)
    return [" ".join(line.removeprefix("> ") for line in quote.splitlines()) for quote in found]


def refused_in(text: str) -> list[tuple[str, str]]:
    """What a page says cannot be made, each with the error."""
    found = re.findall(r"^Not `(.*)`:\n\n((?:> .*\n)+)", text, re.MULTILINE)
    return [(code, quoted(quote)[0]) for code, quote in found]


def said_to_the_optimizer(strategy, model) -> list[str]:
    """How one that the strategy does not take is refused."""
    takes = optimizers(strategy, model)
    if takes == "any":
        return []

    def client(session):
        net = Named(model or MODEL)
        for task in session.tasks(net, evaluate=lambda _: {"loss": 1.0}):
            if takes == "any without a closure":
                stepper = torch.optim.LBFGS(net.parameters())
                stepper.step(lambda: sum(p.square().sum() for p in net.parameters()))
            else:
                sum(p.square().sum() for p in net.parameters()).backward()
                OPTIMIZERS["any without a closure"](net.parameters()).step()
            task.submit(examples=5)

    with pytest.raises(KoinonError) as caught:
        koinon.simulate(played(strategy, model), client, clients=DEVICES)
    return [str(caught.value)]


@pytest.mark.parametrize("kind", OURS, ids=lambda k: k.__name__)
def test_a_page_quotes_every_error_in_its_words(kind):
    strategy, model = BUILT_IN[kind]
    text, refused = page(kind), refused_in(page(kind))
    for code, error in refused:
        with pytest.raises(koinon.UsageError) as caught:
            eval(code, {name: getattr(koinon, name) for name in koinon.__all__})
        assert str(caught.value) == error
    expected = {reason for reason in cells(strategy, model).values() if reason}
    expected |= {error for _, error in refused} | set(said_to_the_optimizer(strategy, model))
    assert set(quoted(text)) == expected


def tiny(kind) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("body", nn.Linear(3, 4))
    net.add_module("bn", nn.BatchNorm1d(4))
    net.add_module("head", nn.Linear(4, 2))
    return add_lora(net, targets=("body",), rank=2, freeze_a=False) if kind is koinon.LoraProjection else net


@pytest.mark.parametrize("kind", OURS, ids=lambda k: k.__name__)
def test_the_example_of_a_page_runs(kind, capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```", page(kind), re.MULTILINE | re.DOTALL)
    assert sum(bool(line) for line in example.splitlines()) == 5

    def client(session):
        net = tiny(kind)
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(int(session.client[-1])))

        def loss():
            return nn.functional.cross_entropy(net(x), x[:, :2].argmax(1))

        for task in session.tasks(net, evaluate=lambda _: {"loss": loss().item(), "examples": 8}):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            for _ in range(task.epochs):
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
            task.submit(examples=8, metrics={"loss": loss().item()})

    names = {"model": lambda: tiny(kind), "client": client}
    exec(example, names)
    parts = getattr(names["strategy"], "parts", (names["strategy"],))
    assert kind in map(type, parts)
    assert names["done"].status == "finished"
    before = adapt(tiny(kind)).read()
    assert names["done"].model != before
    assert capsys.readouterr().out.startswith("finished {")


@pytest.mark.parametrize("kind", OURS, ids=lambda k: k.__name__)
def test_every_row_of_a_table_has_its_columns(kind):
    tables = re.findall(r"(?:^\|.*\n)+", page(kind), re.MULTILINE)
    for table in tables:
        rows = [len(re.split(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert len(set(rows)) == 1
