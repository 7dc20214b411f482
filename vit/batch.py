"""Preprocessing of a batch on the device: normalisation, mixup and CutMix.

    images (B, S, S, 3) uint8 -> normalise -> (B, 3, S, S) float -> mix with targets (B, K)

Mixing pairs neighbours (2i, 2i + 1) of the global batch. The random numbers of a pair depend only
on the seed and the pair's index, so the result is the same for any number of workers. They are
drawn on the host and given to `mix` as a tensor, so that it is compiled with what surrounds it.
"""

import numpy as np
import torch
from torch import Tensor

from vit.config import ImageConfig, MixConfig


def normalise(images: Tensor, config: ImageConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise pixels: (B, H, W, 3) uint8 -> (B, 3, H, W), channels last in memory.

    Computes (x / 255 - mean) / std on the device, so that only uint8 pixels are copied to it.
    """
    return scaled(images, channel_factors(config).to(images.device, non_blocking=True), dtype)


def channel_factors(config: ImageConfig) -> Tensor:
    """Factor and shift of each channel that normalise pixels: (2, 3) float32."""
    mean, std = torch.tensor((config.mean, config.std), dtype=torch.float64)
    return torch.stack((1 / (255 * std), -mean / std)).float()


def scaled(images: Tensor, factors: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise pixels, given the `channel_factors`, as one float32 multiply-add.

    `torch.compile` fuses it with the kernel that cuts the patches.
    """
    scale, shift = factors
    return torch.addcmul(shift, images.float(), scale).to(dtype).permute(0, 3, 1, 2)


def mix(images: Tensor, targets: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Apply mixup or CutMix to pairs of neighbours and their targets.

    Args:
        images: (B, 3, H, W) float, B even.
        targets: (B, K) float.
        draws: (B, 1) or (B, 5) float, rows of `mixing_draws`: the weight of each image in its own
            mixture, and with CutMix its box as shares of the sides: top, bottom, left, right. A
            box that is empty leaves the weight.
    """
    height, width = images.shape[2:]
    columns = draws.to(images.dtype)[:, :, None, None, None].unbind(1)
    weights = columns[0]
    if len(columns) > 1:
        top, bottom, left, right = columns[1:]
        y = torch.arange(height, device=images.device).view(1, 1, -1, 1) + 0.5
        x = torch.arange(width, device=images.device).view(1, 1, 1, -1) + 0.5
        top, bottom, left, right = top * height, bottom * height, left * width, right * width
        inside = (y > top) & (y < bottom) & (x > left) & (x < right)  # (B, 1, H, W)
        weights = torch.where(right > left, (~inside).to(images.dtype), weights)
    share = weights.float().mean((1, 2, 3)).view(-1, 1).to(targets.dtype)
    partners, partner_targets = (
        tensor.unflatten(0, (len(tensor) // 2, 2)).flip(1).flatten(0, 1)
        for tensor in (images, targets)
    )
    return torch.lerp(partners, images, weights), torch.lerp(partner_targets, targets, share)


def mixing_draws(config: MixConfig, *, seed: int, first: int, count: int) -> Tensor | None:
    """Random numbers that mix `count` images from place `first` of the global batch on.

    Drawn on the host from (seed, place). ValueError if the images are no whole pairs.

    Args:
        config: The alphas. The weight of an image in mixup is max(a, 1 - a), a ~ Beta(alpha,
            alpha), so that it outweighs its partner, as in big_vision; CutMix pastes a box that
            covers the share a of the image.
        seed: Seed of this step's global batch.
        first: Place of the first image in the global batch.
        count: Images.

    Returns:
        None if both are off, else rows of float32 on the CPU: (count, 1) with mixup alone, and
        (count, 5) with CutMix; see `mix`. The box of a pair that uses mixup is empty.
    """
    if not config.mixup and not config.cutmix:
        return None
    if count % 2 or first % 2:
        raise ValueError(
            f"mixing pairs neighbours, but this share has {count} images from place {first};"
            " make the images per worker and step even"
        )
    low, total = first // 2, (first + count) // 2
    streams = np.random.SeedSequence(seed).spawn(4)  # each is drawn from the first pair on
    mixups, areas, centres, choices = (np.random.Generator(np.random.Philox(s)) for s in streams)
    weights = np.ones(total)
    if config.mixup:
        weights = mixups.beta(config.mixup, config.mixup, total)
        weights = np.maximum(weights, 1 - weights)
    columns = [weights]
    if config.cutmix:
        side = np.sqrt(areas.beta(config.cutmix, config.cutmix, total))[:, None]
        centre = centres.random((total, 2))
        start, stop = (centre - side / 2).clip(0, 1), (centre + side / 2).clip(0, 1)
        if config.mixup:
            stop = np.where(choices.random(total)[:, None] < 0.5, start, stop)
        columns += [start[:, 0], stop[:, 0], start[:, 1], stop[:, 1]]
    pairs = np.stack(columns, axis=1)[low:]
    return torch.from_numpy(pairs.repeat(2, axis=0).astype(np.float32))
