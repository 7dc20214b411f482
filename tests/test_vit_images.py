"""Decoding, training crops, evaluation views and multi-crop protocols."""

import io
import subprocess
import sys
import typing
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, photo
from PIL import Image

from vit.config import ImageConfig
from vit.crops import crop_views
from vit.draws import Draws
from vit.images import decode, eval_view, interpolate
from vit.registry import CROPS, crop_protocol, num_views, resolve
from vit.train_crops import TRAIN_CROPS, crop_box, train_view

PLAIN = ImageConfig()
# what TensorFlow made of one photo, and where it placed its crops; `source` in the file says how
TENSORFLOW = np.load(Path(__file__).parent / "data" / "tensorflow_crop.npz")


# ----------------------------------------------------------------------- decoding


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_other_formats_are_decoded(form):
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = np.where(photo() > 128, 255, 0).astype(np.uint8)  # few colours, for GIF
    got = decode(encoded(pixels, form, **options))
    np.testing.assert_array_equal(got, pixels)


def test_jpegs_agree_with_pillow_to_a_rounding():
    for options in (dict(quality=90), dict(progressive=True), dict(quality=95, subsampling=0)):
        data = encoded(photo(), **options)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(decode(data) - expected).max() <= 3
        np.testing.assert_array_equal(decode(memoryview(data)), decode(data))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
    if mode == "I;16":
        buffer = io.BytesIO()
        Image.fromarray(photo()[..., 0].astype(np.uint16) * 256).save(buffer, "PNG")
        data = buffer.getvalue()
    else:
        data = encoded(photo(), "JPEG" if mode in ("L", "CMYK") else "PNG", mode)
    pixels = decode(data)
    assert pixels.shape == (90, 120, 3) and pixels.dtype == np.uint8
    if mode in ("L", "CMYK", "RGBA"):
        grey = photo().astype(float) @ [0.299, 0.587, 0.114]
        assert (
            np.abs(pixels.astype(float).mean(2) - (grey if mode == "L" else photo().mean(2))).mean()
            < 6
        )


def test_stray_bytes_between_markers_are_forgiven():
    data = encoded(photo())
    place = data.find(b"\xff\xdb")
    pixels = decode(data[:place] + b"\x00\x00\x00" + data[place:])
    assert np.abs(pixels.astype(int) - decode(data)).max() <= 3


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_inks_may_have_fewer_pixels_than_black(subsampling):
    pixels = decode(encoded(photo(), mode="CMYK", subsampling=subsampling, quality=95))
    assert np.abs(pixels.astype(int) - photo()).mean() < 1


def test_orientation_is_ignored_by_both_decoders():
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("JPEG", "PNG"):
        assert decode(encoded(photo(), form, exif=exif)).shape == (90, 120, 3)


def damaged():
    jpeg, png = encoded(photo()), encoded(photo(), "PNG")
    half = len(jpeg) // 2
    yield "cut JPEG", jpeg[:half]
    yield "cut JPEG with an end", jpeg[:half] + b"\xff\xd9"
    yield "JPEG header", jpeg[:100]
    yield "cut PNG", png[: len(png) // 2]
    yield "PNG with a wrong checksum", png[:60] + bytes([png[60] ^ 1]) + png[61:]
    yield "empty", b""
    yield "text", b"<html>404</html>" * 20
    yield "cut GIF", encoded(photo(), "GIF")[:300]
    yield "cut WEBP", encoded(photo(), "WEBP")[:300]
    place = jpeg.find(b"\xff\xc0")
    yield "giant JPEG", jpeg[: place + 5] + b"\xff\xf0\xff\xf0" + jpeg[place + 9 :]
    head = b"\x00\x00\xff\xff\x00\x00\xff\xff\x08\x02\x00\x00\x00"
    check = zlib.crc32(b"IHDR" + head).to_bytes(4, "big")
    yield "giant PNG", png[:16] + head + check + png[33:]


@pytest.mark.parametrize("name, data", damaged(), ids=lambda v: v if isinstance(v, str) else "")
def test_damaged_and_giant_files_are_refused(name, data):
    with pytest.raises(ValueError, match="broken JPEG|no readable image"):
        decode(data)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP"]), st.data())
def test_any_bytes_decode_or_raise_value_error(noise, form, data):
    whole = bytearray(encoded(photo(20, 24), form))
    place = data.draw(st.integers(0, len(whole)))
    whole[place : place + len(noise)] = noise
    try:
        assert decode(bytes(whole)).shape[2] == 3
    except ValueError:
        pass


# ------------------------------------------------------------------- training views


def boxes(height, width, config, count):
    return np.array([crop_box(height, width, config, Draws(seed)) for seed in range(count)])


@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (224, 224), (60, 900)])
def test_crops_lie_inside_and_keep_area_and_aspect(height, width):
    top, left, h, w = boxes(height, width, PLAIN, 2000).T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    area = h * w / (height * width)
    whole = (h == height) & (w == width)
    assert (area >= 0.05).all() and (area <= 1).all()
    aspect = (w / h)[~whole]
    assert (aspect > 3 / 4 - 0.5 / h.min()).all() and (aspect < 4 / 3 + 0.5 / h.min()).all()


