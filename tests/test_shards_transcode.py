"""One image: what becomes of every kind of file, and why some are refused."""

import gzip
import io
import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
from archives import encoded, jpeg
from archives import synthetic_image as drawn
from PIL import Image, ImageOps

from shards.build.config import TranscodeConfig
from shards.build.transcode import (
    Unusable,
    codecs,
    opened,
    perceptual_hash,
    target_size,
    transcode,
    unpacked,
)

CONFIG = TranscodeConfig(resize_short=32)


def pixels(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((500, 375), 256, None, (341, 256)),
        ((375, 500), 256, None, (256, 341)),
        ((200, 100), 256, None, (200, 100)),  # never enlarged
        ((500, 33), 256, None, (500, 33)),
        ((3000, 500), 256, 512, (512, 85)),
        ((500, 375), 0, None, (500, 375)),
        ((10000, 1), 50, 100, (100, 1)),
    ],
)
def test_sizes(size, short, long, expected):
    assert target_size(*size, TranscodeConfig(resize_short=short, max_long=long)) == expected


def test_result_is_a_plain_jpeg_without_metadata():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = jpeg(1, 96, 64, exif=exif.tobytes(), comment=b"hello", icc_profile=b"x" * 500)
    made = transcode(data, CONFIG)
    image = Image.open(io.BytesIO(made.jpeg))
    assert image.size == (made.stored_width, made.stored_height) == (48, 32)
    assert not set(image.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert image.layer[0][1:3] == (2, 2) and not image.info.get("progressive")  # 4:2:0, baseline


def test_the_same_bytes_give_the_same_bytes():
    assert transcode(jpeg(1), CONFIG) == transcode(jpeg(1), CONFIG)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(3, 96, 64, exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    made = transcode(data, TranscodeConfig(resize_short=0, quality=100))
    assert (made.stored_width, made.stored_height) == upright.size
    assert np.abs(pixels(made.jpeg) - np.asarray(upright).astype(int)).mean() < 3


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (jpeg(5, mode="L"), "L"),
        (jpeg(5, mode="CMYK"), "CMYK"),
        (jpeg(5, progressive=True), "RGB"),
        (encoded(drawn(5), "PNG"), "RGB"),
        (encoded(drawn(5, mode="L"), "PNG"), "L"),
        (encoded(drawn(5).quantize(200), "GIF"), "P"),
        (encoded(drawn(5), "BMP"), "RGB"),
        (encoded(drawn(5), "WEBP", lossless=True), "RGB"),
        (encoded(drawn(5, mode="1"), "PNG"), "1"),
        (gzip.compress(jpeg(5), mtime=0), "RGB"),
    ],
)
def test_every_kind_of_image_becomes_rgb(data, mode):
    made = transcode(unpacked(data), TranscodeConfig(resize_short=0))
    assert made.mode == mode
    wanted = np.asarray(Image.open(io.BytesIO(unpacked(data))).convert("RGB")).astype(int)
    assert np.abs(pixels(made.jpeg) - wanted).mean() < (30 if mode == "1" else 8)


def test_16_bit_values_keep_their_upper_half():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    made = transcode(encoded(Image.fromarray(ramp), "PNG"), TranscodeConfig(resize_short=0))
    assert np.abs(pixels(made.jpeg)[..., 0] - (ramp >> 8)).max() < 8


def test_transparency_becomes_white():
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    made = transcode(encoded(image, "PNG"), CONFIG)
    assert pixels(made.jpeg).min() > 250


@pytest.mark.parametrize("data", [jpeg(7), jpeg(7, mode="RGB", quality=50)])
def test_keep_bytes_keeps_plain_jpegs(data):
    made = transcode(data, TranscodeConfig(keep_bytes=True))
    assert made.jpeg is None and (made.stored_width, made.stored_height) == (96, 64)


