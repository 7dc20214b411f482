"""One step: backward passes of the worker's share, a reduction, an update; the host does not wait.

take_step -> (norm, loss, unreadable images, votes) on the device, which the host reads later
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.order import RankShare, largest_share
from pipeline.train.batches import Batch
from pipeline.train.passes import passes
from pipeline.train.state import State
from pipeline.train.transfer import to_device
from support.splitmix import scramble
from vit.batch import mixing_draws
from vit.dropout import image_keys


def take_step(
    state: State,
    batch: Batch,
    share: RankShare,
    world_size: int,
    votes: Sequence[float],
    at: Callable[[str], None],
    *,
    skips: bool = False,
) -> Tensor:
    """Make a step, or count it only; returns (3 + votes,) numbers of the step on the device.

    They are the norm of the gradients and then sums over the workers: the loss, the unreadable
    images and the votes. `at` is told the phases. The learning rate must have been set.
    """
    device = batch.images.device
    at("forward and backward")
    loss = norm = torch.zeros(1, device=device)
    if not skips:
        loss = backward(state, batch, share, world_size)
        norm = state.norm()
    # one reduction: all workers see the same loss, number of faults, and votes
    sums = torch.cat([loss, to_device(torch.tensor([len(batch.faults), *votes]), device)])
    at("all-reduce")
    torch.distributed.all_reduce(sums)
    if skips:
        state.skip()
    else:
        state.update(sums[0], norm)
    return torch.cat([norm.view(1), sums])


def backward(state: State, batch: Batch, share: RankShare, world_size: int) -> Tensor:
    """Gradients of the loss of a step, in passes of at most `pass_limit`; this worker's loss.

    Returns the loss (1,): the mean over workers is the mean over the global batch.
    """
    config, device = state.config, batch.images.device
    seed = scramble(scramble(config.seed) ^ state.step)  # of the global batch
    draws = mixing_draws(config.mix, seed=seed, first=share.low, count=share.size)
    keys = image_keys(seed, share.low, share.size) if state.model.drops else None
    draws, keys = (None if rows is None else to_device(rows, device) for rows in (draws, keys))
    labels = widened(batch.labels)
    loss = torch.zeros(1, device=device)
    most = largest_share(config.global_batch, world_size)
    for rows in passes(share.size, most, state.pass_limit, mixes=draws is not None):
        with state.accumulating(last=rows.stop == share.size):
            own = (None if numbers is None else numbers[rows] for numbers in (draws, keys))
            part = state.forward(batch.images[rows], labels[rows], *own)
            part = part * (world_size / config.global_batch)
            part.backward()
        loss += part.detach()
    return loss


def widened(labels: Tensor) -> Tensor:
    """Labels padded to a power of two: the width differs between batches, compiled shapes do not.

    Only shards whose images have several labels have more than one column.
    """
    width = labels.shape[1]
    return F.pad(labels, (0, (1 << (width - 1).bit_length()) - width), value=-1)
