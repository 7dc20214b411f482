"""A toy of each kind that can be added: what `register` does is all that the project needs."""

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.evaluation.metrics import METRICS, Metric
from vit.registry import CROPS, LOSSES, OPTIMIZERS, CropProtocol, LossKind, OptimizerKind


def register() -> None:
    """Add a row to each table."""
    LOSSES["squared"] = LossKind(
        function="toys:squared_loss", link="sigmoid", chance=lambda classes, bias: classes / 4
    )
    OPTIMIZERS["rmsprop"] = OptimizerKind(function="toys:rmsprop", state_bytes=4)
    CROPS["pair"] = CropProtocol(function="toys:pair", views=2)
    METRICS["top2"] = Metric(
        title="top-2", values=lambda p: p.hits(2), higher_is_better=True, is_share=True
    )


def squared_loss(logits, targets, smoothing):
    """Squared distance of the probabilities from the targets, summed over classes."""
    return 2 * (logits.sigmoid() - targets).square().sum(1)


def rmsprop(groups, config):
    """RMSprop."""
    return torch.optim.RMSprop(groups, lr=config.lr)


def pair(pixels, config, size, seed, count):
    """The whole image, and its mirror image."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    image = F.interpolate(image, (size, size)).round().byte()[0].permute(1, 2, 0).numpy()
    return np.stack([image, image[:, ::-1]])
