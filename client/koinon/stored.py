"""Weights that are stored somewhere: a safetensors file, a folder of its shards, or a torch checkpoint, as tensors.

Nothing that is read can run: of a torch checkpoint only tensors are taken (weights_only), and a shard is a file of the
folder itself. bfloat16, which numpy does not have, is widened to float32, which loses nothing.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from koinon_core.errors import UsageError
from koinon_core.tensors import Array, Tensors

__all__ = ["read_weights"]

_INDEX = "*.safetensors.index.json"
_TORCH = (".pt", ".pth")
_LONGEST_HEADER = 100 << 20  # as safetensors has it


def read_weights(path: Path) -> Tensors:
    """The tensors at `path`. UsageError, naming it, for what is none of these."""
    if path.is_dir():
        tensors = _read_folder(path)
    elif not path.exists():
        raise UsageError(f"there is no model file {path}")
    elif path.suffix.lower() in _TORCH:
        try:
            from koinon.torch.checkpoint import read_checkpoint
        except ImportError as error:
            raise UsageError(
                f"{path} is a torch checkpoint, and torch is not here; install it, or save the tensors as safetensors"
            ) from error
        tensors = read_checkpoint(path)
    else:
        tensors = _read_file(path)
    if not tensors:
        raise UsageError(f"{path} holds no tensors")
    return Tensors(tensors)


def _read_folder(folder: Path) -> dict[str, Array]:
    """The tensors of a folder, each from the shard that the index names."""
    indices, files = sorted(folder.glob(_INDEX)), sorted(folder.glob("*.safetensors"))
    if not indices and len(files) == 1:
        return _read_file(files[0])
    if len(indices) != 1:
        raise UsageError(
            f"the folder {folder} has {len(indices)} indices ({_INDEX}) and {len(files)} safetensors files: it must "
            "have one index, or one file; name the file itself"
        )
    shards: dict[str, list[str]] = {}
    for name, shard in _map_of(indices[0]).items():
        if Path(shard).name != shard:
            raise UsageError(f"{indices[0]} names the shard {shard!r:.80}, which is no file of its folder")
        shards.setdefault(shard, []).append(name)
    tensors: dict[str, Array] = {}
    for shard, names in sorted(shards.items()):
        tensors.update(_read_file(folder / shard, names))
    return tensors


def _map_of(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{index} is not the index of a sharded model: {error!r}") from error
    if not isinstance(found, dict) or not all(isinstance(shard, str) for shard in found.values()):
        raise UsageError(f"{index} is not the index of a sharded model: its weight_map names no files")
    return found


def _read_file(path: Path, names: Iterable[str] | None = None) -> dict[str, Array]:
    """Tensors of one safetensors file: these, or all."""
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Array] = {}
    name = ""
    try:
        with safe_open(path, framework="numpy") as file:
            held = dict.fromkeys(file.keys())  # in the order of the file
            for name in held if names is None else names:
                if name not in held:
                    raise UsageError(
                        f"{path} does not hold {name!r}, which the index of its folder says it does"
                    )
                if file.get_slice(name).get_dtype() == "BF16":
                    tensors[name] = _widened(path, name)
                else:
                    tensors[name] = np.array(file.get_tensor(name))
    except FileNotFoundError:
        raise UsageError(f"there is no model file {path}") from None
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a safetensors file: {error}") from error
    except TypeError as error:
        raise UsageError(
            f"{path} holds {name!r} in a dtype that numpy does not have ({error}); save its tensors as float32"
        ) from error
    return tensors


def _widened(path: Path, name: str) -> Array:
    """A bfloat16 tensor of a file that safetensors has opened, as float32: the same bits, with 16 zeros behind."""
    with path.open("rb") as file:
        length = min(int.from_bytes(file.read(8), "little"), _LONGEST_HEADER)
        said: Any = json.loads(file.read(length))[name]
        begin, end = said["data_offsets"]
        file.seek(8 + length + begin)
        bits = np.frombuffer(file.read(end - begin), "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(said["shape"])
