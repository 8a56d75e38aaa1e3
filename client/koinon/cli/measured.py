"""How commands print what was measured: a mean, and beside it how it is distributed over devices."""

from collections.abc import Mapping

from koinon_core.flow.spread import POINTS, is_spread

__all__ = ["LEGEND", "means", "over_devices", "said"]

_SHOWN = ("eval.", "train.", "central.")
LEGEND = "in brackets: over devices, [min p10 median p90 max], of a secure run [p10 median p90]"


def means(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of models and of training, without their distributions."""
    return {k: v for k, v in sorted(metrics.items()) if k.startswith(_SHOWN) and not is_spread(k, metrics)}


def over_devices(name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """How a metric is distributed, as far as that is known."""
    points = {point: metrics.get(f"{name}.{point}") for point in POINTS}
    return {p: v for p, v in points.items() if v is not None and is_spread(f"{name}.{p}", metrics)}


def said(metrics: Mapping[str, float]) -> str:
    """All of it in a line."""
    words = []
    for name, value in means(metrics).items():
        spread = " ".join(f"{v:.3g}" for v in over_devices(name, metrics).values())
        words.append(f"{name} {value:.4g}{f' [{spread}]' if spread else ''}")
    return "  ".join(words)
