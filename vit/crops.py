"""Crop protocols: sets of views of one image that are evaluated together.

    pixels (H, W, 3) -> crop_views -> (C, S, S, 3), all uint8 RGB

The protocols are the rows of `vit.registry.CROPS`. The papers average the softmax outputs of the
views (--average probabilities):

five, ten          four corners and the centre of the central 256 x 256 of the resized image, and
                   their mirror images: Krizhevsky et al. 2012, section 4.1 (AlexNet)
inception-144      Szegedy et al., arXiv 1409.4842, section 7 (GoogLeNet)
five-torchvision,  corners of the whole rectangle: torchvision.transforms.FiveCrop and TenCrop, of
ten-torchvision    an image with its short side resized
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
            " all sides equal; set --images.eval-resize short, or choose five, ten or random-N"
        )
    return resolve(chosen.function)(pixels, config, size, seed, chosen.views)


def center(pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int) -> np.ndarray:
    """The evaluation view."""
    return eval_view(pixels, config, size)[None]


def three(pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int) -> np.ndarray:
    """Three squares along the long side; they are the same view of a square image."""
    image = resize(pixels, config, size)
    return np.stack([crop(image, size, t, t) for t in (0, 0.5, 1)])


def five(pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int) -> np.ndarray:
    """Corners and centre of the central square of the resized image, which AlexNet saw alone."""
    side = config.corner_side(size)
    square = crop(resize(pixels, config, side), side, 0.5, 0.5)
    return np.stack([crop(square, size, y, x) for y, x in CORNERS_AND_CENTRE])


def ten(pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int) -> np.ndarray:
    """The five and their mirror images (AlexNet, section 4.1)."""
    return with_mirrored(five(pixels, config, size, seed, 5))


def five_torchvision(
    pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int
) -> np.ndarray:
    """Corners and centre of the whole resized image, as in torchvision's FiveCrop."""
    return corners_and_centre(resize(pixels, config, config.corner_side(size)), size)


def ten_torchvision(
    pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int
) -> np.ndarray:
    """The five of the resized image and the five of its mirror image, as in TenCrop."""
    image = resize(pixels, config, config.corner_side(size))
    both = [corners_and_centre(side, size) for side in (image, image[:, ::-1])]
    return np.concatenate(both)


def corners_and_centre(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) -> (5, size, size, 3): torchvision's five_crop, with its rounding of the centre."""
    far_y, far_x = image.shape[0] - size, image.shape[1] - size
    places = [(0, 0), (0, far_x), (far_y, 0), (far_y, far_x), (round(far_y / 2), round(far_x / 2))]
    return np.stack([image[y : y + size, x : x + size] for y, x in places])


def inception_144(
    pixels: np.ndarray, config: ImageConfig, size: int, seed: int, count: int
) -> np.ndarray:
    """GoogLeNet's 4 scales x 3 squares x 6 crops x mirror (arXiv 1409.4842, section 7)."""
    views = []
    for side in googlenet_sides(config, size):
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


def eval_sides(config: ImageConfig, size: int) -> tuple[int, ...]:
    """The side that the evaluation view is cut from."""
    return (config.eval_side(size),)


def corner_sides(config: ImageConfig, size: int) -> tuple[int, ...]:
    """A side with room for corners."""
    return (config.corner_side(size),)


def view_sides(config: ImageConfig, size: int) -> tuple[int, ...]:
    """The side of a view itself."""
    return (size,)


def googlenet_sides(config: ImageConfig, size: int) -> tuple[int, ...]:
    """GoogLeNet's four scales, which are for views of 224 pixels."""
    return tuple(round(side * size / 224) for side in (256, 288, 320, 352))


def no_sides(config: ImageConfig, size: int) -> tuple[int, ...]:
    """None: the image is cropped as it is."""
    return ()


def with_mirrored(views: np.ndarray) -> np.ndarray:
    """Append the mirror images: (C, S, S, 3) -> (2 C, S, S, 3)."""
    return np.concatenate([views, views[:, :, ::-1]])
