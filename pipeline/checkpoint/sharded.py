"""The training state in a checkpoint, and what each rank writes of it.

    state.pt                           of a replicated model: a nested dictionary, by rank 0
    state-00000-of-00004.safetensors   of a sharded model: the shards of one rank
    state.json                         the nested dictionary for these, by rank 0; in place of each
                                       tensor its name, shape and type

    State.capture -> Snapshot -> write, on each rank -> files of a checkpoint

The headers of the shards follow PyTorch's distributed checkpoints, whose HuggingFaceStorageReader
(torch.distributed.checkpoint) reads them, and add a CRC-32 of each shard. `stored` reads them.
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from support.files import write_bytes, written
from vit.sharded import is_sharded
from vit.weights import MODEL_FILE, save_safetensors

WHOLE = "state.pt"
INDEX = "state.json"
HEADER = "DCP_SHARDING_INFO"  # the name in PyTorch's format
OFFSETS = "saved_offsets"
CRC = "crc32"
SCALE = "/scale"  # after the name of an 8-bit tensor: the scales of its blocks


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A block of a tensor."""

    name: str
    tensor: Tensor
    """The values of the block."""
    offsets: Sequence[int]
    """Position of the block in the whole tensor, for each axis."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What one rank writes of a checkpoint, as copies on the CPU; empty where it writes nothing."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """The whole model, by timm's names; on rank 0."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The nested dictionary; on rank 0."""
    shards: Sequence[Shard] = ()
    """What this rank has of a sharded state."""
    part: tuple[int, int] | None = None
    """Number of this rank among those that write shards, and how many do."""

    def write(self, folder: Path) -> list[Path]:
        """Write the files of this rank into a folder, and return them; OSError names the file."""
        writers: dict[str, Callable[[Path], object]] = {}
        if self.weights:
            writers[MODEL_FILE] = partial(save_safetensors, state_dict=self.weights)
        if self.part:
            writers[shard_file(*self.part)] = partial(save_shards, shards=self.shards)
        if self.state and self.part:
            index = json.dumps({"files": self.part[1], "state": self.state}).encode()
            writers[INDEX] = partial(write_bytes, data=index)
        elif self.state:
            writers[WHOLE] = partial(save_whole, state=self.state)
        for name, write in writers.items():
            try:
                write(folder / name)
            except (OSError, RuntimeError, SafetensorError) as error:  # C++ and Rust raise others
                reason = str(error).partition("\n")[0]
                raise OSError(f"{folder / name} could not be written: {reason}") from error
        return [folder / name for name in writers]


def shard_file(number: int, count: int) -> str:
    """Name of the file of one rank."""
    return f"state-{number:05d}-of-{count:05d}.safetensors"


def save_whole(path: Path, state: Mapping[str, Any]) -> None:
    """Write a nested dictionary atomically."""
    with written(path) as temporary:
        torch.save(state, temporary)


def save_shards(path: Path, shards: Sequence[Shard]) -> None:
    """Write shards atomically."""
    tensors, info = {}, {}
    for shard in shards:
        tensor, name = shard.tensor, shard.name
        info[name] = {OFFSETS: list(shard.offsets)}
        if quantised(tensor):
            info[name]["signed"] = tensor.signed
            info[name + SCALE] = {OFFSETS: [0]}
            tensors[name + SCALE], tensor = tensor.scale, tensor.codes
        tensors[name] = tensor
    for name, tensor in tensors.items():
        info[name][CRC] = crc32(tensor)
    save_safetensors(path, tensors, {"DCP_VERSION": "1.0", HEADER: json.dumps(info)})


def crc32(tensor: Tensor) -> int:
    """Checksum of the bytes of a tensor on the CPU."""
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def quantised(tensor: Tensor) -> bool:
    """Whether it is a moment of 8-bit AdamW: one byte per value, and a scale for each block."""
    return hasattr(tensor, "codes")


def own_block(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """This rank's shard and its offsets in the whole; a tensor that is not sharded is all of it."""
    if not is_sharded(tensor):
        return tensor.detach(), (0,) * tensor.ndim
    (chunk,) = tensor.__create_chunk_list__()  # as torch.distributed.checkpoint asks for it
    return tensor.detach().to_local(), tuple(chunk.offsets)


def mapped(tree: Any, function: Callable[[str, Tensor], Any], name: str = "") -> Any:  # noqa: ANN401
    """A copy of nested dictionaries and lists with function(dotted name, tensor) as its tensors."""
    if isinstance(tree, Tensor):
        return function(name, tree)
    if isinstance(tree, dict):
        return {k: mapped(v, function, f"{name}.{k}".lstrip(".")) for k, v in tree.items()}
    if isinstance(tree, list):
        return [mapped(v, function, f"{name}.{k}".lstrip(".")) for k, v in enumerate(tree)]
    return tree
