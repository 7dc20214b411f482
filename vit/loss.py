"""Losses: softmax, sigmoid and semantic softmax cross-entropy.

    labels (B, M) class numbers, -1 pads -> make_targets -> (B, K)
    make_loss(config)(logits (B, K), targets (B, K)) -> (B,), one loss per image

The caller averages over the global batch and masks padding. Losses are computed in float32 for any
type of logits. Targets are rows of 0 and 1, or mixtures of such rows.
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
    """0/1 targets from class numbers padded with -1: (B, M) int64 -> (B, num_classes) float."""
    targets = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    columns = labels.where(labels >= 0, num_classes)  # padding goes into an extra column
    return targets.scatter_(1, columns, 1.0)[:, :num_classes]


def make_loss(
    config: LossConfig,
    *,
    parents: Sequence[int] | None = None,
    device: torch.device | str | None = None,
) -> Loss:
    """Create the loss; raises ValueError if it needs the class tree and `parents` is None.

    Only losses that use the tree need `parents`, the parent of each class with -1 for roots
    (`shards.dataset.wordnet.parents`), and `device`, that of the logits.
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
    """Conversion of logits to probabilities."""

    mean: Callable[[Tensor], Tensor]
    """(B, C, K) -> (B, K): logits whose probabilities are the mean over the C crops."""
    confidence: Callable[[Tensor], Tensor]
    """(B, K) -> (B,): probability of the most likely class."""
    probabilities: Callable[[Tensor], Tensor]
    """(B, K) -> (B, K): probability of each class."""


LINKS = {
    "softmax": Link(
        mean=lambda x: x.log_softmax(-1).logsumexp(1) - np.log(x.shape[1]),
        confidence=lambda x: x.softmax(1).amax(1),
        probabilities=lambda x: x.softmax(1),
    ),
    "sigmoid": Link(
        mean=lambda x: F.logsigmoid(x).logsumexp(1) - F.logsigmoid(-x).logsumexp(1),
        confidence=lambda x: x.amax(1).sigmoid(),
        probabilities=torch.sigmoid,
    ),
}


def softmax_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each row with its targets scaled to sum 1; 0 for a row without targets."""
    log_p = F.log_softmax(logits.float(), dim=1)
    entropy = -(normalised(targets) * log_p).sum(1)
    if not smoothing:
        return entropy
    return (1 - smoothing) * entropy - smoothing * log_p.mean(1) * (targets.sum(1) > 0)


def normalised(targets: Tensor) -> Tensor:
    """Targets scaled to sum 1 in each row; rows of zeros are unchanged."""
    return targets / targets.sum(1, keepdim=True).clamp_min(torch.finfo(targets.dtype).tiny)


def sigmoid_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropies summed over the classes, as in big_vision's `sigmoid_xent`.

    This is a sum, not PyTorch's mean: the loss of a fresh model of 21,843 classes with head bias
    -10 and one label is 10.9916. (`binary_cross_entropy_with_logits` gives 10.9999: it subtracts
    numbers near 10 to get the 0.00005 of each negative class, and float32 loses 1 % of that.)
    """
    logits = logits.float()
    targets = targets * (1 - smoothing) + smoothing / targets.shape[1] if smoothing else targets
    return (F.softplus(logits) - targets * logits).sum(1)


class SemanticLoss(nn.Module):
    """Softmax at each level of the class tree (Alibaba, arXiv 2104.10972), without their loops.

    The classes of one depth form one softmax. An image counts at every depth up to that of its
    class, with the ancestor of that depth as its label. The weight of a level is the number of
    classes divided by the number of classes at or below it, at most 20. As in the original, the
    deepest level and levels with a single class have no term.
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
            below = np.flatnonzero(depths >= depth)  # classes of this level and their descendants
            columns = np.searchsorted(classes, ancestors[below, depth])
            for name, values in (("classes", classes), ("below", below), ("columns", columns)):
                buffer = f"{name}{len(self.weights)}"
                self.register_buffer(buffer, torch.from_numpy(values), persistent=False)
            self.weights.append(min(len(parents) / len(below), 20.0))
        if not self.weights:
            raise ValueError(
                f"the {len(parents)} classes have no level with two classes above another level:"
                " without such a tree use the softmax loss"
            )

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss per image: (B, K), (B, K) -> (B,); several labels share a row's target evenly."""
        logits = logits.float()
        targets = normalised(targets)
        loss = logits.new_zeros(len(logits))
        for level, weight in enumerate(self.weights):
            classes, below = getattr(self, f"classes{level}"), getattr(self, f"below{level}")
            columns = getattr(self, f"columns{level}")
            shares = targets.new_zeros(len(targets), len(classes))
            shares = shares.index_add(1, columns, targets[:, below])  # labels as ancestors here
            reach = shares.sum(1, keepdim=True)  # share of the labels that are at least this deep
            shares = (1 - self.smoothing) * shares + self.smoothing * reach / len(classes)
            loss = loss - weight * (shares * F.log_softmax(logits[:, classes], dim=1)).sum(1)
        return loss


def class_ancestors(parents: Sequence[int]) -> np.ndarray:
    """Ancestor of each class at each depth: (K, depth) int64.

    A class is its own ancestor at its own depth; deeper entries are -1. Raises ValueError if the
    parents are not a tree.
    """
    paths: list[list[int]] = []
    for number in range(len(parents)):
        path = [number]
        while (parent := int(parents[path[-1]])) >= 0:
            if parent >= len(parents) or parent in path:
                raise ValueError(
                    f"the parents are not a tree: class {number} has the ancestors {path[1:]} and"
                    f" {parent}"
                )
            path.append(parent)
        paths.append(path[::-1])
    ancestors = np.full((len(paths), max(map(len, paths), default=0)), -1, np.int64)
    for number, path in enumerate(paths):
        ancestors[number, : len(path)] = path
    return ancestors
