"""One image: its original bytes -> a checked baseline RGB JPEG of the requested size.

Only formats that occur in image archives are opened, so that the first bytes of a file cannot
select an exotic decoder. An image that cannot be used raises `Unusable` with the reason.
"""

import gzip
import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from shards.build.config import TranscodeConfig

# Pillow reports some JPEGs as "MPO": several pictures, of which the first is used.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
_MOST_UNPACKED = 1 << 28
_HASH_SIDE, _HASH_BITS = 32, 8
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS = {_TURNS[number] for number in (5, 6, 7, 8)}
_DAMAGE_SIGNS = ("premature end", "bad huffman code")

# What Pillow's decoders are known to raise on damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


class Unusable(ValueError):
    """The file yields no usable image; the message is the reason for the report."""


@dataclass(frozen=True)
class Transcoded:
    """A usable image: its original properties, and the JPEG for the shard."""

    format: str
    mode: str
    width: int
    """In pixels before shrinking, with the EXIF orientation applied."""
    height: int
    phash: int | None
    jpeg: bytes | None
    """None if the original bytes are kept."""
    stored_width: int
    stored_height: int


def unpacked(data: bytes) -> bytes:
    """The content of a file that may be gzip-compressed, as some files of ImageNet-21k are."""
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            inside = file.read(_MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise Unusable(f"gzip: {error}") from error
    if len(inside) > _MOST_UNPACKED:
        raise Unusable(f"gzip: unpacks to more than {_MOST_UNPACKED} bytes")
    return inside


def transcode(data: bytes, config: TranscodeConfig, hashed: bool = False) -> Transcoded:
    """Check, rotate, shrink and encode one image; raises Unusable with the reason if it cannot.

    The perceptual hash, a twentieth of the cost, is computed only if `hashed` is set.
    """
    if not data:
        raise Unusable("empty file")
    image = _opened(data, config)
    format_, mode = image.format or "", image.mode
    turn = _turn(image)
    swapped = turn in _SWAPS
    width, height = image.size[::-1] if swapped else image.size
    if min(width, height) < config.min_side:
        raise Unusable(f"{width}x{height} pixels, min_side is {config.min_side}")
    is_baseline = format_ == "JPEG" and mode == "RGB" and not image.info.get("progressive")
    is_kept = config.keep_bytes and turn is None and is_baseline
    target = (width, height) if config.keep_bytes else target_size(width, height, config)
    unturned = target[::-1] if swapped else target
    pixels = _decoded(image, data, unturned)
    if pixels.size != unturned:
        pixels = pixels.resize(unturned, Image.Resampling.LANCZOS)
    if turn is not None:
        pixels = pixels.transpose(turn)
    jpeg = None if is_kept else _encoded(pixels, config.quality)
    phash = perceptual_hash(pixels) if hashed else None
    return Transcoded(format_, mode, width, height, phash, jpeg, *target)


def opened(data: bytes) -> Image.Image:
    """The RGB pixels of an image at full size; raises Unusable if it cannot be decoded."""
    image = _opened(data, TranscodeConfig())
    return _decoded(image, data, image.size)


def target_size(width: int, height: int, config: TranscodeConfig) -> tuple[int, int]:
    """Width and height after shrinking: never larger than before, no side below 1."""
    scale = min(1.0, config.resize_short / min(width, height)) if config.resize_short else 1.0
    if config.max_long is not None:
        scale = min(scale, config.max_long / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _opened(data: bytes, config: TranscodeConfig) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_pixels is checked below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise Unusable(f"no image in a known format, first bytes {data[:8].hex(' ')}") from error
    except Image.DecompressionBombError as error:
        raise Unusable(f"decompression bomb: {error}") from error
    except _DAMAGE as error:
        raise Unusable(f"header: {_reason(error)}") from error
    if image.width * image.height > config.max_pixels:
        size, most = f"{image.width}x{image.height} pixels", config.max_pixels
        raise Unusable(f"decompression bomb: {size}, max_pixels is {most}")
    return image


def _reason(error: BaseException) -> str:
    return f"{error}" if str(error) else type(error).__name__


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The rotation or mirroring that the EXIF orientation asks for."""
    if "exif" not in image.info:
        return None
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:  # unreadable metadata does not mean damaged pixels
        return None


def _decoded(image: Image.Image, data: bytes, target: tuple[int, int]) -> Image.Image:
    """RGB pixels, at least as large as target."""
    is_jpeg = image.format in ("JPEG", "MPO")
    space = "RGB" if image.mode in ("RGB", "L") else image.mode
    factor = _shrink(image.size, target) if is_jpeg else 1
    least = -(-image.width // factor), -(-image.height // factor)
    try:
        if is_jpeg:
            # simplejpeg is strict; Pillow ignores the warnings of libjpeg about damaged data.
            pixels = simplejpeg.decode_jpeg(
                data, space, min_width=least[0], min_height=least[1], min_factor=factor
            )
            if space == "RGB":
                return Image.fromarray(pixels)
    except ValueError as error:
        if any(sign in str(error).lower() for sign in _DAMAGE_SIGNS):
            raise Unusable(f"damaged JPEG: {_reason(error)}") from error
    try:
        image.load()
        return _as_rgb(image)
    except _DAMAGE as error:
        raise Unusable(f"cannot be decoded: {_reason(error)}") from error


def _shrink(size: tuple[int, int], target: tuple[int, int]) -> int:
    """Factor by which libjpeg may shrink while decoding, the largest that leaves twice the target.

    Twice leaves the last and visible step to the better filter (Pillow's `reducing_gap` of 2).
    """
    ratio = min(side / wanted for side, wanted in zip(size, target, strict=True))
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or ratio >= 2 * factor)


def _as_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: transparent pixels become white, 16-bit values keep their upper byte."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        front = image.convert("RGBA")
        white = Image.new("RGBA", front.size, "white")
        return Image.alpha_composite(white, front).convert("RGB")
    return image.convert("RGB")


def _encoded(pixels: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    pixels.info.clear()  # so that no metadata is written
    pixels.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", exif=b"")
    return buffer.getvalue()


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
