"""The training state in a checkpoint: optimizer, averaged weights and counters.

    state.pt                           of a replicated model: a nested dictionary, by rank 0
    state-00000-of-00004.safetensors   of a sharded model: the shards of one rank
    state.json                         the nested dictionary for these, by rank 0; in place of each
                                       tensor its name, shape and type

    Snapshot -> write, on each rank -> files -> read_state -> StoredTensor -> like(parameter)

The shards of any number of ranks can be read by any other number. Their headers follow PyTorch's
distributed checkpoints (torch.distributed.checkpoint.HuggingFaceStorageReader reads them), and add
a CRC-32 of each shard. Nothing is unpickled but state.pt, and that with weights_only.
"""

import json
import math
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from support.files import write_bytes, written
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


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A block of a tensor in a file."""

    offsets: Sequence[int]
    shape: Sequence[int]
    load: Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor of a checkpoint; each rank reads only the chunks that its own block overlaps."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    chunks: Sequence[Chunk]

    def like(self, other: Tensor) -> Tensor:
        """The tensor, on the device of `other`; sharded like it if the shapes are the same."""
        if self.shape != other.shape:
            result = torch.empty(self.shape, dtype=self.dtype, device=other.device)
        else:
            result = torch.empty_like(other, dtype=self.dtype, requires_grad=False)
        self.read(result)
        return result

    def read(self, target: Tensor) -> None:
        """Copy the values into a tensor of this shape, or into this rank's shard of one.

        8-bit values are copied as they are where the shard is the one that was written; in another
        shard, whose blocks of 256 differ, they are quantised anew.
        """
        if target.shape != self.shape:
            shapes = f"{tuple(self.shape)} in the checkpoint and {tuple(target.shape)} here"
            raise ValueError(f"{self.name} is {shapes}; resume with the settings that wrote it")
        block, offsets = own_block(target)
        values = torch.empty_like(block.codes, dtype=torch.float32) if quantised(block) else block
        for chunk in self.chunks:
            spans = overlap(offsets, block.shape, chunk.offsets, chunk.shape)
            if not all(low < high for low, high in spans):
                continue
            stored = chunk.load()
            if quantised(stored):
                if quantised(block) and stored.shape == block.shape:
                    block.copy_(stored)
                    return
                stored = stored.dequantize()
            values[within(spans, offsets)].copy_(stored[within(spans, chunk.offsets)])
        if values is not block:
            block.copy_(values)


def overlap(
    offsets: Sequence[int],
    shape: Sequence[int],
    other_offsets: Sequence[int],
    other_shape: Sequence[int],
) -> list[tuple[int, int]]:
    """First and last (exclusive) index of two blocks' intersection, for each axis."""
    axes = zip(offsets, shape, other_offsets, other_shape, strict=True)
    return [(max(a, b), min(a + m, b + n)) for a, m, b, n in axes]


def within(spans: Sequence[tuple[int, int]], offsets: Sequence[int]) -> tuple[slice, ...]:
    """Slices of a block at `offsets` that cover spans of the whole tensor."""
    return tuple(slice(low - o, high - o) for (low, high), o in zip(spans, offsets, strict=True))


def quantised(tensor: Tensor) -> bool:
    """Whether it is a moment of 8-bit AdamW: one byte per value, and a scale for each block."""
    return hasattr(tensor, "codes")


