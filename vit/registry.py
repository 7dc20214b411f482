"""Tables of the losses, optimizers and crop protocols that settings can name.

To add one, write its function and add a row here. A row names the function as "module:function",
which is imported only when it is used, so that command lines are checked without slow imports.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from support.settings import suggestion


@dataclass(frozen=True, kw_only=True)
class LossKind:
    """One loss."""

    function: str
    """(logits (B, K), targets (B, K), smoothing) -> (B,); with needs_tree (parents, smoothing) ->
    an nn.Module of logits and targets."""
    link: Literal["softmax", "sigmoid"]
    """Function from logits to probabilities; see `vit.loss.LINKS`."""
    chance: Callable[[int, float], float]
    """(K, bias of the head) -> loss of an untrained model on an image with one label."""
    needs_tree: bool = False
    """Whether it needs the parent of each class, known only for the complete class list."""


@dataclass(frozen=True, kw_only=True)
class OptimizerKind:
    """One optimizer."""

    function: str
    """(parameter groups, OptimConfig) -> torch.optim.Optimizer."""
    state_bytes: int
    """Bytes of optimizer state per parameter."""
    decoupled_decay: bool = True
    """Whether weight decay is a step of its own, and so can be independent of the peak rate."""
    batch_power: float = 0.5
    """The best learning rate grows with this power of the global batch."""
    length_power: float | None = None
    """And with this power of the length of the run; None if no study has told."""


@dataclass(frozen=True, kw_only=True)
class CropProtocol:
    """One way to crop an image for evaluation."""

    function: str
    """(pixels (H, W, 3), ImageConfig, size S, seed, views C) -> (C, S, S, 3)."""
    views: int
    """Number of views C of one image."""
    needs_aspect: bool = False
    """Whether its crops move along the long side, which eval_resize "squash" removes."""
    sides: str = "vit.crops:no_sides"
    """(ImageConfig, size S) -> sides in pixels to which it resizes an image before it crops: the
    short side, or both ("squash"); none if it crops the image as it is."""


LOSSES = {
    "softmax": LossKind(
        function="vit.loss:softmax_loss",
        link="softmax",
        chance=lambda classes, bias: math.log(max(classes, 2)),
    ),
    "sigmoid": LossKind(
        function="vit.loss:sigmoid_loss",
        link="sigmoid",
        # a sum over the classes
        chance=lambda classes, bias: classes * math.log1p(math.exp(bias)) - bias,
    ),
    "semantic": LossKind(
        function="vit.loss:SemanticLoss",
        link="softmax",
        chance=lambda classes, bias: math.inf,  # depends on the tree, which is unknown here
        needs_tree=True,
    ),
}

OPTIMIZERS = {
    # length: Björck et al., arXiv 2409.19913
    "adamw": OptimizerKind(function="vit.optim:adamw", state_bytes=8, length_power=-0.32),
    "adamw8bit": OptimizerKind(function="vit.optim:adamw8bit", state_bytes=2, length_power=-0.32),
    "lamb": OptimizerKind(function="vit.lamb:lamb", state_bytes=8, decoupled_decay=False),
    "sgd": OptimizerKind(
        function="vit.optim:sgd", state_bytes=4, decoupled_decay=False, batch_power=1.0
    ),
}

CROPS = {
    "center": CropProtocol(function="vit.crops:center", views=1, sides="vit.crops:eval_sides"),
    "three": CropProtocol(
        function="vit.crops:three", views=3, sides="vit.crops:view_sides", needs_aspect=True
    ),
    "five": CropProtocol(function="vit.crops:five", views=5, sides="vit.crops:corner_sides"),
    "ten": CropProtocol(function="vit.crops:ten", views=10, sides="vit.crops:corner_sides"),
    "five-torchvision": CropProtocol(
        function="vit.crops:five_torchvision", views=5, sides="vit.crops:corner_sides"
    ),
    "ten-torchvision": CropProtocol(
        function="vit.crops:ten_torchvision", views=10, sides="vit.crops:corner_sides"
    ),
    "inception-144": CropProtocol(
        function="vit.crops:inception_144",
        views=144,
        sides="vit.crops:googlenet_sides",
        needs_aspect=True,
    ),
}


def crop_protocol(name: str) -> CropProtocol:
    """Look up a protocol ("random-N" is N training crops); raise ValueError if it is unknown."""
    if name in CROPS:
        return CROPS[name]
    kind, _, number = name.partition("-")
    if kind == "random" and number.isascii() and number.isdigit() and int(number) > 0:
        return CropProtocol(function="vit.crops:random_views", views=int(number))
    raise ValueError(f"unknown crops {name!r}; {suggestion(name, (*CROPS, 'random-N'))}")


def num_views(protocol: str) -> int:
    """Number of views of a crop protocol; raises ValueError if it is unknown."""
    return crop_protocol(protocol).views


def resolve(function: str) -> Any:  # noqa: ANN401 - a function of any signature
    """Import the function that "module:function" names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)
