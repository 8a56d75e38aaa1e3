"""Calls that an honest coordinator would not make: what a device hears next if its coordinator wants to know more than
the sum. Each follows the honest call, and is refused by whoever has answered that."""

from koinon_core.wire.v1 import fleet_pb2 as pb
from koinon_core.wire.v1 import secagg_pb2

__all__ = ["forged"]


def forged(call: pb.Call) -> pb.CoordinatorMessage | None:
    """The same step with other words: other shares, other survivors, or an attempt after a reveal. None where there
    is nothing to gain."""
    made = pb.Call()
    made.CopyFrom(call)
    match call.collection:
        case "masked":
            inbox = secagg_pb2.Inbox.FromString(call.payload)
            inbox.sealed = bytes([inbox.sealed[0] ^ 1]) + inbox.sealed[1:]
            made.payload = inbox.SerializeToString()
        case "consistent":
            survivors = secagg_pb2.Survivors.FromString(call.payload)
            bits = int.from_bytes(survivors.survivors, "little")
            survivors.survivors = (bits & (bits - 1)).to_bytes(len(survivors.survivors), "little")
            made.payload = survivors.SerializeToString()
        case "reveal":
            made.attempt, made.collection, made.payload = call.attempt + 1, "keys", b""
        case _:
            return None
    return pb.CoordinatorMessage(call=made)
