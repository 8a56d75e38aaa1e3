"""What a device's owner allows, whatever a coordinator asks for.

A step that is too coarse or too fine costs a round and no more; a huge clip or weight would let one device dominate
the sum, and a group that is not of the schema would read what nobody agreed to.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from koinon_core.errors import RemoteProtocolError
from koinon_core.ring.config import Ring

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A device's own maxima, set by its owner. `sizes` are the groups that it knows, with their sizes; `clip` bounds
    the norm of what it gives to a rotated group, `value` a value of an exact one."""

    sizes: Mapping[str, int]
    clip: float
    value: float
    weight: int
    devices: int

    def check(self, ring: Ring) -> None:
        """RemoteProtocolError for a ring that asks for more than the owner allows."""
        asked: list[tuple[str, float, float]] = [
            ("weight", ring.max_weight, self.weight),
            ("number of devices", ring.devices, self.devices),
        ]
        for group in ring.groups:
            if self.sizes.get(group.name) != group.size:
                raise RemoteProtocolError(
                    f"the ring has a group {group.name!r} of {group.size} values, which this device does not have; "
                    "the coordinator must ask for the schema's"
                )
            kind, most = ("clip", self.clip) if group.rotated else ("bound", self.value)
            asked.append((f"{kind} of group {group.name!r}", group.bound, most))
        for what, wanted, most in asked:
            if not wanted <= most:
                raise RemoteProtocolError(
                    f"the ring's {what} is {wanted:g}, above this device's own limit of {most:g}; "
                    "the coordinator must lower it, or the owner raise the limit"
                )
