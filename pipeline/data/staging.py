"""From pieces of blocks to tensors on a device, through host buffers that are used again.

    pieces (views of blocks) -> one host buffer -> device

Each row is copied once on the host: from the object store into the buffer that goes to the device.
Only pinned memory is copied to a GPU in the background, and pinning takes longer than copying, so
the pinned buffers rotate. A GPU copies on a stream of its own while it computes.

Shapes: b rows of a batch, n rows of a piece; the rest of a shape is the same in all pieces, except
for the width of labels, which are padded with -1.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.data.stream import Block

# pinned batches: one is filled while another is copied
BUFFERS = 3


class Event(Protocol):
    """As much of torch.cuda.Event as a buffer needs."""

    def synchronize(self) -> None:
        """Wait until it has happened."""


@dataclass
class HostBuffer:
    """Host memory of a batch, one allocation for each column; it grows when a batch needs more."""

    pinned: bool = False
    copied: Event | None = None
    """When its last batch has been copied."""
    _memory: dict[str, Tensor] = field(default_factory=dict)

    def column(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor for a column of a batch."""
        count = int(np.prod(shape))
        memory = self._memory.get(name)
        if memory is None or len(memory) < count or memory.dtype != dtype:
            memory = torch.empty(count, dtype=dtype, pin_memory=self.pinned)
            self._memory[name] = memory
        return memory[:count].view(*shape)


class Rotation:
    """Host buffers in turn; none is given out again before its last copy is done."""

    def __init__(self, buffers: int, *, pinned: bool) -> None:
        self._buffers = deque(HostBuffer(pinned=pinned) for _ in range(buffers))

    def next(self) -> HostBuffer:
        """The buffer that has been unused for the longest time; waits for its copy."""
        buffer = self._buffers[0]
        self._buffers.rotate(-1)
        if buffer.copied is not None:
            buffer.copied.synchronize()
            buffer.copied = None
        return buffer


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A batch that is being copied to its device."""

    columns: Mapping[str, Tensor]
    copied: "torch.cuda.Event | None" = None

    def on_device(self) -> Mapping[str, Tensor]:
        """The columns, for use in the calling thread's current stream."""
        if self.copied is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.copied)
            for tensor in self.columns.values():
                tensor.record_stream(stream)  # its memory belongs to the stream of the copies
        return self.columns


class Staging:
    """Moves batches to a device; one thread calls it, another may use what it returns."""

    def __init__(self, device: torch.device) -> None:
        """Without a GPU every batch is a tensor of its own, and nothing is copied again."""
        self.device = device
        self._is_gpu = device.type == "cuda"
        self._buffers = Rotation(BUFFERS, pinned=True) if self._is_gpu else None
        self._stream = torch.cuda.Stream(device) if self._is_gpu else None

    def __call__(self, pieces: Sequence[Block], names: Sequence[str]) -> Staged:
        """The named columns of a batch, given in pieces."""
        buffer = self._buffers.next() if self._buffers else HostBuffer()
        host = {name: filled(buffer, name, [piece[name] for piece in pieces]) for name in names}
        if not self._is_gpu:
            return Staged(columns=host)
        with torch.cuda.stream(self._stream):
            columns = {
                name: tensor.to(self.device, non_blocking=True) for name, tensor in host.items()
            }
            buffer.copied = copied = torch.cuda.Event()
            copied.record(self._stream)
        return Staged(columns=columns, copied=copied)


def filled(buffer: HostBuffer, name: str, parts: Sequence[np.ndarray]) -> Tensor:
    """The parts (n, ...), one after the other, in a column of the buffer (b, ...)."""
    rows = sum(map(len, parts))
    shape = (rows, *np.max([part.shape[1:] for part in parts], axis=0).astype(int).tolist())
    tensor = buffer.column(name, shape, torch.from_numpy(np.empty(0, parts[0].dtype)).dtype)
    out, first = tensor.numpy(), 0
    for part in parts:
        target = out[first : first + len(part)]
        if part.shape[1:] != shape[1:]:  # labels of fewer classes than those of another piece
            target.fill(-1)
            target = target[:, : part.shape[1]]
        target[:] = part
        first += len(part)
    return tensor
