"""Position embeddings: the fixed 2-D sin-cos formula, and fitting learned ones to another model.

Shapes: g grid side, D width. Grids are row-major; slots of other tokens than patches (class token,
registers) come first.
"""

from collections.abc import Mapping
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

RESAMPLING = {"bilinear": {"align_corners": True}, "bicubic": {"antialias": True}}


def sincos2d(grid: int, width: int, temperature: float = 10_000.0) -> Tensor:
    """Positions of a square grid, (1, grid * grid, width): sin x, cos x, sin y, cos y.

    The last frequency is exactly 1 / temperature, as in big_vision's `posemb_sincos_2d`. MoCo v3
    and timm divide by width / 4 instead of width / 4 - 1, which gives other values.
    """
    steps = torch.arange(width // 4, dtype=torch.float64) / (width // 4 - 1)
    omega = temperature**-steps
    side = torch.arange(grid, dtype=torch.float64)
    y, x = torch.meshgrid(side, side, indexing="ij")
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()[None]


def num_prefix(tensors: Mapping[str, Tensor]) -> int:
    """Number of tokens before the patches in a model with these weights."""
    return sum(tensors[name].shape[1] for name in ("cls_token", "reg_token") if name in tensors)


def position_slots(tensors: Mapping[str, Tensor]) -> int | None:
    """Number of slots before those of the patches; None if the rest is never a square grid.

    All tokens before the patches have a slot, or only the class token, or none. More than one of
    these is possible only for grids smaller than half the number of tokens; the largest grid wins.
    """
    total = tensors["pos_embed"].shape[1] if "pos_embed" in tensors else 0
    for slots in (0, int("cls_token" in tensors), num_prefix(tensors)):
        if isqrt(max(total - slots, 0)) ** 2 == total - slots:
            return slots
    return None


def without_slots(tensors: dict[str, Tensor]) -> None:
    """Add the positions of other tokens than patches to the tokens, in place, as the model does."""
    slots = position_slots(tensors) or 0
    positions, first = tensors["pos_embed"], 0
    for name in ("cls_token", "reg_token"):
        if name in tensors and first < slots:
            last = first + tensors[name].shape[1]
            tensors[name] = tensors[name] + positions[:, first : min(last, slots)]
            first = last
    tensors["pos_embed"] = positions[:, slots:]


def with_slots(tensors: dict[str, Tensor]) -> None:
    """Put zeros before the positions of the patches, in place, for the tokens before them."""
    positions = tensors["pos_embed"]
    zeros = positions.new_zeros(1, num_prefix(tensors), positions.shape[2])
    tensors["pos_embed"] = torch.cat([zeros, positions], dim=1)


def resample(positions: Tensor, grid: int, *, slots: int, method: str) -> Tensor:
    """Resample learned positions to a square grid of side `grid`: (1, slots + g * g, D) -> same.

    The slots of other tokens than patches are left unchanged. The method is "bilinear" with aligned
    corners (the ViT paper's `scipy.ndimage.zoom` of order 1) or "bicubic" with antialiasing (timm's
    `resample_abs_pos_embed`).
    """
    others, patches = positions[:, :slots], positions[:, slots:]
    old = round(patches.shape[1] ** 0.5)
    if old * old != patches.shape[1]:
        raise ValueError(
            f"{patches.shape[1]} positions{f' after {slots} of other tokens' if slots else ''} are"
            " not a square grid; slots may be missing or unexpected: check pool and registers"
        )
    if old == grid:
        return positions
    image = patches.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    if method not in RESAMPLING:
        raise ValueError(f"unknown resampling {method!r}; known: {', '.join(RESAMPLING)}")
    image = F.interpolate(image, (grid, grid), mode=method, **RESAMPLING[method])
    patches = image.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([others, patches], dim=1)
