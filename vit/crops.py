"""Crop protocols: sets of views of one image that are evaluated together.

    pixels (H, W, 3) -> crop_views -> (C, S, S, 3), all uint8 RGB

The protocols are the rows of `vit.registry.CROPS`.
"""

import cv2
import numpy as np

from vit.config import ImageConfig
from vit.draws import Draws
from vit.images import crop, eval_view, interpolate, resize
from vit.registry import crop_protocol, resolve
from vit.train_crops import train_crop

CORNERS_AND_CENTRE = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))


def crop_views(
    pixels: np.ndarray, config: ImageConfig, size: int, protocol: str, seed: int = 0
) -> np.ndarray:
    """Views (C, size, size, 3) of one decoded image (H, W, 3) under a protocol.

    Only random protocols use the seed. Raises ValueError if the protocol is unknown, or if it
    needs the aspect ratio but the config squashes images.
    """
    chosen = crop_protocol(protocol)
    if chosen.needs_aspect and config.eval_resize == "squash":
        raise ValueError(
            f"crops {protocol!r} are squares along the long side, but eval_resize 'squash' makes"
            " all sides equal; set eval_resize='short', or choose five, ten or random-N"
        )
    return resolve(chosen.function)(pixels, config, size, seed, chosen.views)


def center(pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int) -> np.ndarray:
    """The evaluation view."""
    return eval_view(pixels, config, size)[None]


def three(pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int) -> np.ndarray:
    """Three squares along the long side."""
    image = resize(pixels, config, size)
    return np.stack([crop(image, size, t, t) for t in (0, 0.5, 1)])


def five(pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int) -> np.ndarray:
    """Four corners and the centre of the resized image."""
    image = resize(pixels, config, config.eval_side(size))
    return np.stack([crop(image, size, y, x) for y, x in CORNERS_AND_CENTRE])


def ten(pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int) -> np.ndarray:
    """Four corners and the centre, and their mirror images (AlexNet)."""
    return with_mirrored(five(pixels, config, size, seed, 5))


def inception_144(
    pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int
) -> np.ndarray:
    """GoogLeNet's 4 scales x 3 squares x 6 crops x mirror (arXiv 1409.4842, section 7)."""
    views = []
    for short in (256, 288, 320, 352):  # for size 224; proportional for other sizes
        side = round(short * size / 224)
        image = resize(pixels, config, side)
        for along in (0, 0.5, 1):
            square = crop(image, side, along, along)
            views += [crop(square, size, y, x) for y, x in CORNERS_AND_CENTRE]
            views.append(interpolate(square, size, size, config.eval_interpolation))
    return with_mirrored(np.stack(views))


def random_views(
    pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int
) -> np.ndarray:
    """Training crops with flips but without other augmentations."""
    draws = Draws(seed)
    views = [train_crop(pixels, config, size, draws) for _ in range(count)]
    return np.stack([v if draws.integer(2) else cv2.flip(v, 1) for v in views])


def with_mirrored(views: np.ndarray) -> np.ndarray:
    """Append the mirror images: (C, S, S, 3) -> (2 C, S, S, 3)."""
    return np.concatenate([views, views[:, :, ::-1]])
