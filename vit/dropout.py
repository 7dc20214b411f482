"""Dropout and stochastic depth whose masks are addressed: a function of image, layer and element.

    key of an image, number of a layer -> a stream of 32-bit numbers, one for each element
    an element is dropped if its number is below rate x 2^32

Masks of PyTorch's generator depend on the size of the batch and on what was drawn before. These do
not: an image has the same masks in a pass of any size, on any worker, before and after a restart.
"""

import numpy as np
import torch
from torch import Tensor, nn

from support.splitmix import scramble

MASK = 2**32 - 1


def image_keys(seed: int, first: int, count: int) -> Tensor:
    """Keys of the images from place `first` of a global batch on: (count,) int64 in [0, 2^32).

    They are on the CPU; `seed`, in [0, 2^64), is that of the step.
    """
    places = np.arange(first, first + count, dtype=np.uint64)
    words = scramble(places ^ np.uint64(scramble(seed)))
    return torch.from_numpy((words >> np.uint64(32)).astype(np.int64))


def hashed(values: Tensor) -> Tensor:
    """A one-to-one map of [0, 2^32), in int64: "lowbias32" of Wellons' hash prospector, 2018.

    The second factor is 0x846ca68b less 2^32, the same modulo 2^32, so that no product overflows.
    """
    values = ((values ^ (values >> 16)) * 0x7FEB352D) & MASK
    values = ((values ^ (values >> 15)) * (0x846CA68B - 2**32)) & MASK
    return values ^ (values >> 16)


class Dropout(nn.Module):
    """Drop elements, and scale those that are kept by 1 / (1 - rate)."""

    number = 0
    """Of this layer in its model; layers of one number would have the same masks."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """(B, ...) -> (B, ...), given the keys (B,) of the images; in evaluation x as it is."""
        if not self.training or not self.rate:
            return x
        kept = self.numbers(x, keys) >= round(self.rate * 2**32)
        return torch.where(kept, x / (1 - self.rate), 0.0)

    def numbers(self, x: Tensor, keys: Tensor) -> Tensor:
        """A number in [0, 2^32) for each element of x."""
        elements = torch.arange(x[0].numel() if len(x) else 0, device=x.device)
        return hashed((self.starts(keys)[:, None] + elements) & MASK).view(x.shape)

    def starts(self, keys: Tensor) -> Tensor:
        """Where the stream of each image begins for this layer: (B,)."""
        return hashed((keys + 0x9E3779B9 * (self.number + 1)) & MASK)


class DropPath(Dropout):
    """Stochastic depth: drop the branch of whole images; scale the rest to keep the mean."""

    def numbers(self, x: Tensor, keys: Tensor) -> Tensor:
        """A number in [0, 2^32) for each image: (B, 1, ...)."""
        return hashed(self.starts(keys)).view(-1, *(1,) * (x.dim() - 1))


def number_layers(model: nn.Module) -> bool:
    """Number the layers of a model; returns whether any of them drops something."""
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for number, layer in enumerate(layers):
        layer.number = number
    return any(layer.rate for layer in layers)
