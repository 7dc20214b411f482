"""Images in C++: decoded, resized and normalised as in Python."""

import ctypes
import json

import cv2
import numpy as np
import PIL
import pytest
import torch
from image_files import chunk, encoded, photo, png

from vit.batch import normalise
from vit.config import ImageConfig
from vit.images import PILLOW, decode, eval_view
from vit.native.build import built

# the same code in each back end
pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)
METHODS = ("area", "linear", "bilinear", "bicubic")
# height and width: odd, a multiple, smaller than the view, tall, wide, a line
SIZES = [(91, 120), (96, 96), (20, 17), (301, 60), (40, 200), (1, 50)]
# pixels of a view come out as they are
RAW = {"images.mean": [0, 0, 0], "images.std": [1 / 255, 1 / 255, 1 / 255]}


class Native:
    """The functions for images of a back end; their errors are ValueErrors.

    A test is skipped if it needs a format that the library was built without.
    """

    def __init__(self, path, folder):
        self.library, self.file = ctypes.CDLL(str(path)), folder / "image"
        self.library.vit_error.restype = ctypes.c_char_p
        self.library.vit_image_pixels.restype = ctypes.POINTER(ctypes.c_uint8)
        self.library.vit_free_image.argtypes = [ctypes.c_void_p]

    def check(self, status):
        if status:
            words = self.library.vit_error().decode()
            if "was built without" in words:
                pytest.skip(words)
            raise ValueError(words)

    def opened(self, data):
        self.file.write_bytes(data)
        image = ctypes.c_void_p()
        self.check(self.library.vit_read_image(bytes(self.file), ctypes.byref(image)))
        return image

    def decode(self, data):
        image, sides = self.opened(data), (ctypes.c_int64(), ctypes.c_int64())
        pixels = self.library.vit_image_pixels(image, *map(ctypes.byref, sides))
        copied = np.ctypeslib.as_array(pixels, (sides[0].value, sides[1].value, 3)).copy()
        self.library.vit_free_image(image)
        return copied

    def view(self, data, config, size):
        """The input of a model: (3, size, size); `config` is settings, or text."""
        text = config if isinstance(config, bytes) else json.dumps(config).encode()
        image, view = self.opened(data), np.empty((3, size, size), np.float32)
        try:
            pointer = view.ctypes.data_as(ctypes.c_void_p)
            self.check(self.library.vit_eval_view(image, text, ctypes.c_int64(size), pointer))
        finally:
            self.library.vit_free_image(image)
        return view


@pytest.fixture(scope="module")
def native(backend, tmp_path_factory):
    return Native(built(backend), tmp_path_factory.mktemp("images"))


def same(native, data):
    """Assert that C++ decodes to the same pixels as Python."""
    np.testing.assert_array_equal(native.decode(data), decode(data))


# ----------------------------------------------------------------------- decoding


@pytest.mark.parametrize("size", [(91, 120), (7, 401), (1, 1)])
def test_jpegs_have_the_pixels_that_python_decodes(native, size):
    for options in (
        *({"quality": 90}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}),
        {"restart_marker_blocks": 3},
    ):
        same(native, encoded(photo(*size), "JPEG", **options))
    same(native, encoded(photo(*size), "JPEG", "L"))
    same(native, encoded(photo(*size), "JPEG", "CMYK", subsampling=0))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pngs_of_every_mode_have_the_pixels_that_python_decodes(native, mode):
    same(native, encoded(photo(31, 45), "PNG", mode))


