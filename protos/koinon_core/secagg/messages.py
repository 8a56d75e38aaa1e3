"""Messages of a session as they come from others: read with a limit, their lists cut to the sizes they must have.

Everything here raises BadBlob for what no honest sender sends, and looks at a size before it takes anything of it.
"""

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from koinon_core.errors import BadBlob

__all__ = ["MOST_BYTES", "MOST_ID", "bitmap", "check_id", "fixed", "parse", "positions", "records"]

MOST_BYTES = 4 << 20
"""No message of a session is larger."""
MOST_ID = 128
"""Characters of a device's id."""

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes, most: int = MOST_BYTES) -> M:
    """`data` as a message of at most `most` bytes."""
    name = kind.DESCRIPTOR.name
    if len(data) > most:
        raise BadBlob(
            f"a message {name} of {len(data)} bytes came, and {most} are allowed; it is refused unread"
        )
    try:
        return kind.FromString(data)
    except DecodeError:
        raise BadBlob(
            f"{len(data)} bytes that should be a message {name} are none; its sender must send it whole"
        ) from None


def fixed(data: bytes, size: int, what: str) -> bytes:
    """`data`, which has exactly `size` bytes."""
    if len(data) != size:
        raise BadBlob(f"{what} has {size} bytes, not {len(data)}; its sender must send it whole")
    return data


def records(data: bytes, size: int, count: int, what: str) -> list[bytes]:
    """`count` things of `size` bytes each, which were joined."""
    if len(data) != size * count:
        raise BadBlob(
            f"{what} come as {count} times {size} bytes, not as {len(data)}; their sender must send all"
        )
    return [data[i : i + size] for i in range(0, len(data), size)]


def check_id(client: str) -> None:
    """Raise BadBlob for what cannot be a device's id."""
    if not 1 <= len(client) <= MOST_ID or not client.isprintable():
        raise BadBlob(f"a device has an id of 1 to {MOST_ID} printable characters, not {client[:MOST_ID]!r}")


def bitmap(members: Iterable[int], size: int) -> bytes:
    """Positions among `size` as bits: position p is bit p % 8, 1 the lowest, of byte p // 8."""
    bits = 0
    for position in members:
        bits |= 1 << position
    return bits.to_bytes(-(-size // 8), "little")


def positions(bits: bytes, size: int, what: str) -> frozenset[int]:
    """The positions in a bitmap over `size`, in the one way to write it."""
    fixed(bits, -(-size // 8), f"the bitmap of {what}")
    number = int.from_bytes(bits, "little")
    if number >> size:
        raise BadBlob(f"the bitmap of {what} has bits beyond the {size} devices of the group; it is refused")
    return frozenset(p for p in range(size) if bits[p >> 3] >> (p & 7) & 1)
