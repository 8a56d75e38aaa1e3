"""The table of what goes with what, in docs/strategies.md: every cell is tried here. To write it anew:

python tests/core/test_strategy_table.py

A column is a line of COLUMNS. Where it says yes, a round is run; where it says no, an error says so when the run is
made.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

if __name__ == "__main__":
    for source in ("protos", "client", "tests"):
        sys.path.insert(0, str(Path(__file__).parents[2] / source))

import koinon
from catalogue import BUILT_IN
from koinon_core.errors import LocalProtocolError, UsageError
from koinon_core.strategy import Base, Krum, Need, chain

PAGE = Path(__file__).parents[2] / "docs" / "strategies.md"
BEGIN, END = "<!-- table: tried by the tests -->\n", "<!-- end of the table -->\n"
MODEL = {"a": np.zeros((3, 4), np.float32), "b": np.zeros(7)}
DEVICES = 5

# A column's name, what of a strategy is run, and with which settings.
COLUMNS = {
    "open": (lambda s: s, {"aggregation": "open"}),
    "secure": (lambda s: s, {"aggregation": "secure"}),
    "async": (lambda s: s, {"aggregation": "open", "clients": None, "buffer": DEVICES}),
    "secure async": (lambda s: s, {"aggregation": "secure", "clients": None, "buffer": DEVICES}),
    "secure `compact`": (lambda s: s, {"aggregation": "secure", "codec": "compact"}),
    "open `thin`": (lambda s: s, {"aggregation": "open", "codec": "thin"}),
    "below it `Krum`": (lambda s: chain(s, Krum(f=1)), {"aggregation": "open"}),
}
GROUPS = {"min_clients": 3, "clients": 27, "population": 30, "groups": 9}
MADE = {"min_clients": DEVICES, "clients": DEVICES, "population": 20, "rounds": 1, "evaluate": False}


def made(column, strategy, model, **more) -> koinon.Run:
    """A run of that cell; UsageError where there can be none."""
    change, settings = COLUMNS[column]
    return koinon.Run("t", model=model or MODEL, strategy=change(strategy), **{**MADE, **settings, **more})


def why_not(column, strategy, model, **more) -> str:
    """Nothing if a run can be made of it, else why not."""
    try:
        made(column, strategy, model, **more)
    except UsageError as error:
        return str(error)
    return ""


def played(strategy, model) -> koinon.Run:
    """A run of that strategy in the clear, of whichever kind it has."""
    return made("async" if why_not("open", strategy, model) else "open", strategy, model)


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


def said(column, strategy, model) -> str:
    """What the table says: "groups" for what a secure run can have between the sums of some."""
    if not why_not(column, strategy, model):
        return "yes"
    secure = COLUMNS[column][1]["aggregation"] == "secure"
    return "groups" if secure and not why_not(column, strategy, model, **GROUPS) else "no"


def cells(strategy, model) -> dict[str, str]:
    """A column's name to "" or the reason why not."""
    return {column: why_not(column, strategy, model) for column in COLUMNS}


def table() -> str:
    rows = [
        ["strategy", *COLUMNS, "coordinator's memory", "keeps a state", "local optimizer"],
        ["---"] * (len(COLUMNS) + 4),
    ]
    for kind, (strategy, model) in sorted(BUILT_IN.items(), key=lambda item: item[0].__name__):
        memory = "tiles" if strategy.elementwise else "the model"
        name = f"[`{kind.__name__}`](strategies/{kind.__name__.lower()}.md)"
        name += " (bias_correction)" if kind is koinon.FedAdam else ""
        tried = [said(column, strategy, model) for column in COLUMNS]
        rows.append([name, *tried, memory, kept(strategy, model), optimizers(strategy, model)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda k: k.__name__)
def test_a_cell_is_a_round_or_an_error_in_one_sentence_when_the_run_is_made(kind, column):
    strategy, model = BUILT_IN[kind]
    reason = why_not(column, strategy, model)
    if reason:
        assert not re.search(r"[.!?] [A-Z]|\.$", reason)
        assert len(reason) > 40
        return

    def client(session):
        mine = {name: array.copy() for name, array in (model or MODEL).items()}
        for task in session.tasks(mine, evaluate=lambda _: {"loss": 1.0}):
            task.descend({name: np.ones_like(array) for name, array in mine.items()}, lr=0.01)
            task.submit(examples=5)

    run = made(column, strategy, model)
    assert koinon.simulate(run, client, clients=DEVICES).status == "finished"


class Named(nn.Module):
    """A torch module whose parameters have the names and values of a dict of arrays."""

    def __init__(self, arrays):
        super().__init__()
        for name, array in arrays.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(torch.tensor(array)))


OPTIMIZERS = {
    "SGD, also with momentum": lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9),
    "any without a closure": lambda ps: torch.optim.AdamW(ps, lr=0.01),
    "any": lambda ps: torch.optim.LBFGS(ps, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda k: k.__name__)
def test_a_strategy_takes_the_optimizers_that_the_table_says_and_refuses_the_others(kind, optimizer):
    strategy, model = BUILT_IN[kind]
    order = list(OPTIMIZERS)
    fits = order.index(optimizer) <= order.index(optimizers(strategy, model))

    def client(session):
        net = Named(model or MODEL)
        for task in session.tasks(net, evaluate=lambda _: {"loss": 1.0}):
            stepper = OPTIMIZERS[optimizer](net.parameters())

            def closure(stepper=stepper):
                stepper.zero_grad()
                loss = sum((p - 1).square().sum() for p in net.parameters())
                if loss.requires_grad:
                    loss.backward()
                return loss

            if optimizer == "any":
                stepper.step(closure)
            else:
                closure()
                stepper.step()
            task.submit(examples=5)

    run = played(strategy, model)
    if fits:
        assert koinon.simulate(run, client, clients=DEVICES).status == "finished"
        return
    with pytest.raises(LocalProtocolError):
        koinon.simulate(run, client, clients=DEVICES)


def test_the_table_is_what_is_tried():
    text = PAGE.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == table(), (
        f"python {Path(__file__).name} writes it"
    )


def test_every_strategy_has_its_row_with_its_page():
    text = PAGE.read_text()
    for kind in BUILT_IN:
        row = rf"^\| \[`{kind.__name__}\(.*\]\(strategies/{kind.__name__.lower()}\.md\) \|"
        assert re.search(row, text, re.MULTILINE), f"{kind.__name__} has no row"


if __name__ == "__main__":
    whole = PAGE.read_text()
    PAGE.write_text(whole[: whole.index(BEGIN) + len(BEGIN)] + table() + whole[whole.index(END) :])
