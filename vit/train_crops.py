"""Training views: crops of a decoded image that are random, and augmented.

    pixels (H, W, 3) -> train_view (S, S, 3), all uint8 RGB

A view is a pure function of (pixels, config, size, seed). To add a training crop, add a function to
TRAIN_CROPS and its name to `ImageConfig.train_crop`. `vit/augment.py` augments a view. This module
does not import PyTorch, because decoding processes do not need it.
"""

from collections.abc import Callable

import cv2
import numpy as np

from vit.augment import AUGMENTATIONS
from vit.config import ImageConfig
from vit.draws import Draws
from vit.images import interpolate

PADDING = 4  # reflected pixels on each side of a simple crop


def train_view(pixels: np.ndarray, config: ImageConfig, size: int, seed: int) -> np.ndarray:
    """Training view (size, size, 3): crop and augmentations, drawn from the seed."""
    draws = Draws(seed)
    view = train_crop(pixels, config, size, draws)
    for augmentation in AUGMENTATIONS:
        view = augmentation(view, config, draws)
    return view


def train_crop(pixels: np.ndarray, config: ImageConfig, size: int, draws: Draws) -> np.ndarray:
    """Crop (size, size, 3) for training, without any augmentation."""
    return TRAIN_CROPS[config.train_crop](pixels, config, size, draws)


def inception_crop(pixels: np.ndarray, config: ImageConfig, size: int, draws: Draws) -> np.ndarray:
    """Inception crop, resized bilinearly without antialiasing, as in big_vision."""
    top, left, height, width = crop_box(*pixels.shape[:2], config, draws)
    return interpolate(pixels[top : top + height, left : left + width], size, size, "linear")


def simple_crop(pixels: np.ndarray, config: ImageConfig, size: int, draws: Draws) -> np.ndarray:
    """Random square of the image whose short side is resized to `size`, as in DeiT III."""
    short = min(pixels.shape[:2])
    height, width = (size * length // short for length in pixels.shape[:2])
    view = interpolate(pixels, height, width, "bicubic")
    view = cv2.copyMakeBorder(view, *[PADDING] * 4, cv2.BORDER_REFLECT_101)
    top, left = (draws.integer(length + 2 * PADDING - size + 1) for length in (height, width))
    return view[top : top + size, left : left + size]


def squash(pixels: np.ndarray, config: ImageConfig, size: int, draws: Draws) -> np.ndarray:
    """The whole image with another aspect ratio, as in Alibaba's ImageNet-21K-P."""
    return interpolate(pixels, size, size, "bilinear")


TrainCrop = Callable[[np.ndarray, ImageConfig, int, Draws], np.ndarray]
TRAIN_CROPS: dict[str, TrainCrop] = {
    "inception": inception_crop,
    "simple": simple_crop,
    "squash": squash,
}


def crop_box(
    height: int, width: int, config: ImageConfig, draws: Draws
) -> tuple[int, int, int, int]:
    """Top, left, height and width of an inception crop; the whole image if no crop fits.

    Follows `tf.image.sample_distorted_bounding_box`: the aspect is uniform, the height is uniform
    over the heights that keep the area in range, and the position is uniform, except that a smaller
    crop never touches the bottom or the right edge. (torchvision and timm draw the area uniformly,
    which gives larger crops.)
    """
    low, high = (share * height * width for share in config.crop_area)
    for _ in range(100):
        aspect = draws.uniform(*config.crop_aspect)
        largest = min(round((high / aspect) ** 0.5), int((width + 0.5) / aspect), height)
        smallest = min(round((low / aspect) ** 0.5), largest)
        h = smallest + draws.integer(largest - smallest + 1)
        if h * round(h * aspect) < low:  # rounding may exceed the range by one row
            h += 1
        elif h * round(h * aspect) > high:
            h -= 1
        w = round(h * aspect)
        if 0 < h <= height and 0 < w <= width and low <= h * w <= high:
            return draws.integer(max(height - h, 1)), draws.integer(max(width - w, 1)), h, w
    return 0, 0, height, width
