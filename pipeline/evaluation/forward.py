"""The forward pass of an evaluation: crops (B, S, S, 3) uint8 -> logits or features, float32.

Precisions: "bf16" is that of training, by autocast, with a float32 residual stream; "fp32" is
float32 throughout; "tf32" is float32 whose products GPUs round to TF32 (10 bits of mantissa), which
takes a fraction of the time. CPUs have no TF32.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.evaluation.config import EvaluateConfig
from vit.batch import channel_factors, scaled
from vit.model import ViT


class Forward:
    """A model in evaluation mode on its device, without gradients."""

    def __init__(self, model: ViT, settings: EvaluateConfig, *, features: bool = False) -> None:
        """Compute logits (B, K), or with `features` the head's input (B, D)."""
        self.model, self.precision, self.features = model, settings.precision, features
        self.device = next(model.parameters()).device
        self.factors = channel_factors(settings.images).to(self.device)
        # a sharded model gathers the weights of each block, which a compiled graph cannot hold; it
        # is told by its method, as importing FSDP takes half a second of every evaluation's start
        self.is_sharded = hasattr(model, "unshard")
        self.compiles = settings.compile and not self.is_sharded and self.device.type == "cuda"
        self.most = 0

    def __call__(self, images: Tensor) -> Tensor:
        """One batch; the first one must be the largest if others may be smaller."""
        if not self.compiles:
            return self.eager(images)
        # one shape is compiled: the last batches are filled up
        self.most = max(self.most, len(images))
        whole = F.pad(images, (0, 0, 0, 0, 0, 0, 0, self.most - len(images)))
        return self._computed(compiled(), whole)[: len(images)]

    def eager(self, images: Tensor) -> Tensor:
        """One batch of any size, which is not compiled."""
        return self._computed(outputs, images)

    def _computed(self, function: Callable[..., Tensor], images: Tensor) -> Tensor:
        with torch.no_grad(), products_in(self.precision), residual_in_float32(self.model):
            if self.is_sharded and self.features:  # FSDP does so in `forward` alone
                self.model.unshard()
            return function(self.model, images, self.factors, self.precision, self.features)


def outputs(model: ViT, images: Tensor, factors: Tensor, precision: str, features: bool) -> Tensor:
    """Float32 logits or features of a batch."""
    pixels = scaled(images, factors)
    with torch.autocast(images.device.type, torch.bfloat16, precision == "bf16"):
        return (model.features(pixels) if features else model(pixels)).float()


@functools.cache
def compiled() -> Callable[..., Tensor]:
    """`outputs`, compiled for each model and size of a batch."""
    return torch.compile(outputs, dynamic=False)


@contextlib.contextmanager
def residual_in_float32(model: ViT) -> Iterator[None]:
    """A float32 residual stream for the block, whatever the model trains with."""
    before, model.residual_dtype = model.residual_dtype, torch.float32
    try:
        yield
    finally:
        model.residual_dtype = before


@contextlib.contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Products of float32 matrices in TF32 for the block, if it is asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
