"""Features of all images of a split, computed once.

    split -> centre crop -> features (the input of the head) -> PredictionStore, unit by unit

A unit on disk is not computed again. Nothing but the fit holds the features of all images at once.

Shapes: B images, D width of the features, M labels per image (padded with -1).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipeline.evaluation.forward import Forward
from pipeline.evaluation.predict import Evaluator
from vit.model import ViT


@dataclass(frozen=True, kw_only=True)
class FeatureReader(Evaluator):
    """The images and their features; it is sent to the workers."""

    def scoring(self, model: ViT) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
        """The function from crops (B, 1, S, S, 3) to "features" (B, D) float32."""
        forward = Forward(model, self.settings, features=True)
        return lambda images, labels: {"features": forward(images[:, 0])}
