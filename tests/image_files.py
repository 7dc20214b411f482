"""Image files for tests."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image


def photo(height=90, width=120, seed=0):
    """Smooth pixels that reach black and white, (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(pixels, form="JPEG", mode="RGB", **options):
    """The bytes of a file, written by Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def png(width, height, bits, colours, rows, extra=b"", interlaced=0):
    """A PNG file of rows as they are before compression, which need not be true."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def chunk(kind, data):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
