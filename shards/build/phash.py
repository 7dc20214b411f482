"""The perceptual hash, which near-identical images share but for a few bits."""

import numpy as np
from PIL import Image

_HASH_SIDE, _HASH_BITS = 32, 8
_BASIS = np.cos(
    np.outer(np.arange(_HASH_BITS), 2 * np.arange(_HASH_SIDE) + 1) * np.pi / (2 * _HASH_SIDE)
).astype(np.float32)
"""The lowest rows of the DCT-II matrix, (8, 32)."""


def perceptual_hash(pixels: Image.Image) -> int | None:
    """64 bits that survive resizing and re-encoding (pHash); None for images without structure.

    The signs of the 8x8 lowest DCT coefficients of a 32x32 grey version against their median.
    """
    # Halving, squaring or quality 60 change at most 4 of the 63 bits (8 with box filters alone);
    # different images differ in at least 12.
    bilinear = Image.Resampling.BILINEAR
    grey = pixels.convert("L").resize((_HASH_SIDE, _HASH_SIDE), bilinear, reducing_gap=2.0)
    waves = _BASIS @ np.asarray(grey, np.float32) @ _BASIS.T
    waves = waves.ravel()[1:]  # without the mean brightness
    if np.abs(waves).max() < _HASH_SIDE**2 / 4:
        return None  # flat: the bits would be noise, and flat images would look alike
    bits = np.zeros(64, bool)
    bits[:63] = waves > np.partition(waves, 31)[31]  # the median of 63
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
