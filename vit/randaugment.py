"""RandAugment as in the training of Google's ViTs: sixteen operations on uint8 pixels.

    pixels (H, W, 3) uint8 RGB, magnitude m, draws -> pixels of the same shape

The operations, ranges and oddities are those that big_vision's `pp/archive` (arXiv 1909.13719) has
when it runs under TensorFlow, not those of timm or torchvision: its thresholds and shifts are uint8
numbers that wrap, so Solarize inverts the whole image at magnitudes 10 and 20. Magnitude 10 is the
reference; larger values extrapolate. Magnitude 0 still changes images: Posterize leaves one bit,
Solarize inverts, and Color, Contrast, Brightness and Sharpness keep a tenth of the image. To add an
operation, add a function of (pixels, level, draws) to OPERATIONS.
"""

from collections.abc import Callable
from math import cos, pi, sin

import cv2
import numpy as np

from vit.draws import Draws

GREY = (128, 128, 128)  # fills the pixels that a geometric operation uncovers
LUMA = np.array([[0.2989, 0.587, 0.114]], np.float32)
# a point halfway between two pixels takes the second, as in TensorFlow; OpenCV takes an even one
TIE = np.array([[0, 0, 1e-4], [0, 0, 1e-4]])
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13

Operation = Callable[[np.ndarray, float, Draws], np.ndarray]


def randaugment(pixels: np.ndarray, layers: int, magnitude: float, draws: Draws) -> np.ndarray:
    """Apply `layers` operations, drawn with replacement, one after the other."""
    for _ in range(layers):
        operation = OPERATIONS[NAMES[draws.integer(len(NAMES))]]
        pixels = operation(pixels, magnitude / 10, draws)
    return pixels


def autocontrast(pixels: np.ndarray) -> np.ndarray:
    """Stretch each channel to the whole range, except a channel with a single value."""
    table = np.empty((256, 1, 3), np.uint8)
    for channel, plane in enumerate(cv2.split(pixels)):
        low, high = (int(v) for v in cv2.minMaxLoc(plane)[:2])
        values = np.arange(256, dtype=np.float32)
        if high > low:
            scale = np.float32(255 / (high - low))
            values = values * scale - np.float32(low) * scale
        table[:, 0, channel] = values.clip(0, 255)
    return cv2.LUT(pixels, table)


