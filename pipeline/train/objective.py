"""The function that training differentiates: pixels, labels and draws -> loss.

    uint8 (B, S, S, 3) -> normalise -> mix -> model -> logits (B, K) -> loss of the images

It is one module, so that DDP wraps it and `torch.compile` compiles it as a whole.

Precision, the same for every way to distribute the model: parameters, gradients between workers,
norms, softmax and loss are float32. With "bf16", matrix products and attention are bfloat16, by
autocast, and the residual stream is float32 or bfloat16.
"""

import torch
from torch import Tensor, nn

from vit.batch import channel_factors, mix, scaled
from vit.config import ImageConfig
from vit.loss import Loss, make_targets

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Objective(nn.Module):
    """The sum of the losses of some images, without those that could not be read."""

    def __init__(
        self,
        model: nn.Module,
        images: ImageConfig,
        loss_of: Loss,
        num_classes: int,
        precision: str,
        residual: str = "fp32",
    ) -> None:
        """Compute in "bf16" or "fp32"; `residual` is the stream's type with "bf16"."""
        super().__init__()
        model.residual_dtype = DTYPES[residual]
        self.model, self.loss_of = model, loss_of
        self.num_classes, self.precision = num_classes, precision
        self.register_buffer("factors", channel_factors(images), persistent=False)

    def forward(
        self, images: Tensor, labels: Tensor, draws: Tensor | None, keys: Tensor | None = None
    ) -> Tensor:
        """Sum of the losses: a scalar.

        Args:
            images: (B, S, S, 3) uint8.
            labels: (B, M) int64, padded with -1; all -1 for an image that could not be read.
            draws: Rows of `vit.batch.mixing_draws` for these images, or None.
            keys: Rows of `vit.dropout.image_keys` for these images; None if the model drops
                nothing.
        """
        pixels = scaled(images, self.factors)
        targets = make_targets(labels, self.num_classes)
        if draws is not None:
            pixels, targets = mix(pixels, targets, draws)
        with torch.autocast(images.device.type, torch.bfloat16, self.precision == "bf16"):
            logits = self.model(pixels) if keys is None else self.model(pixels, keys)
        return (self.loss_of(logits.float(), targets) * labels.ge(0).any(1)).sum()
