"""The ring of a round: wide where nothing is known, then sized to what the last sum was.

The first round, and any after one that gave no model, is wide: 32 bits and the finest step with which the sum provably
cannot wrap around, however all devices' updates point. From then on a rotated group has the bits of its level and a
step that follows from the last aggregate, and the terms state how many coordinates may wrap: so many that they would
cost as much as the rounding does, which leaves room for sums that grow from one round to the next.

What is carried from round to round is public: the sums' own sizes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from koinon_core.canonical import canonical
from koinon_core.errors import BadBlob, UsageError
from koinon_core.ring import Group, Ring, suggest, suggest_exact
from koinon_core.ring.config import GAIN, MAX_GRID
from koinon_core.ring.sizing import best_range, nmse
from koinon_core.secure.levels import EXACT_GRID, Level
from koinon_core.secure.parts import Part

__all__ = ["Tuning", "ring_of", "step_of"]

_WIDE_BITS = 32
_ALL_BITS = 64
_ROOM = 1.1  # the least range over the best one: no two rounds are quite alike
_GROWTH = 3.0  # the most: sums that are a few times as large as the last one come once in a hundred rounds
_COARSER = 9 / 8  # by how much the gain's eighths may miss a step
_STEPS = 2.0  # how much coarser steps become from one round to the next, at most
_FINEST = 2.0**44  # bound over step; a ring reaches 2^45


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What the last aggregate was: its devices, the sum of their weights, and of each rotated group the root mean
    square of a rotated coordinate of what it decoded to, and its step where that was sized to a sum. `model` is
    the number of the one that its devices had, in an asynchronous run."""

    devices: int
    weight: int
    rms: Mapping[str, float]
    steps: Mapping[str, float] = field(default_factory=dict)
    model: int = 0

    @property
    def encoded(self) -> str:
        known = {k: v for k, v in asdict(self).items() if v or k != "model"}
        return canonical({"version": 1, **known}).decode()

    @classmethod
    def decode(cls, text: str) -> "Tuning | None":
        """What `text` says; None for "", which says nothing. BadBlob for anything else."""
        if not text:
            return None
        try:
            value = json.loads(text)
            version = value.pop("version")
            made = cls(**value)
            sizes = (made.devices, made.weight, *made.rms.values(), *made.steps.values())
            if version != 1 or made.devices < 1 or not all(0 <= v < math.inf for v in sizes):
                raise ValueError("a size is none")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BadBlob(f"these are not the sizes of a secure round's sum: {error}") from error
        return made


def ring_of(
    parts: Sequence[Part], level: Level, *, devices: int, max_weight: int, clip: float, tuning: Tuning | None
) -> Ring:
    """The ring for a sum of up to `devices` updates, each of a weight up to `max_weight` and a norm up to `clip`.
    UsageError where no ring holds it."""
    groups = []
    for part in parts:
        weight = max_weight if part.rule == "mean" else 1
        if not part.noisy:
            groups.append(_plain(part, devices, weight, None))
        elif not level.rotated:
            groups.append(_plain(part, devices, weight, EXACT_GRID))
        else:
            # What is averaged beside the delta may be as much larger as its values may be (a gradient, a control).
            longest = clip * max(1.0, part.bound / parts[0].bound)
            groups.append(_rotated(part, level, devices, max_weight, longest, tuning))
    subset = level.subset if any(g.rotated for g in groups) else 1
    return Ring(groups=tuple(groups), devices=devices, max_weight=max_weight, subset=subset)


def step_of(group: Group) -> float:
    """The step of a rotated group."""
    return math.ldexp(GAIN / group.gain, -group.grid)


def _plain(part: Part, devices: int, max_weight: int, grid: int | None) -> Group:
    """An exact group, on the finest grid on which every sum fits, or on the one that is asked for."""
    room = 2.0 ** (_ALL_BITS - 1) / (devices * max_weight) - 1
    finest = math.floor(math.log2(room / part.bound)) if room > part.bound else -1
    if math.ldexp(part.bound, finest) >= room:  # never on the edge, whatever the logarithm rounds to
        finest -= 1
    wanted = min(MAX_GRID, finest) if grid is None else grid
    if not 0 <= wanted <= finest:
        raise UsageError(
            f"the sum of {devices} devices of weight up to {max_weight} does not fit in 64 bits in group "
            f"{part.name!r}: lower max_examples, bound, or the number of devices in a round"
        )
    return Group(
        name=part.name, size=part.size, bits=_ALL_BITS, grid=wanted, bound=part.bound, rotated=False, rule=part.rule
    )  # fmt: skip


def _rotated(
    part: Part, level: Level, devices: int, max_weight: int, clip: float, tuning: Tuning | None
) -> Group:
    base: dict[str, Any] = {"name": part.name, "size": part.size, "bound": clip, "rule": part.rule}
    rms = tuning.rms.get(part.name, 0.0) if tuning else 0.0
    if tuning is None or not rms:
        try:
            wide = suggest_exact(_WIDE_BITS, devices, max(clip, 2.0**-8), 1.0)
        except UsageError as error:
            raise UsageError(
                f"clip = {clip:g} for {devices} devices leaves no step to round to in a wide round; lower clip"
            ) from error
        return Group(**base, bits=wide.bits, grid=wide.grid, gain=wide.gain)
    # As large as the sum was a device of mean weight, for all that may come; and times weight / 2^k, as they are sent.
    weight = tuning.weight / tuning.devices / 2.0 ** (max_weight - 1).bit_length()
    sigma = rms * weight * devices
    coarsest = _STEPS * tuning.steps.get(part.name, math.inf)
    for bits in range(_fewest(level, devices), _WIDE_BITS + 1):
        c = _range(level, devices, bits)
        finest = 2.0 ** (bits - 1) / c / min(2.0**MAX_GRID, _FINEST / clip)
        try:
            size = suggest(bits, devices, max(sigma, finest), margin=c / best_range(devices, bits))
        except UsageError:  # steps above 1: more bits have finer ones
            continue
        if math.ldexp(GAIN / size.gain, -size.grid) <= coarsest:
            break
    else:
        raise UsageError(
            f"the last sum of group {part.name!r} was too large for any ring ({sigma:g} a coordinate); lower clip"
        )
    stated = max(size.wraps, devices / 12 / 4.0**bits)
    return Group(**base, bits=size.bits, grid=size.grid, gain=size.gain, wraps=min(stated, 0.5))


def _fewest(level: Level, devices: int) -> int:
    """The level's bits, or as many as so many devices need."""
    bits = level.bits
    while nmse(devices, bits, best_range(devices, bits) * _ROOM * _COARSER) > 1.5 * level.error:
        bits += 1
    return bits


def _range(level: Level, devices: int, bits: int) -> float:
    """How many sigmas of the sum the bits span on either side: as many as half the level's error allows, which
    leaves the other half to sums that shrink; and never much more or fewer than are best."""
    best = best_range(devices, bits)
    affordable = math.sqrt(level.error / 2 * 12 * 4.0**bits / devices) / 2
    return min(max(affordable, _ROOM * best), _GROWTH * best)