def test_pngs_of_16_bits_and_few_bits_have_the_pixels_that_python_decodes(native):
    deep = photo(31, 45).astype(np.uint16) * 257 + 3
    for pixels in (deep, deep[..., 0] // 90):
        same(native, cv2.imencode(".png", pixels)[1].tobytes())
    for bits in (1, 2, 4):
        same(native, png(8 // bits, 1, bits, 0, b"\0\x1b"))
    palette = chunk(b"PLTE", bytes(range(9))) + chunk(b"tRNS", b"\0\x80")
    same(native, png(4, 1, 8, 3, bytes([0, 0, 1, 2, 200]), palette))  # 200 is not in it


def test_interlaced_pngs_are_put_together(native):
    pixels, rows = photo(33, 47), b""
    for left, top, right, down in (
        *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
        *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::right])
    data = png(47, 33, 8, 2, rows, interlaced=1)
    np.testing.assert_array_equal(native.decode(data), pixels)


def test_ppms_are_read_with_comments_and_without_any_library(native):
    pixels = photo(5, 7)
    data = b"P6 # made by hand\n7\t5\n# more\n255\n" + pixels.tobytes()
    np.testing.assert_array_equal(native.decode(data), pixels)


def test_stray_bytes_between_the_markers_of_a_jpeg_are_forgiven(native):
    data = encoded(photo(), "JPEG")
    same(native, data[:-2] + b"\0\0\0" + data[-2:])


# ----------------------------------------------------------------------- hostile files


@pytest.mark.parametrize("form", ["JPEG", "PNG", "PPM"])
def test_truncated_and_damaged_files_are_errors_or_what_python_reads(native, form):
    data, draw = encoded(photo(33, 41), form), np.random.default_rng(0)
    damaged = [data[:length] for length in range(0, len(data), 9)]
    for _ in range(200):
        copy = bytearray(data)
        for place in draw.integers(0, draw.choice([40, len(data)]), draw.integers(1, 4)):
            copy[place] = draw.integers(256)
        damaged.append(bytes(copy))
    for each in damaged:
        try:
            pixels = native.decode(each)
        except ValueError as error:
            assert str(error)
        else:
            np.testing.assert_array_equal(pixels, decode(each))
    with pytest.raises(ValueError, match="broken"):
        native.decode(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither JPEG, PNG nor binary PPM"),
        (encoded(photo(), "BMP"), "convert it"),
        (b"P6 60000 60000 255\n", "60000 x 60000 pixels are more than 178956970"),
        (b"P6 99999999999 1 255\n", "broken PPM"),
        (b"P6 0 4 255\n", "empty"),
        (b"P6 1 1 65535\n\0\0\0", "values up to 65535"),
        (png(400_000, 400_000, 8, 2, b"\0"), "more than"),
        (png(0, 4, 8, 2, b"\0"), "broken PNG"),
        (png(2, 900, 8, 2, b"\0" * 70), "broken PNG"),
        (encoded(photo(), "JPEG").replace(b"\0\x5a\0\x78", b"\xff\xdc\xff\xdc"), "more than"),
        (encoded(photo(), "JPEG").replace(b"\0\x5a\0\x78", b"\x1f\0\0\x78"), "broken JPEG"),
    ],
)
def test_a_lying_header_is_an_error_in_words(native, data, words):
    with pytest.raises(ValueError, match=words):
        native.decode(data)


# ----------------------------------------------------------------------- views


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("resize", ["short", "squash"])
def test_views_are_those_of_an_evaluation_in_python(native, method, resize):
    wrong = total = 0
    before_13 = int(PIL.__version__.partition(".")[0]) < 13
    for height, width in SIZES:
        if before_13 and height > width and method in PILLOW:
            continue  # its order of the passes was another
        for size, share in ((48, 0.875), (32, 1.0), (31, 0.6)):
            config = ImageConfig(eval_interpolation=method, eval_resize=resize, crop_pct=share)
            flat = {f"images.{name}": value for name, value in config.flat().items()}
            data = encoded(photo(height, width, seed=size), "PPM")
            got = native.view(data, {**flat, **RAW}, size).transpose(1, 2, 0).round()
            away = np.abs(got - eval_view(decode(data), config, size))
            assert away.max() <= (method == "linear")  # OpenCV without IPP rounds otherwise
            wrong, total = wrong + np.count_nonzero(away), total + away.size
    assert wrong <= total // 500


def test_normalised_values_are_those_of_a_batch_in_python(native):
    config = ImageConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    flat = {f"images.{name}": value for name, value in config.flat().items()}
    data = encoded(photo(), "PPM")
    pixels = torch.from_numpy(eval_view(decode(data), config, 48).copy())
    expected = normalise(pixels[None], config)[0].numpy()
    np.testing.assert_allclose(native.view(data, flat, 48), expected, rtol=0, atol=5e-7)


def test_settings_that_a_config_forbids_are_errors_that_name_them(native):
    for settings in (
        *({"eval_interpolation": "nearest"}, {"eval_resize": 3}, {"crop_pct": 0}),
        *({"mean": [0.5]}, {"std": [1, 0, 1]}, {"std": "half"}),
    ):
        name = f"images.{next(iter(settings))}"
        with pytest.raises(ValueError, match=name):
            native.view(b"P6 1 1 255\n...", {name: next(iter(settings.values()))}, 8)
    with pytest.raises(ValueError, match="more than"):
        native.view(b"P6 1 1 255\n...", {"images.crop_pct": 1e-9}, 8)


@pytest.mark.parametrize("text", ["[" * 70 + "]" * 70, '{"a":' * 100_000, '{"a": 1, "a": 1}'])
def test_json_beyond_the_limits_is_an_error_with_its_place(native, text):
    with pytest.raises(ValueError, match="JSON, byte"):
        native.view(b"P6 1 1 255\n...", text.encode(), 8)


def test_json_is_what_python_takes_for_json(native):
    whole = r'{"a": [1, -2.5e-3, true, null, "\u00e9\ud83d\ude00\n' + 'é😀"], "b": {"c": {}}}'
    draw, taken = np.random.default_rng(0), 0
    for _ in range(400):
        text = bytearray(whole.encode())
        text[draw.integers(len(text))] = draw.choice(list(b'{}[]",:\\u019eE+-. t\x00\x80\xc3\xf5'))
        try:
            native.view(b"P6 1 1 255\n...", bytes(text), 8)
        except ValueError:
            assert not is_object(text), text
        else:
            assert is_object(text), text
            taken += 1
    assert 30 < taken < 300


def is_object(text):
    """Whether a text is UTF-8 of a JSON object that has each key once, and no half characters."""

    def once(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    try:
        value = json.loads(text.decode(), object_pairs_hook=once)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, AssertionError):
        return False
    return isinstance(value, dict)
