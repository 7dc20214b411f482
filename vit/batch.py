"""What happens to a batch on the device, before the model: normalisation, mixup and CutMix.

    images (B, S, S, 3) uint8 -> normalise -> (B, 3, S, S) float -> mix with targets (B, K)

Mixing pairs neighbours (2i, 2i + 1) of the global batch, and what a pair draws depends on (seed,
its place in the global batch): however many workers share the batch, it is mixed the same way.
"""

import numpy as np
import torch
from torch import Tensor

from vit.config import ImageConfig, MixConfig


def normalise(images: Tensor, config: ImageConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels to the model's input: (B, H, W, 3) uint8 -> (B, 3, H, W), channels last in memory.

    (x / 255 - mean) / std as one multiply-add in float32, so that the uint8 pixels are what
    travels to the device; inside `torch.compile` it joins the kernel that cuts the patches.
    """
    std = torch.tensor(config.std, dtype=torch.float64)
    scale = (1 / (255 * std)).to(images.device, torch.float32, non_blocking=True)
    shift = (-torch.tensor(config.mean, dtype=torch.float64) / std).to(
        images.device, torch.float32, non_blocking=True
    )
    return torch.addcmul(shift, images.float(), scale).to(dtype).permute(0, 3, 1, 2)


def mix(
    images: Tensor, targets: Tensor, config: MixConfig, *, seed: int, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of neighbouring images and their targets; as they are if both are off.

    Args:
        images: (B, 3, H, W) float, B even.
        targets: (B, K) float.
        config: The alphas. Mixup weights are max(a, 1 - a) of a ~ Beta(alpha, alpha), so that each
            image stays the main one, as in big_vision; CutMix pastes a box of area share a.
        seed: Of this step's global batch.
        first: Place of images[0] in the global batch (even).
    """
    if not config.mixup and not config.cutmix:
        return images, targets
    batch, _, height, width = images.shape
    if batch % 2 or first % 2:
        raise ValueError(
            f"mixing pairs neighbours, but this share has {batch} images from place {first};"
            " make the images per worker and step even"
        )
    keep, boxes = draw_pairs(config, seed, first // 2, batch // 2)
    if boxes is None:
        weights = on_device(keep, images).view(-1, 1, 1, 1)
    else:
        top, bottom, left, right = (on_device(side, images).view(-1, 1, 1, 1) for side in boxes.T)
        y = torch.arange(height, device=images.device).view(1, 1, -1, 1) + 0.5
        x = torch.arange(width, device=images.device).view(1, 1, 1, -1) + 0.5
        top, bottom, left, right = top * height, bottom * height, left * width, right * width
        inside = (y > top) & (y < bottom) & (x > left) & (x < right)  # (B, 1, H, W)
        weights = torch.where(inside, 0.0, 1.0).to(images.dtype)
        is_box = (right > left).to(images.dtype)
        weights = is_box * weights + (1 - is_box) * on_device(keep, images).view(-1, 1, 1, 1)
    share = weights.float().mean((1, 2, 3)).view(-1, 1).to(targets.dtype)
    partner = images.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    partner_targets = targets.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.lerp(partner, images, weights), torch.lerp(partner_targets, targets, share)


def draw_pairs(
    config: MixConfig, seed: int, first: int, count: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """What `count` pairs from place `first` on draw.

    Returns:
        Own weight (2 count,) of each image, and with CutMix its box (2 count, 4) as shares of
        the sides: top, bottom, left, right; a box without area where the pair draws mixup.
    """
    total = first + count
    streams = np.random.SeedSequence(seed).spawn(4)  # each is filled from place 0 on
    mixups, areas, places, choices = (np.random.Generator(np.random.Philox(s)) for s in streams)
    keep = np.ones(total)
    if config.mixup:
        keep = mixups.beta(config.mixup, config.mixup, total)
        keep = np.maximum(keep, 1 - keep)
    keep = keep[first:].repeat(2)
    if not config.cutmix:
        return keep, None
    side = np.sqrt(areas.beta(config.cutmix, config.cutmix, total))[first:, None]
    centre = places.random((total, 2))[first:]
    low = (centre - side / 2).clip(0, 1)
    high = (centre + side / 2).clip(0, 1)
    if config.mixup:
        high = np.where(choices.random(total)[first:, None] < 0.5, low, high)
    boxes = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    return keep, boxes.repeat(2, axis=0)


def on_device(values: np.ndarray, like: Tensor) -> Tensor:
    """The numbers as a tensor beside another, in its type."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device, like.dtype)
