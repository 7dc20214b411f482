"""Models of random weights."""

import torch

from vit.config import ViTConfig
from vit.model import ViT


def random_model(config: ViTConfig, seed: int = 0, scale: float = 0.2) -> ViT:
    """A model none of whose weights is zero."""
    torch.manual_seed(seed)
    model = ViT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model
