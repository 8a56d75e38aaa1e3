"""docs/sdk.md: the strategies that it shows are run as they are printed there."""

import re
import sys
import types
from pathlib import Path

import pytest

import koinon
import toy

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sdk.md").read_text()
SECTION = PAGE.partition("## Write your own strategy, in twenty lines")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def shown():
    """A module that holds what the page shows, as an owner's would."""
    module = types.ModuleType("shown_in_the_docs")
    sys.modules[module.__name__] = module  # where dataclasses look for it
    for block in BLOCKS:
        exec(compile(block, "docs/sdk.md", "exec"), vars(module))  # its last block holds both to the laws
    yield module
    del sys.modules[module.__name__]


def test_every_python_on_the_page_is_python():
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        compile(block, "docs/sdk.md", "exec")


def test_the_first_is_the_example_and_the_second_has_twenty_lines(shown):
    example = (ROOT / "examples" / "half_step.py").read_text()
    for line in BLOCKS[0].splitlines():
        assert line in example.splitlines()
    lines = [line for line in BLOCKS[1].splitlines() if line]
    assert len(lines) <= 20


def test_what_is_shown_runs_and_ends_where_it_must(shown):
    half = koinon.simulate(
        toy.toy_run(shown.HalfStep(), 3, evaluate=False), toy.toy_client(toy.TAU), clients=toy.NAMES
    )
    plain = koinon.simulate(
        toy.toy_run(koinon.FedAvg(lr=0.5), 3, evaluate=False), toy.toy_client(toy.TAU), clients=toy.NAMES
    )
    assert half.model == plain.model
    leaning = toy.toy_run(shown.Downhill(), 3, evaluate=False)
    got = koinon.simulate(leaning, toy.toy_client((1,) * 4), clients=toy.NAMES)
    assert float(got.model["x"][0]) == pytest.approx(
        toy.federate(shown.Downhill(), rounds=3, steps=(1,) * 4)[0]
    )
    assert got.model != koinon.simulate(
        toy.toy_run(koinon.FedAvg(), 3, evaluate=False), toy.toy_client((1,) * 4), clients=toy.NAMES
    ).model  # fmt: skip
    x, *_ = toy.federate(shown.Downhill(), rounds=600, steps=(1,) * 4)
    assert x == pytest.approx(toy.WEIGHTED, abs=1e-9), "where nothing moves any more, m is nothing"
