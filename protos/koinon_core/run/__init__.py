"""A run: many rounds, as one pure machine over the machine of a round.

Whoever drives it answers two orders with a fact: `Open` with `Opening` (it brings the incarnation, which is drawn at
random), and a round's `Fold` with `Folded`, `Unfoldable` or `Spoiled`. Read facts, orders, machine.
"""

from koinon_core.run.facts import (
    Ahead,
    Answered,
    Cancelled,
    Fact,
    Folded,
    Gone,
    Labelled,
    Measured,
    Offered,
    Opening,
    Paused,
    Progressed,
    Recovered,
    Resigned,
    Resumed,
    Spoiled,
    TakenUp,
    Tick,
    Unfoldable,
    Voiced,
)  # fmt: skip
from koinon_core.run.machine import start, step
from koinon_core.run.orders import Finish, Open, Order, Recall, Status
from koinon_core.run.state import Moved, Run, Standing, rank

__all__ = [
    "Ahead", "Answered", "Cancelled", "Fact", "Finish", "Folded", "Gone", "Labelled", "Measured", "Moved", "Offered",
    "Open", "Opening", "Order", "Paused", "Progressed", "Recall", "Recovered", "Resigned", "Resumed", "Run", "Spoiled",
    "Standing", "Status", "TakenUp", "Tick", "Unfoldable", "Voiced", "rank", "start", "step",
]  # fmt: skip
