"""Shards of FSDP2."""

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; other tensors unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def norms(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """The norms (n,) of n whole tensors, of which these are this rank's parts, sharded as `like`.

    All ranks must call it if `like` is sharded.
    """
    squares = torch.stack(torch._foreach_norm(parts)).square()
    if isinstance(like, DTensor):
        for axis, placement in enumerate(like.placements):
            if placement.is_shard():
                torch.distributed.all_reduce(squares, group=like.device_mesh.get_group(axis))
    return squares.sqrt()
