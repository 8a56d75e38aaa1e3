"""Where a tile stands in its update, and with what step it is written."""

from dataclasses import dataclass
from fractions import Fraction

from koinon_core.errors import BadBlob
from koinon_core.tensors import Array

__all__ = ["NOWHERE", "Place", "Step"]

_LARGEST = 64


@dataclass(frozen=True, order=False, slots=True)
class Step:
    """A quantiser's step: k * 2^e. Eight bits of k are within 0.4 % of any step, and leave a float32 room for a product
    of 16 bits with it; fewer are used where the run's grid ends. `fine` says that 256ths of it are on the grid too, so
    that values may be dithered. Raises BadBlob for a k beyond 1..255 or an e beyond -64..64."""

    k: int
    e: int
    fine: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 255 or abs(self.e) > _LARGEST:
            raise BadBlob(
                f"a step of {self.k} * 2^{self.e} is out of range; the values are not those of a model"
            )

    def times(self, numerator: int, places: int = 0) -> Fraction:
        """`numerator` * step / 2^places, exactly."""
        return Fraction(numerator * self.k) * Fraction(2) ** (self.e - places)

    @property
    def value(self) -> float:
        return float(self.times(1))


@dataclass(frozen=True, slots=True)
class Place:
    """What a codec may know of a tile beside its elements."""

    key: bytes = b""
    """The update's dither key: 32 bytes, public."""
    section: int = 0
    offset: int = 0
    """The tile's first element in its section."""
    step: Step | None = None
    """For `q1`, which only needs it to encode."""
    base: Array | None = None
    """The base's elements of the same tile, for `ordinal`."""


NOWHERE = Place()