def test_crop_aspect_and_height_are_uniform_as_in_tensorflow():
    height = width = 1000
    top, left, h, w = boxes(height, width, PLAIN, 20_000).T
    # an aspect below 1 leaves every height up to the whole image; count those that are certain
    quantiles = np.quantile(w / h, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, 3 / 4 + np.array([0.1, 0.5, 0.9]) * 7 / 12, atol=0.01)
    low = np.sqrt(0.05e6 / (w / h))
    high = np.minimum(np.sqrt(1e6 / (w / h)), np.minimum(1000, 1000 / (w / h)))
    share = (h - low) / (high - low)
    np.testing.assert_allclose(np.quantile(share, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.015)
    place = top[h < 900] / (height - h[h < 900])
    np.testing.assert_allclose(np.quantile(place, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.015)
    # the mean area that follows, by integration over the aspect
    a = np.linspace(3 / 4, 4 / 3, 1001)
    low, high = np.sqrt(0.05 / a), np.minimum(np.sqrt(1 / a), np.minimum(1, 1 / a))
    expected = (a * (low**2 + low * high + high**2) / 3).mean()
    assert (h * w).mean() / 1e6 == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("shape", ["375x500", "500x333", "60x900", "224x224"])
def test_crops_are_distributed_as_those_of_tensorflow(shape):
    height, width = map(int, shape.split("x"))
    drawn = boxes(height, width, ImageConfig(crop_aspect=(0.75, 1.33)), 10_000).T
    columns = dict(zip(("top", "left", "height", "width"), drawn, strict=True))
    columns["area"] = columns["height"] * columns["width"]
    for name, values in columns.items():
        edges = TENSORFLOW[f"edges/{shape}/{name}"]
        shares = np.searchsorted(np.sort(values), edges, side="right") / len(values)
        difference = np.abs(shares - TENSORFLOW[f"shares/{shape}/{name}"]).max()
        assert difference < 0.025, name  # 0.02 is a chance of one in a thousand


def test_a_crop_that_is_smaller_never_touches_the_last_row_as_in_tensorflow():
    top, left, h, w = boxes(60, 900, PLAIN, 3000).T
    assert (top + h)[h < 60].max() == 59 and (top[h < 60] == 0).any()


@pytest.mark.parametrize("key", [key for key in TENSORFLOW if key[:4] in ("bili", "area")])
def test_resizing_makes_the_pixels_of_tensorflow(key):
    method, height, width = key.split("/")
    method = "linear" if method == "bilinear" else method
    out = interpolate(TENSORFLOW["input"], int(height), int(width), method).astype(int)
    larger = int(height) > len(TENSORFLOW["input"])
    difference = np.abs((out[::3, 1::4] if larger else out) - TENSORFLOW[key])
    squash = ImageConfig(eval_resize="squash", crop_pct=1.0, eval_interpolation=method)
    if height == width:  # vision_transformer's evaluation
        np.testing.assert_array_equal(eval_view(TENSORFLOW["input"], squash, int(height)), out)
    # where its area enlarges, TensorFlow makes 99.99999 of 100, and rounds it down
    assert difference.max() <= 1
    assert (difference > 0).mean() < (0.4 if larger and method == "area" else 0.01)


def test_half_of_the_views_are_mirrored():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    config = ImageConfig(crop_area=(1, 1), crop_aspect=(1, 1))
    views = [train_view(pixels, config, 32, seed) for seed in range(400)]
    mirrored = sum(int(view[0, 0, 0] == 255) for view in views)
    assert 160 < mirrored < 240
    fixed = ImageConfig(crop_area=(1, 1), crop_aspect=(1, 1), flip=False)
    assert not any(train_view(pixels, fixed, 32, seed)[0, 0, 0] for seed in range(50))


def test_the_whole_image_is_resized_bilinearly_without_antialiasing():
    pixels = photo(96, 96)
    config = ImageConfig(crop_area=(1, 1), crop_aspect=(1, 1), flip=False)
    view = train_view(pixels, config, 32, 0).astype(float)
    # a third of the size: the sampling points fall on pixel centres, with no averaging
    np.testing.assert_array_equal(view, pixels[1::3, 1::3])


def test_every_training_crop_of_the_settings_is_in_the_table():
    assert {*typing.get_args(ImageConfig.__annotations__["train_crop"])} == {*TRAIN_CROPS}


@pytest.mark.parametrize("height, width", [(300, 450), (450, 300), (20, 31), (32, 32)])
def test_a_simple_crop_is_a_square_of_the_short_side_and_4_reflected_pixels(height, width):
    pixels, config = photo(height, width), ImageConfig(train_crop="simple", flip=False)
    short = min(height, width)
    size = (64 * width // short, 64 * height // short)
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    padded = np.pad(resized, ((4, 4), (4, 4), (0, 0)), "reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (64, 64, 3))[:, :, 0]
    places = set()
    for seed in range(200):
        view = train_view(pixels, config, 64, seed)
        likely = np.argwhere((windows[:, :, 0, 0] == view[0, 0]).all(-1)).tolist()
        places |= {(y, x) for y, x in likely if (windows[y, x] == view).all()}
    rows, columns = map(set, zip(*places, strict=True))
    assert len(places) > 50 and (columns if width == short else rows) == set(range(9))


def test_a_squashed_view_is_the_whole_image():
    pixels, config = photo(300, 450), ImageConfig(train_crop="squash", flip=False)
    expected = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(train_view(pixels, config, 64, 0), np.asarray(expected))


STRONG = ImageConfig(randaugment_layers=2, randaugment_magnitude=15)
PROGRAM = """
import sys, zlib, numpy as np
sys.path.insert(0, {root!r})
from vit.train_crops import train_view
from vit.config import ImageConfig
pixels = (np.arange(90 * 120 * 3) * 7919 % 251).astype(np.uint8).reshape(90, 120, 3)
config = ImageConfig(randaugment_layers=2, randaugment_magnitude=15)
views = [train_view(pixels, config, 224, seed) for seed in range(40)]
print(zlib.crc32(np.stack(views).tobytes()), "torch" in sys.modules)
"""


def test_a_seed_gives_the_same_pixels_in_another_process_without_torch():
    pixels = (np.arange(90 * 120 * 3) * 7919 % 251).astype(np.uint8).reshape(90, 120, 3)
    views = [train_view(pixels, STRONG, 224, seed) for seed in range(40)]
    here = zlib.crc32(np.stack(views).tobytes())
    root = __file__.rpartition("/tests/")[0]
    program = PROGRAM.format(root=root)
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == [str(here), "False"]
    assert len({view.tobytes() for view in views}) > 37  # some are all grey


def test_views_do_not_change_their_input():
    pixels = photo()
    before = pixels.copy()
    for seed in range(100):
        train_view(pixels, STRONG, 48, seed)
    crop_views(pixels, PLAIN, 48, "ten")
    np.testing.assert_array_equal(pixels, before)


def test_draws_are_the_published_generator_and_even():
    draws = Draws(0)
    draws.state = 1234567  # the published test values of SplitMix64 start from this state
    assert [draws.bits() for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    values = np.array([Draws(seed).uniform() for seed in range(-5000, 5000)])
    assert abs(values.mean() - 0.5) < 0.01 and 0 <= values.min() and values.max() < 1
    counts = np.bincount([Draws(seed).integer(16) for seed in range(16_000)], minlength=16)
    assert counts.min() > 850 and counts.max() < 1150
    assert {Draws(seed).sign() for seed in range(20)} == {-1, 1}


# ------------------------------------------------------------------ evaluation views


def test_evaluation_takes_the_centre_of_the_resized_image():
    pixels = photo(300, 400)
    view = eval_view(pixels, PLAIN, 224)
    resized = interpolate(pixels, 256, 341, "area")
    np.testing.assert_array_equal(view, resized[16:240, 58:282])
    timm = ImageConfig(crop_pct=0.9, eval_interpolation="bicubic")
    short = Image.fromarray(pixels).resize((331, 248), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(eval_view(pixels, timm, 224), np.asarray(short)[12:236, 53:277])
    squash = ImageConfig(crop_pct=1.0, eval_resize="squash")
    expected = interpolate(pixels, 224, 224, "area")
    np.testing.assert_array_equal(eval_view(pixels, squash, 224), expected)


@pytest.mark.parametrize("height, width", [(300, 400), (400, 300), (40, 31), (500, 20), (224, 224)])
@pytest.mark.parametrize(
    "protocol, count",
    [
        ("center", 1),
        ("three", 3),
        ("five", 5),
        ("ten", 10),
        ("five-torchvision", 5),
        ("ten-torchvision", 10),
        ("inception-144", 144),
        ("random-7", 7),
    ],
)
def test_protocols_make_their_number_of_views(height, width, protocol, count):
    views = crop_views(photo(height, width), PLAIN, 32, protocol)
    assert views.shape == (count, 32, 32, 3) and views.dtype == np.uint8
    assert num_views(protocol) == count


def test_ten_are_alexnets_corners_and_centre_of_the_central_square_and_their_mirrors():
    pixels = photo(256, 300)
    views = crop_views(pixels, PLAIN, 224, "ten")
    central = pixels[:, 22:278]
    np.testing.assert_array_equal(views[0], central[:224, :224])
    np.testing.assert_array_equal(views[1], central[:224, -224:])
    np.testing.assert_array_equal(views[2], central[-224:, :224])
    np.testing.assert_array_equal(views[3], central[-224:, -224:])
    np.testing.assert_array_equal(views[4], central[16:240, 16:240])
    np.testing.assert_array_equal(views[5:], views[:5, :, ::-1])
    np.testing.assert_array_equal(views[:5], crop_views(pixels, PLAIN, 224, "five"))


@pytest.mark.parametrize("height, width", [(256, 301), (303, 256), (256, 256)])
def test_torchvisions_ten_are_those_of_its_source(height, width):
    pixels = photo(height, width)
    # torchvision/transforms/functional.py: center_crop, five_crop, ten_crop
    top, left = int(round((height - 224) / 2.0)), int(round((width - 224) / 2.0))

    def five_crop(image):
        return [
            *(image[0:224, 0:224], image[0:224, width - 224 : width]),
            *(image[height - 224 : height, 0:224], image[height - 224 :, width - 224 :]),
            image[top : top + 224, left : left + 224],
        ]

    ten = np.stack(five_crop(pixels) + five_crop(pixels[:, ::-1]))
    np.testing.assert_array_equal(crop_views(pixels, PLAIN, 224, "ten-torchvision"), ten)
    np.testing.assert_array_equal(crop_views(pixels, PLAIN, 224, "five-torchvision"), ten[:5])


@pytest.mark.parametrize("resized", ["short", "squash"])
@pytest.mark.parametrize("height, width", [(375, 500), (500, 375), (400, 400)])
@pytest.mark.parametrize("protocol", ["ten", "ten-torchvision"])
def test_corners_have_room_where_the_evaluation_crop_leaves_none(height, width, protocol, resized):
    whole = ImageConfig(crop_pct=1.0, eval_resize=resized)
    pixels = photo(height, width)
    views = crop_views(pixels, whole, 384, protocol)
    assert len({view.tobytes() for view in views}) == 10
    # 384 * 256 / 224 = 438.9
    scale = 438 / min(height, width)
    sides = (438, 438) if resized == "squash" else (round(height * scale), round(width * scale))
    image = interpolate(pixels, *sides, "area")
    top, left = ((side - 438) // 2 if protocol == "ten" else 0 for side in sides)
    np.testing.assert_array_equal(views[0], image[top : top + 384, left : left + 384])
    bottom, right = sides[0] - top, sides[1] - left
    np.testing.assert_array_equal(views[3], image[bottom - 384 : bottom, right - 384 : right])


def test_the_resized_side_of_corners_is_the_evaluations_or_larger():
    sides = {pct: ImageConfig(crop_pct=pct).corner_side(224) for pct in (0.7, 0.875, 0.9, 1.0)}
    assert sides == {0.7: 320, 0.875: 256, 0.9: 256, 1.0: 256}
    assert ImageConfig(crop_pct=384 / 448).corner_side(384) == 448  # has room
    said = {name: resolve(row.sides)(ImageConfig(), 224) for name, row in CROPS.items()}
    assert said["three"] == (224,) and said["inception-144"] == (256, 288, 320, 352)
    assert {said[name] for name in ("center", "five", "ten", "ten-torchvision")} == {(256,)}
    assert resolve(crop_protocol("random-3").sides)(ImageConfig(), 224) == ()


@pytest.mark.parametrize("turn", [False, True])
def test_three_views_run_along_the_long_side(turn):
    pixels = photo(64, 100)
    pixels = pixels.transpose(1, 0, 2).copy() if turn else pixels
    views = crop_views(pixels, PLAIN, 64, "three")
    for view, start in zip(views, (0, 18, 36), strict=True):
        part = pixels[start : start + 64] if turn else pixels[:, start : start + 64]
        np.testing.assert_array_equal(view, part)


def test_inception_views_are_googlenets():
    pixels = photo(256, 300)
    views = crop_views(pixels, PLAIN, 224, "inception-144")
    left = pixels[:, :256]  # the smallest scale's left square
    np.testing.assert_array_equal(views[0], left[:224, :224])
    np.testing.assert_array_equal(views[4], left[16:240, 16:240])
    np.testing.assert_array_equal(views[5], interpolate(left, 224, 224, "area"))
    np.testing.assert_array_equal(views[12], pixels[:224, -256:][:, :224])
    np.testing.assert_array_equal(views[72:], views[:72, :, ::-1])


def test_random_views_follow_their_seed():
    pixels = photo()
    first, again = (crop_views(pixels, PLAIN, 32, "random-5", seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (crop_views(pixels, PLAIN, 32, "random-5", seed=4) != first).any()


def test_squares_along_the_long_side_need_one():
    squash = ImageConfig(eval_resize="squash")
    for protocol in ("three", "inception-144"):
        with pytest.raises(ValueError, match="set --images.eval-resize short"):
            crop_views(photo(), squash, 32, protocol)
    assert crop_views(photo(), squash, 32, "ten").shape == (10, 32, 32, 3)


@pytest.mark.parametrize("protocol", ["twelve", "random-0", "random-", "random-x", "", "random"])
def test_unknown_protocols_are_refused(protocol):
    with pytest.raises(
        ValueError, match="known: center, three, five, ten, five-torchvision, ten-torchvision"
    ):
        crop_views(photo(), PLAIN, 32, protocol)


@pytest.mark.parametrize(
    "settings, word",
    [
        (dict(crop_area=(0.0, 1.0)), "crop_area"),
        (dict(crop_area=(0.5, 0.1)), "crop_area"),
        (dict(crop_aspect=(2.0, 1.0)), "crop_aspect"),
        (dict(cutout=1.5), "cutout"),
        (dict(color_jitter=-0.1), "color_jitter"),
        (dict(random_erasing=1.1), "random_erasing"),
        (dict(randaugment_layers=-1), "randaugment_layers"),
        (dict(randaugment_magnitude=31), "randaugment_magnitude"),
        (dict(crop_pct=0.0), "crop_pct"),
        (dict(std=(0.5, 0.0, 0.5)), "std"),
    ],
)
def test_wrong_settings_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        ImageConfig(**settings)
