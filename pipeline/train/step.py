"""Forward and backward pass of one worker's share of a global batch."""

import torch
from torch import Tensor

from pipeline.data.order import RankShare
from pipeline.train.batches import Batch
from pipeline.train.state import State
from support.splitmix import scramble
from vit.batch import mix, normalise
from vit.loss import Loss, make_targets


def backward(
    state: State, batch: Batch, share: RankShare, loss_of: Loss, rank: int, world_size: int
) -> Tensor:
    """Gradients of the loss of a step, in passes of `micro_batch`; this worker's part of the loss.

    Returns the loss (1,): the mean over workers is the mean over the global batch.
    """
    config, device = state.config, batch.images.device
    seed = scramble(scramble(config.seed) ^ state.step)  # of the global batch
    torch.manual_seed(scramble(seed ^ rank))
    loss = torch.zeros(1, device=device)
    starts = range(0, share.size, config.micro_batch)
    for start in starts:
        rows = slice(start, start + config.micro_batch)
        pixels = normalise(batch.images[rows], config.images)
        targets = make_targets(batch.labels[rows], config.model.num_classes)
        readable = batch.labels[rows].ge(0).any(1)
        pixels, targets = mix(pixels, targets, config.mix, seed=seed, first=share.low + start)
        with state.accumulating(last=start == starts[-1]):
            with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
                logits = state.forward(pixels)
            losses = loss_of(logits.float(), targets) * readable
            micro_loss = losses.sum() * (world_size / config.global_batch)
            micro_loss.backward()
        loss += micro_loss.detach()
    return loss
