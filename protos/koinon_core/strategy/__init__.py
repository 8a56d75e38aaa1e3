"""Strategies: what a round does with what devices learn. Frozen recipes with a device half and a server half.

Read them in this order: protocol (the shape), chain (how they compose), runner (who calls what, when), and then
any family: average, adaptive, normalised, drift, personal, clip, robust. `registry` knows them by name, `recipe` writes
them down.
"""

from koinon_core.strategy.adaptive import FedAdagrad, FedAdam, FedExP, FedYogi
from koinon_core.strategy.average import FedAvg, FedAvgM, FedAvgUniform
from koinon_core.strategy.buffered import FedAsync, FedBuff, Staleness
from koinon_core.strategy.chain import Chain, chain
from koinon_core.strategy.clip import Clip
from koinon_core.strategy.drift import FedDyn, FedProx, Prox, Scaffold
from koinon_core.strategy.lora import LoraProjection
from koinon_core.strategy.normalised import FedNova, QFedAvg
from koinon_core.strategy.personal import Ditto, FedBN, FedPer, FedRep
from koinon_core.strategy.protocol import (
    Agg,
    Base,
    Keys,
    Need,
    Pass,
    Plan,
    Pull,
    Rng,
    State,
    Strategy,
    Trait,
    Up,
    Work,
)
from koinon_core.strategy.recipe import dump, load, parse, show
from koinon_core.strategy.registry import register
from koinon_core.strategy.robust import (
    NNM,
    CenteredClipping,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormBound,
    Robust,
    TrimmedMean,
)

__all__ = [
    "NNM",
    "Agg",
    "Base",
    "CenteredClipping",
    "Chain",
    "Clip",
    "CoordinateMedian",
    "Ditto",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedAvgUniform",
    "FedBN",
    "FedBuff",
    "FedDyn",
    "FedExP",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedYogi",
    "GeometricMedian",
    "Keys",
    "Krum",
    "LoraProjection",
    "MultiKrum",
    "Need",
    "NormBound",
    "Pass",
    "Plan",
    "Prox",
    "Pull",
    "QFedAvg",
    "Rng",
    "Robust",
    "Scaffold",
    "Staleness",
    "State",
    "Strategy",
    "Trait",
    "TrimmedMean",
    "Up",
    "Work",
    "chain",
    "dump",
    "load",
    "parse",
    "register",
    "show",
]  # fmt: skip
