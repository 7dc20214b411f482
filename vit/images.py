"""From the bytes of an image file to the square views for training and evaluation.

    bytes -> decode -> pixels (H, W, 3) -> train_view, eval_view (S, S, 3)

All pixels are uint8 RGB. `vit/augment.py` augments a training view, `vit/crops.py` makes several
views of one image, and `vit/batch.py` does the preprocessing on the device. A training view is a
pure function of (pixels, config, size, seed). To add a training crop, add a function to TRAIN_CROPS
and its name to `ImageConfig.train_crop`. This module does not import PyTorch, because decoding
processes do not need it. EXIF orientation is ignored, as in TensorFlow's decoder, which the
reference used.
"""

import io
import warnings
from collections.abc import Callable
from struct import error as StructError

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from vit.augment import AUGMENTATIONS
from vit.config import ImageConfig
from vit.draws import Draws

MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs, for every decoder
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
OPENCV = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR}
PADDING = 4  # reflected pixels on each side of a simple crop

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
    """Training view (size, size, 3): crop and augmentations, drawn from the seed."""
    draws = Draws(seed)
    view = train_crop(pixels, config, size, draws)
    for augmentation in AUGMENTATIONS:
        view = augmentation(view, config, draws)
    return view


def eval_view(pixels: np.ndarray, config: ImageConfig, size: int) -> np.ndarray:
    """Evaluation view (size, size, 3): the centre of the resized image."""
    return crop(resize(pixels, config, config.eval_side(size)), size, 0.5, 0.5)


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


def resize(pixels: np.ndarray, config: ImageConfig, side: int) -> np.ndarray:
    """Resize the short side to `side` and keep the aspect ratio, or both sides ("squash")."""
    if config.eval_resize == "squash":
        return interpolate(pixels, side, side, config.eval_interpolation)
    scale = side / min(pixels.shape[:2])
    height, width = (round(length * scale) for length in pixels.shape[:2])
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