def equalize(pixels: np.ndarray) -> np.ndarray:
    """Flatten each channel's histogram, as Pillow does."""
    table = np.empty((256, 1, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([pixels], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        values = np.arange(256)
        if step:
            values = np.concatenate([[0], ((counts.cumsum() + step // 2) // step)[:-1]])
        table[:, 0, channel] = values.clip(0, 255)
    return cv2.LUT(pixels, table)


def posterize(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Keep the highest bits, at least one; 8 change nothing, and more wrap to one."""
    shift = min((8 - bits) & 0xFF, 7)  # TensorFlow shifts a uint8 by 7 at most
    return pixels >> shift << shift


def solarize(pixels: np.ndarray, threshold: int) -> np.ndarray:
    """Invert values from the threshold upwards, which wraps at 256: 0 and 256 invert all."""
    values = np.arange(256)
    inverted = np.where(values < threshold & 0xFF, values, 255 - values)
    return cv2.LUT(pixels, inverted.astype(np.uint8))


def solarize_add(pixels: np.ndarray, addition: int) -> np.ndarray:
    """Add to the values below 128."""
    values = np.arange(256)
    table = np.where(values < 128, (values + addition).clip(0, 255), values)
    return cv2.LUT(pixels, table.astype(np.uint8))


def luma(pixels: np.ndarray) -> np.ndarray:
    """Brightness of each pixel, (H, W) uint8, rounded as `tf.image.rgb_to_grayscale` does."""
    brightness = cv2.transform(pixels.astype(np.float32), LUMA)
    return (brightness * np.float32(255.5 / 255)).astype(np.uint8)


def blend(degenerate: np.ndarray, pixels: np.ndarray, factor: float) -> np.ndarray:
    """Interpolate from the degenerate image (factor 0) to the pixels (1) and beyond, clipped."""
    if factor == 1:
        return pixels
    start, mixed = degenerate.astype(np.float32), pixels.astype(np.float32)
    cv2.subtract(mixed, start, dst=mixed)
    cv2.scaleAdd(mixed, factor, start, dst=mixed)
    return mixed.clip(0, 255, out=mixed).astype(np.uint8)


def blend_constant(degenerate: int, pixels: np.ndarray, factor: float) -> np.ndarray:
    """Blend with a constant image, through a table of the 256 results."""
    values = np.arange(256, dtype=np.uint8)[None]
    return cv2.LUT(pixels, blend(np.full_like(values, degenerate), values, factor))


def color(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Change the saturation: blend with the grey image."""
    return blend(cv2.merge([luma(pixels)] * 3), pixels, factor)


def contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Change the contrast: blend with a constant, 196 for 224 x 224 pixels.

    The reference means to take the mean brightness, but divides the sum of a histogram of all
    pixels, which is their number, by its 256 bins.
    """
    height, width = pixels.shape[:2]
    return blend_constant(min(height * width // 256, 255), pixels, factor)


def brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Change the brightness: blend with black."""
    return blend_constant(0, pixels, factor)


def sharpness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Change the sharpness: blend with an image that is smoothed except for its border."""
    smooth = pixels.copy()
    if min(pixels.shape[:2]) > 2:
        smooth[1:-1, 1:-1] = cv2.filter2D(pixels, cv2.CV_32F, SMOOTH)[1:-1, 1:-1]
    return blend(smooth, pixels, factor)


def warp(pixels: np.ndarray, inverse: np.ndarray | list[list[float]]) -> np.ndarray:
    """Affine map by nearest neighbour; `inverse` (2, 3) maps result to source coordinates."""
    height, width = pixels.shape[:2]
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    matrix = np.asarray(inverse, np.float64) + TIE
    return cv2.warpAffine(pixels, matrix, (width, height), flags=flags, borderValue=GREY)


def affine(pixels: np.ndarray, row: int, column: int, coefficient: float) -> np.ndarray:
    """Warp by the identity map with one coefficient replaced."""
    inverse = np.eye(2, 3)
    inverse[row, column] = coefficient
    return warp(pixels, inverse)


def rotate(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate about the image centre; positive degrees turn counter-clockwise."""
    height, width = pixels.shape[:2]
    c, s = cos(degrees * pi / 180), sin(degrees * pi / 180)
    x, y = (width - 1) / 2, (height - 1) / 2
    return warp(pixels, [[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y]])


def cutout(pixels: np.ndarray, half: int, draws: Draws) -> np.ndarray:
    """Grey out a square of side 2 x half around a random pixel, clipped at the image edges."""
    height, width = pixels.shape[:2]
    y, x = draws.integer(height), draws.integer(width)
    pixels = pixels.copy()
    pixels[max(0, y - half) : y + half, max(0, x - half) : x + half] = GREY
    return pixels


# level is magnitude / 10; geometric operations draw their direction
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda pixels, level, draws: autocontrast(pixels),
    "Equalize": lambda pixels, level, draws: equalize(pixels),
    "Invert": lambda pixels, level, draws: 255 - pixels,
    "Rotate": lambda pixels, level, draws: rotate(pixels, draws.sign() * level * 30),
    "Posterize": lambda pixels, level, draws: posterize(pixels, int(level * 4)),
    "Solarize": lambda pixels, level, draws: solarize(pixels, int(level * 256)),
    "Color": lambda pixels, level, draws: color(pixels, level * 1.8 + 0.1),
    "Contrast": lambda pixels, level, draws: contrast(pixels, level * 1.8 + 0.1),
    "Brightness": lambda pixels, level, draws: brightness(pixels, level * 1.8 + 0.1),
    "Sharpness": lambda pixels, level, draws: sharpness(pixels, level * 1.8 + 0.1),
    "ShearX": lambda pixels, level, draws: affine(pixels, 0, 1, draws.sign() * level * 0.3),
    "ShearY": lambda pixels, level, draws: affine(pixels, 1, 0, draws.sign() * level * 0.3),
    "TranslateX": lambda pixels, level, draws: affine(pixels, 0, 2, draws.sign() * level * 100),
    "TranslateY": lambda pixels, level, draws: affine(pixels, 1, 2, draws.sign() * level * 100),
    "Cutout": lambda pixels, level, draws: cutout(pixels, int(level * 40), draws),
    "SolarizeAdd": lambda pixels, level, draws: solarize_add(pixels, int(level * 110)),
}
NAMES = tuple(OPERATIONS)
