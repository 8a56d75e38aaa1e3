"""The gate: whether the device may work now, before work begins and while it is done.

Each question has a name, what was found, what is asked for, and an answer: yes, no or unknown. The first no closes the
gate, with its reason; all of them are told to an owner who asks why the device does nothing.

    found.py       what was found, at one moment, from the files of the kernel
    predicates.py  the questions; decide.py: the answer to all of them. Both are pure: a day can be played in a second
    verdict.py     the answers, and their table
    gate.py        a gate: it looks, decides, and remembers that it was closed for heat or a battery
    networks.py    which network there is, and whether its bytes cost money
    modes.py       a Jetson's power mode
    budget.py      bytes of a day and a month, on disk
"""

from koinon_edge.gate.budget import Budget
from koinon_edge.gate.decide import decide
from koinon_edge.gate.found import Found, find
from koinon_edge.gate.gate import Gate
from koinon_edge.gate.networks import Network, Networks, network
from koinon_edge.gate.predicates import Memory
from koinon_edge.gate.verdict import Predicate, Verdict, explain

__all__ = [
    "Budget", "Found", "Gate", "Memory", "Network", "Networks", "Predicate", "Verdict",
    "decide", "explain", "find", "network",
]  # fmt: skip
