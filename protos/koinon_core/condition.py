"""How a device is: its heat, its disk, its battery, and what it is doing.

It is for the operator, and nothing is decided by it. A number that is None is not known; neither is an empty text.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from koinon_core.errors import RemoteProtocolError

__all__ = ["Condition"]

_LONGEST = 64
_MOST_MB = float(1 << 40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """`heat` in degrees Celsius, of the hottest part; `battery` in percent; `state` is what the device is doing (IDLE,
    TRAINING), `power_mode` how much its board may draw."""

    heat: float | None = None
    disk_free_mb: float | None = None
    battery: float | None = None
    state: str = ""
    power_mode: str = ""
    board: str = ""

    def check(self) -> None:
        """Raise RemoteProtocolError for what no device can be like."""
        numbers = (
            ("heat", self.heat, -273.15, 1000.0),
            ("free disk", self.disk_free_mb, 0.0, _MOST_MB),
            ("battery", self.battery, 0.0, 100.0),
        )
        for what, value, least, most in numbers:
            if value is not None and not least <= value <= most:  # nor is NaN
                raise RemoteProtocolError(
                    f"this device says that its {what} is {value}: it is from {least:g} to {most:g}"
                )
        for what, text in (("state", self.state), ("power mode", self.power_mode), ("board", self.board)):
            if len(text) > _LONGEST or not text.isprintable():
                raise RemoteProtocolError(
                    f"this device's {what} is said in at most {_LONGEST} printable characters"
                )

    def to_json(self) -> dict[str, Any]:
        """What is known, by name."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**value)
