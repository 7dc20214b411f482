"""The training state of a checkpoint, of which each rank reads only what it needs.

    read_state(folder) -> nested dictionary of StoredTensors -> like(parameter) -> tensors

The shards of any number of ranks can be read by any other number. Nothing is unpickled but
state.pt, and that with weights_only.
"""

import json
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.checkpoint.sharded import (
    CRC,
    HEADER,
    INDEX,
    OFFSETS,
    SCALE,
    WHOLE,
    crc32,
    mapped,
    own_block,
    quantised,
    shard_file,
)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A block of a tensor in a file."""

    offsets: tuple[int, ...]
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
        """The tensor; of the shape of `other`, also sharded like it and on its device."""
        if self.shape == other.shape:
            result = torch.empty_like(other, dtype=self.dtype, requires_grad=False)
        else:
            result = torch.empty(self.shape, dtype=self.dtype)
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
            loaded = chunk.load()
            if quantised(loaded):
                if quantised(block) and (offsets, block.shape) == (chunk.offsets, loaded.shape):
                    block.copy_(loaded)
                    return
                loaded = loaded.dequantize()
            values[within(spans, offsets)].copy_(loaded[within(spans, chunk.offsets)])
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


def read_state(folder: Path) -> dict[str, Any]:
    """The nested dictionary of a checkpoint, with a StoredTensor in place of each tensor.

    Raises ValueError if a file is damaged or a shard is missing.
    """
    if not (folder / INDEX).is_file():
        return mapped(load_whole(folder / WHOLE), whole)
    try:
        index = json.loads((folder / INDEX).read_text())
        count, state = int(index["files"]), index["state"]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder / INDEX, error) from error
    chunks: dict[str, list[Chunk]] = {}
    for number in range(count):
        for name, chunk in read_shards(folder / shard_file(number, count)):
            chunks.setdefault(name, []).append(chunk)
    return stored(state, chunks, folder)


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
                yield name, Chunk(offsets=tuple(info[name][OFFSETS]), shape=shape, load=load)
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


def stored(tree: Any, chunks: Mapping[str, Sequence[Chunk]], folder: Path) -> Any:  # noqa: ANN401
    """The nested dictionary of state.json with a StoredTensor for each description of a tensor."""
    if isinstance(tree, list):
        return [stored(item, chunks, folder) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" not in tree:
        return {name: stored(item, chunks, folder) for name, item in tree.items()}
    name, shape, dtype = tree["tensor"], torch.Size(tree["shape"]), getattr(torch, tree["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise damaged(folder / INDEX, f"{name} has the type {tree['dtype']}")
    found = chunks.get(name, ())
    if sum(math.prod(chunk.shape) for chunk in found) != math.prod(shape):
        raise damaged(folder, f"the shards of {name} {tuple(shape)} are not complete")
    return StoredTensor(name=name, shape=shape, dtype=dtype, chunks=found)


def whole(name: str, tensor: Tensor) -> StoredTensor:
    """A tensor of state.pt."""
    chunk = Chunk(offsets=(0,) * tensor.ndim, shape=tensor.shape, load=lambda: tensor)
    return StoredTensor(name=name, shape=tensor.shape, dtype=tensor.dtype, chunks=[chunk])
