"""What a secure run cannot be, said when it is submitted, with the way out."""

import math
from collections.abc import Sequence
from typing import Any, get_args

from koinon_core.errors import UsageError
from koinon_core.secagg.config import MOST_DEVICES, strong
from koinon_core.sections import Section
from koinon_core.secure.agreement import ETA, SIGMA, Keys, is_name
from koinon_core.secure.apart import sums_needed
from koinon_core.secure.levels import level_of
from koinon_core.strategy.chain import Chain, follows_what_was_sent
from koinon_core.strategy.protocol import Need, Strategy
from koinon_core.strategy.robust import Robust
from koinon_core.strategy.robust_sum import robust_parts

__all__ = [
    "FEWEST", "LARGEST_WEIGHT", "check_buffer", "check_fewest", "check_numbers", "check_settings", "check_strategy",
]  # fmt: skip

_OPEN = "or set aggregation = 'open', on a network and a coordinator that you trust with single updates"

FEWEST = 3
"""Devices in a sum: of two, each knows the other's from its own."""

LARGEST_WEIGHT = 1 << 16
"""Examples that one device counts for where a run does not say. Values travel times weight / largest weight: with 2^20,
as in an open run, the first round's steps would be too coarse for devices of a few hundred examples."""

_COMPLETE, _HARDENED = 64, 512  # devices of a group that all share with all, as the graph has it


def check_fewest(spec: Any) -> None:
    """UsageError for a run of so few devices that a sum says what each of them sent."""
    for name in ("min_clients", "clients", "max_clients"):
        devices = getattr(spec, name)
        if devices is not None and 0 < devices < FEWEST:
            raise UsageError(
                f"{name} = {devices} is too few for a secure sum, which would show one device the other's update: let "
                f"{FEWEST} or more devices take part, {_OPEN}"
            )


def check_settings(spec: Any, sections: Sequence[Section]) -> None:
    """UsageError for settings of a run (koinon_core.spec) that do not go together with a secure sum."""
    try:
        level_of(spec.codec)
    except UsageError as error:
        raise UsageError(f"{error}, {_OPEN}") from None
    if spec.groups > 1 and spec.min_clients * spec.groups > spec.devices:
        raise UsageError(
            f"groups = {spec.groups} of at least min_clients = {spec.min_clients} are more than the {spec.devices} "
            "devices of a round; lower groups or min_clients, or raise clients"
        )
    if spec.hardened and spec.devices > _HARDENED * spec.groups:
        raise UsageError(
            f"hardened groups have up to {_HARDENED} devices, and a round may have {spec.devices}; set clients (or "
            "max_clients) lower, or take more groups"
        )
    if spec.devices > MOST_DEVICES:
        raise UsageError(
            f"a secure round has up to {MOST_DEVICES} devices, and this run's may have {spec.devices}; lower "
            "clients or max_clients"
        )
    for devices in _sizes(spec):
        try:
            strong(devices, spec.gamma, spec.delta, SIGMA, ETA, spec.hardened)
        except UsageError as error:
            raise UsageError(
                f"gamma = {spec.gamma} and delta = {spec.delta} suit no group of {devices} devices: {error}"
            ) from None
    if spec.keys == "early" and spec.over_selection > 1:
        raise UsageError(
            "keys = 'early' counts every device that is asked and not needed as lost; set over_selection = 1, or "
            "keys = 'ready'"
        )
    if spec.keys not in get_args(Keys):
        raise UsageError(
            f"keys = {spec.keys!r} is 'ready' (exchanged by devices that have finished) or 'early' (before they train)"
        )
    if spec.retention not in ("none", "0 rounds"):
        raise UsageError(
            f"retention = {spec.retention!r} would keep what single devices sent; a secure run has 'none', "
            f"{_OPEN}"
        )
    for section in sections:
        if section.rule == "max":
            raise UsageError(
                f"rule = 'max' of {section.match!r} needs every device's value; use 'local' or 'equal', {_OPEN}"
            )
        if section.codec is not None:
            raise UsageError(
                f"codec = {section.codec!r} of {section.match!r} would encode some tensors another way, and a secure "
                f"sum encodes all parameters together; set the run's codec, {_OPEN}"
            )
    _check_names(spec.metrics)


