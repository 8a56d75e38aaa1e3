"""Metrics as a distribution over devices: where each has a model of its own, a mean hides who is served badly.

Beside the mean `eval.loss` stand `eval.loss.min`, `.p10`, `.median`, `.p90` and `.max`; every device counts the same.
Of an open round they are taken of what its devices said. In a secure round nobody knows that: there devices are counted
in bins that the run's [histograms] name, the counts are summed like any metric, and quantiles are read from the sums
(`.p10`, `.median` and `.p90`: a least or largest value would be a single device's).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from koinon_core.errors import UsageError
from koinon_core.update import Head

__all__ = ["POINTS", "histograms_of", "is_spread", "plain", "read_from", "read_off", "spread_of", "within"]

POINTS = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
_READ = ("p10", "median", "p90")
_MOST_BINS, _MOST_OF_ALL = 64, 256


def spread_of(heads: Iterable[Head]) -> dict[str, float]:
    """The distribution of every metric that two devices or more measured."""
    values: dict[str, list[float]] = {}
    for head in heads:
        for prefix, metrics in (("train", head.training), ("eval", head.evaluation)):
            for name, value in metrics.items():
                values.setdefault(f"{prefix}.{name}", []).append(value)
    return {
        f"{name}.{point}": _quantile(sorted(found), share)
        for name, found in sorted(values.items())
        if len(found) > 1
        for point, share in POINTS.items()
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest, as far as the share lies between theirs; the same on every CPU."""
    at = share * (len(ordered) - 1)
    low = min(int(at), len(ordered) - 2)
    return ordered[low] + (ordered[low + 1] - ordered[low]) * (at - low)


def within(edges: Sequence[float], value: float) -> int:
    """The bin that a value is in; the outer ones have all that lies beyond."""
    return sum(value >= edge for edge in edges[1:-1])


def read_off(name: str, edges: Sequence[float], counts: Sequence[int]) -> dict[str, float]:
    """The quantiles that bins with so many devices say, as if those of a bin lay evenly in it."""
    total = sum(counts)
    if total < 1:
        return {}
    found = {}
    for point in _READ:
        wanted, below = POINTS[point] * total, 0
        for (low, high), count in zip(pairwise(edges), counts, strict=True):
            if count and below + count >= wanted:
                found[f"{name}.{point}"] = low + (high - low) * (wanted - below) / count
                break
            below += count
    return found


def histograms_of(table: Any, metrics: Sequence[str], largest: float) -> dict[str, list[float]]:
    """A run's [histograms]: edges of bins by metric. UsageError, naming the metric, for what cannot be."""
    if not isinstance(table, Mapping):
        raise UsageError(
            "the run's [histograms] must be a table, for example accuracy = [0, 0.5, 0.8, 0.9, 1]"
        )
    made: dict[str, list[float]] = {}
    for name, edges in table.items():
        if name not in metrics:
            raise UsageError(
                f"the run's [histograms] has {name!r}, which is none of its metrics; add it to metrics"
            )
        numbers = isinstance(edges, list | tuple) and all(
            isinstance(e, int | float) and not isinstance(e, bool) and abs(e) <= largest for e in edges
        )
        if not numbers or not 3 <= len(edges) <= _MOST_BINS + 1 or any(a >= b for a, b in pairwise(edges)):
            raise UsageError(
                f"the histogram of {name!r} must be the edges of 2 to {_MOST_BINS} bins, numbers up to {largest:g} "
                "that go up, for example [0, 0.5, 0.8, 0.9, 1]"
            )
        made[name] = [float(e) for e in edges]
    if sum(len(edges) - 1 for edges in made.values()) > _MOST_OF_ALL:
        raise UsageError(f"the run's [histograms] have more than {_MOST_OF_ALL} bins; take fewer")
    return made


def is_spread(name: str, metrics: Iterable[str]) -> bool:
    """Whether a metric says how another one of these is distributed."""
    base, _, point = name.rpartition(".")
    return point in POINTS and base in metrics and f"{base}.median" in metrics


def plain(metric: str) -> str:
    """The metric whose distribution this one is of, if it is of one."""
    base, _, point = metric.rpartition(".")
    return base if point in POINTS and base else metric


def read_from(metric: str) -> str:
    """The same of what a secure run can say."""
    return plain(metric) if metric.rpartition(".")[2] in _READ else metric
