"""The table of what goes with what, in docs/strategies.md: every cell is tried here. To write it anew:

python tests/core/test_strategy_table.py
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

if __name__ == "__main__":
    for source in ("protos", "client", "tests"):
        sys.path.insert(0, str(Path(__file__).parents[2] / source))

import koinon
from catalogue import BUILT_IN
from koinon_core.errors import UsageError
from koinon_core.strategy import Base, Krum, Need, chain

PAGE = Path(__file__).parents[2] / "docs" / "strategies.md"
BEGIN, END = "<!-- table: tried by the tests -->\n", "<!-- end of the table -->\n"
MODEL = {"a": np.zeros((3, 4), np.float32), "b": np.zeros(7)}


def tried(strategy, model, **settings) -> str:
    """Nothing if a run can be made of it, else why not."""
    values = {"min_clients": 9, "clients": 9, "population": 20, **settings}
    try:
        koinon.Run("t", model=model or MODEL, strategy=strategy, **values)
    except UsageError as error:
        return str(error)
    return ""


def beside_krum(strategy, model) -> str:
    try:
        return tried(chain(strategy, Krum(f=1)), model, aggregation="open")
    except UsageError as error:
        return str(error)


def parts_of(strategy):
    return getattr(strategy, "parts", (strategy,))


def optimizers(strategy, model) -> str:
    if Need.NORM in strategy.needs:
        return "SGD, also with momentum"
    w = koinon.Tensors(model or MODEL)
    plan = strategy.begin({}, strategy.down(strategy.init(w, 20)), w)
    steered = [plan.pull, *(one.pull for one in plan.passes)]
    if any(pull.mu or pull.shift is not None for pull in steered) or any(p.measure for p in plan.passes):
        return "any without a closure"
    return "any"


def kept(strategy, model) -> str:
    """Where something is kept from round to round."""
    w = koinon.Tensors(model or MODEL)
    both = []
    if strategy.init(w, 20):
        both.append("coordinator")
    if any(type(p).commit is not Base.commit or type(p).local is not Base.local for p in parts_of(strategy)):
        both.append("devices")
    return " and ".join(both) or "nowhere"


def by_groups(strategy, model, reason, **settings) -> str:
    """Whether what a secure run cannot have is possible between the sums of groups."""
    if not reason:
        return "yes"
    many = {"min_clients": 3, "clients": 27, "population": 30, "groups": 9}
    return "no" if tried(strategy, model, aggregation="secure", **many, **settings) else "groups"


def cells(strategy, model) -> dict[str, str]:
    """A column's name to "" or the reason why not."""
    return {
        "open": tried(strategy, model, aggregation="open"),
        "secure": tried(strategy, model, aggregation="secure"),
        "secure `compact`": tried(strategy, model, aggregation="secure", codec="compact"),
        "open `thin`": tried(strategy, model, aggregation="open", codec="thin"),
        "below it `Krum`": beside_krum(strategy, model),
    }


def table() -> str:
    columns = list(cells(*BUILT_IN[koinon.FedAvg]))
    rows = [
        ["strategy", *columns, "coordinator's memory", "keeps a state", "local optimizer"],
        ["---"] * (len(columns) + 4),
    ]
    for kind, (strategy, model) in sorted(BUILT_IN.items(), key=lambda item: item[0].__name__):
        tries = cells(strategy, model)
        said = ["no" if cell else "yes" for cell in tries.values()]
        said[columns.index("secure")] = by_groups(strategy, model, tries["secure"])
        compact = columns.index("secure `compact`")
        said[compact] = by_groups(strategy, model, tries["secure `compact`"], codec="compact")
        memory = "tiles" if strategy.elementwise else "the model"
        name = f"`{kind.__name__}`" + (" (bias_correction)" if kind is koinon.FedAdam else "")
        rows.append([name, *said, memory, kept(strategy, model), optimizers(strategy, model)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda k: k.__name__)
def test_every_no_is_an_error_in_one_sentence_when_the_run_is_made(kind):
    for reason in cells(*BUILT_IN[kind]).values():
        assert not re.search(r"[.!?] [A-Z]|\.$", reason)
        assert not reason or len(reason) > 40


def test_the_table_is_what_is_tried():
    text = PAGE.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == table(), (
        f"python {Path(__file__).name} writes it"
    )


def test_every_strategy_has_its_words():
    text = PAGE.read_text()
    for kind in BUILT_IN:
        assert f"`{kind.__name__}" in text[: text.index(BEGIN)], f"{kind.__name__} is not described"


if __name__ == "__main__":
    whole = PAGE.read_text()
    PAGE.write_text(whole[: whole.index(BEGIN) + len(BEGIN)] + table() + whole[whole.index(END) :])
