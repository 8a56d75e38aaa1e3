"""What a secure round's devices agree on before they encode: groups of lanes, and what bounds them.

Nothing that overflows can be said: a `Ring` proves in its constructor that every sum it promises to be exact is,
and refuses what a ring cannot do. Whether a device goes along with one is another question (limits).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from koinon_core.canonical import canonical, sha256
from koinon_core.errors import BadBlob, BadUpdate, UsageError
from koinon_core.ring.checks import CHECKS
from koinon_core.ring.rotation import ROWS, Rotation
from koinon_core.ring.seeds import Seeds

__all__ = ["GAIN", "MAX_GRID", "SLACK", "Group", "Ring", "Rounding", "Rule", "Section"]

Rule = Literal["mean", "sum"]
"""What the sum is for: the mean by the devices' weights, or the sum itself, unweighted."""
Rounding = Literal["public", "private"]
"""Subtractive dither that the coordinator knows, or stochastic rounding under a secret of the device's (for
differential privacy, where a public dither would shift the lattice device by device)."""

GAIN = 8
"""A group's gain is counted in eighths, 8 to 15: steps of 2^-e alone would cost up to a bit."""
MAX_GRID = 40
SLACK = 1.001
"""How much larger than its exact value float32 may make a rotated coordinate, amply."""
VERSION = 1
_MAX_BYTES = 1 << 20
_MAX_GROUPS = 4096
_MAX_SIZE = 1 << 40
_ROTATED_BITS = range(2, 33)  # 2^(b-1) in UNITs, times 4096 * 8 in the inverse rotation, stays below 2^63
_PLAIN_BITS = range(2, 65)
_MAX_REACH = 2.0**45  # the largest rotated value in steps: its 2^-8 grid is exact in float64
_MAX_TOTAL = 1 << 48  # of all weights: with a gain still exact in float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """`size` values that are encoded alike, with `bits` bits each, in steps of 2^-grid * 8 / gain.

    Rotated groups are models' updates: `bound` is the clip, the largest Euclidean norm of a device's values, and
    `wraps` the share of the sum's coordinates that may wrap around (0: none may, which is then proven). The others are
    exact fixed point, for metrics, counts, BatchNorm statistics: `bound` is the largest |value|, and every sum fits.
    """

    name: str
    size: int
    bits: int
    grid: int
    bound: float
    rotated: bool = True
    gain: int = GAIN
    wraps: float = 0.0
    rule: Rule = "mean"

    def __post_init__(self) -> None:
        _text(self.name, "a group's name")
        if self.rule not in get_args(Rule):
            raise UsageError(
                f"group {self.name!r} asks for {self.rule!r}, but a ring only adds (mean, sum): keep the value LOCAL, "
                "or state it in the ring's `equal` if it is the same everywhere"
            )
        if not isinstance(self.rotated, bool):
            raise UsageError(
                f"{self.rotated!r} does not say whether group {self.name!r} is rotated; use a bool"
            )
        _whole(self.size, 1, _MAX_SIZE, f"the size of group {self.name!r}")
        allowed = _ROTATED_BITS if self.rotated else _PLAIN_BITS
        _whole(self.bits, allowed.start, allowed.stop - 1, f"the bits of group {self.name!r}")
        _whole(self.grid, 0, MAX_GRID, f"the grid of group {self.name!r}")
        _whole(self.gain, GAIN, 2 * GAIN - 1 if self.rotated else GAIN, f"the gain of group {self.name!r}")
        object.__setattr__(
            self, "bound", _real(self.bound, 2.0**MAX_GRID, f"the bound of group {self.name!r}")
        )
        if self.bound <= 0:
            raise UsageError(f"the bound of group {self.name!r} is {self.bound}; it must be above 0")
        most = 0.5 if self.rotated else 0.0
        object.__setattr__(self, "wraps", _real(self.wraps, most, f"the wraps of group {self.name!r}"))
        if self.rotated and self.reach > _MAX_REACH:
            raise UsageError(
                f"group {self.name!r} reaches 2^{math.log2(self.reach):.1f} steps; lower its grid or its bound to 2^45"
            )

    @property
    def dtype(self) -> str:
        """The smallest unsigned little-endian lane that holds the bits."""
        return f"<u{next(n for n in (1, 2, 4, 8) if 8 * n >= self.bits)}"

    @property
    def reach(self) -> float:
        """The largest |value| of one device, in steps."""
        return math.ldexp(self.bound * self.gain / GAIN, self.grid)

    @property
    def most(self) -> float:
        """The largest |integer| that one device makes of a value, weight aside: rounding adds up to 1, and float32
        rotates with some error."""
        return self.reach * (SLACK if self.rotated else 1.0) + 1


@dataclass(frozen=True, slots=True)
class Section:
    """Where lanes lie in an update: those of one group, or (no group) the accounts of the round."""

    group: Group | None
    dtype: str
    lanes: int
    offset: int

    @property
    def nbytes(self) -> int:
        return self.lanes * int(self.dtype[2:])


@dataclass(frozen=True, kw_only=True)
class Ring:
    """All of it. `devices` is the most that one sum takes, `max_weight` the largest weight of one; one rotated
    coordinate in `subset` is sent; `equal` states whole numbers that are the same on every device and are not sent."""

    groups: tuple[Group, ...]
    devices: int
    max_weight: int = 1
    subset: int = 1
    rounding: Rounding = "public"
    equal: Mapping[str, int] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        _whole(self.version, VERSION, VERSION, "the version of a ring")
        if self.rounding not in get_args(Rounding):
            raise UsageError(f"rounding is {self.rounding!r}; it is 'public' or 'private'")
        if type(self.subset) is not int or self.subset not in (1, 2, 4, 8):
            raise UsageError(f"one coordinate in {self.subset!r} cannot be sent; use 1, 2, 4 or 8")
        _whole(self.devices, 1, 1 << 24, "the number of devices")
        _whole(self.max_weight, 1, _MAX_TOTAL, "the largest weight")
        if self.devices * self.max_weight > _MAX_TOTAL:
            raise UsageError(
                f"{self.devices} devices of weight up to {self.max_weight} add up beyond 2^48; lower max_weight"
            )
        if not 1 <= len(self.groups) <= _MAX_GROUPS:
            raise UsageError(f"a ring has 1 to {_MAX_GROUPS} groups, not {len(self.groups)}")
        if len({g.name for g in self.groups}) < len(self.groups):
            raise UsageError("two groups of a ring have the same name; give each its own")
        for name, value in self.equal.items():
            _text(name, "the name of a stated value")
            _whole(value, -(1 << 63), (1 << 63) - 1, f"the stated value {name!r}")
        for group in self.groups:
            self._fits(group)

    def _fits(self, group: Group) -> None:
        """Where no wrap is allowed, prove that there is none."""
        if group.wraps > 0:
            return
        most = self.devices * group.most
        if group.rule == "mean" and not group.rotated:
            most *= self.max_weight
        if most >= 2.0 ** (group.bits - 1):
            raise UsageError(
                f"the sum of group {group.name!r} may reach 2^{math.log2(most):.1f} steps and does not fit in "
                f"{group.bits} bits; lower its grid, its bound or the number of devices, or raise its bits"
            )

    def rotation(self, group: Group, seeds: Seeds) -> Rotation:
        """How a rotated group is rotated in the round of these seeds."""
        return Rotation(
            group.size, self.subset, seeds.shared("signs", group.name), seeds.shared("subset", group.name)
        )

    def weight_places(self, group: Group) -> int:
        """k where a device's values are multiplied by weight / 2^k, at most 1, before they are rounded; exact groups
        are multiplied by the whole weight afterwards."""
        return (self.max_weight - 1).bit_length() if group.rotated and group.rule == "mean" else 0

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """Every group's lanes, in order, then the accounts: u64 the weight, and of each rotated group 1 if it was
        clipped and the check lanes of its tiles. All start at multiples of 8 bytes."""
        found: list[Section] = []
        at = 0
        accounts = 1
        for group in self.groups:
            lanes = group.size
            if group.rotated:
                shape = Rotation(group.size, self.subset, b"", b"")
                lanes = shape.columns * ROWS // self.subset
                accounts += 1 + CHECKS * shape.tiles
            found.append(Section(group, group.dtype, lanes, at))
            at += -(-found[-1].nbytes // 8) * 8
        return (*found, Section(None, "<u8", accounts, at))

    @property
    def nbytes(self) -> int:
        """The bytes of one device's update, and of the sum."""
        return self.sections[-1].offset + self.sections[-1].nbytes

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes that are agreed to."""
        return canonical(asdict(self))

    @cached_property
    def digest(self) -> str:
        return sha256(self.encoded)

    def to_json(self) -> dict[str, Any]:
        """The same as plain values, for whatever states it among others."""
        return {**asdict(self), "groups": [asdict(group) for group in self.groups]}

    @classmethod
    def decode(cls, data: bytes) -> "Ring":
        """The ring that `data` holds, in the one way to write it; BadBlob for anything else."""
        if len(data) > _MAX_BYTES:
            raise BadBlob(f"a ring's config has {len(data)} bytes; the coordinator may send {_MAX_BYTES}")
        try:
            value = json.loads(data)
            ring = cls(**{**value, "groups": tuple(Group(**g) for g in value["groups"])})
            again = ring.encoded
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UsageError) as error:
            raise BadBlob(f"these bytes are not a ring's config: {error}") from error
        if again != data:
            raise BadBlob(
                "a ring's config is not written in the one canonical way; the coordinator must write it so"
            )
        return ring

    def agree(self, values: Mapping[str, int]) -> None:
        """BadUpdate unless this device's own `values` are the ones that the ring states as equal everywhere."""
        for name, stated in self.equal.items():
            if name not in values or values[name] != stated:
                raise BadUpdate(
                    f"{name!r} is {values.get(name)} on this device and {stated} in the round's ring; "
                    "the device is to stay out of this round"
                )


def _text(value: Any, what: str) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= 512:
        raise UsageError(f"{what} must be a text of 1 to 512 characters")


def _whole(value: Any, least: int, most: int, what: str) -> None:
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{what} is {_short(value)}; it must be a whole number from {least} to {most}")


def _real(value: Any, most: float, what: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= most:  # NaN is in no range
        raise UsageError(f"{what} is {_short(value)}; it must be a number from 0 to {most:g}")
    return float(value)


def _short(value: Any) -> str:
    return f"{value!r:.40}" if not isinstance(value, int) or abs(value) < 1 << 128 else "enormous"
