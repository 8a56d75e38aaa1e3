"""Strategies: what a round does with what devices learn. Frozen recipes with a device half and a server half.

Read them in this order: protocol (the shape), chain (how they compose), runner (who calls what, when), and then
any family: average, adaptive, drift, personal, clip. `registry` knows them by name, `recipe` writes them down.
"""

from koinon_core.strategy.adaptive import FedAdam
from koinon_core.strategy.average import FedAvg, FedAvgM
from koinon_core.strategy.chain import Chain, chain
from koinon_core.strategy.clip import Clip
from koinon_core.strategy.drift import FedProx, Prox, Scaffold
from koinon_core.strategy.personal import FedBN
from koinon_core.strategy.protocol import Agg, Base, Need, Pass, Plan, Pull, Rng, State, Strategy, Up, Work
from koinon_core.strategy.recipe import dump, load, parse, show
from koinon_core.strategy.registry import register

__all__ = [
    "Agg", "Base", "Chain", "Clip", "FedAdam", "FedAvg", "FedAvgM", "FedBN", "FedProx", "Need", "Pass", "Plan",
    "Prox", "Pull", "Rng", "Scaffold", "State", "Strategy", "Up", "Work", "chain", "dump", "load", "parse", "register",
    "show",
]  # fmt: skip
