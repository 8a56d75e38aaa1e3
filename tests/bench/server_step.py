"""What the coordinator's step costs, ten million parameters in memory, tile by tile as it goes through them, and in
pieces of tiles as it takes them.

fedadam_vs_copy   FedAdam's step against reading its arrays (mean, m, v) and writing three of that size once
STRATEGY_s        the step itself
krum_s, median_s  of 20 updates: inner products or sorting, and the result; decoding of raw updates included
RULE_peak_mb      memory beyond what was there before, less 20 tiles in float64 of a million elements
"""

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import koinon
from koinon_core import codec
from koinon_core.codec import Reader
from koinon_core.fold import Staged
from koinon_core.schema import schema_of
from koinon_core.strategy.pieces import step_by_pieces
from koinon_core.strategy.protocol import Agg, Strategy
from koinon_core.strategy.robust_sum import RobustSum, robust_parts
from koinon_core.tensors import Array, Tensors
from koinon_core.tiles import TILE, spans
from koinon_core.update import layout_of
from report import arguments, figure, report

UPDATES = 20
RNG = np.random.Generator(np.random.Philox(1))


def seconds(work: Callable[[], object], times: int = 5) -> list[float]:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken


def step(strategy: Strategy, size: int) -> Callable[[], object]:
    """The server half over all tiles of a model of one tensor."""
    mean = RNG.normal(size=size).astype(np.float32)
    kept = {n: np.array(t["w"]) for n, t in strategy.init(Tensors({"w": mean}), 10).items()}
    out = np.zeros_like(mean)

    def whole() -> None:
        for at in range(0, size, TILE):
            part = slice(at, at + TILE)
            agg = Agg(
                mean=Tensors({"w": mean[part]}),
                extra={},
                totals={},
                count=10,
                weight=10.0,
                population=10,
                sq_norm=1.0,
            )
            state = {n: Tensors({"w": a[part]}) for n, a in kept.items()}

            def room(what: str, dtype: object, count: int, part: slice = part) -> Array:
                return out[part] if what == "step" else kept[what.partition("/")[2]][part]

            step_by_pieces(strategy, "w", state, agg, RNG, "float32", room)

    return whole


def copied(arrays: int, size: int) -> Callable[[], object]:
    """As many arrays read and written once."""
    source = [RNG.normal(size=size).astype(np.float32) for _ in range(arrays)]
    target = [np.zeros_like(a) for a in source]

    def whole() -> None:
        for a, b in zip(source, target, strict=True):
            np.copyto(b, a)

    return whole


def robust(rule: koinon.Robust, size: int) -> tuple[float, float]:
    """(seconds, MB of memory) of a rule over raw updates."""
    strategy = koinon.chain(koinon.FedAvg(), rule)
    schema = schema_of(Tensors({"w": np.zeros(size, np.float32)}))
    layout = layout_of(schema, strategy, codec="raw", grid=lambda bound: 30)
    (field,) = layout.update
    blobs = []
    for seed in range(UPDATES):
        values = np.random.default_rng(seed).normal(size=size).astype(np.float32) * 0.01
        blobs.append(codec.encode(Tensors({field.name: values}), layout.update, "raw"))
    staged = [
        Staged(1, Reader(lambda a, n, b=b: memoryview(b)[a : a + n], len(b), layout.update)) for b in blobs
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    total = RobustSum(robust_parts(strategy), staged, layout.update, layout.how, [field.name])
    for offset, _ in spans(field):
        total.values(field.name, offset)
    took = time.perf_counter() - began
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return took, more - UPDATES * TILE * 8 / 2**20


def main() -> None:
    given = arguments(__doc__ or "", size=10_000_000)
    figures: dict[str, dict[str, Any]] = {}
    copy = seconds(copied(3, given.size))
    rules: dict[str, Strategy] = {
        "fedavgm": koinon.FedAvgM(), "fedadam": koinon.FedAdam(), "fedyogi": koinon.FedYogi(),
        "fedadagrad": koinon.FedAdagrad(),
    }  # fmt: skip
    for name, rule in rules.items():
        taken = seconds(step(rule, given.size))
        figures[f"{name}_s"] = figure(taken, "s")
        if name == "fedadam":
            figures["fedadam_vs_copy"] = figure([min(taken) / min(copy)], "", 2.0)
    for name, one in {"krum": koinon.Krum(f=4), "median": koinon.CoordinateMedian()}.items():
        with multiprocessing.get_context("spawn").Pool(1) as alone:  # a process has one high-water mark
            took, more = alone.apply(robust, (one, given.size))
        figures[f"{name}_s"] = figure([took], "s")
        figures[f"{name}_peak_mb"] = figure([more], "MB", 200.0)
    report("server_step", figures, given.json)


if __name__ == "__main__":
    main()
