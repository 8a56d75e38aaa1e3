"""The levels of a secure run's encoding, by the name that its `codec` says.

    balanced   8 bits a coordinate, error below 1 % up to 64 devices and 1.5 % at 100; then a bit for 4 times as many
    fine       12 bits, below 3e-4 at 100 devices
    compact    as balanced, of one rotated coordinate in eight, the same on all devices: a bit a parameter
    exact      64 bits, no rotation: fixed point with 24 binary places

An error is ||decoded - sum||^2 / ||sum||^2, of the sum and not of one device, and it is not biased.
"""

from dataclasses import dataclass

from koinon_core.errors import UsageError

__all__ = ["EXACT_BITS", "EXACT_GRID", "LEVELS", "Level", "level_of"]

EXACT_BITS, EXACT_GRID = 64, 24


@dataclass(frozen=True, slots=True)
class Level:
    """`bits` is the fewest that a lane has after the first round, `error` the largest that rounding may be where a few
    more devices or a bit more would cost nothing else, and one rotated coordinate in `subset` is sent."""

    bits: int
    error: float
    subset: int = 1
    rotated: bool = True


LEVELS = {
    "balanced": Level(8, 0.01),
    "fine": Level(12, 3e-4),
    # Leaving out seven in eight has an error of 7: that of rounding the rest hardly matters.
    "compact": Level(8, 0.05, subset=8),
    "exact": Level(EXACT_BITS, 0.0, rotated=False),
}


def level_of(codec: str) -> Level:
    """The level called `codec`; UsageError, with those that there are, for anything else."""
    if codec not in LEVELS:
        raise UsageError(
            f"codec = {codec!r} cannot be added up under masks; a secure run has one of {', '.join(sorted(LEVELS))}"
        )
    return LEVELS[codec]
