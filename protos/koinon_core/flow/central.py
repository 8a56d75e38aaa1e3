"""What a run's owner measures of its models, on data and machines of their own: names and values, checked.

They are kept as the metrics `central.NAME` of the round that made the model, beside those of the devices.
"""

import math
from collections.abc import Mapping
from typing import Any

from koinon_core.errors import UsageError

__all__ = ["PREFIX", "central", "is_central"]

PREFIX = "central."
_MOST, _LONGEST, _LARGEST = 64, 64, 1e30


def is_central(metric: str) -> bool:
    """Whether a metric is measured by the run's owner."""
    return metric.startswith(PREFIX)


def central(measured: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of what was measured, by their whole names. UsageError for what cannot be kept."""
    if not isinstance(measured, Mapping):
        raise UsageError(
            f"a central evaluation gave {type(measured).__name__!r} and no metrics; return for example {{'loss': 0.5}}"
        )
    if not measured or len(measured) > _MOST:
        raise UsageError(
            f"a central evaluation has 1 to {_MOST} metrics, this one has {len(measured)}; return for example "
            "{'loss': 0.5}"
        )
    kept = {}
    for name, value in measured.items():
        if not (isinstance(name, str) and 0 < len(name) <= _LONGEST and name.isprintable()):
            raise UsageError(
                f"a central metric is called {name!r:.80}: names are 1 to {_LONGEST} printable characters"
            )
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not abs(number) <= _LARGEST:  # nor is NaN
            raise UsageError(
                f"the central metric {name!r} is {value!r:.80}: metrics are numbers up to {_LARGEST:g}; leave out what "
                "was not measured"
            )
        kept[PREFIX + name] = number
    return kept
