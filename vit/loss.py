"""Losses: softmax, sigmoid and semantic softmax cross-entropy.

    labels (B, M) class numbers, -1 pads -> make_targets -> (B, K)
    make_loss(config)(logits (B, K), targets (B, K)) -> (B,), one loss per image

One number per image, so that the caller weights by the global batch and masks padding. All in
float32, whatever the logits' type. Targets are 0/1, or mixtures of such rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.config import LossConfig
from vit.registry import LOSSES, resolve

Loss = Callable[[Tensor, Tensor], Tensor]


def make_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Class numbers, padded with -1, to 0/1 targets: (B, M) int64 -> (B, num_classes) float."""
    targets = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    places = labels.where(labels >= 0, num_classes)  # padding falls into an extra column
    return targets.scatter_(1, places, 1.0)[:, :num_classes]


def make_loss(
    config: LossConfig,
    *,
    parents: Sequence[int] | None = None,
    device: torch.device | str | None = None,
) -> Loss:
    """The loss that a recipe names; ValueError if it needs a tree and there is none.

    Args:
        config: Its name and smoothing.
        parents: Parent of each class, -1 for roots (`shards.dataset.wordnet.parents`), for a loss
            over the tree of classes.
        device: Where the logits will be, for a loss over the tree of classes.
    """
    kind = LOSSES[config.name]
    function = resolve(kind.function)
    if not kind.needs_tree:
        return lambda logits, targets: function(logits, targets, config.label_smoothing)
    if parents is None:
        raise ValueError(
            f"the {config.name} loss needs the tree of the classes; pass parents, from "
            "shards.dataset.wordnet.parents(wnids)"
        )
    return function(parents, config.label_smoothing).to(device)


@dataclass(frozen=True)
class Link:
    """How logits become probabilities."""

    mean: Callable[[Tensor], Tensor]
    """(B, C, K) -> (B, K): the logits whose probabilities are the mean over the C crops."""
    confidence: Callable[[Tensor], Tensor]
    """(B, K) -> (B,): probability of the highest class."""


LINKS = {
    "softmax": Link(
        mean=lambda x: x.log_softmax(-1).logsumexp(1) - np.log(x.shape[1]),
        confidence=lambda x: x.softmax(1).amax(1),
    ),
    "sigmoid": Link(
        mean=lambda x: F.logsigmoid(x).logsumexp(1) - F.logsigmoid(-x).logsumexp(1),
        confidence=lambda x: x.amax(1).sigmoid(),
    ),
}


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
    and one label is 10.9916. (`binary_cross_entropy_with_logits` gives 10.9999: it subtracts
    numbers near 10 to get the 0.00005 of each negative class, and float32 loses 1 % of that.)
    """
    logits = logits.float()
    targets = targets * (1 - smoothing) + smoothing / targets.shape[1] if smoothing else targets
    return (F.softplus(logits) - targets * logits).sum(1)


class SemanticLoss(nn.Module):
    """Softmax at each level of the class tree (Alibaba's, arXiv 2104.10972), without its loops.

    The classes of depth d compete among themselves. An image of a class counts at every depth up
    to its own, there as the ancestor; a level's loss is weighted by the share of classes that
    reach it, at most 20-fold. As in the original, the deepest level and levels of a single class
    have no term.
    """

    def __init__(self, parents: Sequence[int], smoothing: float) -> None:
        super().__init__()
        ancestors = class_ancestors(parents)
        depths = (ancestors >= 0).sum(1) - 1
        self.smoothing = smoothing
        self.weights: list[float] = []
        for depth in range(depths.max(initial=0)):
            classes = np.flatnonzero(depths == depth)
            if len(classes) < 2:
                continue
            below = np.flatnonzero(depths >= depth)  # what has an ancestor here, or is here
            places = np.searchsorted(classes, ancestors[below, depth])
            level = len(self.weights)
            self.register_buffer(f"classes{level}", torch.from_numpy(classes), persistent=False)
            self.register_buffer(f"below{level}", torch.from_numpy(below), persistent=False)
            self.register_buffer(f"places{level}", torch.from_numpy(places), persistent=False)
            self.weights.append(min(len(parents) / len(below), 20.0))
        if not self.weights:
            raise ValueError(
                f"the {len(parents)} classes have no level that is above another and has two"
                " classes: without such a tree use the softmax loss"
            )

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(B, K), (B, K) -> (B,); several labels share a row's target evenly."""
        logits = logits.float()
        total = targets.sum(1, keepdim=True)
        targets = targets / total.clamp_min(torch.finfo(targets.dtype).tiny)
        loss = logits.new_zeros(len(logits))
        for level, weight in enumerate(self.weights):
            classes = getattr(self, f"classes{level}")
            below, places = getattr(self, f"below{level}"), getattr(self, f"places{level}")
            own = targets.new_zeros(len(targets), len(classes))
            own = own.index_add(1, places, targets[:, below])  # each label as its ancestor here
            reach = own.sum(1, keepdim=True)  # the share of the labels that are this deep
            own = (1 - self.smoothing) * own + self.smoothing * reach / len(classes)
            loss = loss - weight * (own * F.log_softmax(logits[:, classes], dim=1)).sum(1)
        return loss


def class_ancestors(parents: Sequence[int]) -> np.ndarray:
    """Ancestor of each class at each depth, itself at its own, -1 below: (K, depth) int64."""
    lines: list[list[int]] = []
    for number in range(len(parents)):
        line = [number]
        while (up := int(parents[line[-1]])) >= 0:
            if up >= len(parents) or up in line:
                raise ValueError(
                    f"parents make no tree: class {number} has the ancestors {line[1:]} and {up}"
                )
            line.append(up)
        lines.append(line[::-1])
    ancestors = np.full((len(lines), max(map(len, lines), default=0)), -1, np.int64)
    for number, line in enumerate(lines):
        ancestors[number, : len(line)] = line
    return ancestors
