"""What the logits are held against: softmax, sigmoid and semantic softmax cross-entropy.

    labels (B, M) class numbers, -1 pads -> make_targets -> (B, K)
    make_loss(config)(logits (B, K), targets (B, K)) -> (B,), one loss per image

One number per image, so that the caller weights by the global batch and masks padding. All in
float32, whatever the logits' type.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.config import LossConfig

Loss = Callable[[Tensor, Tensor], Tensor]


def make_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Class numbers, padded with -1, to 0/1 targets: (B, M) int64 -> (B, num_classes) float."""
    targets = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    places = labels.where(labels >= 0, num_classes)  # padding falls into an extra column
    return targets.scatter_(1, places, 1.0)[:, :num_classes]


def make_loss(config: LossConfig) -> Loss:
    """The loss that a recipe names."""
    smoothing = config.label_smoothing
    if config.name == "softmax":
        return lambda logits, targets: softmax_loss(logits, targets, smoothing)
    return lambda logits, targets: sigmoid_loss(logits, targets, smoothing)


def softmax_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each row with its targets brought to sum 1; 0 for a row of none."""
    total = targets.sum(1, keepdim=True)
    targets = targets / total.clamp_min(torch.finfo(targets.dtype).tiny)
    log_p = F.log_softmax(logits.float(), dim=1)
    own = -(targets * log_p).sum(1)
    if not smoothing:
        return own
    return (1 - smoothing) * own - smoothing * log_p.mean(1) * (total[:, 0] > 0)


def sigmoid_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropies summed over the classes, big_vision's `sigmoid_xent`.

    The sum, not PyTorch's mean: the loss of a fresh model of 21,843 classes with head bias -10
    and one label is 10.9916.
    """
    targets = targets * (1 - smoothing) + smoothing / targets.shape[1]
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return losses.sum(1)
