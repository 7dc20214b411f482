"""From the bytes of an image file to the square views that a model is trained and judged on.

    bytes -> decode -> pixels (H, W, 3) -> train_view, eval_view (S, S, 3)

All uint8 RGB; many views of one image are in `vit/crops.py`, and what follows on the device in
`vit/batch.py`. Training views are a pure function of
(pixels, config, size, seed). No PyTorch here: the decoding processes must not pay for its import.
EXIF orientation is ignored, as by TensorFlow's decoder that the reference used.
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

MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs, here for every decoder
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

cv2.setNumThreads(1)  # decoding runs in as many processes as there are cores


def decode(data: bytes | memoryview) -> np.ndarray:
    """Pixels (H, W, 3) uint8 RGB of a JPEG, PNG, WEBP, GIF (first frame), BMP or TIFF file.

    Broken or cut-off files raise ValueError: half an image is no sample. The one fault that is
    forgiven is stray bytes between the markers of a JPEG, which some of ImageNet's files have.
    """
    if simplejpeg.is_jpeg(data):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if height * width > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
            if colours not in ("CMYK", "YCCK"):  # those need Adobe's inversion, left to Pillow
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


# what Pillow's readers raise on hostile or cut-off bytes
PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    StructError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def train_view(pixels: np.ndarray, config: ImageConfig, size: int, seed: int) -> np.ndarray:
    """One training view (size, size, 3): inception crop, flip, RandAugment, drawn from seed."""
    draws = Draws(seed)
    view = random_crop(pixels, config, size, draws)
    if config.flip and draws.integer(2):
        view = cv2.flip(view, 1)
    return randaugment(view, config.randaugment_layers, config.randaugment_magnitude, draws)


def eval_view(pixels: np.ndarray, config: ImageConfig, size: int) -> np.ndarray:
    """The evaluation view (size, size, 3): resize, then the centre."""
    return crop(resize(pixels, config, int(size / config.crop_pct + 1e-6)), size, 0.5, 0.5)


def random_crop(pixels: np.ndarray, config: ImageConfig, size: int, draws: Draws) -> np.ndarray:
    """An inception crop, resized to (size, size, 3) bilinearly without antialiasing."""
    top, left, height, width = crop_box(*pixels.shape[:2], config, draws)
    part = pixels[top : top + height, left : left + width]
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR)


def crop_box(
    height: int, width: int, config: ImageConfig, draws: Draws
) -> tuple[int, int, int, int]:
    """Top, left, height and width of an inception crop; the whole image where none fits.

    Follows `tf.image.sample_distorted_bounding_box`: the aspect is uniform, and then the height is
    uniform over those that keep the area in range (torchvision and timm draw the area uniformly,
    which gives larger crops), and the place is uniform.
    """
    low, high = (share * height * width for share in config.crop_area)
    for _ in range(100):
        aspect = draws.uniform(*config.crop_aspect)
        largest = min(round((high / aspect) ** 0.5), int((width + 0.5) / aspect), height)
        smallest = min(round((low / aspect) ** 0.5), largest)
        h = smallest + draws.integer(largest - smallest + 1)
        if h * round(h * aspect) < low:  # rounding may leave the range by a row
            h += 1
        elif h * round(h * aspect) > high:
            h -= 1
        w = round(h * aspect)
        if 0 < h <= height and 0 < w <= width and low <= h * w <= high:
            return draws.integer(height - h + 1), draws.integer(width - w + 1), h, w
    return 0, 0, height, width


def resize(pixels: np.ndarray, config: ImageConfig, side: int) -> np.ndarray:
    """Bring the short side to `side`, keeping the aspect; or both ("squash")."""
    height, width = pixels.shape[:2]
    if config.eval_resize == "squash":
        return interpolate(pixels, side, side, config)
    scale = side / min(height, width)
    return interpolate(pixels, round(height * scale), round(width * scale), config)


def interpolate(pixels: np.ndarray, height: int, width: int, config: ImageConfig) -> np.ndarray:
    """Resize to (height, width, 3) by the evaluation's interpolation."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if config.eval_interpolation == "area":
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    method = PILLOW[config.eval_interpolation]
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))


def crop(pixels: np.ndarray, size: int, down: float, right: float) -> np.ndarray:
    """The (size, size, 3) part that lies `down` and `right` of the way: 0 edge, 1 other edge."""
    height, width = pixels.shape[:2]
    top, left = int((height - size) * down), int((width - size) * right)
    return pixels[top : top + size, left : left + size]
