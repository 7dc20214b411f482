"""Images for calibration: of one colour each, with noise.

pixels = drawn(64, size)          (N, S, S, 3) uint8
folder = write_images(path, pixels)
model(normalised(pixels))         as the checkpoint's preprocessing WHOLE has them
"""

import numpy as np
from PIL import Image

from vit.config import ImageConfig

# the view is the image
WHOLE = ImageConfig(crop_pct=1.0)


def drawn(count, size):
    """Pixels of images, the same every time: (count, size, size, 3)."""
    draw = np.random.default_rng(0)
    colours = draw.integers(40, 216, (count, 1, 1, 3))
    return (colours + draw.integers(-40, 40, (count, size, size, 3))).astype(np.uint8)


def write_images(folder, pixels):
    """Write images as files into a new folder, and return it."""
    folder.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:04}.png")
    return folder


def normalised(pixels):
    """Inputs of a model: (B, 3, S, S)."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1
