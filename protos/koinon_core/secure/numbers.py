"""Numbers that are no tensors (examples, losses, metrics) as exact lanes: no message has a field for one device's.

A metric has two lanes, the sum of value times examples and that of the examples it was taken over, so that a device
which did not measure it counts for nothing. What is not finite, or larger than `MOST`, is left out, and so is what the
run does not name: a loss that exploded must not keep the rest of an update from being counted.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from koinon_core.flow.spread import read_off, within
from koinon_core.round.terms import Kind
from koinon_core.update import Head

__all__ = ["MOST", "Asked", "Measured", "labels_of", "measured", "values_of"]

MOST = float(1 << 14)
"""The largest |value| of a metric. Sums keep at least 2^-16 of it for a thousand devices of a million examples."""


_NONE: Mapping[str, Sequence[float]] = {}


class Asked(NamedTuple):
    """What numbers a run sums: metrics by these names, (`partial`) how many devices stopped their work early, and in
    which bins devices are with a metric, by the edges of those."""

    metrics: Sequence[str]
    partial: bool = False
    histograms: Mapping[str, Sequence[float]] = _NONE


class Measured(NamedTuple):
    """What the lanes of a sum say: the examples trained on (None where devices weigh by them: then it is the weight),
    the devices that evaluated the round's model and those that stopped early, and of each metric the mean, and its
    distribution over devices where they were counted."""

    examples: int | None
    evaluated: int
    partial: int
    means: Mapping[str, float]
    spread: Mapping[str, float]


def labels_of(kind: Kind, asked: Asked, *, examples: bool) -> tuple[str, ...]:
    """The lanes of a round: `train.NAME` and `eval.NAME` with the examples of each (`... of`)."""
    trains = kind == "train"
    said = ("train", "eval") if trains else ("eval",)
    pairs = [f"{prefix}.{name}{tail}" for prefix in said for name in asked.metrics for tail in ("", " of")]
    first = ("examples",) if examples and trains else ()
    bins = [
        _bin(f"{prefix}.{name}", i)
        for prefix in said
        for name, edges in sorted(asked.histograms.items())
        for i in range(len(edges) - 1)
    ]
    return (*first, "evaluated", *(("partial",) if asked.partial and trains else ()), *pairs, *bins)


def _bin(name: str, number: int) -> str:
    return f"{name} in {number}"


def values_of(labels: Sequence[str], head: Head, asked: Asked) -> list[float]:
    """A device's own lanes. `head` has its examples capped already."""
    values = {
        "examples": float(head.examples), "evaluated": float(bool(head.evaluation)), "partial": float(head.partial),
    }  # fmt: skip
    for prefix, metrics, weight in (
        ("train", head.training, head.examples),
        ("eval", head.evaluation, head.evaluation_examples),
    ):
        for name, value in metrics.items():
            if weight > 0 and abs(value) <= MOST:  # NaN is not
                values |= {f"{prefix}.{name}": value * weight, f"{prefix}.{name} of": float(weight)}
                if name in asked.histograms:
                    values[_bin(f"{prefix}.{name}", within(asked.histograms[name], value))] = 1.0
    return [values.get(label, 0.0) for label in labels]


def measured(labels: Sequence[str], sums: Sequence[float], asked: Asked) -> Measured:
    """What the sums of lanes say."""
    by = dict(zip(labels, sums, strict=True))
    means = {
        name: by[name] / by[f"{name} of"]
        for name in sorted(by)
        if by.get(f"{name} of", 0.0) > 0 and math.isfinite(by[name])
    }
    examples = int(by["examples"]) if "examples" in by else None
    spread: dict[str, float] = {}
    for name, edges in (
        (f"{p}.{n}", edges) for p in ("train", "eval") for n, edges in asked.histograms.items()
    ):
        # A device that lies may take away from a bin, but there are no fewer than none in it.
        counts = [max(0, int(by.get(_bin(name, i), 0.0))) for i in range(len(edges) - 1)]
        spread |= read_off(name, edges, counts)
    return Measured(examples, int(by["evaluated"]), int(by.get("partial", 0.0)), means, spread)
