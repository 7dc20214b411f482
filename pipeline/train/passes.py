"""How a worker's share of a batch is cut into forward and backward passes.

memory of the smallest GPU -> images of a pass (`pass_limit`) -> slices of the share (`passes`)

Memory of a step = weights, gradients, moments and averages + batches of pixels that wait + what a
pass keeps for its gradients. The last part is counted per token, channel and block.
"""

import math

import torch
import torch.distributed

from pipeline.data.order import largest_share
from pipeline.settings.config import DEFAULT_PASS, TrainConfig
from vit.registry import OPTIMIZERS

# Bytes that a pass keeps per token, channel and block. Measured on an H200 (2026-11-27, compiled,
# bf16, the peak of the whole step): 31 to 36 for S/32, S/16, B/16 and L/16. Not compiled: assumed.
KEPT_BYTES = {True: 40, False: 80}
# the rest is for workspaces and pieces between allocations
USED_SHARE = 0.8


def pass_limit(config: TrainConfig, device: torch.device, shards: int) -> int:
    """Most images of a pass; the same on all workers, which must all call it.

    It is `micro_batch`, or what fits in the memory of the smallest GPU; `shards` is the number of
    workers that the weights are split over. ValueError if not even two images fit.
    """
    if config.micro_batch:
        return config.micro_batch
    if device.type != "cuda":
        return DEFAULT_PASS
    memory = torch.tensor(torch.cuda.get_device_properties(device).total_memory, device=device)
    torch.distributed.all_reduce(memory, torch.distributed.ReduceOp.MIN)
    return fitting(config, memory.item(), torch.distributed.get_world_size(), shards)


def fitting(config: TrainConfig, memory_bytes: int, workers: int = 1, shards: int = 1) -> int:
    """Images of a pass that fit in the memory of a GPU: an even number, for pairs that are mixed.

    ValueError if not even two fit.
    """
    # batches ahead, the one of this step, and one that is being copied
    batches = config.data.prefetch_batches + 2
    pixels = 3 * config.model.image_size**2
    waiting = batches * largest_share(config.global_batch, workers) * pixels
    left = USED_SHARE * memory_bytes - state_bytes(config) / shards - waiting
    images = 2 * int(left / (2 * image_bytes(config)))
    if images < 2:
        raise ValueError(
            f"{config.model.num_parameters:,} parameters and a pass of two images need more than"
            f" {USED_SHARE:.0%} of a GPU's {memory_bytes / 2**30:.0f} GiB; set"
            " --model.checkpoint-blocks, or --parallel fsdp with more workers, or try with"
            " --micro-batch 2"
        )
    return images


def state_bytes(config: TrainConfig) -> int:
    """Weights, gradients, moments and averages of the whole model."""
    optim = config.optim
    each = 4 + 4 + OPTIMIZERS[optim.name].state_bytes + (4 if optim.ema else 0)
    return config.model.num_parameters * each


def image_bytes(config: TrainConfig) -> int:
    """What a pass keeps for each image, at its peak."""
    model, kept = config.model, KEPT_BYTES[config.compile]
    if config.precision == "fp32":
        kept *= 2
    # with checkpointed blocks: the input of each in float32, and one block that is computed again
    per_token = 4 * model.depth + kept if model.checkpoint_blocks else kept * model.depth
    logits = 24 * (model.num_classes or 0)  # with targets and gradients
    pixels = 8 * 3 * model.image_size**2  # uint8, float32 and patches
    return per_token * model.num_tokens * model.width + logits + pixels


def passes(images: int, most: int, limit: int, *, mixes: bool) -> list[slice]:
    """The fewest passes of at most `limit` images, all of nearly the same size.

    Their sizes differ by one image at most, or by one pair if neighbours are mixed, so that
    `torch.compile`, which compiles for each size, makes two versions at most. All workers make as
    many as the worker that has `most` images, because sharded models compute together; some of a
    smaller share may be empty.
    """
    unit = 2 if mixes else 1
    units = math.ceil(images / unit)
    count = math.ceil(math.ceil(most / unit) / max(limit // unit, 1))
    bounds = [min(unit * (units * number // count), images) for number in range(count + 1)]
    return [slice(*ends) for ends in zip(bounds, bounds[1:], strict=False)]
