"""Position embeddings: the fixed 2-D sin-cos formula, and resampling to another grid.

Shapes: g grid side, D width. Grids are row-major; the slot of a class token comes first.
"""

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


def resample(positions: Tensor, grid: int, *, has_token: bool, method: str) -> Tensor:
    """Resample learned positions to a square grid of side `grid`: (1, [1 +] g * g, D) -> (..., D).

    The slot of the class token is left unchanged. The method is "bilinear" with aligned corners
    (the ViT paper's `scipy.ndimage.zoom` of order 1) or "bicubic" with antialiasing (timm's
    `resample_abs_pos_embed`).
    """
    token, patches = positions[:, :has_token], positions[:, has_token:]
    old = round(patches.shape[1] ** 0.5)
    if old * old != patches.shape[1]:
        raise ValueError(
            f"{patches.shape[1]} positions{' after the class token' if has_token else ''} are not a"
            " square grid; the class token's slot may be missing or unexpected: check pool"
        )
    if old == grid:
        return positions
    image = patches.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    if method not in RESAMPLING:
        raise ValueError(f"unknown resampling {method!r}; known: {', '.join(RESAMPLING)}")
    image = F.interpolate(image, (grid, grid), mode=method, **RESAMPLING[method])
    patches = image.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([token, patches], dim=1)
