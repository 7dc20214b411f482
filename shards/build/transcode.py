"""One image: its original bytes -> a checked baseline RGB JPEG of the requested size.

Only formats that occur in image archives are opened, so that the first bytes of a file cannot
select an exotic decoder. An image that cannot be used raises `Unusable` with the reason.
"""

import gzip
import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import PIL
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError, features

from shards.build.config import TranscodeConfig
from shards.build.phash import perceptual_hash

# Pillow reports some JPEGs as "MPO": several pictures, of which the first is used.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
_MOST_UNPACKED = 1 << 28
_LONGEST_SIDE = 65_500  # of a JPEG that libjpeg writes
_TILE_SIDE = 1024
_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # markers of JPEG
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
    RuntimeError,
    AssertionError,
    Image.DecompressionBombError,
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
    """None if the original bytes are kept as they are."""
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

    A JPEG that lacks only its end marker is completed. Nothing else is raised, whatever the bytes
    are. The perceptual hash, a twentieth of the cost, is computed only if `hashed` is set.
    """
    if not data:
        raise Unusable("empty file")
    image, whole = _opened(data, config)
    format_, mode = image.format or "", image.mode
    turn = _turn(image)
    swapped = turn in _SWAPS
    width, height = image.size[::-1] if swapped else image.size
    if min(width, height) < config.min_side:
        raise Unusable(f"{width}x{height} pixels, min_side is {config.min_side}")
    is_baseline = format_ == "JPEG" and mode == "RGB" and not image.info.get("progressive")
    is_kept = config.keep_bytes and turn is None and is_baseline
    target = (width, height) if config.keep_bytes else target_size(width, height, config)
    if max(target) > _LONGEST_SIDE:
        raise Unusable(f"{width}x{height} pixels, a JPEG has {_LONGEST_SIDE} at most on a side")
    unturned = target[::-1] if swapped else target
    pixels = _decoded(image, whole, unturned)
    del image  # its memory; a large image is in memory once from here
    if pixels.size != unturned:
        pixels = pixels.resize(unturned, Image.Resampling.LANCZOS)
    if turn is not None:
        pixels = pixels.transpose(turn)
    kept = None if whole is data else whole
    jpeg = kept if is_kept else _encoded(pixels, config.quality)
    phash = perceptual_hash(pixels) if hashed else None
    return Transcoded(format_, mode, width, height, phash, jpeg, *target)


def opened(data: bytes) -> Image.Image:
    """The RGB pixels of an image at full size; raises Unusable if it cannot be decoded."""
    image, whole = _opened(data, TranscodeConfig())
    return _decoded(image, whole, image.size)


def codecs() -> dict[str, str]:
    """Versions of the libraries that decide the bytes of an image.

    simplejpeg has a libjpeg-turbo of its own, and does not tell which.
    """
    return {
        "Pillow": PIL.__version__,
        "libjpeg-turbo of Pillow": features.version("libjpeg_turbo") or "another libjpeg",
        "libwebp of Pillow": features.version("webp") or "none",
        "simplejpeg": simplejpeg.__version__,
        "NumPy": np.__version__,
    }


def target_size(width: int, height: int, config: TranscodeConfig) -> tuple[int, int]:
    """Width and height after shrinking: never larger than before, no side below 1."""
    scale = min(1.0, config.resize_short / min(width, height)) if config.resize_short else 1.0
    if config.max_long is not None:
        scale = min(scale, config.max_long / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Damage becomes Unusable; Pillow's warnings about it would fill the logs of a build."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except Unusable:
        raise
    except _DAMAGE as error:
        raise Unusable(f"{what}: {_reason(error)}") from error


def _opened(data: bytes, config: TranscodeConfig) -> tuple[Image.Image, bytes]:
    """The image, not yet decoded, and the bytes that it is read from."""
    with _reading("header"):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if _lacks_end(image, data):
                data += _END
                image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            start = data[:8].hex(" ")
            raise Unusable(f"no image in a known format, first bytes {start}") from error
        except Image.DecompressionBombError as error:
            raise Unusable(f"decompression bomb: {error}") from error
    if image.width * image.height > config.max_pixels:
        size, most = f"{image.width}x{image.height} pixels", config.max_pixels
        raise Unusable(f"decompression bomb: {size}, max_pixels is {most}")
    return image, data


def _lacks_end(image: Image.Image, data: bytes) -> bool:
    """Whether this is a JPEG of a single scan without an end marker.

    If an image has several scans, a file that was cut between two of them looks the same.
    """
    if image.format != "JPEG" or data.endswith(_END) or image.info.get("progressive"):
        return False
    scan = data.rfind(_SCAN)  # image data holds neither marker
    components = data[scan + 4 : scan + 5]
    return data.find(_END, scan) < 0 and components == bytes([len(image.getbands())])


def _reason(error: BaseException) -> str:
    return f"{error}" if str(error) else type(error).__name__


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The rotation or mirroring that the EXIF orientation asks for."""
    if "exif" not in image.info:
        return None
    try:
        with _reading("EXIF"):
            return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Unusable:  # unreadable metadata does not mean damaged pixels
        return None


@_reading("cannot be decoded")
def _decoded(image: Image.Image, data: bytes, target: tuple[int, int]) -> Image.Image:
    """RGB pixels, at least as large as target."""
    if image.format in ("JPEG", "MPO"):
        pixels = _decoded_strictly(image, data, target)
        if pixels is not None:
            return pixels
    image.load()
    return _as_rgb(image)


def _decoded_strictly(
    image: Image.Image, data: bytes, target: tuple[int, int]
) -> Image.Image | None:
    """The pixels of an RGB or grey JPEG; None if only Pillow can decode it, or not even Pillow."""
    is_rgb = image.mode in ("RGB", "L")
    factor = _shrink(image.size, target) if is_rgb else 8  # others are only checked
    least = -(-image.width // factor), -(-image.height // factor)
    space = "RGB" if is_rgb else image.mode
    try:
        # simplejpeg is strict; Pillow ignores the warnings of libjpeg about damaged data.
        pixels = simplejpeg.decode_jpeg(
            data, space, min_width=least[0], min_height=least[1], min_factor=factor
        )
    except ValueError as error:
        if any(sign in str(error).lower() for sign in _DAMAGE_SIGNS):
            raise Unusable(f"damaged JPEG: {_reason(error)}") from error
        return None
    return Image.fromarray(pixels) if is_rgb else None


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
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    result = Image.new("RGB", image.size)
    # By tiles, because the steps of a conversion take up to five times the memory of the image.
    corners = (range(0, side, _TILE_SIDE) for side in image.size)
    for left, top in itertools.product(*corners):
        right, bottom = min(left + _TILE_SIDE, image.width), min(top + _TILE_SIDE, image.height)
        result.paste(_tile_as_rgb(image.crop((left, top, right, bottom))), (left, top))
    return result


def _tile_as_rgb(tile: Image.Image) -> Image.Image:
    if tile.mode.startswith("I"):
        values = np.asarray(tile).astype(np.int64)
        return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if tile.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in tile.info:
        front = tile.convert("RGBA")
        white = Image.new("RGBA", front.size, "white")
        return Image.alpha_composite(white, front).convert("RGB")
    return tile.convert("RGB")


def _encoded(pixels: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    pixels.info.clear()  # so that no metadata is written
    pixels.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", exif=b"")
    return buffer.getvalue()
