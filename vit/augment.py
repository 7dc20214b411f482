"""What changes a training view after the crop: mirroring, noise in colour, erased regions.

    view (S, S, 3) uint8 RGB, ImageConfig, draws -> view of the same shape

To add an augmentation, write a function of (view, config, draws), give AugmentConfig a setting that
turns it off by default, and put the function into AUGMENTATIONS where it is to be applied. It must
draw nothing while it is off: the views of runs without it then stay as they are.
"""

from collections.abc import Callable
from itertools import permutations
from math import exp, log, sqrt

import cv2
import numpy as np

from vit.config import ImageConfig
from vit.draws import Draws
from vit.randaugment import blend, blend_constant, randaugment, solarize

Augmentation = Callable[[np.ndarray, ImageConfig, Draws], np.ndarray]

# area, as a share of the view, and aspect ratio of an erased rectangle: timm's defaults
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


def flip(view: np.ndarray, config: ImageConfig, draws: Draws) -> np.ndarray:
    """Mirror half of the views."""
    return cv2.flip(view, 1) if config.flip and draws.integer(2) else view


def cutout(view: np.ndarray, config: ImageConfig, draws: Draws) -> np.ndarray:
    """Alibaba's Cutout: a square of one random colour around a random pixel of every view."""
    if not config.cutout:
        return view
    size = len(view)
    half = int(config.cutout * size + 0.5) // 2
    y, x = draws.integer(size), draws.integer(size)
    view = view.copy()  # the last row and column are included, as in Pillow's rectangles
    view[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1] = [
        draws.integer(256) for _ in range(3)
    ]
    return view


def google_randaugment(view: np.ndarray, config: ImageConfig, draws: Draws) -> np.ndarray:
    """Google's RandAugment."""
    return randaugment(view, config.randaugment_layers, config.randaugment_magnitude, draws)


def three_augment(view: np.ndarray, config: ImageConfig, draws: Draws) -> np.ndarray:
    """DeiT III's 3-Augment: one of grey, solarized at 128, and blurred by 0.1 to 2 pixels."""
    if not config.three_augment:
        return view
    kind = draws.integer(3)
    if kind == 0:
        return cv2.merge([grey(view)] * 3)
    if kind == 1:
        return solarize(view, 128)
    return blur(view, draws.uniform(0.1, 2.0))


def blur(view: np.ndarray, radius: float) -> np.ndarray:
    """Blur as Pillow's GaussianBlur does: three means over 2 x (whole + part) + 1 pixels.

    A true Gaussian differs visibly at small radii. Pillow itself takes three times as long.
    """
    variance = radius**2 / 3  # of one of the means (Gwosdek et al., SSVM 2011)
    whole = int((sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - (whole + 1) ** 2)
    mean = np.array([part, *[1] * (2 * whole + 1), part]) / (2 * (whole + part) + 1)
    kernel = np.convolve(np.convolve(mean, mean), mean)
    return cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


def color_jitter(view: np.ndarray, config: ImageConfig, draws: Draws) -> np.ndarray:
    """Change brightness, contrast and saturation in a random order, as torchvision does."""
    if not config.color_jitter:
        return view
    jitters = (jitter_brightness, jitter_contrast, jitter_saturation)
    orders = tuple(permutations(jitters))
    for jitter in orders[draws.integer(len(orders))]:
        low, high = max(0.0, 1 - config.color_jitter), 1 + config.color_jitter
        view = jitter(view, draws.uniform(low, high))
    return view


def jitter_brightness(view: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black, as Pillow does."""
    return blend_constant(0, view, factor)


def jitter_contrast(view: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean brightness, as Pillow does."""
    return blend_constant(int(grey(view).mean() + 0.5), view, factor)


def jitter_saturation(view: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey view, as Pillow does."""
    return blend(cv2.merge([grey(view)] * 3), view, factor)


def grey(view: np.ndarray) -> np.ndarray:
    """Brightness of each pixel as in Pillow's mode L, (S, S) uint8."""
    return cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)


def random_erasing(view: np.ndarray, config: ImageConfig, draws: Draws) -> np.ndarray:
    """Erase a rectangle of some views as timm does: it becomes noise or the mean colour."""
    if not config.random_erasing or draws.uniform() >= config.random_erasing:
        return view
    size = len(view)
    for _ in range(10):
        area = draws.uniform(*ERASED_AREA) * size**2
        aspect = exp(draws.uniform(*map(log, ERASED_ASPECT)))
        height, width = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if height >= size or width >= size:
            continue
        top, left = draws.integer(size - height + 1), draws.integer(size - width + 1)
        # timm erases normalised pixels, where the mean colour is 0 and the noise has variance 1
        shape = (height, width, 3)
        noise = draws.normals(shape) if config.erasing_fill == "noise" else np.zeros(shape)
        filled = 255 * (np.array(config.mean) + np.array(config.std) * noise)
        view = view.copy()
        view[top : top + height, left : left + width] = filled.round().clip(0, 255)
        break
    return view


# in the order in which they are applied
AUGMENTATIONS: tuple[Augmentation, ...] = (
    *(flip, cutout, google_randaugment),
    *(three_augment, color_jitter, random_erasing),
)
