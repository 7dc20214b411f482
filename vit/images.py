"""From the bytes of an image file to the square views for training and evaluation.

    bytes -> decode -> pixels (H, W, 3) -> train_view, eval_view (S, S, 3)

All pixels are uint8 RGB. `vit/crops.py` makes several views of one image, and `vit/batch.py` does
the preprocessing on the device. A training view is a pure function of (pixels, config, size, seed).
This module does not import PyTorch, because decoding processes do not need it. EXIF orientation is
ignored, as in TensorFlow's decoder, which the reference used.
"""

import io
import warnings
from struct import error as StructError

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from vit.config import ImageConfig
from vit.draws import Draws
from vit.randaugment import randaugment

MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs, for every decoder
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

cv2.setNumThreads(1)  # decoding runs in one process per core

# what Pillow's readers raise for malicious or truncated files
PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError),
    *(MemoryError, StructError, Image.DecompressionBombError, Image.DecompressionBombWarning),
)


def decode(data: bytes | memoryview) -> np.ndarray:
    """Decode a JPEG, PNG, WEBP, GIF (first frame), BMP or TIFF file to pixels (H, W, 3).

    Broken or truncated files raise ValueError. The only tolerated fault is extraneous bytes between
    the markers of a JPEG, which some of ImageNet's files have.
    """
    if simplejpeg.is_jpeg(data):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if height * width > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
            if colours not in ("CMYK", "YCCK"):  # Pillow handles Adobe's inversion of these
                return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
        except ValueError as error:
            if "extraneous bytes" not in str(error):
                raise ValueError(f"broken JPEG of {len(data)} bytes: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "Palette images with Transparency")
            with Image.open(io.BytesIO(data)) as image:
                return np.array(image.convert("RGB"))
    except PILLOW_ERRORS as error:
        raise ValueError(f"no readable image in {len(data)} bytes: {error}") from error


def train_view(pixels: np.ndarray, config: ImageConfig, size: int, seed: int) -> np.ndarray:
    """Training view (size, size, 3): inception crop, flip and RandAugment, drawn from the seed."""
    draws = Draws(seed)
    view = random_crop(pixels, config, size, draws)
    if config.flip and draws.integer(2):
        view = cv2.flip(view, 1)
    return randaugment(view, config.randaugment_layers, config.randaugment_magnitude, draws)


def eval_view(pixels: np.ndarray, config: ImageConfig, size: int) -> np.ndarray:
    """Evaluation view (size, size, 3): the centre of the resized image."""
    return crop(resize(pixels, config, config.eval_side(size)), size, 0.5, 0.5)


def random_crop(pixels: np.ndarray, config: ImageConfig, size: int, draws: Draws) -> np.ndarray:
    """Inception crop, resized bilinearly to (size, size, 3) without antialiasing."""
    top, left, height, width = crop_box(*pixels.shape[:2], config, draws)
    part = pixels[top : top + height, left : left + width]
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR)


def crop_box(
    height: int, width: int, config: ImageConfig, draws: Draws
) -> tuple[int, int, int, int]:
    """Top, left, height and width of an inception crop; the whole image if no crop fits.

    Follows `tf.image.sample_distorted_bounding_box`: the aspect is uniform, the height is uniform
    over the heights that keep the area in range, and the position is uniform. (torchvision and
    timm draw the area uniformly, which gives larger crops.)
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
            return draws.integer(height - h + 1), draws.integer(width - w + 1), h, w
    return 0, 0, height, width


def resize(pixels: np.ndarray, config: ImageConfig, side: int) -> np.ndarray:
    """Resize the short side to `side` and keep the aspect ratio, or both sides ("squash")."""
    if config.eval_resize == "squash":
        return interpolate(pixels, side, side, config)
    scale = side / min(pixels.shape[:2])
    height, width = (round(length * scale) for length in pixels.shape[:2])
    return interpolate(pixels, height, width, config)


def interpolate(pixels: np.ndarray, height: int, width: int, config: ImageConfig) -> np.ndarray:
    """Resize to (height, width, 3) with the interpolation of the evaluation."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if config.eval_interpolation == "area":
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    method = PILLOW[config.eval_interpolation]
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))


def crop(pixels: np.ndarray, size: int, down: float, right: float) -> np.ndarray:
    """Square crop; `down` and `right` go from 0 (top, left edge) to 1 (bottom, right edge)."""
    height, width = pixels.shape[:2]
    top, left = int((height - size) * down), int((width - size) * right)
    return pixels[top : top + size, left : left + size]
