"""Settings of the augmentations of training images, which `vit/augment.py` applies."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from support.settings import Rule, Settings, broken


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Settings):
    """Augmentations of training images after the crop, in the order in which they are applied."""

    flip: bool = True
    """Mirror half of the training images."""
    cutout: float = 0.0
    """Side of a square of one random colour, as a share of the training image's side
    (ImageNet-21K-P: 0.5); 0 turns it off."""
    randaugment_layers: int = 0
    """RandAugment operations per training image; 0 turns RandAugment off."""
    randaugment_magnitude: float = 10.0
    """Strength of RandAugment on Google's scale: 10 is the reference, more extrapolates, 0 still
    inverts, posterizes and greys images (AugReg's first "light" setting)."""
    three_augment: bool = False
    """3-Augment of DeiT III: make each training image grey, solarize it or blur it."""
    color_jitter: float = 0.0
    """Change brightness, contrast and saturation of each training image by up to this share, in
    random order, after RandAugment and 3-Augment; 0 turns it off."""
    random_erasing: float = 0.0
    """Probability with which a rectangle of a training image is erased; 0 turns it off."""
    erasing_fill: Literal["noise", "mean"] = "noise"
    """Random erasing: fill with noise of the mean and std of the preprocessing, or with the mean
    (timm's "pixel" and "const")."""

    def rules(self) -> Iterator[Rule]:
        """Check the ranges."""
        yield from broken(
            cutout=(0 <= self.cutout <= 1, "must be from 0 to 1; 0 turns it off"),
            color_jitter=(0 <= self.color_jitter <= 1, "must be from 0 to 1; 0 turns it off"),
            random_erasing=(0 <= self.random_erasing <= 1, "must be from 0 to 1; 0 turns it off"),
            randaugment_layers=(self.randaugment_layers >= 0, "must be at least 0"),
            randaugment_magnitude=(0 <= self.randaugment_magnitude <= 30, "must be from 0 to 30"),
        )
