"""Settings of a run that are wrong by themselves or beside one another, whatever its strategy: said when it is
submitted, with the way out. What a secure run cannot be is in `koinon_core.secure.rules`."""

import math
from typing import Any

from koinon_core.errors import UsageError
from koinon_core.secure import rules

__all__ = ["check_numbers", "rounds_kept"]


def check_numbers(spec: Any) -> None:
    """UsageError for a number that no run can have."""
    at_least = {
        "rounds": 1, "min_clients": 1, "max_clients": 1, "max_examples": 1, "patience": 1, "seed": 0,
        "over_selection": 1, "join_wait": 0, "groups": 1, "evaluate_every": 1, "buffer": 0, "concurrency": 0,
        "staleness": 0,
    }  # fmt: skip
    for name, least in at_least.items():
        if not getattr(spec, name) >= least:
            raise UsageError(f"{name} must be at least {least}, it is {getattr(spec, name)}")
    for name in ("over_selection", "join_wait"):
        if not math.isfinite(getattr(spec, name)):
            raise UsageError(f"{name} must be a finite number, it is {getattr(spec, name)}")
    rules.check_numbers(spec)
    for name in ("deadline", "lease", "bound"):
        value = getattr(spec, name)
        if not (value > 0 and math.isfinite(value)):
            raise UsageError(f"{name} must be a number above 0, it is {value}")
    if spec.clients is not None and spec.clients < spec.min_clients:
        raise UsageError(
            f"a round of clients = {spec.clients} can never have min_clients = {spec.min_clients}; raise "
            "clients or lower min_clients"
        )
    if spec.clients is not None and not spec.clients * spec.over_selection < 1 << 63:
        raise UsageError(f"over_selection = {spec.over_selection} of {spec.clients} clients is no number")
    if spec.population is not None and spec.population < spec.quorum:
        each = f" in each of {spec.groups} groups" if spec.groups > 1 else ""
        raise UsageError(
            f"population = {spec.population} is smaller than min_clients = {spec.min_clients}{each}: no round could "
            "ever close"
        )
    if spec.population is not None and spec.buffer > spec.population:
        raise UsageError(
            f"buffer = {spec.buffer} updates can never come from population = {spec.population} devices, each of which "
            "has one in a model; lower it"
        )
    _check_buffer(spec)
    if spec.devices < spec.min_clients:
        raise UsageError(f"max_clients = {spec.max_clients} is below min_clients = {spec.min_clients}")


def _check_buffer(spec: Any) -> None:
    """What an asynchronous run cannot have."""
    if not spec.buffer:
        for name in ("concurrency", "staleness"):
            if getattr(spec, name) != getattr(type(spec), name):
                raise UsageError(
                    f"{name} = {getattr(spec, name)} is about asynchronous runs: set buffer to the number of updates "
                    f"that make a model, or leave {name} out"
                )
        return
    if spec.secure:
        rules.check_buffer(spec)
    if spec.clients is not None or spec.over_selection != 1.0:
        raise UsageError(
            f"in a run with buffer = {spec.buffer} no round chooses its devices; give concurrency in the place of "
            "clients and over_selection"
        )
    if spec.selecting.rule != "uniform":
        raise UsageError(
            f"in a run with buffer = {spec.buffer} no round chooses its devices: drop rule = "
            f"{spec.selecting.rule!r} of [selection] (labels and at_least may stay)"
        )
    if spec.min_clients > spec.buffer:
        raise UsageError(
            f"min_clients = {spec.min_clients} is more than the buffer of {spec.buffer} updates; lower it"
        )


def rounds_kept(name: str, policy: str) -> float:
    """How many rounds a policy keeps; UsageError for what is none."""
    match policy.split():
        case ["keep"]:
            return math.inf
        case ["none"]:
            return 0
        case [number, "round" | "rounds"] if number.isdecimal() and len(number) < 10:
            return int(number)
    raise UsageError(f"{name} = {policy!r} must be 'keep', 'none', or for example '10 rounds'")