def own_block(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """This rank's shard and its offsets in the whole; a tensor that is not sharded is all of it."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), (0,) * tensor.ndim
    (chunk,) = tensor.__create_chunk_list__()  # as torch.distributed.checkpoint asks for it
    return tensor.detach().to_local(), tuple(chunk.offsets)


def read_state(folder: Path) -> dict[str, Any]:
    """The nested dictionary of a checkpoint, with a StoredTensor in place of each tensor.

    Raises ValueError if a file is damaged or a shard is missing.
    """
    if not (folder / INDEX).is_file():
        return mapped(load_whole(folder / WHOLE), whole)
    try:
        index = json.loads((folder / INDEX).read_text())
    except ValueError as error:
        raise damaged(folder / INDEX, error) from error
    chunks: dict[str, list[Chunk]] = {}
    for number in range(index["files"]):
        for name, chunk in read_shards(folder / shard_file(number, index["files"])):
            chunks.setdefault(name, []).append(chunk)
    return described(index["state"], chunks, folder)


def load_whole(path: Path) -> dict[str, Any]:
    """Read the nested dictionary of a replicated model, without reading its tensors yet."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise damaged(path, error) from error


def read_shards(path: Path) -> Iterator[tuple[str, Chunk]]:
    """The names and chunks in the file of one rank."""
    try:
        file = safe_open(path, framework="pt")
        info = json.loads(file.metadata()[HEADER])
        for name in sorted(info.keys() & set(file.keys())):
            if not name.endswith(SCALE):
                load = partial(load_chunk, file, path, name, info)
                shape = file.get_slice(name).get_shape()
                yield name, Chunk(offsets=info[name][OFFSETS], shape=shape, load=load)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error


def load_chunk(file: safe_open, path: Path, name: str, info: Mapping[str, Any]) -> Tensor:
    """Read a chunk; ValueError if its bytes are not those that were written."""
    tensor = file.get_tensor(name)
    if crc32(tensor) != info[name][CRC]:
        raise damaged(path, f"the checksum of {name} differs")
    if name + SCALE not in info:
        return tensor
    from torchao.optim.subclass_8bit import OptimState8bit  # its optimizer is in use

    scale = load_chunk(file, path, name + SCALE, info)
    size = tensor.numel() // scale.numel()
    moment = OptimState8bit.zeros(tensor.shape, info[name]["signed"], size)
    moment.codes.copy_(tensor)
    moment.scale.copy_(scale)
    return moment


def damaged(path: Path, reason: object) -> ValueError:
    """The error of a file that cannot be used."""
    text = str(reason).partition("\n")[0]
    return ValueError(
        f"{path} is missing or damaged ({text}); copy the checkpoint again, or delete it to resume"
        " from an earlier one"
    )


def described(tree: Any, chunks: Mapping[str, Sequence[Chunk]], folder: Path) -> Any:  # noqa: ANN401
    """The nested dictionary of state.json with a StoredTensor for each description of a tensor."""
    if isinstance(tree, list):
        return [described(item, chunks, folder) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" not in tree:
        return {name: described(item, chunks, folder) for name, item in tree.items()}
    name, shape, dtype = tree["tensor"], torch.Size(tree["shape"]), getattr(torch, tree["dtype"])
    found = chunks.get(name, ())
    if sum(math.prod(chunk.shape) for chunk in found) != math.prod(shape):
        raise damaged(folder, f"the shards of {name} {tuple(shape)} are not complete")
    return StoredTensor(name=name, shape=shape, dtype=dtype, chunks=found)


def whole(name: str, tensor: Tensor) -> StoredTensor:
    """A tensor of state.pt."""
    chunk = Chunk(offsets=(0,) * tensor.ndim, shape=tensor.shape, load=lambda: tensor)
    return StoredTensor(name=name, shape=tensor.shape, dtype=tensor.dtype, chunks=[chunk])


def mapped(tree: Any, function: Callable[[str, Tensor], Any], name: str = "") -> Any:  # noqa: ANN401
    """A copy of nested dictionaries and lists with function(dotted name, tensor) as its tensors."""
    if isinstance(tree, Tensor):
        return function(name, tree)
    if isinstance(tree, dict):
        return {k: mapped(v, function, f"{name}.{k}".lstrip(".")) for k, v in tree.items()}
    if isinstance(tree, list):
        return [mapped(v, function, f"{name}.{k}".lstrip(".")) for k, v in enumerate(tree)]
    return tree


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
