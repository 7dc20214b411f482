"""From the bytes of an image file to the square view for evaluation.

    bytes -> decode -> pixels (H, W, 3) -> eval_view (S, S, 3)

All pixels are uint8 RGB. `vit/train_crops.py` makes views for training, `vit/crops.py` several
views of one image, and `vit/batch.py` does the preprocessing on the device. EXIF orientation is
ignored, as in TensorFlow's decoder, which the reference used.

This file runs without the rest of the project: a model that is logged to MLflow takes a copy along,
so that it sees the same pixels wherever it is served.
"""

import io
import warnings
from struct import error as StructError
from typing import TYPE_CHECKING

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from vit.config import ImageConfig

# of the files that `decode` reads
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs, for every decoder
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
OPENCV = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR}

cv2.setNumThreads(1)  # decoding runs in one process per core

# in the errors of simplejpeg for files that are whole
TOLERATED = ("extraneous bytes", "Could not determine subsampling level")
# what Pillow's readers raise for malicious or truncated files
PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError),
    *(MemoryError, StructError, Image.DecompressionBombError),
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
            # Pillow reads both: bytes between markers, and CMYK with colours of fewer pixels
            if not any(words in str(error) for words in TOLERATED):
                raise ValueError(f"broken JPEG of {len(data)} bytes: {error}") from error
    try:
        # threads may share these filters, so nothing but what is printed depends on them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "Palette images with Transparency")
            with Image.open(io.BytesIO(data)) as image:
                return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:  # its message has an address in memory
        raise ValueError(f"no readable image in {len(data)} bytes: unknown format") from error
    except PILLOW_ERRORS as error:
        raise ValueError(f"no readable image in {len(data)} bytes: {error}") from error


def eval_view(pixels: np.ndarray, config: "ImageConfig", size: int) -> np.ndarray:
    """Evaluation view (size, size, 3): the centre of the resized image."""
    return crop(resize(pixels, config, config.eval_side(size)), size, 0.5, 0.5)


def resize(pixels: np.ndarray, config: "ImageConfig", side: int) -> np.ndarray:
    """Resize the short side to `side` and keep the aspect ratio, or both sides ("squash").

    ValueError if the image is so long and narrow that the result would be a decompression bomb.
    """
    if config.eval_resize == "squash":
        return interpolate(pixels, side, side, config.eval_interpolation)
    scale = side / min(pixels.shape[:2])
    height, width = (round(length * scale) for length in pixels.shape[:2])
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"resized to {width} x {height} pixels, which are more than {MAX_PIXELS:,}"
        )
    return interpolate(pixels, height, width, config.eval_interpolation)


def interpolate(pixels: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    """Resize to (height, width, 3).

    "area" and "linear" (bilinear without antialiasing) are TensorFlow's, which rounds down;
    "bilinear" and "bicubic" are Pillow's, which antialiases and rounds to the nearest.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if method in PILLOW:
        return np.asarray(Image.fromarray(pixels).resize((width, height), PILLOW[method]))
    resized = cv2.resize(pixels.astype(np.float32), (width, height), interpolation=OPENCV[method])
    return resized.astype(np.uint8)


def crop(pixels: np.ndarray, size: int, down: float, right: float) -> np.ndarray:
    """Square crop; `down` and `right` go from 0 (top, left edge) to 1 (bottom, right edge)."""
    height, width = pixels.shape[:2]
    top, left = int((height - size) * down), int((width - size) * right)
    return pixels[top : top + size, left : left + size]