@pytest.mark.parametrize(
    "data",
    [
        jpeg(7, mode="L"),
        jpeg(7, mode="CMYK"),
        jpeg(7, progressive=True),
        encoded(drawn(7), "PNG"),
        jpeg(7, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    ],
)
def test_keep_bytes_converts_the_rest_at_its_size(data):
    made = transcode(data, TranscodeConfig(keep_bytes=True))
    assert made.jpeg is not None
    assert sorted((made.stored_width, made.stored_height)) == [64, 96]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "no image in a known format"),
        (jpeg(9)[: len(jpeg(9)) // 2], "damaged JPEG"),
        (jpeg(9)[: len(jpeg(9)) // 2] + b"\xff\xd9", "damaged JPEG"),
        (jpeg(9)[:700] + bytes(900) + jpeg(9)[1600:], "damaged JPEG"),
        (jpeg(9, mode="CMYK")[:-700] + b"\xff\xd9", "damaged JPEG"),
        (jpeg(9)[:20], "header|known format"),
        (encoded(drawn(9), "PNG")[:-900], "cannot be decoded"),
    ],
)
def test_damage_is_reported(data, reason):
    with pytest.raises(Unusable, match=reason):
        transcode(data, CONFIG)


@pytest.mark.parametrize("options", [{}, {"mode": "L"}, {"mode": "CMYK"}, {"subsampling": 0}])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(options, lost):
    data = jpeg(9, 200, 150, **options)
    assert transcode(data[:-lost], CONFIG) == transcode(data, CONFIG)


@pytest.mark.parametrize("options", [{}, {"mode": "L"}, {"mode": "CMYK"}, {"subsampling": 0}])
@pytest.mark.parametrize("lost", [3, 4, 9, 100])
def test_a_jpeg_that_lacks_image_data_is_damaged(options, lost):
    data = jpeg(9, 200, 150, **options)[:-lost]
    for end in (b"", b"\xff", b"\xff\xd9"):
        with pytest.raises(Unusable, match="damaged JPEG"):
            transcode(data + end, CONFIG)


def test_a_jpeg_cut_between_two_scans_is_damaged():
    data = jpeg(9, 200, 150, progressive=True)
    last = data.rindex(b"\xff\xda")
    for cut in (last, data.rindex(b"\xff\xc4", 0, last)):
        with pytest.raises(Unusable, match="damaged JPEG"):
            transcode(data[:cut], CONFIG)


def test_kept_bytes_get_their_end_marker():
    data = jpeg(7)
    assert transcode(data[:-2], TranscodeConfig(keep_bytes=True)).jpeg == data
    assert transcode(data + b"\0\n", TranscodeConfig(keep_bytes=True)).jpeg is None


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    made = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + head, b"IDAT" + zlib.compress(data), b"IEND"):
        made += (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return made


def test_bombs_are_refused_before_they_are_decoded():
    with pytest.raises(Unusable, match="bomb"):
        transcode(png(60000, 60000, 8, 2, bytes(999)), CONFIG)
    with pytest.raises(Unusable, match="bomb: 9460x9460 pixels, max_pixels is 89478485"):
        transcode(png(9460, 9460, 8, 2, bytes(999)), CONFIG)
    with pytest.raises(Unusable, match="bomb: 96x64 pixels, max_pixels is 6000"):
        transcode(jpeg(9), TranscodeConfig(max_pixels=6000))
    with pytest.raises(Unusable, match="unpacks to more"):
        unpacked(gzip.compress(bytes((1 << 28) + 1), 1))


PEAK = """
import sys
from shards.build.config import TranscodeConfig
from shards.build.transcode import transcode
status = lambda: int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
data = open(sys.argv[1], "rb").read()
before = status()
transcode(data, TranscodeConfig())
print((status() - before) * 1024)
"""


@pytest.mark.parametrize(
    ("depth", "colour", "size"), [(8, 6, 4), (16, 6, 8), (8, 4, 2), (16, 0, 2)]
)
def test_a_large_image_takes_less_than_13_bytes_of_memory_a_pixel(tmp_path, depth, colour, size):
    side = 3000
    (tmp_path / "a.png").write_bytes(
        png(side, side, depth, colour, bytes((1 + side * size) * side))
    )
    command = [sys.executable, "-c", PEAK, str(tmp_path / "a.png")]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 4 * side * side < peak < 13 * side * side


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P"])
def test_images_larger_than_a_tile_are_converted_as_a_whole(mode):
    image = drawn(5, 1100, 1030)
    image.putalpha(image.convert("L").transpose(Image.Transpose.ROTATE_180))
    image = image.convert("RGB").quantize(200) if mode == "P" else image.convert(mode)
    wanted = image.convert("RGBA")
    wanted = Image.alpha_composite(Image.new("RGBA", image.size, "white"), wanted).convert("RGB")
    assert np.array_equal(np.asarray(opened(encoded(image, "PNG"))), np.asarray(wanted))


def test_a_side_that_no_jpeg_can_have_is_refused():
    with pytest.raises(Unusable, match="70000x1 pixels, a JPEG has 65500 at most"):
        transcode(encoded(Image.new("L", (70000, 1)), "PNG"), CONFIG)
    assert transcode(encoded(Image.new("L", (70000, 2)), "PNG"), TranscodeConfig(max_long=512)).jpeg


def test_the_codecs_that_decide_the_bytes_are_known_by_their_versions():
    found = codecs()
    assert json.loads(json.dumps(found)) == found
    assert {"Pillow", "libjpeg-turbo of Pillow", "simplejpeg", "NumPy"} <= set(found)
    assert all(version[0].isdigit() for version in found.values())


def test_small_images_are_refused_where_asked():
    with pytest.raises(Unusable, match="20x20 pixels, min_side is 32"):
        transcode(jpeg(9, 20, 20), TranscodeConfig(min_side=32))


def test_perceptual_hash_survives_resizing_and_distinguishes_images():
    hashes = [perceptual_hash(drawn(seed, 300, 200)) for seed in range(40)]
    for seed in range(40):
        small = Image.open(io.BytesIO(jpeg(seed, 150, 100, quality=80)))
        assert bin(perceptual_hash(small) ^ hashes[seed]).count("1") <= 4
    pairs = [(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(bin(a ^ b).count("1") for a, b in pairs) > 4


@pytest.mark.parametrize("colour", ["black", "white", "red"])
def test_flat_images_have_no_perceptual_hash(colour):
    assert perceptual_hash(Image.new("RGB", (100, 80), colour)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quality": 0}, "quality"),
        ({"resize_short": -1}, "resize_short"),
        ({"max_long": 100}, "max_long"),
        ({"min_side": 0}, "min_side"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TranscodeConfig(**settings)
