"""Settings that change from round to round: tables in a run's [config] that say how.

    [config]
    epochs = 2
    [config.lr]
    schedule = "cosine"      # from `begin` to `end` over the run's rounds
    begin = 0.1
    end = 0.001

    schedule      value in round k of n (k counts rounds that made a model, from 0)
    linear        begin + (end - begin) k / (n - 1)
    cosine        end + (begin - end) (1 + cos(pi k / (n - 1))) / 2
    exponential   begin * factor^k, not below `end` where that is given
    steps         values[i], i the number of `at` that are <= k

`warmup` rounds before all of them go from 0 to `begin` in equal steps, the first one already above 0. With
`whole = true` the value is rounded to a whole number, at least 1 (local epochs). Devices find plain numbers in
`task.config`.
"""

import math
from collections.abc import Mapping
from typing import Any

from koinon_core.errors import UsageError

__all__ = ["check_schedules", "scheduled"]

_NEEDS = {
    "linear": ("begin", "end"), "cosine": ("begin", "end"), "exponential": ("begin", "factor"),
    "steps": ("values", "at"),
}  # fmt: skip
_MAY = {"schedule", "begin", "end", "factor", "values", "at", "warmup", "whole"}


def scheduled(config: Mapping[str, Any], closed: int, rounds: int) -> dict[str, Any]:
    """The settings of the round that follows `closed` rounds, of `rounds` in all."""
    return {name: _value(v, closed, rounds) if _is_one(v) else v for name, v in config.items()}


def check_schedules(config: Mapping[str, Any]) -> None:
    """UsageError, which names the setting, for a schedule that cannot be."""
    for name, table in config.items():
        if _is_one(table):
            _check(name, table)


def _is_one(value: Any) -> bool:
    return isinstance(value, Mapping) and "schedule" in value


def _check(name: str, table: Mapping[str, Any]) -> None:
    kind = table["schedule"]
    where = f"the schedule of {name!r} in the run's [config]"
    if kind not in _NEEDS:
        raise UsageError(f"{where} must be {', '.join(_NEEDS)}, not {kind!r:.80}")
    for key in table:
        if key not in _MAY:
            raise UsageError(f"{where} has no {key!r}; there are {', '.join(sorted(_MAY))}")
    for key in _NEEDS[kind]:
        if key not in table:
            raise UsageError(f"{where} is {kind!r} and needs {key!r}")
    for key in ("begin", "end", "factor"):
        if key in table and not _is_number(table[key]):
            raise UsageError(f"{key} = {table[key]!r:.80} in {where} must be a finite number")
    if "factor" in table and table["factor"] <= 0:
        raise UsageError(f"factor = {table['factor']!r} in {where} must be above 0")
    warmup = table.get("warmup", 0)
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise UsageError(f"warmup = {warmup!r:.80} in {where} must be a number of rounds")
    if not isinstance(table.get("whole", False), bool):
        raise UsageError(f"whole = {table['whole']!r:.80} in {where} must be true or false")
    if kind == "steps":
        values, at = table["values"], table["at"]
        if not (_are(values, _is_number) and _are(at, _is_round) and len(values) == len(at) + 1):
            raise UsageError(f"{where} needs one more of `values` than of `at`, numbers and rounds")
        if list(at) != sorted(at):
            raise UsageError(f"at = {list(at)!r:.80} in {where} must be in the order of rounds")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_round(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are(values: Any, good: Any) -> bool:
    return isinstance(values, list | tuple) and all(good(v) for v in values)


def _value(table: Mapping[str, Any], closed: int, rounds: int) -> float:
    warmup = int(table.get("warmup", 0))
    k, n = max(0, closed - warmup), max(1, rounds - warmup)
    value = _curve(table, min(k, n - 1), n)
    if closed < warmup:
        value *= (closed + 1) / (warmup + 1)
    # A cosine may differ in its last digit from one machine to the next; what a round's terms say must not.
    value = float(f"{value:.12g}")
    return max(1, round(value)) if table.get("whole") else value


def _curve(table: Mapping[str, Any], k: int, n: int) -> float:
    along = k / (n - 1) if n > 1 else 0.0
    match table["schedule"]:
        case "linear":
            return float(table["begin"] + (table["end"] - table["begin"]) * along)
        case "cosine":
            return float(table["end"] + (table["begin"] - table["end"]) * (1 + math.cos(math.pi * along)) / 2)
        case "exponential":
            return float(max(table["begin"] * table["factor"] ** k, table.get("end", -math.inf)))
        case _:
            return float(table["values"][sum(at <= k for at in table["at"])])
