"""A strategy's state on this device, as a file of an outbox."""

from pathlib import Path

from koinon.outbox import files
from koinon_core import codec
from koinon_core.errors import BadBlob
from koinon_core.schema import Schema
from koinon_core.strategy.protocol import State
from koinon_core.tensors import Tensors
from koinon_core.update import pack_state, state_schema, unpack_state

__all__ = ["file_of", "read"]


def file_of(path: Path, run: str, turn: int, state: State) -> files.File:
    """The file of a strategy's state on this device."""
    tensors, fields = pack_state(state), state_schema(state)
    header = {"kind": "state", "run": run, "turn": turn, "names": list(state), "schema": fields.to_json()}
    # A container a tensor: what is in memory once more is one tensor, not the state.
    return files.File(
        path, header, (codec.encode(Tensors({f.name: tensors[f.name]}), Schema((f,)), "raw") for f in fields)
    )


def read(path: Path, run: str, turn: int) -> State:
    """The state again, bit by bit. Damaged if that cannot be."""
    with files.whole(path):
        header, parts = files.read(path, "state", run)
        if header["turn"] != turn:
            raise BadBlob(f"it is of turn {header['turn']}")
        pairs = zip(Schema.from_json(header["schema"]), parts, strict=True)
        arrays = Tensors({f.name: codec.decode(part, Schema((f,)))[f.name] for f, part in pairs})
        return {name: Tensors() for name in header["names"]} | dict(unpack_state(arrays))
