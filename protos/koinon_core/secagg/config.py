"""What the devices of a secure round agree on before they advertise a key.

`k` and `t` are not in it: both sides compute them from the number of devices that came, so that nobody chooses them.
Every session of the round is bound to the digest of these bytes, and so is every key and signature in it: two devices
that were told different things have different sessions, and nothing of theirs adds up.
"""

import json
import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from koinon_core.canonical import canonical
from koinon_core.errors import BadBlob, UsageError
from koinon_core.secagg import statements
from koinon_core.secagg.hazmat import graph, stream

__all__ = ["MOST_DEVICES", "Config", "Lane"]

MOST_DEVICES = 65535
"""Of one round, in all groups."""
_FEWEST = 3  # the sum of two says to each what the other's is
_MOST_BYTES = 1 << 20
_MOST_SECTIONS = 8192
_MOST_LANES = 1 << 40
_BITS = range(1, 129)


@dataclass(frozen=True, slots=True)
class Lane:
    """A section of `count` lanes that are added modulo 2^bits."""

    bits: int
    count: int

    def __post_init__(self) -> None:
        _whole(self.bits, 1, 64, "the bits of a lane")
        _whole(self.count, 1, _MOST_LANES, "the number of lanes of a section")

    @property
    def width(self) -> int:
        """Bytes of a lane as it is added and masked: the smallest of 1, 2, 4, 8 that hold the bits."""
        return next(n for n in (1, 2, 4, 8) if 8 * n >= self.bits)

    @property
    def dtype(self) -> str:
        return f"<u{self.width}"

    @property
    def per_tile(self) -> int:
        """Lanes of a whole tile."""
        return stream.TILE_BYTES // self.width

    @property
    def tiles(self) -> int:
        return -(-self.count // self.per_tile)

    def span(self, tile: int) -> tuple[int, int]:
        """The lanes of a tile: the first, and the one after its last."""
        if not 0 <= tile < self.tiles:
            raise UsageError(f"there is no tile {tile} in a section of {self.tiles}")
        return tile * self.per_tile, min(self.count, (tile + 1) * self.per_tile)


@dataclass(frozen=True, kw_only=True)
class Config:
    """`terms` is the digest, in hex, of the round's terms, which say all that is not about sums; `attempt` counts the
    sessions that were tried in it, from 0. `groups` sums are made of the round's devices, none of fewer than `least`.

    Up to a share `gamma` of the devices may be corrupt and `delta` drop out; then the coordinator learns no single
    update but with a probability of 2^-sigma, and gets its sum but with 2^-eta. `hardened` asks for the complete graph
    up to 512 devices. Raises UsageError for what cannot be.
    """

    terms: str
    attempt: int = 0
    groups: int = 1
    least: int = _FEWEST
    gamma: float
    delta: float
    sigma: int = 40
    eta: int = 30
    hardened: bool = False
    lanes: tuple[Lane, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.terms, str) or not _is_digest(self.terms):
            raise UsageError("the terms of a round are named by their SHA-256, 64 small hexadecimal digits")
        _whole(self.attempt, 0, 1 << 16, "the attempt")
        _whole(self.groups, 1, MOST_DEVICES // _FEWEST, "the number of groups")
        _whole(self.least, _FEWEST, MOST_DEVICES, "the least number of devices in a sum")
        for name in ("gamma", "delta"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1:  # NaN is in no range
                raise UsageError(f"{name} is a share of the devices, from 0 to below 1, not {value!r:.40}")
            object.__setattr__(self, name, float(value))
        _whole(self.sigma, _BITS.start, _BITS.stop - 1, "sigma")
        _whole(self.eta, _BITS.start, _BITS.stop - 1, "eta")
        if not isinstance(self.hardened, bool):
            raise UsageError(f"hardened is true or false, not {self.hardened!r:.40}")
        if not 1 <= len(self.lanes) <= _MOST_SECTIONS:
            raise UsageError(f"there are 1 to {_MOST_SECTIONS} sections of lanes, not {len(self.lanes)}")

    def graph(self, devices: int) -> graph.Parameters:
        """k and t of a group of so many devices; UsageError if there can be no such group."""
        if devices < self.least:
            raise UsageError(f"a group has {devices} devices, and a sum needs {self.least}; wait for more")
        return strong(devices, self.gamma, self.delta, self.sigma, self.eta, self.hardened)

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes that are agreed to."""
        return canonical({**asdict(self), "lanes": [[lane.bits, lane.count] for lane in self.lanes]})

    @cached_property
    def digest(self) -> bytes:
        """What sessions are bound to: 32 bytes."""
        return statements.config_digest(self.encoded)

    @classmethod
    def decode(cls, data: bytes) -> "Config":
        """The config that `data` holds, in the one way to write it; BadBlob for anything else."""
        if len(data) > _MOST_BYTES:
            raise BadBlob(
                f"a config of secure sums has {len(data)} bytes; the coordinator may send {_MOST_BYTES}"
            )
        try:
            value = json.loads(data)
            config = cls(**{**value, "lanes": tuple(Lane(*lane) for lane in value["lanes"])})
            again = config.encoded
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UsageError) as error:
            raise BadBlob(f"these bytes are not a config of secure sums: {error}") from error
        if again != data:
            raise BadBlob("a config of secure sums is not written in the one canonical way; write it so")
        return config


def strong(
    devices: int, gamma: float, delta: float, sigma: int, eta: int, hardened: bool
) -> graph.Parameters:
    """The graph of a group, held against what a device insists on whatever found it: no two halves of its neighbours
    are each enough to give back one of its two secrets. UsageError if there is none."""
    found = graph.parameters(devices, gamma, delta, sigma, eta, hardened)
    # The decimal, not the binary fraction nearest to it, as the graph has it.
    if 2 * found.t <= found.k + math.ceil(Fraction(str(gamma)) * found.k):
        raise UsageError(
            f"{found.t} of {found.k} neighbours would open a secret, too few with {gamma} of them corrupt; lower gamma"
        )
    return found


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _whole(value: Any, least: int, most: int, what: str) -> None:
    if type(value) is not int or not least <= value <= most:
        shown = f"{value!r:.40}" if not isinstance(value, int) or abs(value) < 1 << 128 else "enormous"
        raise UsageError(f"{what} is {shown}; it must be a whole number from {least} to {most}")
