"""Preprocessing of a batch on the device: normalisation, mixup and CutMix.

    images (B, S, S, 3) uint8 -> normalise -> (B, 3, S, S) float -> mix with targets (B, K)

Mixing pairs neighbours (2i, 2i + 1) of the global batch. The random numbers of a pair depend only
on the seed and the pair's index, so the result is the same for any number of workers.
"""

import numpy as np
import torch
from torch import Tensor

from vit.config import ImageConfig, MixConfig


def normalise(images: Tensor, config: ImageConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise pixels: (B, H, W, 3) uint8 -> (B, 3, H, W), channels last in memory.

    Computes (x / 255 - mean) / std as one float32 multiply-add on the device, so that only uint8
    pixels are copied to it. `torch.compile` fuses this with the kernel that cuts the patches.
    """
    mean, std = torch.tensor((config.mean, config.std), dtype=torch.float64)
    factors = torch.stack((1 / (255 * std), -mean / std))
    scale, shift = factors.to(images.device, torch.float32, non_blocking=True)
    return torch.addcmul(shift, images.float(), scale).to(dtype).permute(0, 3, 1, 2)


def mix(
    images: Tensor, targets: Tensor, config: MixConfig, *, seed: int, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Apply mixup or CutMix to pairs of images and their targets; both off changes nothing.

    Args:
        images: (B, 3, H, W) float, B even.
        targets: (B, K) float.
        config: The alphas. The weight of an image in mixup is max(a, 1 - a), a ~ Beta(alpha,
            alpha), so that it outweighs its partner, as in big_vision; CutMix pastes a box that
            covers the share a of the image.
        seed: Seed of this step's global batch.
        first: Index of images[0] in the global batch (even).
    """
    if not config.mixup and not config.cutmix:
        return images, targets
    batch, _, height, width = images.shape
    if batch % 2 or first % 2:
        raise ValueError(
            f"mixing pairs neighbours, but this share has {batch} images from place {first};"
            " make the images per worker and step even"
        )
    own_weights, boxes = draw_pairs(config, seed, first // 2, batch // 2)
    weights = per_image(own_weights, images)
    if boxes is not None:
        top, bottom, left, right = (per_image(side, images) for side in boxes.T)
        y = torch.arange(height, device=images.device).view(1, 1, -1, 1) + 0.5
        x = torch.arange(width, device=images.device).view(1, 1, 1, -1) + 0.5
        top, bottom, left, right = top * height, bottom * height, left * width, right * width
        inside = (y > top) & (y < bottom) & (x > left) & (x < right)  # (B, 1, H, W)
        weights = torch.where(right > left, (~inside).to(images.dtype), weights)
    share = weights.float().mean((1, 2, 3)).view(-1, 1).to(targets.dtype)
    partners, partner_targets = (
        tensor.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for tensor in (images, targets)
    )
    return torch.lerp(partners, images, weights), torch.lerp(partner_targets, targets, share)


def draw_pairs(
    config: MixConfig, seed: int, first: int, count: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Random numbers of `count` pairs, starting with pair `first` of the global batch.

    Returns:
        The weight (2 count,) of each image in its own mixture, and with CutMix its box (2 count,
        4) as shares of the sides: top, bottom, left, right. The box is empty if the pair uses
        mixup.
    """
    total = first + count
    streams = np.random.SeedSequence(seed).spawn(4)  # each is drawn from the first pair on
    mixups, areas, centres, choices = (np.random.Generator(np.random.Philox(s)) for s in streams)
    weights = np.ones(total)
    if config.mixup:
        weights = mixups.beta(config.mixup, config.mixup, total)
        weights = np.maximum(weights, 1 - weights)
    weights = weights[first:].repeat(2)
    if not config.cutmix:
        return weights, None
    side = np.sqrt(areas.beta(config.cutmix, config.cutmix, total))[first:, None]
    centre = centres.random((total, 2))[first:]
    low, high = (centre - side / 2).clip(0, 1), (centre + side / 2).clip(0, 1)
    if config.mixup:
        high = np.where(choices.random(total)[first:, None] < 0.5, low, high)
    boxes = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    return weights, boxes.repeat(2, axis=0)


def per_image(values: np.ndarray, images: Tensor) -> Tensor:
    """One number per image as (B, 1, 1, 1), with the device and data type of the images."""
    values = torch.from_numpy(np.ascontiguousarray(values))
    return values.to(images.device, images.dtype).view(-1, 1, 1, 1)