def check_buffer(spec: Any) -> None:
    """UsageError for settings that do not go together with a secure sum in an asynchronous run."""
    if spec.keys == "early":
        raise UsageError(
            "keys = 'early' binds devices to one another before they train, and in a run with buffer nobody waits for "
            "the slowest of them; use keys = 'ready'"
        )
    if spec.groups > 1:
        raise UsageError(
            f"groups = {spec.groups} would split the buffer of {spec.buffer} updates of one model; drop groups, or "
            "buffer"
        )
    most, name = (spec.concurrency, "concurrency") if spec.concurrency else (spec.max_clients, "max_clients")
    if most < spec.buffer:
        raise UsageError(
            f"{name} = {most} devices at work are fewer than the buffer of {spec.buffer} updates, and in a secure run "
            f"they have their places until they are summed; raise {name} or lower buffer"
        )


def _sizes(spec: Any) -> list[int]:
    """Of the sizes that a round's groups may have, those that withstand least: all with a complete graph, where one
    may do and the next not, and of the rings the smallest and, for its size alone, the largest."""
    fewest, most = spec.min_clients, max(spec.min_clients, spec.devices // spec.groups)
    rings = {max(fewest, _COMPLETE + 1), most} if most > _COMPLETE and not spec.hardened else set()
    return [*range(fewest, min(most, _HARDENED if spec.hardened else _COMPLETE) + 1), *sorted(rings)]


def check_numbers(spec: Any) -> None:
    """UsageError for numbers that are none of theirs, in any run."""
    if not 1 <= spec.attempts <= 8:
        raise UsageError(f"attempts must be from 1 to 8, it is {spec.attempts}")
    for name in ("gamma", "delta"):
        if not 0 <= getattr(spec, name) < 1:
            raise UsageError(
                f"{name} must be a share of the devices, from 0 to below 1, it is {getattr(spec, name)}"
            )
    for name in ("phase", "clip"):
        if not 0 < getattr(spec, name) < math.ldexp(1, 40):
            raise UsageError(f"{name} must be a number above 0, it is {getattr(spec, name)}")


def check_strategy(strategy: Strategy, codec: str, groups: int) -> None:
    """UsageError for a strategy that sums cannot serve, be it one or those of `groups`."""
    parts = strategy.parts if isinstance(strategy, Chain) else (strategy,)
    for part in parts:
        if Need.SINGLE in part.needs and not isinstance(part, Robust):
            raise UsageError(
                f"{type(part).__name__} looks at single updates, which a secure sum does not show; take another "
                "strategy, or set aggregation = 'open', on a network and a coordinator that you trust with them"
            )
    needed, rules = sums_needed(strategy), robust_parts(strategy)
    if groups < needed:
        name = type(max(rules, key=lambda rule: rule.fewest)).__name__
        raise UsageError(
            f"{name} looks at single updates, which a secure sum does not show, or at the sums of {needed} or more "
            f"groups, and this run has groups = {groups}; set groups = {needed} or more, of min_clients devices each, "
            f"{_OPEN}"
        )
    stateful = [type(p).__name__ for p in parts if follows_what_was_sent(p)]
    if level_of(codec).subset > 1 and stateful:
        raise UsageError(
            f"{stateful[0]} keeps a state on each device that follows what was sent, and {codec!r} sends one "
            f"coordinate in {level_of(codec).subset}; use codec = 'balanced' or 'fine'"
        )


def _check_names(metrics: Sequence[object]) -> None:
    if len(metrics) > 64 or not all(map(is_name, metrics)) or len(set(metrics)) < len(metrics):
        raise UsageError(
            f"metrics = {list(metrics)!r:.80} must be up to 64 different names of 1 to 64 printable characters"
        )
