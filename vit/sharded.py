"""Shards of FSDP2."""

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; its module, which takes a second to import, is not needed."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; other tensors unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def norms(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """The norms (n,) of n whole tensors, of which these are this rank's parts, sharded as `like`.

    All ranks must call it if `like` is sharded.
    """
    squares = torch.stack(torch._foreach_norm(parts)).square()
    if is_sharded(like):
        for axis, placement in enumerate(like.placements):
            if placement.is_shard():
                torch.distributed.all_reduce(squares, group=like.device_mesh.get_group(axis))
    return squares.sqrt()
